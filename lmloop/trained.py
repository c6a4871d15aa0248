"""What a run has made: find its folder, load its model and tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from lmloop.models.base import LanguageModel
from lmloop.models.build import build_model
from lmloop.models.loading import load_weights
from lmloop.preset.reading import preset_from_resolved
from lmloop.preset.schema import Preset
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.checkpoint import CURRENT, CheckpointStore, Loaded


@dataclass(frozen=True)
class Trained:
    """A model that a run has trained, with what belongs to it."""

    run_dir: Path
    preset: Preset
    model: LanguageModel
    tokenizer: Tokenizer
    checkpoint: Loaded


def find_run(name: str | None) -> Path:
    """The folder of a run: `name` as a path, a name under `checkpoints/`, or the run that was saved last.

    Raises:
        ValueError: there is no such run.
    """
    if name is None:
        found = [path for depth in range(4) for path in Path().glob("*/" * depth + CURRENT)]
        if not found:
            raise ValueError(f"no run below {Path.cwd()}: name its folder, or train one with `lmloop train PRESET`")
        return max(found, key=lambda path: path.stat().st_mtime).parent
    for folder in (Path(name).expanduser(), Path("checkpoints") / name):
        if any(folder.glob("lm_*.pth")):
            return folder
    folder = Path(name).expanduser()
    if folder.is_file():
        raise ValueError(f"{name}: a file: name the run's folder, {folder.parent}")
    if not folder.exists():
        raise ValueError(f"{name}: no such run folder (the presets' runs are under checkpoints/)")
    raise ValueError(f"{name}: no checkpoint in this folder: a run's folder holds {CURRENT}")


def load_trained(run_dir: Path, which: Literal["best", "newest"] = "best", device: torch.device | None = None) -> Trained:
    """Load the best model of a run, or the newest one where there is no best yet; in evaluation mode, on the CPU.

    An adapter is put beside its base, in full precision, or in 4 bits as it was trained; that is quantized on `device`,
    where it can be: Apple's GPU gets the base in full precision, and a line of the checkpoint's notices says so.

    Raises:
        ValueError: no checkpoint in the folder is valid, or the base of its adapter is gone or another one.
    """
    store = CheckpointStore(run_dir)
    loaded = store.load(which)
    if loaded is None:
        raise ValueError(f"{run_dir}: no checkpoint in this folder")
    state = loaded.state
    preset = preset_from_resolved(state["preset"], origin=str(loaded.path))
    tokenizer = Tokenizer.from_json(state["tokenizer"])
    adapter = preset.adapter
    if adapter is not None and adapter.quantize and device is not None and device.type == "mps":
        adapter = adapter.model_copy(update={"quantize": None})
        loaded.notices.append("the base is in full precision: Apple's GPU has no 4 bits (adapter.quantize)")
    model = build_model(
        preset.model,
        tokenizer.vocab_size,
        seed=0,
        adapter=adapter,
        device=device if adapter is not None and adapter.quantize else None,
        saved_base=state.get("base"),
    )
    load_weights(model, state["model"])
    return Trained(run_dir, preset, model.eval(), tokenizer, loaded)
