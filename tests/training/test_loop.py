"""The loop: what an update is, and when a run ends."""

import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import lmloop.run
from lmloop.preset.reading import load_preset
from lmloop.tokens.batch import Batch
from lmloop.trained import load_trained
from lmloop.training.evaluate import evaluate, held_out
from lmloop.training.state import Progress
from tests.tokens.sources import MemorySource
from tests.torture.harness import prepare, tiny_preset
from tests.training.trainers import Bench, Steps, random_batch, small_model, weights_of

# ---- length 1: the bigram objective ----


def markov_text(characters: int, seed: int) -> str:
    """A chain of four symbols whose next one depends on the last."""
    chance = random.Random(seed)
    following = {"a": "abbbb", "b": "cccda", "c": "aadbc", "d": "dddda"}
    text = "a"
    while len(text) < characters:
        text += chance.choice(following[text[-1]])
    return text


def conditional_entropy(lines: list[list[str]]) -> float:
    """H(x_{t+1} | x_t) in nats, counted over all pairs of neighbours."""
    pairs = Counter(pair for line in lines for pair in itertools.pairwise(line))
    firsts = Counter(first for pair, count in pairs.items() for first in [pair[0]] * count)
    total = sum(pairs.values())
    return -sum(count / total * math.log(count / firsts[first]) for (first, _), count in pairs.items())


@pytest.mark.parametrize("architecture", ["decoder", "gpt2"])
def test_rows_of_one_token_reach_the_counted_entropy_of_bigrams(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [markov_text(60 + 10 * number, seed=number) for number in range(20)]
    (tmp_path / "corpus").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "corpus" / f"{number:02}.txt").write_text(text)
    preset = tiny_preset(
        model={"architecture": architecture, "hidden_size": 32, "num_layers": 1, "seq_length": 16, "dropout": 0.0},
        data={"split": {"validation": 0.0}, "shuffle": False},
        train={
            "sequence_schedule": [1],
            "max_steps": 400,
            "accumulation_steps": 1,
            "per_gpu_batch_size": 32,
            "learning_rate": 0.01,
            "min_lr_fraction": 0.0,
            "weight_decay": 0.0,
            "sample_every_steps": 0,
            "log_every_steps": 50,
            "save_every_steps": None,
        },
    )
    monkeypatch.chdir(tmp_path)
    answer, status = lmloop.run.train(load_preset(prepare(tmp_path, preset)))
    assert (status, answer["status"]) == (0, "finished")
    entropy = conditional_entropy([["<start>", *text, "<end>"] for text in texts])
    trained = load_trained(Path("run"), "newest")
    pairs = held_out([MemorySource("all", texts)], trained.tokenizer, length=1, rows=512, max_tokens=None)
    result = evaluate(trained.model, pairs, torch.device("cpu"), autocast=False)
    assert result is not None
    assert result.tokens == sum(len(text) + 1 for text in texts)
    # No model of one token can do better than the counted figure on the text that was counted.
    assert entropy * 0.9999 <= result.cross_entropy <= 1.02 * entropy


# ---- an update ----


def plain_loss(model: Any, batches: list[Batch]) -> torch.Tensor:
    """Mean loss of all targets with a weight, written out with whole logits."""
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for batch in batches:
        logits_BTV = model.head(model.hidden(batch.tokens_BT, batch.segments_BT))
        nll_N = F.cross_entropy(logits_BTV.flatten(0, 1), batch.targets_BT.flatten(), reduction="none")
        total = total + (nll_N * batch.weights_BT.flatten().double()).sum()
        count += float(batch.weights_BT.sum())
    return total / count


def joined(batches: list[Batch]) -> Batch:
    return Batch(
        tokens_BT=torch.cat([b.tokens_BT for b in batches]),
        targets_BT=torch.cat([b.targets_BT for b in batches]),
        weights_BT=torch.cat([b.weights_BT for b in batches]),
        segments_BT=None,
        source_B=torch.cat([b.source_B for b in batches]),
        documents_B=tuple(name for b in batches for name in b.documents_B),
    )


UNEQUAL = [
    random_batch(3, 4, 1, trained=1.0),
    random_batch(3, 4, 2, trained=0.15),
    random_batch(1, 4, 3, trained=0.5),
    random_batch(2, 4, 4, trained=0.0),
]


def bench_of_plain_descent(folder: Path, **train: Any) -> Bench:
    """An update that is minus the gradient, in fp64."""
    model = small_model().double()
    return Bench(folder, model=model, own_optimizer=torch.optim.SGD(model.parameters(), lr=1.0), max_grad_norm=0.0, **train)


def test_micro_batches_with_unequal_masks_make_the_update_of_one_batch(tmp_path: Path) -> None:
    assert len({float(batch.weights_BT.mean()) for batch in UNEQUAL}) == 4
    reference = small_model().double()
    loss = plain_loss(reference, UNEQUAL)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(reference.parameters()))])
    updates = []
    for name, batches in (("many", UNEQUAL), ("one", [joined(UNEQUAL)]), ("other order", UNEQUAL[::-1])):
        (tmp_path / name).mkdir()
        bench = bench_of_plain_descent(tmp_path / name)
        before = weights_of(bench.model)
        assert bench.update(batches)
        updates.append(before - weights_of(bench.model))
        assert bench.progress.tokens == sum(int(batch.weights_BT.sum()) for batch in UNEQUAL)
        assert bench.progress.last_step["loss"] == pytest.approx(loss.item(), rel=1e-6)
        assert bench.progress.last_step["grad_norm"] == pytest.approx(float(expected.norm()), rel=1e-6)
    for update in updates:
        torch.testing.assert_close(update, expected, rtol=1e-10, atol=1e-13)
    assert float(expected.norm()) > 0.01


def test_a_long_gradient_is_shortened_and_its_own_length_reported(tmp_path: Path) -> None:
    (tmp_path / "free").mkdir()
    free = bench_of_plain_descent(tmp_path / "free")
    before = weights_of(free.model)
    free.update(UNEQUAL)
    whole = before - weights_of(free.model)
    for share, kept in ((0.25, 0.25), (4.0, 1.0)):
        folder = tmp_path / str(share)
        folder.mkdir()
        model = small_model().double()
        bench = Bench(
            folder,
            model=model,
            own_optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
            max_grad_norm=share * float(whole.norm()),
        )
        bench.update(UNEQUAL)
        torch.testing.assert_close(before - weights_of(model), kept * whole, rtol=1e-5, atol=1e-9)
        assert bench.progress.last_step["grad_norm"] == pytest.approx(float(whole.norm()), rel=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_group_gets_its_peak_times_the_schedule(kind: str, tmp_path: Path) -> None:
    bench = Bench(
        tmp_path,
        optimizer=kind,
        max_steps=20,
        warmup_steps=4,
        min_lr_fraction=0.1,
        learning_rate=0.02,
        muon_learning_rate=0.5,
        progress=Progress(rate_scale=0.5),
    )
    rates: list[list[float]] = []
    inner = bench.optimizer.step

    def step(*args: Any) -> Any:
        rates.append([group["lr"] for group in bench.optimizer.param_groups])
        return inner(*args)

    bench.optimizer.step = step  # type: ignore[method-assign]
    assert bench.trainer.run().status == "finished"
    peaks = [group["peak_lr"] for group in bench.optimizer.param_groups]
    assert set(peaks) == ({0.02} if kind == "adamw" else {0.02, 0.5})
    for number, made in enumerate(rates):
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (number / 20 - 0.2) / 0.8))
        factor = (number + 1) / 4 if number < 4 else cosine
        assert made == pytest.approx([0.5 * factor * peak for peak in peaks])
    assert len(rates) == 20
    assert [line["lr"] for line in bench.lines()] == pytest.approx([made[0] for made in rates])


@pytest.mark.parametrize("schedule", [[1, 4, 16, 32], {"start": 4, "end": 32, "until": 0.8, "multiple_of": 4}])
def test_tokens_of_a_step_stay_the_same_whatever_the_length(
    schedule: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"sequence_schedule": schedule, "log_every_steps": 1, "sample_every_steps": 0, "save_every_steps": None}
    preset = tiny_preset(data={"split": {"validation": 0.0}}, train=train)
    monkeypatch.chdir(tmp_path)
    lmloop.run.train(load_preset(prepare(tmp_path, preset)))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    totals = [0, *(line["tokens"] for line in lines)]
    lengths = [line["seq_len"] for line in lines]
    assert lengths == sorted(lengths)
    assert lengths[-1] == 32
    assert len(set(lengths)) >= 4
    for (before, after), length in zip(itertools.pairwise(totals), lengths, strict=True):
        # Two micro-batches of 128 tokens: as many whole rows as fit; the corpus ends in the middle of no row but its last.
        assert after - before == pytest.approx(2 * (128 // length) * length, abs=2 * length if length > 1 else 0)
        assert 256 - 2 * length < after - before <= 256


# ---- when a run ends, and what it keeps ----


def test_the_best_model_is_kept_and_a_run_that_gets_no_better_stops(tmp_path: Path) -> None:
    kept: dict[int, torch.Tensor] = {}
    bench = Bench(
        tmp_path, losses=[3.0, 2.0, 2.5, 1.5, 1.6, 1.5, 9.0], max_steps=1_000, eval_every_steps=2, early_stopping_evals=2
    )
    inner = bench.boundary.evaluator
    assert inner is not None

    def evaluator(stop: Any) -> Any:
        kept[bench.progress.step] = weights_of(bench.model)
        return inner(stop)

    bench.boundary.evaluator = evaluator
    outcome = bench.trainer.run()
    assert outcome.status == "finished"
    assert outcome.reason == "no better validation loss in 2 evaluations"
    assert bench.evaluated == [2, 4, 6, 8, 10, 12]  # an equal loss is no better one
    assert (bench.progress.best_step, bench.progress.best_val_loss) == (8, 1.5)
    best, newest = bench.store.load("best"), bench.store.load("newest")
    assert best is not None
    assert newest is not None
    assert best.manifest.step == 8
    assert newest.manifest.step == 12
    for loaded in (best, newest):
        bench.model.load_state_dict(loaded.state["model"])
        assert torch.equal(weights_of(bench.model), kept[loaded.manifest.step])
    assert best.state["progress"]["best_val_loss"] == 1.5
    assert newest.state["progress"]["stopped_early"]
    lines = bench.lines()
    assert [line["step"] for line in lines if "val_loss" in line] == bench.evaluated
    assert [line["val_loss"] for line in lines if "val_loss" in line] == pytest.approx([3.0, 2.0, 2.5, 1.5, 1.6, 1.5])


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    bench = Bench(tmp_path, losses=[math.nan, 2.0, math.inf], max_steps=6, eval_every_steps=2)
    assert bench.trainer.run().status == "finished"
    assert (bench.progress.best_step, bench.progress.best_val_loss) == (4, 2.0)


def test_a_budget_of_epochs_ends_with_its_last_epoch(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path, feed=Steps(per_epoch=7), losses=[3.0, 2.0], epochs=3, eval_every_steps=100, sample_every_steps=100
    )
    outcome = bench.trainer.run()
    assert (outcome.status, outcome.reason) == ("finished", "the budget is used up")
    assert (bench.progress.step, bench.progress.epochs, bench.feed.given) == (21, 3, 21)
    assert bench.evaluated == [21]
    assert [line["step"] for line in bench.lines("samples")] == [16, 21]
    assert [line["step"] for line in bench.lines()] == [*range(1, 22), 21]  # the last one has what the end is measured by
    assert [line["step"] for line in bench.lines() if "val_loss" in line] == [21]
    best = bench.store.load("best")
    assert best is not None
    assert best.manifest.step == 21


def test_stages_of_epochs_change_the_length_with_the_epoch(tmp_path: Path) -> None:
    stages = [{"length": 2, "epochs": 2}, {"length": 8, "epochs": 1}]
    bench = Bench(tmp_path, feed=Steps(per_epoch=5), sequence_schedule=stages)
    bench.trainer.run()
    assert bench.feed.lengths == [2] * 10 + [8] * 5
    assert [line["stage"] for line in bench.lines()] == [0] * 10 + [1] * 5


def test_a_stop_saves_and_the_rest_of_the_boundary_is_made_up_for(tmp_path: Path) -> None:
    stopping = [False]
    whole_folder, cut_folder = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole_folder, cut_folder):
        folder.mkdir()
    settings: dict[str, Any] = {
        "max_steps": 12,
        "eval_every_steps": 4,
        "sample_every_steps": 8,
        "early_stopping_evals": 2,
        "losses": [3.0, 2.0, 2.5],
    }
    whole = Bench(whole_folder, **settings)
    whole.trainer.run()

    def sampler(stop: Any) -> list[tuple[str, str]] | None:
        stopping[0] = True  # asked to stop in the middle of the sample of step 8, after its evaluation
        return None

    cut = Bench(cut_folder, sampler=sampler, should_stop=lambda: stopping[0], **settings)
    assert cut.trainer.run().status == "stopped"
    assert cut.progress.step == 8
    saved = cut.store.load("newest")
    assert saved is not None
    best = cut.store.load("best")
    assert best is not None
    assert best.manifest.step == 8
    feed = Steps()
    feed.given = 8
    again = Bench(
        cut_folder,
        feed=feed,
        progress=Progress.from_state_dict(saved.state["progress"]),
        **{**settings, "losses": [2.0, 2.5]},
    )
    again._restore(saved.state)
    assert again.trainer.run().status == "finished"
    assert again.evaluated == [8, 12]
    assert again.progress.evals_since_best == whole.progress.evals_since_best == 1
    assert again.progress.best_step == whole.progress.best_step == 8
    assert [line["step"] for line in again.lines()] == [line["step"] for line in whole.lines()] == list(range(1, 13))
    assert again.lines("samples") == whole.lines("samples")
    assert torch.equal(weights_of(again.model), weights_of(whole.model))


def test_a_stop_in_the_last_evaluation_of_an_epoch_leaves_it_due(tmp_path: Path) -> None:
    bench = Bench(tmp_path, feed=Steps(per_epoch=5), losses=[None], epochs=1, eval_every_steps=100)
    assert bench.trainer.run().status == "stopped"
    saved = bench.store.load("newest")
    assert saved is not None
    progress = Progress.from_state_dict(saved.state["progress"])
    assert progress.epochs == 1
    assert not progress.boundary_done
    again = Bench(tmp_path, feed=Steps(per_epoch=5), losses=[2.0], epochs=1, eval_every_steps=100, progress=progress)
    assert again.trainer.run().status == "finished"
    assert again.evaluated == [5]
    assert [line["val_loss"] for line in again.lines() if "val_loss" in line] == [2.0]


def test_bad_updates_before_any_save_end_the_run_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, max_steps=20)

    def full(*args: Any, **named: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.store, "save", full)
    with torch.no_grad():
        next(bench.model.parameters()).fill_(math.nan)
    outcome = bench.trainer.run()
    assert outcome.status == "failed"
    assert outcome.reason == "loss or gradient not finite at step 3 after 0 rollbacks"
