"""A run's data on several ranks: one of them decides what is held out, and what one cannot read none trains on."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import lmloop.data.corpus
from lmloop.data.quarantine import Quarantine
from lmloop.data.source import Source, SourceError
from lmloop.opening import open_together
from lmloop.preset.schema import Preset
from lmloop.processes import Processes
from tests.distributed.harness import together
from tests.tokens.sources import MemorySource


class Stream(MemorySource):
    """Without an end that could be listed, as a stream."""

    def parents(self) -> None:  # type: ignore[override]
        return None


class Gone(MemorySource):
    def read(self, position: object, epoch: int = 0) -> object:  # type: ignore[override]
        raise SourceError(f"source '{self.name}': no route to host")


TEXTS = [f"text number {number} " * 5 for number in range(40)]


def made(rank: int, fails: dict[str, int], name: str, *_: object) -> Source:
    if fails.get(name) == rank:
        return Gone(name, TEXTS)
    return (Stream if name == "stream" else MemorySource)(name, TEXTS)


def open_and_tell(processes: Processes, *, folder: Path, fails: dict[str, int]) -> None:
    sources = [{"type": "files", "path": name} for name in ("stream", "one", "two")]
    preset = Preset.model_validate({"name": "p", "data": {"sources": sources, "split": {"validation": 0.1}}})
    lmloop.data.corpus.SOURCES["files"] = partial(made, processes.rank, fails)  # type: ignore[assignment]
    run_dir = folder / f"rank-{processes.rank}"  # as on machines that share nothing
    run_dir.mkdir()
    corpus = open_together(preset, run_dir, Quarantine(None, 0.5), processes)
    documents = {
        part: {source.name: [document.id for document, _ in source.read({})] for source in getattr(corpus, part)}
        for part in ("train", "validation")
    }
    (folder / f"{processes.rank}.json").write_text(json.dumps([documents, corpus.notices]))
    if not processes.first:
        assert list(run_dir.iterdir()) == []


def told(folder: Path, rank: int) -> tuple[dict[str, dict[str, list[str]]], list[str]]:
    documents, notices = json.loads((folder / f"{rank}.json").read_text())
    return documents, notices


def test_all_train_on_the_same_and_leave_out_what_the_first_holds_out(tmp_path: Path) -> None:
    ended = together(tmp_path, partial(open_and_tell, folder=tmp_path, fails={}))
    assert ended.whole, ended
    first, second = told(tmp_path, 0), told(tmp_path, 1)
    assert first == second
    documents = first[0]
    assert documents["validation"]["stream"]
    assert not set(documents["train"]["stream"]) & set(documents["validation"]["stream"])


def test_what_one_cannot_read_none_trains_on(tmp_path: Path) -> None:
    ended = together(tmp_path, partial(open_and_tell, folder=tmp_path, fails={"two": 1}))
    assert ended.whole, ended
    assert {tuple(told(tmp_path, rank)[0]["train"]) for rank in (0, 1)} == {("stream", "one")}
    assert told(tmp_path, 0)[1] == ["left out: source 'two' cannot be read by rank 1"]
    assert told(tmp_path, 1)[1] == ["left out: source 'two': no route to host"]
