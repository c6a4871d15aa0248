"""`python -m benchmarks.finetuning --trl-python PYTHON --data gsm8k-train.jsonl`: LoRA on conversations, beside TRL's.

PYTHON: of an environment with TRL and peft, and with this one's versions of PyTorch and transformers. The base has 12 M
random weights in Qwen3's shape, in bf16, and a tokenizer trained on the data; LoRA has rank 16 on its seven projections,
products are bf16, and answers are trained. Ours is an ordinary `lmloop train`, TRL's an ordinary `SFTTrainer`; each run is a
process, and they take turns.

Speed: each side reads the same conversations twice, and the time from the first to the last update of the second reading
counts. Every token of a conversation is a token that is read, its question's too, and padding is none. TRL has eight
conversations in a batch; ours has three rows of 512 tokens, which hold about as many, and so has TRL with packing.

Loss: every update is of the same 32 conversations, all of them, so that the curves of both sides are of the same batches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from benchmarks import ours
from benchmarks.arguments import existing, rounds
from benchmarks.interleave import Measured, in_turns, ratio
from lmloop.hardware import this_machine
from lmloop.models.from_transformers import quiet as silent

OURS = "lmloop"
Pairs = Sequence[tuple[str, str]]

LENGTH, CONVERSATIONS, ROWS = 512, 8, 3
"""Tokens of a row, conversations of a batch of TRL's, and rows that hold as many."""

SAME, UPDATES = 32, 8
"""Conversations of an update, and updates, where losses are compared."""

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{ message['content'] + '<|im_end|>' }}{%- endgeneration -%}
{%- else -%}
{{ message['content'] + '<|im_end|>' }}
{%- endif -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
"""ChatML with TRL's marks around what is trained, which ours passes over."""


@dataclass(frozen=True)
class Job:
    """One run, on either side. batch: rows of at most `length` tokens, on TRL's side without packing conversations."""

    base: str
    data: str
    folder: str
    seed: int
    epochs: int = 2
    batch: int = CONVERSATIONS
    accumulation: int = 1
    packing: bool = False
    checkpointing: bool = False
    length: int = LENGTH
    threads: int = this_machine().cores
    learning_rate: float = 1e-3
    beta2: float = 0.999
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Run:
    """at_s: when training began, and each update had ended. losses: of the updates."""

    at_s: list[float]
    losses: list[float]
    memory_bytes: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", type=existing, required=True, help="a Python that has TRL and peft")
    parser.add_argument("--chats", type=existing, required=True, help="JSON lines with question and answer")
    parser.add_argument("--rounds", type=rounds, default=3)
    parser.add_argument("--conversations", type=int, default=64, help="that are read, twice, where speed is measured")
    options = parser.parse_args()
    console = Console(stderr=True)
    python = options.trl_python
    version = _version(python)
    if not version:
        console.print(f"{python} has no TRL to compare with: install it there (pip install 'trl==1.16.*' peft)")
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = [json.loads(line) for line in options.chats.read_text(encoding="utf-8").splitlines()]
        pairs = [(record["question"], record["answer"]) for record in records]
        base, many, same = folder / "base", folder / "many.jsonl", folder / "same.jsonl"
        make_base(base, pairs)
        tokens = write_chats(many, pairs[: options.conversations], base)
        write_chats(same, pairs[:SAME], base)

        def job(what: str, number: int, data: Path = many, **changes: Any) -> Job:
            return Job(str(base), str(data), str(folder / f"{what}-{number}"), number, **changes)

        sides: dict[str, Callable[[int], Run]] = {
            OURS: lambda number: _ours(job("ours", number, batch=ROWS)),
            "TRL": lambda number: _theirs(python, job("trl", number)),
            "TRL, recomputing (its default)": lambda number: _theirs(python, job("slim", number, checkpointing=True)),
            "TRL, packing": lambda number: _theirs(python, job("packed", number, batch=ROWS, packing=True)),
        }
        speeds = {name: lambda number, side=side: _speed(side(number), tokens) for name, side in sides.items()}
        measured = in_turns(speeds, options.rounds, console.print)
        whole = {"data": same, "epochs": UPDATES, "accumulation": SAME // CONVERSATIONS}
        curves = in_turns(
            {
                OURS: lambda number: _curve(_ours(job("our-curve", number, **whole))),
                "TRL": lambda number: _curve(_theirs(python, job("trl-curve", number, **whole))),
            },
            options.rounds,
            lambda text: console.print(f"losses, {text}"),
        )
    _show(measured, curves, version)
    return 0


def _version(python: Path) -> str:
    """TRL's, '' where it is not there."""
    script = "from importlib.metadata import version; print(version('trl'), version('peft'))"
    try:
        done = subprocess.run([python, "-c", script], capture_output=True, text=True)
    except OSError:
        return ""
    return "" if done.returncode else "TRL {} with peft {}".format(*done.stdout.split())


# ---- what both work on ----


def make_base(folder: Path, pairs: Pairs) -> None:
    """12 M random weights in Qwen3's shape and 4,096 tokens of byte-pair encoding with ChatML, in a folder."""
    trainer = trainers.BpeTrainer(
        vocab_size=4_096,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator((text for pair in pairs for text in pair), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=backend.get_vocab_size(),
        hidden_size=384,
        intermediate_size=1_152,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2_048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=backend.token_to_id(str(tokenizer.eos_token)),
        pad_token_id=backend.token_to_id(str(tokenizer.pad_token)),
    )
    with silent():
        Qwen3ForCausalLM(shape).bfloat16().save_pretrained(folder)


def write_chats(path: Path, pairs: Pairs, base: Path) -> int:
    """The conversations, as both sides read them; how many tokens they have, to the end of the last answer."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    chats = [[{"role": "user", "content": question}, {"role": "assistant", "content": answer}] for question, answer in pairs]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    lengths = [len(tokenizer.apply_chat_template(chat, return_dict=False)) - 1 for chat in chats]
    assert max(lengths) < LENGTH, max(lengths)  # so that neither side cuts one
    return sum(lengths)


# ---- the sides ----


def _ours(job: Job) -> Run:
    """`lmloop train` of the job."""
    preset = {
        "model": {"pretrained": job.base, "seq_length": job.length},
        "adapter": {"rank": job.rank, "alpha": job.alpha, "dropout": job.dropout, "target_modules": job.targets},
        "data": {
            "sources": [{"type": "files", "path": job.data, "data_type": "chat"}],
            "split": {"validation": 0.0, "test": 0.0},
        },
        "train": {
            "epochs": job.epochs,
            "per_gpu_batch_size": job.batch,
            "accumulation_steps": job.accumulation,
            "learning_rate": job.learning_rate,
            "lr_schedule": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "beta2": job.beta2,
            "precision": "bf16",
            "threads": job.threads,
            "seed": job.seed,
            "log_every_steps": 1,
            "sample_every_steps": 0,
        },
        "generation": {"questions": 0, "max_new_tokens": 1},
    }
    steps = [line for line in ours.train(preset, Path(job.folder)).metrics if line["step"]]
    return Run([0.0, *(line["elapsed_s"] for line in steps)], [line["loss"] for line in steps], steps[-1]["memory_bytes"])


def _theirs(python: Path, job: Job) -> Run:
    """TRL's trainer on the same job."""
    script = Path(__file__).with_name("finetuning_peer.py")
    done = subprocess.run([python, script], input=json.dumps(asdict(job)), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{python} {script} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def _speed(run: Run, tokens: int) -> Mapping[str, float]:
    """Of the second of two epochs, which have as many updates each."""
    updates, odd = divmod(len(run.losses), 2)
    assert not odd, len(run.losses)
    return {"tokens_per_s": tokens / (run.at_s[-1] - run.at_s[updates]), "memory": run.memory_bytes}


def _curve(run: Run) -> Mapping[str, float]:
    return {str(step): loss for step, loss in enumerate(run.losses, 1)}


# ---- what is said of it ----


def _show(measured: Mapping[str, Measured], curves: Mapping[str, Measured], version: str) -> None:
    console = Console()
    console.print(f"{this_machine().describe()}; PyTorch {torch.__version__}, {version}")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "tokens/s (median)", "from", "to", "lmloop's is, round by round", "peak memory (median)"):
        table.add_column(column)
    for name, side in measured.items():
        least, most = side.spread("tokens_per_s")
        times = "" if name == OURS else ratio(side, measured[OURS], "tokens_per_s") + " times"
        memory = f"{side.median('memory') / 1e9:.2f} GB"
        table.add_row(name, f"{side.median('tokens_per_s'):,.0f}", f"{least:,.0f}", f"{most:,.0f}", times, memory)
    console.print(table)
    console.print(f"loss of update after update, each of the same {SAME} conversations; mean (least to most) of the seeds:")
    table = Table(box=None, padding=(0, 2, 0, 0))
    steps = list(next(iter(curves.values())).values)
    for column in ("", *steps):
        table.add_column(column)
    for name, side in curves.items():
        table.add_row(name, *(_mean_and_spread(side, step) for step in steps))
    console.print(table)


def _mean_and_spread(side: Measured, name: str) -> str:
    least, most = side.spread(name)
    return f"{statistics.fmean(side.values[name]):.3f} ({least:.3f} to {most:.3f})"


if __name__ == "__main__":
    sys.exit(main())
