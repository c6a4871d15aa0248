"""Whole runs: what is in the folder afterwards, how they go on, and what they refuse."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lmloop.data.hub
import lmloop.training.schedule
from lmloop.trained import load_trained
from tests.generation.fakes import tokenizer_of
from tests.runs import lines, quick_run, train, tree, write_preset
from tests.torture.harness import write_corpus

RUN = Path("run")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmloop.data.hub, "unreachable", lambda: "no route to host")


def newest(run: Path = RUN) -> dict[str, Any]:
    return torch.load(run / "lm_current.pth", weights_only=True)


def record(run: Path = RUN) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


# ---- what a run leaves ----


def test_the_folder_of_a_run(here: Path) -> None:
    answer = quick_run(here)
    names = {path.name for path in RUN.iterdir()}
    checkpoints = {"lm_current", "lm_prev", "lm_prev2", "lm_best"}
    assert names == {
        *(f"{name}{ending}" for name in checkpoints for ending in (".pth", ".manifest.json")),
        *("simple_lm_trained.pth", "metrics.jsonl", "samples.jsonl", "quarantine.jsonl", "report.html"),
        *("run.json", "preset.json", "tokenizer", ".lock"),
    }
    assert (answer["status"], answer["step"], answer["run"]) == ("finished", 6, "run")
    assert Path(answer["checkpoint"]).exists()
    assert Path(answer["report"]).exists()
    metrics = lines(RUN / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    for line in metrics:
        for key in ("step", "tokens", "loss", "tokens_per_s", "seq_len", "lr", "grad_norm"):
            assert math.isfinite(line[key]), key
    assert [line["step"] for line in metrics if "val_loss" in line] == [3, 6]
    assert metrics[-1]["tokens"] == answer["tokens"] == 6 * 64
    assert answer["val_loss"] == min(line["val_loss"] for line in metrics if "val_loss" in line)
    assert metrics[0]["loss"] == pytest.approx(math.log(newest()["model"]["model.embed_tokens.weight"].shape[0]), rel=0.1)
    assert [line["step"] for line in lines(RUN / "samples.jsonl")] == [3, 6]
    resolved = json.loads((RUN / "preset.json").read_text())
    assert resolved["train"]["weight_decay"] == 0.1  # a default
    assert record()["status"] == "finished"
    assert "tiny" in (RUN / "report.html").read_text()


def test_transformers_loads_the_checkpoint_and_the_tokenizer(here: Path) -> None:
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    quick_run(here)
    state = newest()["model"]
    reference = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=state["model.embed_tokens.weight"].shape[0],
            hidden_size=16,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=True,
        )
    ).eval()
    reference.load_state_dict(state)
    trained = load_trained(RUN, "newest")
    tokens_BT = torch.from_numpy(trained.tokenizer.encode("the quick fox").astype("int64"))[None]
    with torch.no_grad():
        own = trained.model.head(trained.model.hidden(tokens_BT))
        torch.testing.assert_close(own, reference(tokens_BT).logits, rtol=1e-5, atol=1e-5)
    foreign = AutoTokenizer.from_pretrained(RUN / "tokenizer")
    assert foreign("the quick fox", add_special_tokens=False)["input_ids"] == tokens_BT[0].tolist()
    assert foreign.decode(tokens_BT[0]) == "the quick fox"


@pytest.mark.parametrize("kind", ["char", "bpe", "pretrained"])
def test_every_kind_of_tokenizer_trains_and_stays_with_the_run(kind: str, here: Path) -> None:
    section: dict[str, Any] = {"type": kind}
    if kind == "pretrained":
        tokenizer_of("the quick brown fox jumps over a lazy dog " * 5, "bpe").save(here / "foreign")
        section["path"] = "foreign"
    elif kind == "bpe":
        section["vocab_size"] = 300
    quick_run(here, tokenizer=section, model={"architecture": "gpt2"})
    trained = load_trained(RUN, "newest")
    text = "a lazy dog, naïve €\n"
    assert trained.tokenizer.decode(trained.tokenizer.encode(text)) == text
    assert trained.tokenizer.eos_id != trained.tokenizer.pad_id
    assert trained.model.vocab_size == trained.tokenizer.vocab_size
    if kind == "bpe":
        assert trained.tokenizer.vocab_size == 300


def test_without_held_out_text_it_trains_and_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick_run(here, data={"split": {"validation": 0.0}})
    assert "nothing is evaluated" in capsys.readouterr().out
    assert not (RUN / "lm_best.pth").exists()
    assert all("val_loss" not in line for line in lines(RUN / "metrics.jsonl"))


# ---- going on ----


def test_a_finished_run_says_that_it_is_done(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick_run(here)
    before = tree(RUN)
    capsys.readouterr()
    answer = quick_run(here)
    assert (answer["status"], answer["step"]) == ("finished", 6)
    assert "tiny is done; raise the budget" in capsys.readouterr().out
    after = tree(RUN)
    assert after == before


def test_a_run_that_stopped_early_is_done_until_it_may_be_more_patient(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The rate is so high that the model is best at its first evaluation.
    train: dict[str, Any] = {"learning_rate": 3.0, "eval_every_steps": 1, "max_steps": 30, "early_stopping_evals": 2}
    answer = quick_run(here, train=train)
    assert answer["reason"] == "no better validation loss in 2 evaluations"
    stopped_at = answer["step"]
    assert stopped_at < 30
    capsys.readouterr()
    assert quick_run(here, train=train)["step"] == stopped_at
    assert "raise train.early_stopping_evals" in " ".join(capsys.readouterr().out.split())
    assert quick_run(here, train={**train, "early_stopping_evals": None})["step"] == 30


def test_a_raised_budget_goes_on_with_everything(here: Path) -> None:
    quick_run(here, train={"max_steps": 4, "lr_schedule": "constant", "learning_rate": 0.001})
    quick_run(here, train={"max_steps": 9, "lr_schedule": "constant", "learning_rate": 0.005, "warmup_fraction": 0.0})
    metrics = lines(RUN / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, 10))
    assert [line["lr"] for line in metrics[4:]] == pytest.approx([0.005] * 5)
    assert metrics[3]["lr"] == pytest.approx(0.001)
    steps = {float(moments["step"]) for moments in newest()["optimizer"]["state"].values()}
    assert steps == {9.0}  # Adam's own count: its moments were taken over
    warnings = [entry["message"] for entry in record()["warnings"]]
    assert any("train.learning_rate was 0.001, now 0.005" in message for message in warnings)
    assert [(s["from_step"], s["to_step"]) for s in record()["sessions"]] == [(0, 4), (4, 9)]


def test_another_optimizer_starts_anew_with_the_same_weights(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick_run(here, train={"max_steps": 4})
    quick_run(here, train={"max_steps": 6, "optimizer": "sgd"})
    assert "train.optimizer was 'adamw', now 'sgd': weights carry over, the optimizer starts anew" in " ".join(
        capsys.readouterr().out.split()
    )
    assert newest()["progress"]["step"] == 6


def test_a_run_of_the_usual_budget_started_again_trains_another(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmloop.training.schedule, "TOKENS_PER_RUN", 320)  # five steps
    for number in (1, 2, 3):
        answer = quick_run(here, train={"max_steps": None, "warmup_steps": 2})
        assert (answer["status"], answer["tokens"], answer["step"]) == ("finished", 320 * number, 5 * number)
    metrics = lines(RUN / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, 16))
    rates = [line["lr"] for line in metrics]
    assert rates[:5] == pytest.approx(rates[5:10])  # each run has a schedule of its own
    assert rates[0] == pytest.approx(rates[1] / 2)
    assert [line["fraction"] for line in metrics[5:10]] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_a_total_of_tokens_counts_all_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    budget: dict[str, Any] = {"max_steps": None, "num_tokens": 256}
    assert quick_run(here, train=budget)["tokens"] == 256
    assert quick_run(here, train=budget)["step"] == 4
    assert "is done" in capsys.readouterr().out
    answer = quick_run(here, train={**budget, "num_tokens": "0.4K"})
    assert answer["tokens"] == 448  # whole steps
    assert [line["step"] for line in lines(RUN / "metrics.jsonl")] == list(range(1, 8))


def test_two_presets_in_one_folder_continue_one_model(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmloop.training.schedule, "TOKENS_PER_RUN", 256)  # four steps
    write_corpus(here / "other", files=3, lines=20)
    shared: dict[str, Any] = {"output_dir": "shared", "train": {"max_steps": None}}
    run = Path("shared")
    quick_run(here, name="general", **shared)
    vocabulary = newest(run)["tokenizer"]
    answer = quick_run(here, name="special", data={"sources": [{"type": "files", "path": "other"}]}, **shared)
    assert (answer["step"], answer["tokens"]) == (8, 512)
    assert newest(run)["tokenizer"] == vocabulary
    metrics = lines(run / "metrics.jsonl")
    assert [set(line["sources"]) for line in metrics] == [{"corpus"}] * 4 + [{"other"}] * 4
    assert metrics[4]["loss"] < metrics[0]["loss"]  # it did not start anew
    assert record(run)["name"] == "special"
    answer = quick_run(here, name="general", **shared)
    assert (answer["step"], answer["tokens"]) == (12, 768)


@pytest.mark.parametrize("scaling", ["gpt2", "linear", "yarn"])
def test_a_longer_context_grows_from_the_checkpoint(scaling: str, here: Path) -> None:
    short: dict[str, Any] = {"architecture": "gpt2"} if scaling == "gpt2" else {}
    long = {**short, "seq_length": 48}
    if scaling != "gpt2":
        long |= {"position_scaling": scaling, "original_seq_length": 16}
    quick_run(here, model=short, train={"max_steps": 4})
    before = newest()["model"]
    # So small a rate that the weights which were there before can be recognised.
    quick_run(here, model=long, train={"max_steps": 6, "learning_rate": 1e-9})
    after = newest()["model"]
    assert set(after) == set(before)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name][: len(tensor)], tensor, rtol=0.0, atol=1e-6)
    warnings = " ".join(entry["message"] for entry in record()["warnings"])
    assert "model.seq_length was 16, now 48" in warnings
    assert [line["seq_len"] for line in lines(RUN / "metrics.jsonl")] == [16] * 4 + [48] * 2
    if scaling == "gpt2":
        assert after["transformer.wpe.weight"].shape[0] == 48
        assert "grown, new rows fresh: transformer.wpe.weight" in warnings
    assert load_trained(RUN, "newest").preset.model.seq_length == 48


def test_a_model_that_does_not_fit_is_refused_and_nothing_is_lost(here: Path) -> None:
    quick_run(here, train={"max_steps": 4})
    before = tree(RUN)
    with pytest.raises(ValueError, match=r"do not fit the model: .*output_dir") as error:
        train(write_preset(here, model={"hidden_size": 32}))
    assert len(str(error.value).splitlines()) == 1
    after = tree(RUN)
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"run.json", "report.html"}
    assert set(after) == set(before)
    assert record()["status"] == "failed"
    assert "do not fit" in record()["reason"]


def test_data_that_is_gone_leaves_the_run_as_it_was(here: Path) -> None:
    quick_run(here, train={"max_steps": 4})
    (here / "corpus").rename(here / "moved")
    with pytest.raises(ValueError, match="corpus"):
        train(
            write_text(here / "again.json", (here / "preset.json").read_text().replace('"max_steps": 4', '"max_steps": 8'))
        )
    (here / "moved").rename(here / "corpus")
    assert quick_run(here, train={"max_steps": 8})["step"] == 8
    assert [line["step"] for line in lines(RUN / "metrics.jsonl")] == list(range(1, 9))


def write_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# ---- what is refused ----


class RepositoryNotFoundError(Exception):
    """As the hub's library calls it."""


def unknown_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def commit_of(dataset: str, revision: str | None) -> str:
        raise RepositoryNotFoundError("404 Client Error\nRepository Not Found for url")

    monkeypatch.setattr(lmloop.data.hub, "unreachable", lambda: None)
    monkeypatch.setattr(lmloop.data.hub, "commit_of", commit_of)


MISSING = {"type": "files", "path": "no/such/folder"}
UNKNOWN = {"type": "hub", "dataset": "no-such/data-set"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "missing data": ({"data": {"sources": [MISSING]}}, r"no/such/folder"),
    "missing validation": ({"data": {"validation": [MISSING]}}, r"no/such/folder"),
    "unknown on the hub": ({"data": {"sources": [UNKNOWN]}}, r"there is no data set no-such/data-set on the hub"),
    "unknown built-in": ({"data": {"sources": ["wikipedai"]}}, r"wikipedai.*wikipedia"),
    "unknown key": ({"train": {"lerning_rate": 1.0}}, r"lerning_rate.*learning_rate"),
    "wrong type": ({"train": {"max_steps": "many"}}, r"train\.max_steps"),
    "bool for int": ({"train": {"max_steps": True}}, r"train\.max_steps"),
    "missing tokenizer": ({"tokenizer": {"type": "pretrained", "path": "./nowhere"}}, r"nowhere"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("there", ["no folder", "an empty folder", "a folder with a file"])
def test_a_refusal_is_one_line_and_leaves_nothing(
    name: str, there: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown_on_the_hub(monkeypatch)
    changes, message = REFUSED[name]
    path = write_preset(here, output_dir="runs/of/mine", **changes)
    if there != "no folder":
        (here / "runs/of/mine").mkdir(parents=True)
    if there == "a folder with a file":
        (here / "runs/of/mine/notes.txt").write_text("mine")
    before = tree(here)
    with pytest.raises(ValueError, match=message) as error:
        train(path)
    assert len(str(error.value).splitlines()) == 1
    assert tree(here) == before


def test_all_sources_dead_names_each(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_network(monkeypatch)
    path = write_preset(here, data={"sources": ["wikipedia", MISSING, "fineweb-edu"]})
    before = tree(here)
    with pytest.raises(ValueError, match="no source can be read") as error:
        train(path)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    for name in ("'wikipedia'", "no/such/folder", "'fineweb-edu'"):
        assert name in message
    assert message.count("no route to host") == 2
    assert tree(here) == before


def test_a_dead_source_is_left_out_with_a_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_network(monkeypatch)
    quick_run(here, data={"sources": ["wikipedia", {"type": "files", "path": "corpus"}]})
    assert "left out: source 'wikipedia'" in " ".join(capsys.readouterr().out.split())
    assert all(set(line["sources"]) == {"corpus"} for line in lines(RUN / "metrics.jsonl"))
    assert any("wikipedia" in entry["message"] for entry in record()["warnings"])


def test_an_output_dir_that_is_a_file_is_refused(here: Path) -> None:
    (here / "taken").write_text("mine")
    with pytest.raises(ValueError, match=r"output_dir taken: .*name a folder"):
        train(write_preset(here, output_dir="taken"))
    assert (here / "taken").read_text() == "mine"


def test_bad_rows_are_set_aside_with_the_reason(here: Path) -> None:
    rows = [json.dumps({"text": f"the quick brown fox number {number}"}) for number in range(60)]
    rows[7] = '{"text": "torn'
    (here / "rows.jsonl").write_text("\n".join(rows) + "\n")
    quick_run(here, data={"sources": [{"type": "files", "path": "rows.jsonl"}]})
    (bad,) = lines(RUN / "quarantine.jsonl")
    assert bad["line"] == 8
    assert bad["file"].endswith("rows.jsonl")


# ---- as a script sees it ----


def test_json_mode_prints_one_object_and_nothing_else(here: Path) -> None:
    path = write_preset(here)
    done = subprocess.run(
        [sys.executable, "-m", "lmloop.cli", "train", str(path), "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert (answer["status"], answer["step"]) == ("finished", 6)
    assert "Traceback" not in done.stderr


# ---- what must not cost a run ----


def test_data_that_fails_in_mid_run_costs_no_step(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmloop.data.source import SourceError
    from lmloop.tokens.feed import TextFeed

    inner, calls = TextFeed.next_step, 0

    def next_step(self: TextFeed, length: int) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise SourceError("source 'corpus': the disk has gone")
        return inner(self, length)

    monkeypatch.setattr(TextFeed, "next_step", next_step)
    answer, status = train(write_preset(here, train={"save_every_steps": 1_000}))
    assert (status, answer["status"], answer["step"]) == (1, "failed", 5)
    assert answer["reason"] == "source 'corpus': the disk has gone"
    assert newest()["progress"]["step"] == 5
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert quick_run(here, train={"save_every_steps": 1_000})["step"] == 6


def test_the_best_checkpoint_is_the_last_resort(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick_run(here)
    for name in ("lm_current", "lm_prev", "lm_prev2"):
        (RUN / f"{name}.pth").unlink()
    best = torch.load(RUN / "lm_best.pth", weights_only=True)["progress"]["step"]
    quick_run(here, train={"max_steps": 8})
    assert f"loaded lm_best.pth of step {best}" in " ".join(capsys.readouterr().out.split())
    assert [line["step"] for line in lines(RUN / "metrics.jsonl")] == list(range(1, 9))


def test_a_module_that_is_not_there_yet_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = json.loads(write_preset(here).read_text())
    Path("preset.json").write_text(json.dumps({**preset, "auxiliary": {"enable_policy": True, "policy_kl_weight": 0.05}}))
    assert train(Path("preset.json"))[1] == 0
    assert "auxiliary.enable_policy is not there yet" in " ".join(capsys.readouterr().out.split())
    assert any("enable_policy" in entry["message"] for entry in record()["warnings"])


def test_a_batch_that_cannot_fit_is_refused_before_it_is_made(here: Path) -> None:
    path = write_preset(here, train={"per_gpu_batch_size": 1_000_000}, model={"seq_length": 1_048_576})
    with pytest.raises(ValueError, match=r"per_gpu_batch_size 1000000: .* does not fit in memory"):
        train(path)
    assert not RUN.exists()
