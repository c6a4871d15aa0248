"""`python -m benchmarks.generation`: how fast text is written, beside transformers' `generate` on the same weights.

Both write greedily behind prompts of random tokens, in turns, in fp32 and in bf16; each side is a process of its own. Ours
is the engine as `generate` and `chat` use it, text and stopping included. The limit is the time in which as many bytes as
the weights have can be read, measured beside by a dot product: at batch 1 each weight is read once for every token.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.arguments import rounds
from benchmarks.interleave import Measured, in_turns, ratio
from benchmarks.served import Served, serve
from lmloop.generation.engine import Engine
from lmloop.hardware import this_machine, use_machine
from lmloop.models.base import LanguageModel
from lmloop.models.build import build_model
from lmloop.preset.schema import GenerationSection, ModelSection

PROMPT_TOKENS = 32
LIMIT = "bytes of the weights"


@dataclass(frozen=True)
class Size:
    """A model's shape, and how much is written with it in how many rounds: less where it takes long."""

    hidden_size: int
    layers: int
    vocab_size: int
    new_tokens: int
    rounds: int

    def section(self) -> ModelSection:
        """Heads of 64, tied embeddings."""
        heads = self.hidden_size // 64
        return ModelSection(hidden_size=self.hidden_size, num_layers=self.layers, num_heads=heads, seq_length=512)


SIZES = {"12m": Size(384, 6, 4_096, new_tokens=128, rounds=9), "125m": Size(768, 12, 32_000, new_tokens=24, rounds=5)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="12m,125m", help=f"of {', '.join(SIZES)}, with commas (default: all)")
    parser.add_argument("--batches", default="1,16", help="rows that are written at a time, with commas (default: 1,16)")
    parser.add_argument("--rounds", type=rounds, help="turns of each side (default: each size's own)")
    cores = this_machine().cores
    parser.add_argument(
        "--threads", type=int, default=cores, help=f"of the CPU (default: {cores}); on a busy machine, take 1"
    )
    parser.add_argument("--side", help=argparse.SUPPRESS)  # of the processes that this one starts
    options = parser.parse_args()
    sizes = options.sizes.split(",")
    if unknown := [name for name in sizes if name not in SIZES]:
        parser.error(f"--sizes {unknown[0]}: not one of {', '.join(SIZES)}")
    if options.side:
        _serve(options.side, SIZES[sizes[0]], int(options.batches), options.threads)
        return 0
    console = Console()
    console.print(f"{this_machine().describe()}; {options.threads} threads; PyTorch {torch.__version__}")
    for name in sizes:
        for batch in options.batches.split(","):
            arguments = ["--sizes", name, "--batches", batch, "--threads", str(options.threads)]
            console.print(compare(name, int(batch), options.rounds or SIZES[name].rounds, arguments))
    return 0


def compare(name: str, batch: int, rounds: int, arguments: list[str]) -> Table:
    """All sides in turns; a table of what they did. `arguments`: which say the same to the processes of the sides."""
    progress = Console(stderr=True)
    precisions = ("fp32", "bf16") if this_machine().bf16 else ("fp32",)
    with ExitStack() as up:
        sides = {
            f"{who} {precision}": up.enter_context(
                Served("benchmarks.generation", [*arguments, "--side", f"{who} {precision}"])
            )
            for precision in precisions
            for who in ("lmloop", "transformers", LIMIT)
        }
        measured = in_turns(sides, rounds, lambda line: progress.print(f"{name}, batch {batch}: {line}"))
    new_tokens = SIZES[name].new_tokens
    return _table(f"{name}, batch {batch}, {PROMPT_TOKENS} + {new_tokens} tokens", measured, batch * new_tokens)


def _serve(side: str, size: Size, batch: int, threads: int) -> None:
    """Be one of the sides. Ours sets the machine up as lmloop does, the others only the number of threads."""
    who, _, precision = side.rpartition(" ")
    torch.set_num_threads(threads)
    if who == "lmloop":
        use_machine(this_machine(), threads)
    model = build_model(size.section(), size.vocab_size, seed=0).eval()
    prompts_BT = torch.randint(3, size.vocab_size, (batch, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    if who == "lmloop":
        numbers: Any = _Numbers(size.vocab_size)
        engine = Engine(model, numbers, torch.device("cpu"), autocast=precision == "bf16")
        serve(lambda: _ours(engine, prompts_BT, size.new_tokens))
    elif who == "transformers":
        theirs = _transformers(model, size)
        _agree(model, theirs, prompts_BT)
        theirs = theirs if precision == "fp32" else theirs.bfloat16()
        serve(lambda: _theirs(theirs, prompts_BT, size.new_tokens))
    else:
        bytes_each = sum(parameter.numel() for parameter in model.parameters()) * (4 if precision == "fp32" else 2)
        serve(_reads(bytes_each, size.new_tokens))


def _ours(engine: Engine, prompts_BT: torch.Tensor, new_tokens: int) -> None:
    written = engine.generate([row.numpy() for row in prompts_BT], GenerationSection(temperature=0.0), new_tokens)
    assert all(one.new_tokens == new_tokens for one in written), written


def _theirs(model: Any, prompts_BT: torch.Tensor, new_tokens: int) -> None:
    written = model.generate(
        prompts_BT,
        attention_mask=torch.ones_like(prompts_BT),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert written.shape[1] == PROMPT_TOKENS + new_tokens, written.shape


def _reads(size_bytes: int, times: int) -> Callable[[], object]:
    """As many bytes as the weights have, read once for each new token."""
    values = torch.ones(size_bytes // 4)
    first, second = values.chunk(2)

    def read() -> None:
        for _ in range(times):
            torch.dot(first, second[: len(first)])

    return read


def _transformers(model: LanguageModel, size: Size) -> Any:
    """Their model with the same weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    section = size.section()
    config = Qwen3Config(
        vocab_size=size.vocab_size,
        hidden_size=section.hidden_size,
        num_hidden_layers=section.num_layers,
        num_attention_heads=section.num_heads,
        num_key_value_heads=section.resolved_kv_heads,
        head_dim=section.resolved_head_dim,
        intermediate_size=section.resolved_intermediate_size,
        max_position_embeddings=section.seq_length,
        rms_norm_eps=section.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": section.rope_theta},
        tie_word_embeddings=section.tie_embeddings,
    )
    theirs = Qwen3ForCausalLM(config).eval()
    theirs.load_state_dict(model.state_dict())
    return theirs


@torch.no_grad()
def _agree(ours: LanguageModel, theirs: Any, prompts_BT: torch.Tensor) -> None:
    """Both compute the same function, or a comparison of their speed says nothing."""
    difference = (ours.head(ours.hidden(prompts_BT)) - theirs(prompts_BT).logits).abs().max().item()
    assert difference < 1e-3, difference


class _Numbers:
    """A tokenizer whose text is the tokens' numbers, and in which no text ends by itself."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.pad_id, self.start_id, self.eos_id = 0, 1, vocab_size

    def decode(self, ids: Any) -> str:
        return " ".join(map(str, ids))


def _table(title: str, measured: Mapping[str, Measured], tokens: int) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("", "tokens/s (median)", "from", "to", "share of the limit", "times transformers fp32", "times bf16"):
        table.add_column(column)
    for name, side in measured.items():
        if name.startswith(LIMIT):
            continue
        limit = measured[f"{LIMIT} {name.split()[-1]}"]
        shares = sorted(a / b for a, b in zip(limit.values["seconds"], side.values["seconds"], strict=True))
        least, most = side.spread("seconds")
        peers = [measured.get(f"transformers {precision}") for precision in ("fp32", "bf16")]
        compared = [ratio(side, peer, "seconds") if peer else "" for peer in peers] if "lmloop" in name else []
        table.add_row(
            name,
            f"{tokens / side.median('seconds'):,.0f}",
            f"{tokens / most:,.0f}",
            f"{tokens / least:,.0f}",
            f"{shares[len(shares) // 2]:.0%} ({shares[0]:.0%} to {shares[-1]:.0%})",
            *compared,
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
