"""How a run keeps a journal: its file is found, and `Journal` gets its means from the parts of the run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lmloop.preset.schema import Preset
from lmloop.processes import Processes
from lmloop.tokens.preface import PrefaceFeed
from lmloop.training.journal import Journal, Means, characters_of
from lmloop.training.journal_file import JournalFile
from lmloop.training.measures import Measures
from lmloop.training.snapshot import Snapshots
from lmloop.training.state import Progress
from lmloop.training.writing import read_system


def open_journal(preset: Preset, run_dir: Path, processes: Processes) -> JournalFile | None:
    """The file of the journal, where the run keeps one. ValueError: it is none, or the system message's is not there."""
    section = preset.journal
    if section is None:
        return None
    file = JournalFile(Path(section.path) if section.path else run_dir / "journal.md", preset.name)
    system = section.system_prompt_path
    if system is not None and not file.is_at(system) and not processes.on_first(Path(system).expanduser().is_file):
        raise ValueError(f"journal.system_prompt_path {system}: no such file: make it, or correct the path")
    return file


def keep_journal(file: JournalFile | None, measures: Measures, snapshots: Snapshots, progress: Progress) -> Journal | None:
    """The run's journal in `file`, None where there is none; `measures.writer` gets its system message."""
    contents, notice, processes = measures.parts.contents, measures.notice, measures.processes
    section, feed, writer = contents.preset.journal, contents.feed, measures.writer
    if section is None or file is None:
        return None
    assert isinstance(feed, PrefaceFeed), type(feed)
    tokens = section.reflection_tokens
    journal = Journal(
        section,
        file,
        progress=progress,
        feed=feed,
        processes=processes,
        resumed=feed.went_on,
        means=Means(
            write=lambda prompt, stop: writer.reflection(prompt, tokens, progress.journal["next"], stop),
            measure=measures.document_losses,
            pin=snapshots.pin,
            restore=snapshots.restore_pinned,
            count=lambda text: len(contents.tokenizer.encode(text)) + 1,
            real_characters=partial(characters_of, measures.parts.corpus.train),
            control_tokens=contents.tokenizer.control_tokens.values(),
            notice=notice,
        ),
    )
    if section.system_prompt_path is not None:
        path = Path(section.system_prompt_path).expanduser()
        own = file.is_at(section.system_prompt_path)
        writer.system = journal.visible_text if own else partial(read_system, path, processes, notice)
    return journal
