"""Nothing runs from data: a canary in every file that the program reads is never woken."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import pickle
import runpy
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import torch
import yaml

import lmloop.plan
from lmloop import menu
from lmloop.cli import main
from lmloop.data.run_folders import is_written_by_runs
from tests.hostile import canary
from tests.runs import write_preset

ROOT = Path(__file__).parents[2]
NONE_OF_A_RUN = {".lock", "report.html"}  # never read

CHECKPOINTS = ["lm_current.pth", "lm_prev.pth", "lm_prev2.pth", "lm_best.pth", "simple_lm_trained.pth"]
MANIFESTS = [f"lm_{name}.manifest.json" for name in ("current", "prev", "prev2", "best")]
LINE_FILES = ["metrics.jsonl", "samples.jsonl", "quarantine.jsonl", "run.json", "preset.json"]
TOKENIZER = ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]
NOT_THERE_YET = [
    "validation.jsonl",
    "test.jsonl",
    "hub_commits.json",
    "lm_next.pth",
    "lm_next.manifest.json",
    "tokenizer/tokenizer.model",
]


class Canary:
    """The present folder, with a corpus, a preset and a run; and what is done there."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.mark = folder / "woken"
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def do(self, *words: str, typed: str = "") -> int:
        """A verb: its status. It says in one line what it does not like, and the canary sleeps on."""
        return self.check(lambda: main(words), typed)

    def check(self, what: Callable[[], int], typed: str = "") -> int:
        self._monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        self._capsys.readouterr()
        status = what()
        said = self._capsys.readouterr()
        assert not self.mark.exists(), "it was woken"
        assert "Traceback" not in said.out + said.err
        faults = [line for line in said.err.splitlines() if line.startswith("lmloop: ")]
        assert (status, len(faults)) in ((0, 0), (1, 0), (2, 1)), (status, said)  # 1: what `check-data` found
        return status

    def everything(self) -> list[int]:
        """All that is done with a run."""
        return [
            self.do("generate", "run", "--prompt", "a"),
            self.do("generate", "run", "--prompt", "a", "--checkpoint", "newest"),
            self.do("evaluate", "run"),
            self.do("chat", "run", typed="hello\n"),
            self.do("check-data", "preset.json"),
            self.do("train", "preset.json"),
        ]


def finish(folder: Path) -> None:
    """A run of six steps, which its preset now says are seven."""
    path = write_preset(folder)
    assert main(["train", str(path)]) == 0
    preset = json.loads(path.read_text())
    preset["train"]["max_steps"] = 7
    (folder / "preset.json").write_text(json.dumps(preset))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        finish(folder)
    return folder


@pytest.fixture
def bird(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Canary:
    folder = tmp_path / "here"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    return Canary(folder, monkeypatch, capsys)


def state_of(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


# ---- it can be woken ----


def _render(content: bytes, mark: Path) -> None:
    jinja2.Environment().from_string(content.decode()).render(messages=[{"content": "x"}])


@pytest.mark.parametrize(
    ("make", "wake"),
    [
        (canary.as_pickle, lambda content, _: pickle.loads(content)),
        (canary.as_torch, lambda content, _: torch.load(io.BytesIO(content), weights_only=False)),
        (canary.as_torch_of_old, lambda content, _: torch.load(io.BytesIO(content), weights_only=False)),
        (canary.as_array, lambda content, _: np.load(io.BytesIO(content), allow_pickle=True)),
        (canary.as_yaml, lambda content, _: yaml.unsafe_load(content)),
        (canary.as_template, _render),
        (canary.as_python, lambda content, mark: runpy.run_path(str(write(mark.with_suffix(".py"), content)))),
    ],
)
def test_it_wakes_where_data_is_run(
    tmp_path: Path, make: Callable[[Path], bytes | str], wake: Callable[[bytes, Path], object]
) -> None:
    mark = tmp_path / "woken"
    content = make(mark)
    with contextlib.suppress(FileExistsError, jinja2.UndefinedError):
        wake(content.encode() if isinstance(content, str) else content, mark)
    assert mark.is_dir()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# ---- a run's folder ----


def test_every_file_of_a_run_has_its_turn(finished: Path) -> None:
    run = finished / "run"
    there = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert there - NONE_OF_A_RUN == {*CHECKPOINTS, *MANIFESTS, *LINE_FILES, *TOKENIZER}
    assert all(is_written_by_runs(name.split("/")[0]) for name in there)  # and none of it is data


def test_all_is_well_without_it(bird: Canary) -> None:
    assert bird.everything() == [0] * 6


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("kind", ["in the state", "old", "bare"])
def test_checkpoints(bird: Canary, name: str, kind: str) -> None:
    path = Path("run", name)
    state = state_of(path)
    made = {
        "in the state": lambda: canary.as_torch(bird.mark, **state),
        "old": lambda: canary.as_torch_of_old(bird.mark),
        "bare": lambda: canary.as_pickle(bird.mark),
    }
    path.write_bytes(made[kind]())
    canary.vouched(path)
    assert bird.everything() == [0] * 6  # there are others


def test_no_other_checkpoint(bird: Canary) -> None:
    for name in CHECKPOINTS:
        path = Path("run", name)
        path.write_bytes(canary.as_torch(bird.mark, **state_of(path)))
        canary.vouched(path)
    assert bird.everything() == [2, 2, 2, 2, 0, 2]


@pytest.mark.parametrize("name", [*MANIFESTS, *LINE_FILES, *TOKENIZER, *NOT_THERE_YET])
@pytest.mark.parametrize("make", [canary.as_pickle, canary.as_torch])
def test_other_files_of_a_run(bird: Canary, name: str, make: Callable[[Path], bytes]) -> None:
    path = Path("run", name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(make(bird.mark))
    bird.everything()


def test_programs_in_a_run(bird: Canary) -> None:
    for name in ("sitecustomize", "conftest", "json", "torch", "modeling", "tokenizer", "lmloop"):
        for folder in ("run", "run/tokenizer", "corpus"):
            Path(folder, f"{name}.py").write_text(canary.as_python(bird.mark))
    assert bird.everything() == [0] * 6


# ---- data ----


@pytest.mark.parametrize("ending", ["txt", "md", "json", "jsonl", "ndjson", "parquet", "pkl", "npy", "py", "arrow"])
@pytest.mark.parametrize("make", [canary.as_pickle, canary.as_torch, canary.as_array, canary.as_python, canary.as_yaml])
def test_data_files(bird: Canary, ending: str, make: Callable[[Path], bytes | str]) -> None:
    content = make(bird.mark)
    Path("corpus", f"x.{ending}").write_bytes(content.encode() if isinstance(content, str) else content)
    set_preset({"sources": [{"type": "files", "path": "corpus"}], "max_bad_fraction": 1.0})
    assert bird.do("check-data", "preset.json") in (0, 1)
    set_preset({"sources": [{"type": "files", "path": f"corpus/x.{ending}"}], "max_bad_fraction": 1.0})
    bird.do("check-data", "preset.json")
    bird.do("evaluate", "run", "--data", f"corpus/x.{ending}")


def test_pdfs(bird: Canary) -> None:
    Path("corpus", "x.pdf").write_bytes(canary.as_pickle(bird.mark))
    set_preset({"sources": [{"type": "pdf", "path": "corpus"}]})
    assert bird.do("check-data", "preset.json") == 1


@pytest.mark.parametrize(
    "script", ["x.py", "dataset.py", "{folder}.py", "dataset_infos.json", "README.md", "dataset_dict.json"]
)
def test_a_data_set_with_a_program(bird: Canary, script: str) -> None:
    folder = bird.folder / "my_set"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "a row"}\n' * 30)
    content = canary.as_yaml(bird.mark) if script.endswith(".md") else canary.as_python(bird.mark)
    (folder / script.format(folder=folder.name)).write_text(f"---\n{content}\n---\n" if script.endswith(".md") else content)
    set_preset({"sources": [{"type": "hub", "dataset": str(folder)}]})
    bird.do("check-data", "preset.json")


def set_preset(data: dict[str, Any], **changes: Any) -> None:
    preset = json.loads(Path("preset.json").read_text())
    Path("preset.json").write_text(json.dumps({**preset, "data": {**preset["data"], **data}, **changes}))


# ---- presets ----


@pytest.mark.parametrize("name", ["evil.json", "evil.yaml", "evil.yml"])
@pytest.mark.parametrize("make", [canary.as_pickle, canary.as_torch, canary.as_yaml, canary.as_python])
def test_presets(bird: Canary, name: str, make: Callable[[Path], bytes | str]) -> None:
    content = make(bird.mark)
    content = content.encode() if isinstance(content, str) else content
    Path(name).write_bytes(content)
    for verb in ("train", "plan", "check-data"):
        assert bird.do(verb, name) == 2
    Path(name).write_bytes(b"name: " + content if name != "evil.json" else content)
    set_preset({}, extends=name)
    assert bird.do("check-data", "preset.json") == 2


def test_the_menu(bird: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmloop.plan, "menu_forecasts", lambda presets, console: {one.path: "" for one in presets})
    Path("configs").mkdir()
    shutil.copy("preset.json", "configs/00_best_general.json")
    for name, make in (
        ("a.json", canary.as_pickle),
        ("b.yaml", canary.as_yaml),
        ("c.yml", canary.as_torch),
        ("d.py", canary.as_python),
    ):
        content = make(bird.mark)
        Path("configs", name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert bird.check(menu.main, "\n") == 0


# ---- tokenizers ----

TOKENIZER_FILES = [
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.model", "spiece.model", "config.json", "chat_template.jinja", "tokenizer.pkl", "pytorch_model.bin",
    "tokenization_custom.py", "generation_config.json",
]  # fmt: skip
AUTO_MAP = {"auto_map": {"AutoTokenizer": ["tokenization_custom.Custom", "tokenization_custom.Custom"]}}


@pytest.fixture
def folder_of_tokenizer(bird: Canary) -> Path:
    """A pretrained tokenizer with a program of its own."""
    folder = bird.folder / "pretrained"
    shutil.copytree(bird.folder / "run" / "tokenizer", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | AUTO_MAP | {"tokenizer_class": "Custom"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "custom", **AUTO_MAP}))
    (folder / "tokenization_custom.py").write_text(canary.as_python(bird.mark))
    set_preset({}, tokenizer={"type": "pretrained", "path": "pretrained"}, output_dir="other")
    return folder


@pytest.mark.parametrize("name", TOKENIZER_FILES)
@pytest.mark.parametrize("make", [canary.as_pickle, canary.as_python, canary.as_template])
def test_pretrained_tokenizers(
    bird: Canary, folder_of_tokenizer: Path, name: str, make: Callable[[Path], bytes | str]
) -> None:
    content = make(bird.mark)
    (folder_of_tokenizer / name).write_bytes(content.encode() if isinstance(content, str) else content)
    bird.do("check-data", "preset.json")
    (folder_of_tokenizer / "tokenizer.json").unlink()  # then the library's own conversion is tried
    assert bird.do("check-data", "preset.json") == 1


def test_training_with_a_tokenizer_that_has_a_program(bird: Canary, folder_of_tokenizer: Path) -> None:
    (folder_of_tokenizer / "chat_template.jinja").write_text(canary.as_template(bird.mark))
    assert bird.do("train", "preset.json") == 0
    assert bird.do("chat", "other", typed="hello\n") == 0


# ---- the program itself ----

FORBIDDEN = {
    "eval": "runs text",
    "exec": "runs text",
    "__import__": "imports what a text names",
    "pickle.load": "unpickles",
    "pickle.loads": "unpickles",
    "pickle.Unpickler": "unpickles",
    "torch.jit.load": "runs code",
    "torch.package": "runs code",
    "yaml.load": "makes any object",
    "yaml.load_all": "makes any object",
    "yaml.full_load": "makes any object",
    "yaml.unsafe_load": "makes any object",
    "marshal.loads": "loads code",
    "marshal.load": "loads code",
    "shelve.open": "unpickles",
    "joblib.load": "unpickles",
    "runpy.run_path": "runs a file",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
}
IMPORTS_BY_NAME = {"lmloop/confined_child.py", "lmloop/training/tracking.py", "lmloop/export/consult.py",
                   "lmloop/export/consumers/__main__.py"}  # fmt: skip
"""Whose names are the program's own."""

TRUSTING = {"lmloop/models/from_transformers.py"}
"""Where a name that the preset trusts is asked for first."""


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """The calls in a module, by the whole name of what is called."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, _, rest = ast.unparse(node.func).partition(".")
            yield names.get(first, first) + (f".{rest}" if rest else ""), node


def option(call: ast.Call, name: str) -> object:
    return next(
        (ast.literal_eval(k.value) for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None
    )


def faults_of(text: str, name: str) -> list[str]:
    found = []
    for called, call in calls(ast.parse(text)):
        if called in FORBIDDEN:
            found.append(f"{name}:{call.lineno}: {called} {FORBIDDEN[called]}")
        if called == "torch.load" and option(call, "weights_only") is not True:
            found.append(f"{name}:{call.lineno}: torch.load without weights_only=True")
        if called in ("numpy.load", "np.load") and option(call, "allow_pickle") not in (None, False):
            found.append(f"{name}:{call.lineno}: np.load with allow_pickle")
        named_here = bool(call.args) and isinstance(call.args[0], ast.Constant)
        if called.endswith("import_module") and not named_here and name not in IMPORTS_BY_NAME:
            found.append(f"{name}:{call.lineno}: imports by name")
        if option(call, "shell") is not None:
            found.append(f"{name}:{call.lineno}: {called} with a shell")
        if option(call, "trust_remote_code") is True and name not in TRUSTING:
            found.append(f"{name}:{call.lineno}: {called} with trust_remote_code")
    return found


def program() -> Sequence[Path]:
    return sorted([*(ROOT / "lmloop").rglob("*.py"), ROOT / "main.py"])


def test_the_program_calls_nothing_that_runs_data() -> None:
    assert len(program()) > 50
    assert [fault for path in program() for fault in faults_of(path.read_text(), path.relative_to(ROOT).as_posix())] == []


@pytest.mark.parametrize(
    "line",
    [
        "import torch\ntorch.load(x)",
        "import torch as t\nt.load(x, weights_only=False)",
        "from torch import load\nload(x)",
        "from pickle import loads as read\nread(x)",
        "import numpy as np\nnp.load(x, allow_pickle=True)",
        "import yaml\nyaml.load(x, Loader=yaml.Loader)",
        "eval(x)",
        "import importlib\nimportlib.import_module(x)",
        "import subprocess\nsubprocess.run(x, shell=True)",
        "from transformers import AutoModel\nAutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)
def test_the_audit_sees(line: str) -> None:
    assert len(faults_of(line, "x.py")) == 1


@pytest.mark.parametrize(
    "line", ["import torch\ntorch.load(x, weights_only=True)", "model.eval()", "import re\nre.compile(x)"]
)
def test_the_audit_passes_over(line: str) -> None:
    assert faults_of(line, "x.py") == []
