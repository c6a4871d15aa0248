from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmloop.data import corpus as corpus_module
from lmloop.data.corpus import Corpus, open_corpus, open_held_out, source_names, source_weights
from lmloop.data.document import Document, Position
from lmloop.data.quarantine import Quarantine, TooManyBadRows
from lmloop.data.source import Source, SourceError
from lmloop.preset.schema import DataSection


def section(**options: Any) -> DataSection:
    return DataSection.model_validate(options)


def files(path: Path | str, **options: Any) -> dict[str, Any]:
    return {"type": "files", "path": str(path), **options}


def opened(data: DataSection, run_dir: Path | None = None, bad: float = 0.2, **options: Any) -> Corpus:
    path = None if run_dir is None else run_dir / "quarantine.jsonl"
    return open_corpus(
        data, **{"seed": 0, "eval_tokens": 1000, **options}, run_dir=run_dir, quarantine=Quarantine(path, bad)
    )


def ids(source: Source, limit: int = 10**9) -> list[str]:
    return [document.id for (document, _), _ in zip(source.read({}), range(limit), strict=False)]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for n in range(20):
        (folder / f"{n:02}.txt").write_text(f"note {n}\n")
    return folder


class FakeHub:
    """Stands for HubStream: endless documents, or a source that is dead."""

    dead = False

    def __init__(self, name: str, section: Any, quarantine: object, notify: object) -> None:
        self.name = name

    def parents(self) -> None:
        return None

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        if self.dead:
            raise SourceError(f"source '{self.name}': the hub cannot be reached")
        for n in range(position.get("n", 0), 10_000):
            name = f"{self.name}#{n}"
            yield Document(name, name, f"{name} " * 20, 0.0), {"n": n + 1}


@pytest.fixture
def hub(monkeypatch) -> type[FakeHub]:
    monkeypatch.setitem(corpus_module.SOURCES, "hub", FakeHub)
    monkeypatch.setattr(FakeHub, "dead", False)
    return FakeHub


def test_split_of_a_folder(notes: Path, tmp_path: Path) -> None:
    corpus = opened(section(sources=[files(notes)], split={"validation": 0.2, "test": 0.1}), tmp_path / "run")
    parts = [set(ids(source)) for (source,) in (corpus.train, corpus.validation, corpus.test)]
    assert [len(part) for part in parts] == [14, 4, 2]
    assert len(set.union(*parts)) == 20
    assert corpus.notices == []
    assert not (tmp_path / "run").exists()  # nothing bad, nothing streamed: nothing to write


def test_the_same_folder_twice_is_split_alike(notes: Path) -> None:
    corpus = opened(section(sources=[files(notes), files(notes, weight=2.0)]))
    assert [source.name for source in corpus.train] == [str(notes), f"{notes} (2)"]
    assert ids(corpus.train[0]) == ids(corpus.train[1])
    assert not set(ids(corpus.train[0])) & set(ids(corpus.validation[1]))


def test_a_dead_source_is_left_out_with_one_line(notes: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bad.jsonl").write_text("not json\n")
    sources = [files("/nowhere"), files(notes), files(tmp_path / "empty.txt"), files(tmp_path / "bad.jsonl")]
    corpus = opened(section(sources=sources, mix_strategy="weighted", source_weights=[1.0, 2.0, 3.0, 4.0]))
    assert [source.name for source in corpus.train] == [str(notes)]
    assert [notice.split("'")[1] for notice in corpus.notices] == [
        "/nowhere",
        str(tmp_path / "empty.txt"),
        str(tmp_path / "bad.jsonl"),
    ]
    assert "its files are empty" in corpus.notices[1]
    assert "not JSON" in corpus.notices[2]


def test_all_dead_names_each_and_why(tmp_path: Path, hub) -> None:
    hub.dead = True
    with pytest.raises(SourceError) as error:
        opened(section(sources=[files("/nowhere"), "wikipedia"]), tmp_path)
    message = str(error.value)
    assert "data.sources: no source can be read" in message
    assert "there is no file or folder /nowhere" in message
    assert "source 'wikipedia': the hub cannot be reached" in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": []}, "data.sources is empty"),
        ({"sources": ["wikpedia"]}, "did you mean 'wikipedia'"),
        ({"sources": ["c4"], "source_weights": {"c5": 1.0}}, "no source is called 'c5': there are c4"),
        ({"sources": [{"type": "files", "path": "."}], "validation": ["nope"]}, "no built-in source is called 'nope'"),
    ],
)
def test_mistakes_in_the_preset(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened(section(**options))


def test_a_source_of_bad_rows_stops(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n' * 50)
    with pytest.raises(TooManyBadRows, match="no field 'text'; there are: body"):
        opened(section(sources=[files(tmp_path)]), tmp_path / "run")
    assert len((tmp_path / "run/quarantine.jsonl").read_text().splitlines()) == 20


def test_explicit_validation_wins(notes: Path, tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("held out\n")
    data = section(sources=[files(notes)], validation=[files(tmp_path / "held.txt")], split={"validation": 0.5, "test": 0.1})
    corpus = opened(data)
    assert [ids(source) for source in corpus.validation] == [["held.txt"]]
    assert (len(ids(corpus.train[0])), len(ids(corpus.test[0]))) == (18, 2)
    with pytest.raises(SourceError, match=r"data\.validation: no source can be read"):
        opened(section(sources=[files(notes)], validation=[files("/nowhere")]))


def test_one_document_is_cut(tmp_path: Path) -> None:
    text = "".join(f"{n} lines of verse\n" for n in range(2000))
    (tmp_path / "play.txt").write_text(text)
    corpus = opened(section(sources=[files(tmp_path / "play.txt")], shuffle=True))
    train, validation = (next(source.read({}))[0].text for (source,) in (corpus.train, corpus.validation))
    assert train + validation == text
    assert abs(len(train) - 0.9 * len(text)) < 30
    assert ["data.shuffle does not apply" in notice for notice in corpus.notices] == [True]


def test_shuffle(notes: Path) -> None:
    plain = opened(section(sources=[files(notes)]))
    shuffled = opened(section(sources=[files(notes)], shuffle=True))
    other = opened(section(sources=[files(notes)], shuffle=True), seed=1)
    orders = [ids(corpus.train[0]) for corpus in (plain, shuffled, other)]
    assert orders[0] == sorted(orders[0])
    assert all(sorted(order) == orders[0] for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert ids(shuffled.validation[0]) == ids(plain.validation[0])
    assert [d.id for d, _ in shuffled.train[0].read({}, 1)] != orders[1]


def test_a_streams_validation_is_frozen(tmp_path: Path, notes: Path, hub) -> None:
    data = section(sources=["wikipedia", files(notes), "c4"], split={"validation": 0.1, "test": 0.1})
    first = opened(data, tmp_path / "run", eval_tokens=3000)
    assert [source.name for source in first.validation] == ["wikipedia", str(notes), "c4"]
    frozen = [ids(source) for source in first.validation]
    characters = sum(len(document.text) for document, _ in first.validation[0].read({}))
    assert 4000 <= characters < 4600
    held = set(frozen[0]) | set(ids(first.test[0]))
    assert len(held) == len(frozen[0]) + len(ids(first.test[0]))
    train = ids(first.train[0], 1000)
    assert not set(train) & held
    assert len(set(train) | held) == 1000 + len(held)
    assert first.train[0].parents() is None

    content = (tmp_path / "run/validation.jsonl").read_bytes()
    again = opened(data, tmp_path / "run", eval_tokens=99_000, seed=7)
    assert [ids(source) for source in again.validation] == frozen
    assert ids(again.train[0], 1000) == train
    assert (tmp_path / "run/validation.jsonl").read_bytes() == content


def test_a_stream_that_is_added_later_is_frozen_too(tmp_path: Path, hub) -> None:
    first = opened(section(sources=["wikipedia"]), tmp_path)
    second = opened(section(sources=["wikipedia", "c4"]), tmp_path)
    assert ids(second.validation[0]) == ids(first.validation[0])
    assert [source.name for source in second.validation] == ["wikipedia", "c4"]
    names = {json.loads(line)["source"] for line in (tmp_path / "validation.jsonl").read_text().splitlines()}
    assert names == {"wikipedia", "c4"}


def test_held_out_documents_outlive_their_stream(tmp_path: Path, notes: Path, hub) -> None:
    data = section(sources=["wikipedia", files(notes)])
    first = opened(data, tmp_path / "run")
    hub.dead = True
    offline = opened(data, tmp_path / "run")
    assert [source.name for source in offline.train] == [str(notes)]
    assert [ids(source) for source in offline.validation] == [ids(source) for source in first.validation]
    assert offline.notices == ["left out: source 'wikipedia': the hub cannot be reached"]


def test_without_a_run_folder_nothing_is_written_and_streams_stay_whole(tmp_path: Path, hub, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = opened(section(sources=["wikipedia"]))
    assert corpus.validation == []
    assert len(ids(corpus.train[0])) == 10_000
    assert list(tmp_path.iterdir()) == []


def test_notices_arrive_while_reading(notes: Path) -> None:
    corpus = opened(section(sources=[files(notes)]))
    position = list(corpus.train[0].read({}))[5][1]
    (notes / position["file"]).unlink()
    list(corpus.train[0].read(position))
    list(corpus.train[0].read(position))
    assert len(corpus.notices) == 1
    assert "is gone since it was last read" in corpus.notices[0]


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"split": {"validation": 0.0}}])
def test_every_part_resumes_anywhere(notes: Path, tmp_path: Path, hub, every_resume, options: dict) -> None:
    (tmp_path / "one.txt").write_text("word\n" * 200)
    corpus = opened(section(sources=[files(notes), files(tmp_path / "one.txt", chunk_size=50)], **options))
    for source in [*corpus.train, *corpus.validation, *corpus.test]:
        assert isinstance(source, Source)
        every_resume(source)


def test_names_and_weights() -> None:
    data = section(
        sources=["c4", files("a"), {"type": "hf", "dataset": "o/n", "subset": "en"}, files("a", weight=3.0), "c4"],
        source_weights={"a (2)": 5.0, "o/n/en": 2.0},
    )
    assert source_names(data.sources) == ["c4", "a", "o/n/en", "a (2)", "c4 (2)"]
    assert source_weights(data) == [1.0, 1.0, 2.0, 5.0, 1.0]
    assert source_weights(section(sources=[files("a", weight=3.0), "c4"])) == [3.0, 1.0]


def test_held_out_parts_are_those_of_training_and_ask_no_stream(tmp_path: Path, notes: Path, hub) -> None:
    data = section(sources=[files(notes), "c4", files(tmp_path / "gone")], split={"validation": 0.2, "test": 0.1})
    run = tmp_path / "run"
    trained = opened(data, run)
    hub.dead = True
    written = {path: path.read_bytes() for path in run.iterdir()}
    again = open_held_out(data, seed=0, run_dir=run, quarantine=Quarantine(None, 0.2))
    assert [ids(source) for source in again.validation] == [ids(source) for source in trained.validation]
    assert [ids(source) for source in again.test] == [ids(source) for source in trained.test]
    assert [notice for notice in again.notices if "gone" in notice]
    assert {path: path.read_bytes() for path in run.iterdir()} == written
