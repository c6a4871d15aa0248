"""What a finished run leaves in its folder of its adapter: the adapter as `peft` loads it, the tokenizer, and how it was
trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lmloop.durable import atomic_write
from lmloop.models.adapters import save_adapter
from lmloop.models.loading import load_weights
from lmloop.models.pretrained import Pretrained
from lmloop.preset.compare import resolved
from lmloop.preset.schema import Preset
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.checkpoint import BEST, CheckpointStore
from lmloop.training.reporter import Reporter
from lmloop.training.state import Progress


def leave_adapter(
    store: CheckpointStore, model: Pretrained, tokenizer: Tokenizer, preset: Preset, reporter: Reporter
) -> None:
    """Leave the best adapter as others read it. `model` gets its weights, and is not trained after this."""
    best = store.load("best")
    assert best is not None, reporter.run_dir
    load_weights(model, best.state["model"])
    try:
        save_folder(reporter.run_dir, model, tokenizer, preset, reporter.progress)
    except OSError as error:
        reporter.notice(f"the adapter's files were not written: {error.strerror or error}; train again for them")


def save_folder(run_dir: Path, model: Pretrained, tokenizer: Tokenizer, preset: Preset, progress: Progress) -> None:
    """Write adapter_config.json, adapter_model.safetensors, the tokenizer's files, training_args.json (the preset with every
    key) and trainer_state.json (the lines of metrics.jsonl, and what was best). OSError."""
    save_adapter(model, run_dir, tokenizer)
    _write(run_dir / "special_tokens_map.json", tokenizer.named_tokens)
    _write(run_dir / "training_args.json", resolved(preset))
    history = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    state = {
        "global_step": progress.step,
        "epoch": progress.epochs,
        "trained_tokens": progress.tokens,
        "best_metric": progress.best_val_loss,
        "best_global_step": progress.best_step,
        "best_model_checkpoint": BEST,
        "stopped_early": progress.stopped_early,
        "log_history": history,
    }
    _write(run_dir / "trainer_state.json", state)


def _write(path: Path, content: Any) -> None:
    atomic_write(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
