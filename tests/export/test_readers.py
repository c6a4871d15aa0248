"""Exports as llama.cpp, mlx-lm and an older transformers read them. `make test-exports` installs these and runs this.

A test is skipped where its program is not installed.
"""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import unicodedata
from pathlib import Path
from typing import Any

import pytest

import lmloop.export.check as check
import lmloop.export.gguf_shapes as gguf_shapes
from lmloop.export.bundle import Bundle
from lmloop.export.check import compare, questions_for
from lmloop.export.export import EXPORTERS, export_bundle
from lmloop.export.gguf_file import GGUF
from lmloop.export.hf import HuggingFace
from lmloop.export.questions import Answers, Questions
from lmloop.preset.schema import GenerationSection
from tests.export.bundles import FOREIGN, OWN, SPACES, SPLITS, TEXTS, foreign, memorised, own, tokenizer

ROOT = Path(__file__).resolve().parents[2]
TRANSFORMERS_4 = ROOT / ".venv.transformers4" / "bin" / "python"

pytestmark = pytest.mark.exports
llama_cpp = pytest.mark.skipif(not EXPORTERS["gguf"].consumer.installed, reason="llama-cpp-python is not installed")
mlx_lm = pytest.mark.skipif(not EXPORTERS["mlx"].consumer.installed, reason="mlx-lm is not installed")
transformers_4 = pytest.mark.skipif(not TRANSFORMERS_4.exists(), reason="`make test-exports` installs transformers 4")

CHATTING = GenerationSection(chat_format="Q: {user}\nA:", prompts=["def "])


def named(name: str) -> Bundle:
    return own(name) if name in OWN else foreign(name)


def read_by_the_program(bundle: Bundle, format: str, out: Path, kind: str | None = None) -> dict[str, Any]:
    """The check's result, made by the real program."""
    made = export_bundle(bundle, format, out, kind)["check"]
    assert made["reader"] is not None, made["unasked"]
    return made


@llama_cpp
@pytest.mark.parametrize("kind", ["f32", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", [*OWN, *FOREIGN])
def test_llama_cpp(name: str, kind: str, tmp_path: Path) -> None:
    made = read_by_the_program(named(name), "gguf", tmp_path / "out", kind)
    assert made["written_tokens"] > 0
    assert made["difference"] < 0.7 * made["tolerance"]  # not at the edge


@llama_cpp
@pytest.mark.parametrize("kind", ["bf16", "f16", "q5_1", "q5_0", "q4_1"])
@pytest.mark.parametrize("name", ["decoder", "gpt2"])
def test_llama_cpp_in_every_type(name: str, kind: str, tmp_path: Path) -> None:
    read_by_the_program(named(name), "gguf", tmp_path / "out", kind)


@mlx_lm
@pytest.mark.parametrize("name", [name for name in [*OWN, *FOREIGN] if name != "gpt2, untied, narrow"])
def test_mlx_lm(name: str, tmp_path: Path) -> None:
    read_by_the_program(named(name), "mlx", tmp_path / "out", "f32")


@mlx_lm
@pytest.mark.parametrize("kind", ["bf16", "f16", "q8", "q6", "q4"])
@pytest.mark.parametrize("name", ["decoder", "gpt2", "llama"])
def test_mlx_lm_in_every_type(name: str, kind: str, tmp_path: Path) -> None:
    read_by_the_program(named(name), "mlx", tmp_path / "out", kind)


@pytest.mark.parametrize("format", [pytest.param("gguf", marks=llama_cpp), pytest.param("mlx", marks=mlx_lm)])
@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_a_text_ends_where_the_model_ends_it(format: str, kind: str, tmp_path: Path) -> None:
    made = read_by_the_program(memorised(kind=kind), format, tmp_path / "out")
    assert made["written_tokens"] < 24 * 3


@pytest.mark.parametrize("format", [pytest.param("gguf", marks=llama_cpp), pytest.param("mlx", marks=mlx_lm)])
def test_a_chat_template_is_carried(format: str, tmp_path: Path) -> None:
    read_by_the_program(own("decoder", CHATTING), format, tmp_path / "out")


@pytest.mark.parametrize("format", [pytest.param("gguf", marks=llama_cpp), pytest.param("mlx", marks=mlx_lm)])
def test_a_model_in_bf16(format: str, tmp_path: Path) -> None:
    import torch

    read_by_the_program(foreign("qwen3", torch.bfloat16), format, tmp_path / "out")


# ---- tokenizers ----


def awkward_texts() -> list[str]:
    rng = random.Random(0)
    prose = "".join(TEXTS)
    odd = " \n\tab1Zé中🙂'.,-_/\r\u00a0\u3000<>"
    texts = []
    for _ in range(300):
        length = rng.randint(1, 60)
        at = rng.randrange(len(prose) - length)
        pieces = (prose[at : at + length], *("".join(rng.choices(letters, k=length)) for letters in (odd, prose)))
        texts.append(unicodedata.normalize("NFC", rng.choice(pieces)))
    return texts


@llama_cpp
@pytest.mark.parametrize("kind", [*SPLITS, *SPACES, "bpe", "char"])
def test_llama_cpp_makes_the_same_tokens(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "TEXTS", (*check.TEXTS, *awkward_texts()))
    section, _ = OWN["short"]
    monkeypatch.setitem(OWN, "any", (section, kind))
    made = read_by_the_program(own("any"), "gguf", tmp_path / "out")
    assert made["texts"] > 150


# ---- mistakes that still read like text ----


@llama_cpp
@pytest.mark.parametrize("kind", ["f32", "q4_0"])
def test_queries_and_keys_in_the_wrong_order_are_noticed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = dataclasses.replace(gguf_shapes.LLAMA, interleaved=False)
    monkeypatch.setitem(gguf_shapes.SHAPES, "llama", plain)
    with pytest.raises(ValueError, match="does not compute what was trained"):
        export_bundle(foreign("llama"), "gguf", tmp_path / "out", kind)


@llama_cpp
def test_other_positions_are_noticed(tmp_path: Path) -> None:
    bundle = own("yarn")
    without = {**bundle.config, "rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    with pytest.raises(ValueError, match="does not compute what was trained"):
        export_bundle(dataclasses.replace(bundle, config=without), "gguf", tmp_path / "out")


@pytest.mark.parametrize("format", [pytest.param("gguf", marks=llama_cpp), pytest.param("mlx", marks=mlx_lm)])
def test_another_split_is_noticed(format: str, tmp_path: Path) -> None:
    class Otherwise:
        """The tokenizer, but for numbers."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer("bpe"), name)

        def encode(self, text: str) -> Any:
            return tokenizer("bpe").encode(text.replace("12345", "1234"))

    bundle = dataclasses.replace(own("decoder"), tokenizer=Otherwise())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="makes other tokens of"):
        export_bundle(bundle, format, tmp_path / "out")


@llama_cpp
def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    GGUF().write(own("decoder"), "f32", tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5_000])
    with pytest.raises(ValueError, match=r"^llama\.cpp \(llama-cpp-python .*\) cannot use what was written") as error:
        GGUF.consumer.ask(tmp_path, questions_for(own("decoder"), GGUF()))
    assert "\n" not in str(error.value)


# ---- transformers 4 ----

ASK_ALL = """
import sys
from pathlib import Path
from lmloop.export.consumers.ask_transformers import answer
from lmloop.export.questions import Questions
for folder in map(Path, sys.argv[1:]):
    answer(folder, Questions.read(folder / "questions.json")).write(folder / "answers.npz")
"""


@pytest.fixture(scope="module")
def read_by_transformers_4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each model, with questions and answers beside it; one process reads them all."""
    root = tmp_path_factory.mktemp("transformers 4")
    for name in (*OWN, *FOREIGN):
        (root / name).mkdir()
        HuggingFace().write(chatting(name), "f32", root / name)
        questions_for(chatting(name), HuggingFace()).write(root / name / "questions.json")
    done = subprocess.run(
        [str(TRANSFORMERS_4), "-P", "-c", ASK_ALL, *map(str, root.iterdir())],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return root


def chatting(name: str) -> Bundle:
    return own(name, CHATTING) if name in OWN else foreign(name)


@transformers_4
@pytest.mark.parametrize("name", [*OWN, *FOREIGN])
def test_transformers_4(name: str, read_by_transformers_4: Path) -> None:
    bundle, folder = chatting(name), read_by_transformers_4 / name
    questions, answers = Questions.read(folder / "questions.json"), Answers.read(folder / "answers.npz")
    nothing = check.Check(0, 0.0, False)
    assert compare(bundle, HuggingFace(), "f32", nothing, bundle.logits, questions, answers).difference < 1e-5
