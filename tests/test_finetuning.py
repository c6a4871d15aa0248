"""Runs that begin with a pretrained model: full, LoRA and QLoRA, from the preset to what other programs load."""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lmloop.run
import lmloop.use
from lmloop.export.export import export_run
from lmloop.hardware import Machine
from lmloop.models.adapters import CONFIG_FILE, WEIGHTS_FILE, keep_as_packed
from lmloop.models.loading import trainable_and_total
from lmloop.plan import this_plan
from lmloop.preset.reading import load_preset
from lmloop.room import require_room
from lmloop.trained import load_trained
from lmloop.training.checkpoint import CheckpointStore
from lmloop.use import chat_with_run, evaluate_run, generate_from_run
from tests.finetuning import TARGETS, finetuning, write_base, write_chats, write_finetuning
from tests.runs import lines, measure_briefly, train, tree
from tests.tokens.chats import tokenizer

KINDS = ("full", "lora", "qlora")
RUN = Path("run")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each kind, in which a run has finished."""
    folder = tmp_path_factory.mktemp("finetuned")
    before = Path.cwd()
    try:
        for kind in KINDS:
            path = write_finetuning(folder / kind, kind)
            os.chdir(folder / kind)
            answer, status = train(path)
            assert (status, answer["status"], answer["step"]) == (0, "finished", 8), answer
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(params=KINDS)
def run(request: pytest.FixtureRequest, finished: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of a finished run, in whose folder the test works, with one thread as it was trained."""
    monkeypatch.setattr(lmloop.use, "use_machine", lambda *_: torch.set_num_threads(1))
    monkeypatch.chdir(finished / request.param)
    return request.param


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_of(path: Path) -> str:
    """Why a preset is refused: one line, and nothing is left behind."""
    before = set(tree(path.parent))
    with pytest.raises(ValueError, match=r".") as error:
        train(path)
    assert len(str(error.value).splitlines()) == 1
    assert set(tree(path.parent)) == before
    return str(error.value)


# ---- what a run leaves ----


def test_the_loss_falls_and_the_base_stays(run: str, finished: Path) -> None:
    losses = [line["val_loss"] for line in lines(RUN / "metrics.jsonl") if line.get("val_loss") is not None]
    assert losses[-1] < losses[0]
    untouched = write_base(finished / "again")
    assert (untouched / "model.safetensors").read_bytes() == Path("base/model.safetensors").read_bytes()
    shutil.rmtree(untouched)


def test_a_checkpoint_holds_what_is_trained_and_names_the_base(run: str) -> None:
    loaded = CheckpointStore(RUN).load()
    assert loaded is not None
    state = loaded.state
    assert state["base"]["name"] == "base"
    assert len(state["base"]["weights_sha256"]) == 64
    is_lora = [".lora_" in name for name in state["model"]]
    assert all(is_lora) if run != "full" else not any(is_lora)
    trained = load_trained(RUN)
    trainable, total = trainable_and_total(trained.model)
    held = sum(tensor.numel() for name, tensor in state["model"].items() if not name.endswith("inv_freq"))
    assert held == trainable
    assert (trainable == total) == (run == "full")


def test_counts_stand_in_the_report(run: str) -> None:
    parameters = json.loads((RUN / "run.json").read_text())["parameters"]
    assert ("trainable" in parameters) == (run != "full")
    if run != "full":
        # Rank 4 beside each of the seven: 4 (inputs + outputs) numbers, in each of the two blocks.
        shapes = ((32, 64), (32, 32), (32, 32), (64, 32), (32, 48), (32, 48), (48, 32))
        assert parameters["trainable"] == 2 * sum(4 * (width + height) for width, height in shapes)
        assert f"{parameters['trainable']:,}" in (RUN / "report.html").read_text()


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_peft_loads_the_run_folder_unchanged(kind: str, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    monkeypatch.chdir(finished / kind)
    names = {path.name for path in RUN.iterdir()}
    assert names >= {CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert json.loads((RUN / "training_args.json").read_text())["train"]["learning_rate"] == 2e-3
    history = json.loads((RUN / "trainer_state.json").read_text())
    assert (history["global_step"], history["best_global_step"]) == (8, 8)
    assert [line["step"] for line in history["log_history"]] == list(range(1, 9))
    tokenizer: Any = AutoTokenizer.from_pretrained(RUN)
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "Sure?"}], add_generation_prompt=True, tokenize=False)
    assert asked.endswith("<|im_start|>assistant\n")
    tokens_BT = torch.randint(60, (2, 20), generator=torch.Generator().manual_seed(0))
    nf4: dict[str, Any] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    how: Any = BitsAndBytesConfig(load_in_4bit=True, **nf4) if kind == "qlora" else None
    with torch.no_grad():
        beside = AutoModelForCausalLM.from_pretrained("base", quantization_config=how, dtype=torch.float32)
        keep_as_packed(beside)  # widths as small as these cannot be repacked
        theirs = PeftModel.from_pretrained(beside, RUN).eval()(tokens_BT).logits
        ours = load_trained(RUN).model
        own = ours.head(ours.hidden(tokens_BT))
    assert (own - theirs).abs().max() < (1e-4 if kind == "lora" else 0.05) * theirs.abs().max()
    base: Any = AutoModelForCausalLM.from_pretrained("base")
    assert (base(tokens_BT).logits - theirs).abs().max() > 1e-3


def test_a_run_that_is_done_says_so_and_goes_on_with_more(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(".", tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    answer, status = train(Path("preset.json"))
    assert (status, answer["step"]) == (0, 8)
    Path("preset.json").write_text(json.dumps(finetuning(run, train={"max_steps": 10})))
    answer, status = train(Path("preset.json"))
    assert (status, answer["step"]) == (0, 10)


# ---- using it ----


def test_generate_answers_several_prompts_as_one_batch(run: str) -> None:
    prompts = ["Sure?", "What is two and two?", ""]
    named: dict[str, Any] = {"changes": {"temperature": 0.0, "max_new_tokens": 6}, "seed": 0, "json_mode": True}
    together = generate_from_run("run", "best", prompts=prompts, **named)["results"]
    alone = [generate_from_run("run", "best", prompts=[prompt], **named) for prompt in prompts]
    assert [one["text"] for one in together] == [one["text"] for one in alone]
    asked = load_trained(RUN).tokenizer.encode("Sure?")
    assert together[0]["prompt_tokens"] > len(asked) + 3  # the template is around it
    assert together[2]["prompt_tokens"] == 0


def test_chat_speaks_in_the_template(run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Sure?\nNo way\n"))
    assert chat_with_run("run", "best", changes={"temperature": 0.0}, seed=0, json_mode=False) == {"turns": 2}
    first, *_ = capsys.readouterr().out.split("\n")
    answer = generate_from_run(
        "run", "best", prompts=["Sure?"], changes={"temperature": 0.0}, seed=0, json_mode=True
    )["text"]  # fmt: skip
    assert answer.split("\n")[0].strip() == first.strip()


def test_evaluate_gives_what_training_measured(run: str) -> None:
    best = min(line["val_loss"] for line in lines(RUN / "metrics.jsonl") if line.get("val_loss") is not None)
    assert evaluate_run("run", "best", data=None, split="validation")["cross_entropy"] == pytest.approx(best, rel=1e-5)
    other = evaluate_run("run", "best", data="chats.jsonl", split="validation")
    assert other["tokens"] > 1_000


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_an_export_is_a_base_again(kind: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished / kind)
    report = export_run("run", "best", format="hf", out=str(tmp_path / "base"), quantize=None)
    assert any("logits" in line for line in report["checks"])
    tokenizer = load_trained(RUN).tokenizer
    ends = json.loads((tmp_path / "base" / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.backend.token_to_id("<|im_end|>") in ends
    write_chats(tmp_path / "chats.jsonl")
    monkeypatch.chdir(tmp_path)
    answer, status = train(write_finetuning(tmp_path, "lora", train={"max_steps": 2}))
    assert (status, answer["step"]) == (0, 2)


def test_the_preset_exports_at_the_end(here: Path) -> None:
    """The adapter merged into its base: transformers computes with the folder what the run's best model computes."""
    from transformers import AutoModelForCausalLM

    path = write_finetuning(here, "lora", train={"max_steps": 2})
    path.write_text(json.dumps({**json.loads(path.read_text()), "export": [{"format": "hf"}]}))
    answer, status = train(path)
    assert (status, [report["out"] for report in answer["exports"]]) == (0, ["run/export/hf"])
    tokens_BT = torch.randint(60, (2, 20), generator=torch.Generator().manual_seed(0))
    theirs: Any = AutoModelForCausalLM.from_pretrained("run/export/hf")
    ours = load_trained(RUN).model
    with torch.no_grad():
        assert torch.allclose(theirs(tokens_BT).logits, ours.head(ours.hidden(tokens_BT)), atol=1e-4)


def test_the_plan_counts_what_is_trained(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_briefly(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    plan = this_plan(load_preset(write_finetuning(here, "lora")))
    assert 0 < plan.trainable_parameters < plan.parameters
    assert plan.memory_by_part["optimizer"] < plan.memory_by_part["weights"]


# ---- what the data does ----


def test_texts_and_conversations_are_mixed(here: Path) -> None:
    path = write_finetuning(here, "lora")
    (here / "text.txt").write_text("the quick brown fox jumps over a lazy dog. " * 400)
    preset = json.loads(path.read_text())
    preset["data"]["sources"].append({"type": "files", "path": "text.txt", "chunk_size": 300})
    path.write_text(json.dumps(preset))
    assert train(path)[1] == 0
    shares = [line["sources"] for line in lines(RUN / "metrics.jsonl")]
    assert all(set(share) == {"chats.jsonl", "text.txt"} for share in shares)


def test_lengths_of_a_schedule_tear_conversations_and_train_all_of_them(here: Path) -> None:
    stages = [{"length": length, "epochs": 1} for length in (1, 16, 64)]
    path = write_finetuning(here, "full", train={"max_steps": None, "sequence_schedule": stages})
    answer, status = train(path)
    assert (status, answer["status"]) == (0, "finished")
    by_length: dict[int, int] = {}
    before = 0
    for line in lines(RUN / "metrics.jsonl"):
        by_length[line["seq_len"]] = by_length.get(line["seq_len"], 0) + line["tokens"] - before
        before = line["tokens"]
    assert set(by_length) == {1, 16, 64}
    assert len(set(by_length.values())) == 1  # each epoch trains every answer once


def test_cut_and_left_out_conversations_are_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_finetuning(here, "lora", model={"seq_length": 24})
    assert train(path)[1] == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "conversations were cut at a turn: what follows does not fit into model.seq_length" in said
    assert "conversations were left out: not even their first answer fits into model.seq_length" in said
    assert "were cut at a turn" in (RUN / "report.html").read_text()


# ---- what is refused ----


def spoil(base: Path, how: str) -> None:
    weights = base / "model.safetensors"
    if how == "no weights":
        weights.unlink()
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "another architecture":
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    elif how == "no tokenizer":
        for path in base.glob("tokenizer*"):
            path.unlink()
    elif how == "no folder":
        shutil.rmtree(base)
    elif how == "a run":
        shutil.rmtree(base)
        base.mkdir()
        (base / "lm_current.pth").write_bytes(b"x")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no weights", "model.pretrained: ./base holds no weights"),
        ("truncated", "model.safetensors is cut off"),
        ("another architecture", "its weights do not fit its config.json"),
        ("no tokenizer", "tokenizer.path (model.pretrained where it is not set): base holds no tokenizer"),
        ("no folder", "model.pretrained: ./base is not a folder"),
        ("a run", "is a run's folder: make a base of it with `lmloop export"),
    ],
)
def test_a_base_that_cannot_be_used(how: str, said: str, here: Path) -> None:
    path = write_finetuning(here, "lora", model={"pretrained": "./base"})
    spoil(here / "base", how)
    assert said in error_of(path)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("model", "the tokenizer has no template of its own"),
        ("llama3", "the tokenizer has no control token"),
    ],
)
def test_a_template_that_does_not_fit(template: str, said: str, here: Path) -> None:
    path = write_finetuning(here, "lora", data={"template": template})
    if template == "llama3":
        tokens = json.loads((here / "base" / "tokenizer.json").read_text())
        text = json.dumps(tokens).replace("<|eot_id|>", "<|eot_xx|>")
        (here / "base" / "tokenizer.json").write_text(text)
    message = error_of(path)
    assert message.startswith("data.template: chat template")
    assert said in message


def test_a_template_of_the_model_that_cannot_be_trained(here: Path) -> None:
    path = write_finetuning(here, "lora")
    config = json.loads((here / "base" / "tokenizer_config.json").read_text())
    source = "{% for m in messages %}{{ m['content'][:3] }}{% endfor %}"
    (here / "base" / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": source}))
    assert "data.template: chat template 'model'" in error_of(path)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_another_base_is_refused_and_the_same_one_elsewhere_is_not(
    kind: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / kind, tmp_path / "copy")
    here = tmp_path / "copy"
    monkeypatch.chdir(here)
    shutil.copytree("base", "moved")
    write_base(here / "other", rms_norm_eps=1e-3)
    before = (RUN / "lm_current.pth").read_bytes()
    for pretrained in ("other", "moved"):
        preset = finetuning(kind, model={"pretrained": pretrained}, train={"max_steps": 10})
        Path("preset.json").write_text(json.dumps(preset))
        if pretrained == "other":
            with pytest.raises(
                ValueError, match="other is another base than this run was begun on, base: its config"
            ) as error:
                train(Path("preset.json"))
            assert len(str(error.value).splitlines()) == 1
            assert (RUN / "lm_current.pth").read_bytes() == before
        else:
            assert train(Path("preset.json"))[0]["step"] == 10


def test_a_base_that_has_changed_is_refused_also_where_it_is_only_used(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "lora", tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    shutil.rmtree("base")
    write_base(Path("base"), rope_theta=123.0)
    for use in (lambda: train(Path("preset.json")), lambda: load_trained(RUN)):
        Path("preset.json").write_text(json.dumps(finetuning("lora", train={"max_steps": 10})))
        with pytest.raises(ValueError, match="another base than this run was begun on"):
            use()


def test_a_run_from_scratch_is_not_gone_on_with(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.runs import quick_run

    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished / "full" / "base", "base")
    write_chats(Path("chats.jsonl"))
    quick_run(tmp_path, tokenizer={"type": "pretrained", "path": "base"})
    Path("preset.json").write_text(json.dumps(finetuning("full")))
    with pytest.raises(ValueError, match="was trained from scratch: leave it out, or give this preset another output_dir"):
        train(Path("preset.json"))


def test_targets_that_the_model_lacks(here: Path) -> None:
    path = write_finetuning(here, "lora", adapter={"target_modules": [*TARGETS[:2], "w1"]})
    assert train(path)[1] == 0  # peft takes what is there
    path = write_finetuning(here, "lora", adapter={"target_modules": ["w1"]})
    path.write_text(json.dumps({**json.loads(path.read_text()), "output_dir": "other"}))
    assert "adapter.target_modules" in error_of(path)


# ---- what a machine cannot do ----

MAC = Machine("mps", "a Mac", 8, 2**36, bf16=False)


def test_apples_gpu_trains_nothing_in_4_bits(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmloop.run, "this_machine", lambda: MAC)
    said = error_of(write_finetuning(here, "qlora"))
    assert said.startswith("adapter.quantize: 'nf4' is for CUDA and CPUs, and this machine trains on 'mps': leave it out")


def test_what_was_trained_in_4_bits_is_used_without_them_on_apples_gpu(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished / "qlora")
    packed, whole = load_trained(RUN), load_trained(RUN, device=torch.device("mps"))
    assert whole.checkpoint.notices == ["the base is in full precision: Apple's GPU has no 4 bits (adapter.quantize)"]
    assert {parameter.dtype for parameter in whole.model.parameters()} == {torch.float32}
    tokens_BT = torch.randint(60, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs, ours = (one.model.head(one.model.hidden(tokens_BT)) for one in (packed, whole))
    assert torch.nn.functional.cosine_similarity(theirs.flatten(), ours.flatten(), dim=0) > 0.9  # 4 bits cost the rest


@pytest.mark.parametrize(
    ("kind", "machine", "said"),
    [
        ("lora", replace(MAC, memory_bytes=1_000), "this machine has 1 kB: take a smaller base"),
        ("lora", Machine("cuda", "a GPU", 8, 1_000, bf16=True), "set adapter.quantize 'nf4'"),
        ("qlora", Machine("cuda", "a GPU", 8, 1_000, bf16=True), "take a smaller base"),
    ],
)
def test_too_little_memory_names_what_would_help_there(kind: str, machine: Machine, said: str, here: Path) -> None:
    preset = load_preset(write_finetuning(here, kind)).preset
    with pytest.raises(ValueError, match=r"for weights, gradients and moments") as error:
        require_room(preset, tokenizer().vocab_size, machine)
    assert str(error.value).endswith(said)
    assert len(str(error.value).splitlines()) == 1
