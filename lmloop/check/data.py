"""The check of a preset's data: opened, split, tokenized and packed as training would, and counted instead of trained."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmloop.check.bad_rows import CountingQuarantine
from lmloop.check.budget import budget_of
from lmloop.check.counts import PartCounts, count_part
from lmloop.check.duplicates import Fingerprints
from lmloop.check.findings import PARTS, Findings, SourceFindings
from lmloop.check.preview import Sampler
from lmloop.check.reading import Reading
from lmloop.check.verdict import judge
from lmloop.data import frozen
from lmloop.data.corpus import Corpus, open_corpus
from lmloop.data.document import Document
from lmloop.data.source import Source, SourceError
from lmloop.preset.reading import LoadedPreset
from lmloop.preset.schema import Preset
from lmloop.room import checkpoint_bytes
from lmloop.tokens.build import build_tokenizer
from lmloop.tokens.conversations import ChatEncoder, open_chats, with_template
from lmloop.tokens.encoding import Encoder
from lmloop.tokens.pretrained import read_folder
from lmloop.tokens.tokenizer import Tokenizer

STREAM_DOCUMENTS = 10_000
"""Of a stream as many documents are read, when no number was asked for."""


def check_data(loaded: LoadedPreset, reading: Reading, *, limit: int | None, samples: int) -> Findings:
    """Read a preset's data as training would and say what is in it; writes nothing into the run's folder.

    limit: documents of each part of a source that are read; None: all of a finite one, STREAM_DOCUMENTS of a stream.
    samples: how many are picked of each source. Interrupted, it says what was found so far.

    Raises:
        ValueError: the preset is wrong; what is wrong with the data is in the findings.
    """
    started = time.monotonic()
    preset = loaded.preset
    run_dir = Path(preset.run_dir).expanduser()
    findings = Findings(
        preset=preset.name,
        path=str(loaded.path),
        run=preset.run_dir,
        seq_length=preset.model.seq_length,
        limit=limit,
        notices=list(loaded.notes),
    )
    try:
        with _beside(run_dir) as folder:
            _check(findings, preset, run_dir, folder, reading, limit=limit, samples=samples)
    except KeyboardInterrupt:
        findings.interrupted = True
    judge(findings, preset)
    findings.seconds = time.monotonic() - started
    return findings


@contextmanager
def _beside(run_dir: Path) -> Iterator[Path]:
    """A folder in which the run's held-out text of streams is kept as in its own, and chosen anew where there is none."""
    with tempfile.TemporaryDirectory(prefix="lmloop-check-") as name:
        for kept in (run_dir / "validation.jsonl", run_dir / "test.jsonl"):
            if kept.exists():
                frozen.load(kept)  # an error names the run's own file
                shutil.copyfile(kept, Path(name) / kept.name)
        yield Path(name)


def _check(
    findings: Findings, preset: Preset, run_dir: Path, folder: Path, reading: Reading, *, limit: int | None, samples: int
) -> None:
    quarantine = CountingQuarantine(preset.data.max_bad_fraction)
    reading.doing("opening the data")
    try:
        corpus = open_corpus(
            preset.data,
            seed=preset.train.seed,
            eval_tokens=preset.train.eval_tokens,
            run_dir=folder,
            quarantine=quarantine,
        )
    except SourceError as error:
        findings.problems.append(str(error))
        return
    reading.doing("building the tokenizer")
    try:
        tokenizer = _tokenizer(findings, preset, run_dir, corpus)
        length = preset.model.seq_length
        chats = open_chats(preset.data, tokenizer, seq_length=length, quarantine=quarantine, cache_bytes=0)
    except ValueError as error:
        findings.problems.append(str(error))
        return
    findings.vocab_size = tokenizer.vocab_size
    findings.checkpoint_bytes, findings.free_bytes = checkpoint_bytes(preset, tokenizer.vocab_size), _free_bytes(run_dir)
    try:
        _count(findings, preset, corpus, tokenizer, chats, reading, limit=limit, samples=samples)
    finally:  # also of what was counted until Ctrl-C
        findings.notices += [notice for notice in corpus.notices if notice not in findings.notices]
        for source in findings.sources:
            source.bad = quarantine.summary(source.name)
            source.refusal = quarantine.refusals.get(source.name, "")
            source.empty = quarantine.blank_rows(source.name)
        train = findings.parts("train")
        findings.budget = budget_of(preset, train) if train else None


def _tokenizer(findings: Findings, preset: Preset, run_dir: Path, corpus: Corpus) -> Tokenizer:
    """The run's own, where there is a run; else what training would build."""
    if any(run_dir.glob("lm_*.pth")) and (run_dir / "tokenizer").is_dir():
        findings.tokenizer = f"the run's own, {run_dir / 'tokenizer'}"
        return read_folder(run_dir / "tokenizer")
    section = preset.tokenizer
    findings.tokenizer = section.path if section.path else f"{section.type}, built from this data"
    built = build_tokenizer(section, corpus.train)
    tokenizer, written_as = with_template(preset.data, built, pretrained=preset.model.pretrained is not None)
    findings.notices += [written_as] if written_as else []
    return tokenizer


def _count(
    findings: Findings,
    preset: Preset,
    corpus: Corpus,
    tokenizer: Tokenizer,
    chats: ChatEncoder | None,
    reading: Reading,
    *,
    limit: int | None,
    samples: int,
) -> None:
    """Every part of every source, training first."""
    encoder = Encoder(tokenizer, preset.data.workers, cache_bytes=0)  # nothing comes round again
    fingerprints = Fingerprints()
    by_name: dict[str, SourceFindings] = {}
    held_out: set[int] = set()
    try:
        for number, (part, sources) in enumerate(zip(PARTS, (corpus.train, corpus.validation, corpus.test), strict=True)):
            for source in sources:
                found = by_name.get(source.name)
                if found is None:
                    found = by_name[source.name] = SourceFindings(source.name)
                    findings.sources.append(found)
                origin = findings.sources.index(found) * len(PARTS) + number
                if part != "train":
                    held_out.add(origin)
                counts = found.parts[part] = PartCounts(source.name, part)
                is_chat = chats is not None and source.name in chats.names
                sampler = Sampler(tokenizer, samples if part == "train" else 0, whole=is_chat)
                reading.begin(source.name, part, counts)

                def see(document: Document, origin: int = origin) -> None:
                    fingerprints.add(document.text, document.id, origin)
                    reading.tick()

                count_part(
                    counts,
                    source,
                    encoder,
                    chats,
                    seq_length=preset.model.seq_length,
                    # held-out text is evaluated whatever its length
                    min_text_length=preset.data.min_text_length if part == "train" else 0,
                    limit=limit or (STREAM_DOCUMENTS if _is_stream(source) else None),
                    see=see,
                    show=sampler.take,
                )
                found.samples += sampler.samples()
    finally:
        encoder.close()
        if chats is not None:
            chats.close()
        reading.doing("looking for duplicates")
        for origin, repeats in fingerprints.repeats(held_out).items():
            findings.sources[origin // len(PARTS)].repeats[PARTS[origin % len(PARTS)]] = repeats


def _is_stream(source: Source) -> bool:
    try:
        return source.parents() is None
    except SourceError:
        return False  # reading it says why


def _free_bytes(run_dir: Path) -> int:
    """Free on the disk of the run's folder, with the checkpoints there, which newer ones take the place of."""
    present = {status.st_ino: status.st_size for status in (path.stat() for path in run_dir.glob("lm_*.pth"))}
    existing = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(existing).free + sum(present.values())
