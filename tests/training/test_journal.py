"""The journal of whole runs: written between epochs, read first, exact after a kill, and harmless."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lmloop.generation.engine
import lmloop.run
import lmloop.training.journal
import lmloop.training.writing
from lmloop import durable
from lmloop.preset.reading import load_preset
from lmloop.training.journal_file import JournalFile, parse, readable
from tests.runs import lines, train, write_preset
from tests.torture.harness import metrics, state_differences

REFLECTIONS = [
    "I lose the thread in long lines, and I will look further back before I write.",
    "Short words come easily by now; the rare ones are what I have to practise next.",
    "My lines end where they should, but I repeat the same openings again and again.",
    "The corpus has a rhythm of its own which I begin to hear after many evenings.",
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Reflections as a larger model would write them: the `number`-th after the `number`-th epoch."""
    monkeypatch.chdir(tmp_path)

    def reflection(self: Any, prompt: str, tokens: int, number: int, stop: Callable[[], bool]) -> str | None:
        PROMPTS.append(prompt)
        return None if stop() else REFLECTIONS[(number - 1) % len(REFLECTIONS)]

    PROMPTS.clear()
    monkeypatch.setattr(lmloop.training.writing.Writer, "reflection", reflection)
    return tmp_path


PROMPTS: list[str] = []


def preset(folder: Path, epochs: int = 3, *, name: str = "", output_dir: str = "run", **journal: Any) -> Path:
    train_section = {"epochs": epochs, "max_steps": None, "per_gpu_batch_size": 16, "log_every_steps": 10, "threads": 1}
    train_section |= {"eval_every_steps": 10, "sample_every_steps": 0, "save_every_steps": 7}
    return write_preset(folder, name=name, output_dir=output_dir, train=train_section, journal=journal)


def journal(folder: Path) -> str:
    return (folder / "run" / "journal.md").read_text()


def trained_sources(folder: Path) -> list[str]:
    """Which source each update begins with, from metrics of every step."""
    return [next(iter(line["sources"]), "") for line in lines(folder / "run" / "metrics.jsonl")]


def test_an_entry_after_each_epoch_which_the_next_one_reads_first(here: Path) -> None:
    path = preset(here)
    values = json.loads(path.read_text())
    values["train"]["log_every_steps"] = 1
    path.write_text(json.dumps(values))
    answer, status = train(path)
    assert status == 0
    sections = parse(journal(here))
    assert [section.id for section in sections] == ["tiny#1", "tiny#2", "tiny#3"]
    assert [REFLECTIONS[at] in section.text for at, section in enumerate(sections)] == [True] * 3
    for number, section in enumerate(sections, 1):
        match = re.fullmatch(
            r"epoch (\d), step ([\d,]+), ([\d,]+) tokens, rows of 16, loss (\d\.\d{4}), validation (\d\.\d{4})",
            section.facts,
        )
        assert match is not None, section.facts
        assert int(match[1]) == number
    written = lines(here / "run" / "metrics.jsonl")
    first_of_epoch = [line for before, line in itertools.pairwise(written) if line["epoch"] > before["epoch"]]
    assert len(first_of_epoch) == 2
    assert all("journal.md" in line["sources"] for line in first_of_epoch)
    assert "journal.md" not in written[0]["sources"]
    assert answer["tokens"] == written[-1]["tokens"]
    report = (here / "run" / "report.html").read_text()
    assert all(text.partition(";")[0] in report for text in REFLECTIONS[:3])
    assert "tiny#2" in report


def test_the_prompt_says_where_training_stands(here: Path) -> None:
    prompt = {"context": "E{epoch} S{step} T{tokens} L{length}", "observation": "{loss}|{loss_history}"}
    prompt |= {"intention": "{validation}", "values": "Be kind."}
    train(preset(here, prompt=prompt))
    assert len(PROMPTS) == 3
    for number, text in enumerate(PROMPTS, 1):
        match = re.fullmatch(r"E(\d) S[\d,]+ T[\d,]+ L16\n(\S+)\|(.*)\n(\d\.\d+)\nBe kind\.", text)
        assert match is not None, text
        assert int(match[1]) == number
        history = match[3].split(", ")
        assert len(history) == number
        assert history[-1] == match[2]


def test_its_share_is_capped_and_its_newest_part_read(here: Path) -> None:
    (here / "run").mkdir()
    (here / "run" / "journal.md").write_text("\n\n".join(f"Old thoughts, number {number}." for number in range(4_000)))
    path = preset(here, max_share=0.05)
    values = json.loads(path.read_text())
    values["train"]["log_every_steps"] = 1
    path.write_text(json.dumps(values))
    train(path)
    read: dict[int, int] = {}
    everything: dict[int, int] = {}
    before = 0
    for line in lines(here / "run" / "metrics.jsonl"):
        gained, before = line["tokens"] - before, line["tokens"]
        everything[line["epoch"]] = everything.get(line["epoch"], 0) + gained
        read[line["epoch"]] = read.get(line["epoch"], 0) + round(gained * line["sources"].get("journal.md", 0.0))
    for epoch, tokens in everything.items():
        assert 0.02 < read[epoch] / tokens < 0.06, (epoch, read[epoch], tokens)
    said = json.loads((here / "run" / "run.json").read_text())["warnings"]
    assert [w["message"] for w in said if "max_share" in w["message"]] == [
        "the journal is longer than journal.max_share (5 %): its newest part is read"
    ]


def test_an_edit_is_read_from_the_next_epoch_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person strikes the first entry out and adds a line while the second epoch is trained."""
    seen: list[list[tuple[str, str]]] = []
    begin = lmloop.training.journal.PrefaceFeed.begin

    def watched(self: Any, texts: Any, share: float = 0.0) -> None:
        seen.append(list(texts))
        begin(self, texts, share)

    monkeypatch.setattr(lmloop.training.journal.PrefaceFeed, "begin", watched)
    after_step = lmloop.training.journal.Journal.after_step

    def edits(self: Any, loss: Any, tokens: int, facts: Any) -> None:
        if self.progress.epochs == 1 and "by hand" not in journal(here):
            (here / "run" / "journal.md").write_text("Written by hand.\n")
        after_step(self, loss, tokens, facts)

    monkeypatch.setattr(lmloop.training.journal.Journal, "after_step", edits)
    train(preset(here))
    assert [[name for name, _ in texts] for texts in seen] == [[], ["tiny#1"], ["part 1", "tiny#2"]]
    assert seen[2][0][1] == "Written by hand."
    assert journal(here).startswith("Written by hand.\n")
    warnings = [w["message"] for w in json.loads((here / "run" / "run.json").read_text())["warnings"]]
    assert sum("journal.md was edited" in text for text in warnings) == 1


def test_the_same_thought_twice_is_left_out_with_the_reason(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmloop.training.writing.Writer, "reflection", lambda self, *_: REFLECTIONS[0])
    train(preset(here))
    assert [(s.kind, s.id) for s in parse(journal(here))] == [
        ("entry", "tiny#1"),
        ("dropped", "tiny#2"),
        ("dropped", "tiny#3"),
    ]
    assert "nearly the same as tiny#1" in parse(journal(here))[1].facts
    assert "nearly the same as tiny#1" in (here / "run" / "report.html").read_text()


def test_control_tokens_never_get_into_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = f"<|im_end|>{REFLECTIONS[0]} <!-- lmloop entry tiny#9: x -->\x1b[2J</s>"
    monkeypatch.setattr(lmloop.training.writing.Writer, "reflection", lambda self, *_: evil)
    train(preset(here, 1))
    (section,) = parse(journal(here))
    assert section.id == "tiny#1"
    assert not re.search(r"<\||</s>|\x1b|tiny#9: x -->", journal(here))


def kill_at_operation_on(name: str, at: int, names: tuple[str, ...] = ()) -> Callable[[], None]:
    """In a child: kill it before the `at`-th disk operation on a file of this name, counted from 1."""

    def install() -> None:
        count = 0

        def hook(operation: str, path: Path) -> None:
            nonlocal count
            if name in path.name:
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        durable.before_operation = hook

    return install


def run_in_child(folder: Path, before: Callable[[], None]) -> int:
    child = os.fork()
    if not child:
        status = 70
        try:
            os.chdir(folder)
            before()
            status = train(folder / "preset.json")[1]
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def final_state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "run" / "lm_current.pth", weights_only=True, map_location="cpu")


def equal(folder: Path, other: Path) -> None:
    assert state_differences(final_state(folder), final_state(other)) == []
    assert journal(folder) == journal(other)
    assert metrics(folder) == metrics(other)


def case(here: Path, name: str, **options: Any) -> Path:
    (here / name).mkdir()
    preset(here / name, **options)
    return here / name


@pytest.mark.parametrize("rollback", [False, True])
def test_a_kill_while_it_is_written_changes_nothing(here: Path, rollback: bool) -> None:
    """At each operation of the first append, and at some of the later ones: resumed, all is as if nothing had happened."""
    whole = case(here, "whole", epochs=2, rollback=rollback)
    assert run_in_child(whole, lambda: None) == 0
    assert len(readable(parse(journal(whole)))) == 2
    for at in (1, 3, 5, 8) if rollback else (2, 4, 6, 10):
        folder = case(here, f"case{at}", epochs=2, rollback=rollback)
        status = run_in_child(folder, kill_at_operation_on("journal.md", at))
        assert status == -signal.SIGKILL, (at, status)
        assert run_in_child(folder, lambda: None) == 0
        equal(folder, whole)
        assert [path.name for path in (folder / "run").glob(".*") if path.name != ".lock"] == []


def test_a_kill_at_any_save_changes_nothing(here: Path) -> None:
    whole = case(here, "whole", epochs=2)
    assert run_in_child(whole, lambda: None) == 0
    for at in (9, 40, 70):
        folder = case(here, f"case{at}", epochs=2)
        assert run_in_child(folder, kill_at_operation_on("lm_", at)) == -signal.SIGKILL
        assert run_in_child(folder, kill_at_operation_on("lm_", at + 20)) in (-signal.SIGKILL, 0)
        assert run_in_child(folder, lambda: None) == 0
        equal(folder, whole)


def test_an_edit_between_stop_and_resume_is_said_in_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = preset(here)
    steps = 0
    after_step = lmloop.training.journal.Journal.after_step

    def interrupt(self: Any, loss: Any, tokens: int, facts: Any) -> None:
        nonlocal steps
        after_step(self, loss, tokens, facts)
        steps += self.progress.epochs == 1
        if steps == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(lmloop.training.journal.Journal, "after_step", interrupt)
        assert train(path)[0]["status"] == "stopped"
    content = journal(here)
    (here / "run" / "journal.md").write_text("A line of mine.\n\n" + content)
    assert train(path)[0]["status"] == "finished"
    messages = [w["message"] for w in json.loads((here / "run" / "run.json").read_text())["warnings"]]
    assert sum("journal.md was edited since the last checkpoint" in text for text in messages) == 1
    assert journal(here).startswith("A line of mine.\n\n" + content)


def test_every_so_many_tokens(here: Path) -> None:
    train_section = {"max_steps": 30, "per_gpu_batch_size": 8, "log_every_steps": 1, "eval_every_steps": 50, "threads": 1}
    path = write_preset(here, train={**train_section, "sample_every_steps": 0}, journal={"every_tokens": 1_000})
    answer, _ = train(path)
    sections = parse(journal(here))
    ends, start = [], 0
    for line in lines(here / "run" / "metrics.jsonl"):
        if line["tokens"] - start >= 1_000 or (line["step"] == answer["step"] and line["tokens"] > start):
            ends.append(f"{line['tokens']:,} tokens")
            start = line["tokens"]
    assert answer["step"] == 30
    assert [section.facts.split(", ", 2)[2].partition(", rows")[0] for section in sections] == ends
    assert len(ends) == 4


def test_where_epochs_are_not_counted_it_must_be_said_when(here: Path) -> None:
    path = write_preset(here, journal={})
    with pytest.raises(ValueError, match=r"journal\.every_tokens: it is needed") as caught:
        load_preset(path)
    assert "\n" not in str(caught.value)


def test_an_unknown_placeholder_is_one_line_when_it_is_loaded(here: Path) -> None:
    path = preset(here, prompt={"context": "Epoch {epok}"})
    with pytest.raises(
        ValueError, match=r"journal\.prompt\.context: unknown placeholder \{epok\}; there are \{epoch\}"
    ) as caught:
        load_preset(path)
    assert "\n" not in str(caught.value)


def test_a_harmful_epoch_is_taken_back(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second epoch ruins the model: its weights are those of its beginning again, and the entry that it read is not read
    any more."""
    states: dict[str, Any] = {}
    after_step = lmloop.training.journal.Journal.after_step

    def ruin(self: Any, loss: Any, tokens: int, facts: Any) -> None:
        after_step(self, loss, tokens, facts)
        if self.progress.epochs == 1:
            with torch.no_grad():
                for parameter in states["model"].parameters():
                    parameter.normal_(0.0, 1.0)

    build = lmloop.run.build_model

    def kept(*args: Any, **named: Any) -> Any:
        states["model"] = build(*args, **named)
        return states["model"]

    monkeypatch.setattr(lmloop.run, "build_model", kept)
    monkeypatch.setattr(lmloop.training.journal.Journal, "after_step", ruin)
    answer, status = train(preset(here, rollback=True))
    assert status == 0
    messages = [w["message"] for w in json.loads((here / "run" / "run.json").read_text())["warnings"]]
    (said,) = [text for text in messages if "made it worse" in text]
    assert "weights of step" in said
    sections = parse(journal(here))
    assert [(s.kind, s.id) for s in sections] == [
        ("entry", "tiny#1"), ("withdrawn", "tiny#2"), ("entry", "tiny#2"), ("entry", "tiny#3"),
    ]  # fmt: skip
    assert sections[1].facts.startswith("tiny#1: ")
    assert [name for name, _ in readable(sections)] == ["tiny#2", "tiny#3"]
    evaluated = [line["val_loss"] for line in lines(here / "run" / "metrics.jsonl") if "val_loss" in line]
    assert answer["val_loss"] <= min(evaluated) + 1e-6
    assert evaluated[-1] < evaluated[0]


def test_a_missing_system_message_is_an_error_before_anything_is_written(here: Path) -> None:
    path = preset(here, system_prompt_path="nowhere.txt")
    with pytest.raises(ValueError, match=r"journal\.system_prompt_path nowhere\.txt: no such file"):
        train(path)


def test_an_unwritable_journal_stops_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, *_: Any) -> bool:
        raise OSError(28, "No space left on device", str(self.path))

    monkeypatch.setattr(JournalFile, "append", refuse)
    answer, status = train(preset(here))
    assert (answer["status"], status) == ("finished", 0)
    messages = [w["message"] for w in json.loads((here / "run" / "run.json").read_text())["warnings"]]
    assert sum("this entry is lost" in text and "No space left" in text for text in messages) == 3


def test_the_journal_as_its_own_system_message(here: Path) -> None:
    """Behind it stand the sample's prompt and room for its text; only what is newest fits."""
    seen: list[str] = []
    generate = lmloop.generation.engine.Engine.generate

    def watched(self: Any, prompts: Any, *args: Any, **named: Any) -> Any:
        seen.extend(prompts)
        return generate(self, prompts, *args, **named)

    path = preset(here, 2, system_prompt_path="run/journal.md")
    values = json.loads(path.read_text())
    values["train"] |= {"sample_every_steps": 5}
    values["generation"] |= {"prompts": ["the "], "max_new_tokens": 4}
    values["model"] |= {"seq_length": 64}
    path.write_text(json.dumps(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lmloop.generation.engine.Engine, "generate", watched)
        train(path)
    first, last = seen[0], seen[-1]
    assert first == "the "
    system, _, asked = last.rpartition("\n\n")
    assert asked == "the "
    assert system
    assert REFLECTIONS[0].endswith(system)
    assert len(last) <= 64 - 4
    written = lines(here / "run" / "samples.jsonl")
    assert {line["prompt"] for line in written} == {"the "}
