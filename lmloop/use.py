"""What is done with a trained model: evaluate it, let it write, talk to it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from lmloop.data.corpus import Corpus, open_corpus, open_held_out
from lmloop.data.quarantine import Quarantine
from lmloop.data.source import SourceError
from lmloop.generation.engine import Engine, Generation
from lmloop.generation.prompts import as_prompts
from lmloop.hardware import this_machine, use_machine
from lmloop.models.prepared import can_prepare
from lmloop.preset.schema import DataSection, GenerationSection
from lmloop.tokens.conversations import answering_template, conversation_sources, open_chats
from lmloop.tokens.template import ChatTemplate
from lmloop.trained import Trained, find_run, load_trained
from lmloop.training.evaluate import evaluate, held_out
from lmloop.training.progress import visible

Which = Literal["best", "newest"]

_RECORDS = (".json", ".jsonl", ".parquet")


def _open(run: str | None, which: Which) -> tuple[Trained, torch.device]:
    machine = this_machine()
    use_machine(machine, None)
    trained = load_trained(find_run(run), which, machine.torch_device)
    for notice in trained.checkpoint.notices:
        print(notice, file=sys.stderr)
    trained.model.to(machine.torch_device)
    return trained, machine.torch_device


def evaluate_run(run: str | None, which: Which, *, data: str | None, split: str) -> dict[str, Any]:
    """Evaluate a run's model on a file, or on a split of its own data; the whole of it, in fp32."""
    trained, device = _open(run, which)
    preset = trained.preset
    section = preset.data
    if data is not None:
        section = _section_of(data, preset.data)
        corpus = _whole(data, section)
    else:
        quarantine = Quarantine(None, preset.data.max_bad_fraction)
        corpus = open_held_out(preset.data, seed=preset.train.seed, run_dir=trained.run_dir, quarantine=quarantine)
    for notice in corpus.notices:
        print(notice, file=sys.stderr)
    sources = corpus.test if split == "test" and data is None else corpus.validation
    length = preset.model.seq_length
    rows = max(16_384 // length, 1)
    limit = preset.train.eval_tokens if data is None and split == "validation" else None
    quarantine = Quarantine(None, section.max_bad_fraction)
    chats = open_chats(section, trained.tokenizer, seq_length=length, quarantine=quarantine, workers=0, cache_bytes=0)
    try:
        held = held_out(sources, trained.tokenizer, length=length, rows=rows, max_tokens=limit, chats=chats)
    finally:
        if chats is not None:
            chats.close()
    result = evaluate(trained.model, held, device, autocast=False)
    if result is None:
        remedy = "give data.split.test a share and train anew" if split == "test" else "nothing in it can be read as text"
        raise ValueError(f"{data or trained.run_dir}: no text to evaluate: {remedy}")
    return {
        "run": str(trained.run_dir),
        "checkpoint": trained.checkpoint.path.name,
        "step": trained.checkpoint.manifest.step,
        **result.as_dict(),
    }


def _section_of(data: str, trained_on: DataSection) -> DataSection:
    """A file or folder, all of it to be evaluated on; records hold conversations where the run was trained on some."""
    if not Path(data).expanduser().exists():
        raise ValueError(f"--data {data}: no such file or folder")
    source = {"type": "files", "path": data}
    is_chat = conversation_sources(trained_on) and Path(data).suffix.lower() in _RECORDS
    sources = [{**source, "data_type": "chat"} if is_chat else source]
    like = {"template": trained_on.template, "train_on": trained_on.train_on}
    return DataSection.model_validate({"sources": sources, "validation": sources, **like})


def _whole(data: str, section: DataSection) -> Corpus:
    """What `_section_of` describes, opened."""
    try:
        return open_corpus(
            section, seed=0, eval_tokens=0, run_dir=None, quarantine=Quarantine(None, section.max_bad_fraction)
        )
    except SourceError as error:
        why = str(error).partition(": no source can be read: ")[2] or str(error)
        raise ValueError(f"--data {data}: " + why.removeprefix(f"source '{data}'").lstrip(": ")) from None


def print_evaluation(result: dict[str, Any]) -> None:
    """The figures as a small table."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("run", f"{result['run']} ({result['checkpoint']}, step {result['step']:,})")
    table.add_row("cross-entropy", f"{result['cross_entropy']:.4f} nats a token")
    table.add_row("perplexity", f"{result['perplexity']:.2f}")
    table.add_row("bits per byte", f"{result['bits_per_byte']:.4f}")
    table.add_row("measured on", f"{result['tokens']:,} tokens, {result['bytes']:,} bytes")
    Console().print(table)


def _options(trained: Trained, changes: dict[str, Any]) -> GenerationSection:
    """The preset's options with those of the command line."""
    try:
        return GenerationSection.model_validate({**trained.preset.generation.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg'].lower()} (got {first['input']!r})"
        ) from None


def _engine(trained: Trained, device: torch.device, template: ChatTemplate | None) -> Engine:
    bf16 = trained.checkpoint.state["precision"] == "bf16" and this_machine().bf16
    return Engine(
        trained.model,
        trained.tokenizer,
        device,
        autocast=bf16 and (device.type == "cuda" or can_prepare(trained.model)),  # else the CPU casts weights at each token
        stops=template.stop_ids if template else (),
    )


def generate_from_run(
    run: str | None, which: Which, *, prompts: list[str], changes: dict[str, Any], seed: int, json_mode: bool
) -> dict[str, Any]:
    """Continue the prompts, or answer them where the run was trained on conversations; streamed to the terminal when there
    is one prompt and nobody asked for JSON."""
    trained, device = _open(run, which)
    options = _options(trained, changes)
    template = answering_template(trained.preset, trained.tokenizer, only_trained=True)
    engine = _engine(trained, device, template)
    given = as_prompts(prompts, template)
    before = prompts if template is None else [f"{prompt}\n\n" if prompt else "" for prompt in prompts]
    if not json_mode and len(prompts) == 1:
        stream = engine.stream(given[0], options, seed=seed)
        _stream(before[0], stream)
        _say_dropped([stream.result], engine)
        return {}
    written = engine.generate(given, options, seed=seed)
    _say_dropped(written, engine)
    if not json_mode:
        for prompt, one in zip(before, written, strict=True):
            print(f"{_shown(prompt + one.text)}\n")
        return {}
    answers = [
        {
            "text": one.text,
            "prompt_tokens": one.prompt_tokens,
            "new_tokens": one.new_tokens,
            "dropped_tokens": one.dropped_tokens,
            "stopped_by": one.stopped_by,
            "seconds": one.seconds,
        }
        for one in written
    ]
    return answers[0] if len(answers) == 1 else {"results": answers}


def _say_dropped(written: list[Generation], engine: Engine) -> None:
    for one in written:
        if one.dropped_tokens:
            print(
                f"prompt: the oldest {one.dropped_tokens:,} of {one.prompt_tokens:,} tokens do not fit into the context of "
                f"{engine.context_tokens:,} and were not read",
                file=sys.stderr,
            )


def _stream(prompt: str, pieces: Iterable[str]) -> None:
    """Write a text as it comes into being."""
    try:
        for piece in itertools.chain([prompt], pieces):
            sys.stdout.write(_shown(piece))
            sys.stdout.flush()
    finally:  # Ctrl-C too leaves the shell's next prompt on a line of its own
        sys.stdout.write("\n")


def _shown(text: str) -> str:
    """As it is for a file or a pipe; on a terminal without what the terminal would obey."""
    return visible(text) if sys.stdout.isatty() else text


def chat_with_run(run: str | None, which: Which, *, changes: dict[str, Any], seed: int, json_mode: bool) -> dict[str, Any]:
    """A conversation on the terminal."""
    from lmloop.generation.chat import chat

    trained, device = _open(run, which)
    template = answering_template(trained.preset, trained.tokenizer)
    turns = chat(
        _engine(trained, device, template),
        _options(trained, changes),
        Console(stderr=json_mode),
        title=f"{trained.run_dir} · step {trained.checkpoint.manifest.step:,}",
        seed=seed,
        template=template,
    )
    return {"turns": turns}
