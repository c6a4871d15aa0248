"""Bases and conversations for runs that fine-tune, a few thousand random weights wide."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.models.bases import make_base
from tests.tokens.chats import WORDS, tokenizer

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write_base(folder: Path, family: str = "qwen3", **changes: Any) -> Path:
    """A model of transformers with the tokenizer that belongs to it, in a folder."""
    own = tokenizer()
    ends = {"bos_token_id": own.start_id, "eos_token_id": own.eos_id, "pad_token_id": own.pad_id}
    make_base(folder, family, **{"vocab_size": own.vocab_size, "max_position_embeddings": 512, **ends, **changes})
    own.save(folder)
    return folder


def write_chats(path: Path, count: int = 80, *, longest: int = 12, seed: int = 1) -> Path:
    """Conversations of one to three exchanges, one JSON line each."""
    rng = random.Random(seed)

    def said() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, longest)))

    lines = []
    for _ in range(count):
        messages = []
        for _ in range(rng.randint(1, 3)):
            messages += [{"role": "user", "content": said()}, {"role": "assistant", "content": said()}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    path.write_text("".join(lines))
    return path


def finetuning(kind: str, **changes: dict[str, Any]) -> dict[str, Any]:
    """A preset that fine-tunes `base` on `chats.jsonl` in some seconds: `full`, `lora` or `qlora`."""
    adapter: dict[str, Any] = {"rank": 4, "alpha": 8, "dropout": 0.1, "target_modules": TARGETS}
    preset: dict[str, Any] = {
        "name": kind,
        "output_dir": "run",
        "model": {"pretrained": "base", "seq_length": 64},
        "data": {
            "sources": [{"type": "files", "path": "chats.jsonl", "data_type": "chat"}],
            "split": {"validation": 0.2},
            "shuffle": True,
        },
        "train": {
            "per_gpu_batch_size": 2,
            "accumulation_steps": 2,
            "max_steps": 8,
            "learning_rate": 2e-3,
            "threads": 1,
            "precision": "fp32",
            "log_every_steps": 1,
            "eval_every_steps": 4,
            "save_every_steps": 3,
            "sample_every_steps": 4,
            "save_every_minutes": 1_000.0,
        },
        "generation": {"max_new_tokens": 8, "prompts": ["Sure?", ""]},
    }
    if kind != "full":
        preset["adapter"] = {**adapter, "quantize": "nf4"} if kind == "qlora" else adapter
    for section, values in changes.items():
        preset[section] = {**preset.get(section, {}), **values}
    return preset


def write_finetuning(folder: Path, kind: str, **changes: dict[str, Any]) -> Path:
    """A working directory with a base, conversations and a preset; the preset's file."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "base").exists():
        write_base(folder / "base")
        write_chats(folder / "chats.jsonl")
    path = folder / "preset.json"
    path.write_text(json.dumps(finetuning(kind, **changes)))
    return path
