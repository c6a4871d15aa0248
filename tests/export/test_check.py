"""The check lets a right export pass and notices every kind of wrong one. The program that reads it is played here."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lmloop.export.check as module
from lmloop.export.bundle import Bundle
from lmloop.export.check import TEXTS, questions_for
from lmloop.export.consult import Consumer
from lmloop.export.export import export_bundle
from lmloop.export.gguf_file import GGUF
from lmloop.export.questions import Answers, Questions, Written
from lmloop.preset.schema import GenerationSection
from tests.export.bundles import foreign, own

EXPORTER = GGUF()


def right_answers(bundle: Bundle, questions: Questions) -> Answers:
    """What a program says that runs the bundle's model."""
    ours = bundle.tokenizer

    def write(prompt: list[int]) -> Written:
        tokens: list[int] = []
        while len(tokens) < questions.new_tokens:
            token = int(bundle.logits(torch.tensor([prompt + tokens]))[0, -1].argmax())
            if token in questions.stops:
                return Written(tokens, ours.decode(tokens), ended=True)
            tokens.append(token)
        return Written(tokens, ours.decode(tokens), ended=False)

    rendered = None
    if questions.messages:
        rendered = bundle.token(bundle.prefix[0]) + "Q: How are you?\nA:Well.\nQ: And now?\nA:"
    return Answers(
        logits=[bundle.logits(torch.tensor([row]))[0].numpy() for row in questions.rows],
        ids=[[*bundle.prefix, *ours.encode(text).tolist()] for text in questions.texts],
        written=[write(prompt) for prompt in questions.prompts],
        forced=[0 for _ in questions.stops],
        rendered=rendered,
    )


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have another program say `answer(questions)` in llama.cpp's place."""

    def playing(answer: Callable[[Questions], Answers]) -> None:
        monkeypatch.setattr(Consumer, "installed", property(lambda self: True))
        monkeypatch.setattr(Consumer, "title", property(lambda self: "a program"))
        monkeypatch.setattr(Consumer, "ask", lambda self, folder, questions: answer(questions))

    return playing


CHATTING = GenerationSection(chat_format="Q: {user}\nA:", prompts=["def "])


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_the_right_model_passes(kind: str, play: Callable[..., None], tmp_path: Path) -> None:
    bundle = own("decoder", CHATTING)
    play(lambda questions: right_answers(bundle, questions))
    check = export_bundle(bundle, "gguf", tmp_path / "out", kind)["check"]
    assert check["reader"] == "a program"
    assert check["texts"] == len(TEXTS)
    assert check["written_tokens"] > 0
    if kind == "f32":
        assert check["difference"] == 0.0
        assert check["rounding_nats"] is None
    else:  # the program has the exact weights, the reference those of the file
        assert 0 < check["difference"] < check["tolerance"]


def longer(questions: Questions, answers: Answers) -> list[Written]:
    return [dataclasses.replace(one, tokens=one.tokens[:-1], ended=False) for one in answers.written]


def other_token(questions: Questions, answers: Answers) -> list[Written]:
    first = answers.written[0]
    return [Written([(first.tokens[0] + 1) % 300, *first.tokens[1:]], first.text, first.ended), *answers.written[1:]]


WRONG: dict[str, tuple[Callable[[Questions, Answers], dict[str, Any]], str]] = {
    "logits": (lambda q, a: {"logits": [logits * 1.01 for logits in a.logits]}, "does not compute what was trained"),
    "one logit": (
        lambda q, a: {"logits": [a.logits[0] + np.eye(*a.logits[0].shape, dtype=np.float32), *a.logits[1:]]},
        "does not compute what was trained",
    ),
    "no number": (lambda q, a: {"logits": [logits * np.nan for logits in a.logits]}, "does not compute"),
    "no start token": (lambda q, a: {"ids": [ids[1:] for ids in a.ids]}, "makes other tokens of .* from token 0"),
    "tokens": (lambda q, a: {"ids": [*a.ids[:-1], [*a.ids[-1], 3]]}, "makes other tokens of 'x'"),
    "text": (lambda q, a: {"written": other_token(q, a)}, "writes .* as token 1 after .*, the model"),
    "no end": (lambda q, a: {"written": longer(q, a)}, "stops after .* tokens without an end token"),
    "ended": (
        lambda q, a: {"written": [dataclasses.replace(one, ended=True) for one in a.written]},
        "writes '<|endoftext|>' as token",
    ),
    "shown": (
        lambda q, a: {"written": [dataclasses.replace(one, text=one.text + "!") for one in a.written]},
        "shows its tokens as",
    ),
    "writes on": (lambda q, a: {"forced": [5]}, r"writes on after the end token '<\|endoftext\|>'"),
    "template": (lambda q, a: {"rendered": "Q:"}, "renders a conversation as 'Q:'"),
    "no template": (lambda q, a: {"rendered": None}, "renders a conversation as ''"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_model_is_no_export(case: str, play: Callable[..., None], tmp_path: Path) -> None:
    bundle = own("decoder", CHATTING)
    change, reason = WRONG[case]

    def answer(questions: Questions) -> Answers:
        answers = right_answers(bundle, questions)
        return dataclasses.replace(answers, **change(questions, answers))

    play(answer)
    with pytest.raises(ValueError, match=reason.replace("|endoftext|>' as", r"\|endoftext\|>' as")) as error:
        export_bundle(bundle, "gguf", tmp_path / "out")
    assert "out was not made: a program" in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_equals_may_be_chosen_either_way(play: Callable[..., None], tmp_path: Path) -> None:
    """Two tokens that are equally likely but for rounding: whichever a program takes, it is the model's text."""
    bundle = own("decoder")

    def nearly(tokens_BT: torch.Tensor) -> torch.Tensor:
        logits = bundle.logits(tokens_BT)
        best = logits.max(dim=-1).values
        logits[..., 20], logits[..., 21] = best + 1.0, best + 1.0 + 1e-6
        return logits

    def the_other(tokens_BT: torch.Tensor) -> torch.Tensor:
        logits = nearly(tokens_BT)
        logits[..., 20] += 2e-6
        return logits

    play(lambda questions: right_answers(dataclasses.replace(bundle, logits=the_other), questions))
    report = export_bundle(dataclasses.replace(bundle, logits=nearly), "gguf", tmp_path / "out")
    assert report["check"]["difference"] > 0


def test_bytes_that_are_no_character_do_not_matter(play: Callable[..., None], tmp_path: Path) -> None:
    bundle = own("decoder")

    def answer(questions: Questions) -> Answers:
        answers = right_answers(bundle, questions)
        shown = [dataclasses.replace(one, text=" " + one.text.replace("\ufffd", "\ufffd\ufffd")) for one in answers.written]
        return dataclasses.replace(answers, written=shown)

    play(answer)
    export_bundle(bundle, "gguf", tmp_path / "out")


def test_questions_fit_the_model() -> None:
    for name, context in (("short", 8), ("linear", 192), ("gpt2", 48)):
        questions = questions_for(own(name), EXPORTER)
        assert max(map(len, questions.rows)) == min(context, 256)
        assert questions.longest <= context
        assert all(prompt[0] == own(name).prefix[0] for prompt in questions.prompts)
    assert questions_for(foreign("mistral, window"), EXPORTER).longest <= 32
    assert all(unicodedata.is_normalized("NFC", text) for text in TEXTS)


def test_what_a_format_is_known_to_cut_otherwise_is_not_asked() -> None:
    assert len(questions_for(own("characters"), EXPORTER).texts) == len(TEXTS)
    texts = questions_for(foreign("mistral"), EXPORTER).texts
    assert len(texts) == len(TEXTS) - sum(text.startswith(" ") for text in TEXTS) < len(TEXTS)
    assert any("U+2581" in note for note in EXPORTER.notes(foreign("mistral"), "f32"))


def test_questions_and_answers_travel(tmp_path: Path) -> None:
    bundle = own("decoder", CHATTING)
    questions = questions_for(bundle, EXPORTER)
    questions.write(tmp_path / "q.json")
    assert Questions.read(tmp_path / "q.json") == questions
    answers = right_answers(bundle, questions)
    answers.write(tmp_path / "a.npz")
    back = Answers.read(tmp_path / "a.npz")
    assert all(np.array_equal(one, other) for one, other in zip(answers.logits, back.logits, strict=True))
    assert dataclasses.replace(back, logits=[]) == dataclasses.replace(answers, logits=[])


# ---- a program that is not there, or breaks ----


def test_without_the_program_the_command_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Consumer, "installed", property(lambda self: False))
    report = export_bundle(own("decoder"), "gguf", tmp_path / "out")
    assert report["check"]["reader"] is None
    assert report["checks"][0] == "read back: 24 tensors compared with the model's: all equal"
    assert "llama.cpp itself has not loaded it: it is not installed here" in report["checks"][1]
    assert "llama-cpp-python" in report["checks"][1]


def test_without_the_memory_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Consumer, "installed", property(lambda self: True))
    monkeypatch.setattr(module, "available_bytes", lambda: 1_000)
    report = export_bundle(own("decoder"), "gguf", tmp_path / "out")
    assert "GB of memory, and 0.0 are free" in report["checks"][1]


def test_a_program_that_does_not_start_says_nothing_of_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy is there, but nobody can ask it: as a package without the libraries that it needs."""
    monkeypatch.setattr(GGUF, "consumer", Consumer("numpy", "numpy", "numpy", "ask_numpy", "its pages"))
    report = export_bundle(own("decoder"), "gguf", tmp_path / "out")
    assert report["check"]["reader"] is None
    assert "numpy itself has not loaded it: it is installed but does not start (No module named" in report["checks"][1]


PROGRAMS = {
    "raise ValueError('no such tensor: blk.0')": r"status 1\): ValueError: no such tensor: blk\.0",
    "import os; os.abort()": r"signal 6\)",
    "import sys; print('cannot mmap', file=sys.stderr); sys.exit(3)": r"status 3\): cannot mmap",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_that_breaks_breaks_alone(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lmloop" / "export" / "consumers"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "__main__.py").write_text(program)
    monkeypatch.setattr("lmloop.__file__", str(tmp_path / "lmloop" / "__init__.py"))
    consumer = Consumer("numpy", "numpy", "numpy", "ask_numpy", "")
    with pytest.raises(ValueError, match=PROGRAMS[program]) as error:
        consumer.ask(tmp_path, questions_for(own("short"), EXPORTER))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"numpy {np.__version__} cannot use what was written")


def test_a_process_of_its_own_answers_as_this_one_does(tmp_path: Path) -> None:
    from lmloop.export.consumers.ask_transformers import answer
    from lmloop.export.hf import HuggingFace

    bundle = own("short")
    HuggingFace().write(bundle, "f32", tmp_path)
    questions = questions_for(bundle, HuggingFace())
    there = dataclasses.replace(HuggingFace.consumer, here=False).ask(tmp_path, questions)
    here = answer(tmp_path, questions)
    assert [one.tolist() for one in there.logits] == [one.tolist() for one in here.logits]
    assert dataclasses.replace(there, logits=[]) == dataclasses.replace(here, logits=[])
