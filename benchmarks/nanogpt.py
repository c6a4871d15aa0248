"""The peer of the training benchmarks: a checkout of karpathy/nanoGPT, in a copy, since it reads its data from there."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lmloop.hardware import this_machine

_FP32_ON_CPU = "ctx = nullcontext() if device_type == 'cpu' else"
_BF16_ON_CPU = "ctx = torch.amp.autocast(device_type='cpu', dtype=torch.bfloat16) if device_type == 'cpu' else"

_SCORE = """
import json, sys, torch
sys.path.insert(0, {checkout!r})
from model import GPT, GPTConfig
import numpy as np
kept = torch.load({checkpoint!r}, map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**kept["model_args"])).eval()
# compiled, it has saved its names with a prefix
model.load_state_dict({{name.removeprefix("_orig_mod."): value for name, value in kept["model"].items()}})
ids = torch.from_numpy(np.fromfile({data!r}, dtype=np.uint16).astype(np.int64))
T = model.config.block_size
total = count = 0
with torch.no_grad():
    for start in range(0, len(ids) - 1, T * 256):
        piece = ids[start : start + T * 256 + 1]
        rows = (len(piece) - 1) // T
        for x, y in ((piece[: rows * T].view(-1, T), piece[1 : rows * T + 1].view(-1, T)),
                     (piece[rows * T : -1].view(1, -1), piece[rows * T + 1 :].view(1, -1))):
            if x.numel():
                logits, loss = model(x, y)
                total, count = total + loss.item() * y.numel(), count + y.numel()
print(json.dumps({{"loss": total / count, "parameters": sum(p.numel() for p in model.parameters())}}))
"""


class NanoGPT:
    """Trains on the characters of `text`, whose last tenth validates. With `bf16` its CPU line is patched to autocast; on
    CUDA it is compiled, as its README wants it, and bf16 anyway."""

    def __init__(self, checkout: Path, text: Path, folder: Path, *, bf16: bool = False, device: str = "cpu") -> None:
        self.device = [f"--device={device}", f"--compile={device == 'cuda'}"]
        if (own := this_machine().device) != device:
            sys.exit(f"nanoGPT would train on {device} and lmloop on {own} (CUDA_VISIBLE_DEVICES= hides a CUDA device)")
        if not (checkout / "train.py").exists():
            sys.exit(f"{checkout} has no train.py: name a checkout of karpathy/nanoGPT")
        self.checkout = folder / f"nanoGPT-{'bf16' if bf16 else 'fp32'}"
        shutil.copytree(checkout, self.checkout, ignore=shutil.ignore_patterns(".git", ".venv", "*.bin", "*.pt"))
        self.data = self.checkout / "data" / "text"
        self.data.mkdir(exist_ok=True)
        content = text.read_text(encoding="utf-8")
        letters = sorted(set(content))
        number = {letter: index for index, letter in enumerate(letters)}
        ids = np.array([number[letter] for letter in content], dtype=np.uint16)
        cut = int(len(ids) * 0.9)
        ids[:cut].tofile(self.data / "train.bin")
        ids[cut:].tofile(self.data / "val.bin")
        (self.data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(letters), "itos": letters, "stoi": number}))
        if bf16:
            script = (self.checkout / "train.py").read_text()
            if _FP32_ON_CPU not in script:
                sys.exit(
                    f"{checkout}/train.py: its line '{_FP32_ON_CPU} ...' is not there: this is another version of nanoGPT"
                )
            (self.checkout / "train.py").write_text(script.replace(_FP32_ON_CPU, _BF16_ON_CPU))

    def train(self, arguments: Sequence[str]) -> str:
        """Run `train.py` with the settings for Shakespeare's characters and `arguments`; what it printed."""
        out = f"--out_dir={self.checkout / 'out'}"
        script = ["train.py", "config/train_shakespeare_char.py", *self.device, "--dataset=text", out]
        return quiet([sys.executable, *script, *arguments], cwd=self.checkout)

    def step_ms(self, printed: str) -> list[float]:
        """The time of each step that was printed (`--log_interval=1`), in milliseconds."""
        return [float(match) for match in re.findall(r"^iter \d+: .*time ([0-9.]+)ms", printed, re.MULTILINE)]

    def evaluations(self, printed: str) -> dict[int, float]:
        """Its estimate of the loss on the validation part at each iteration that it evaluated at."""
        found = re.findall(r"^step (\d+): train loss [0-9.]+, val loss ([0-9.]+)", printed, re.MULTILINE)
        return {int(step): float(loss) for step, loss in found}

    def score(self) -> dict[str, float]:
        """`loss` on the whole validation part in rows of the block size, and `parameters`, of what `train` has left."""
        checkpoint, data = self.checkout / "out" / "ckpt.pt", self.data / "val.bin"
        script = _SCORE.format(checkout=str(self.checkout), checkpoint=str(checkpoint), data=str(data))
        return json.loads(quiet([sys.executable, "-c", script]).splitlines()[-1])


def quiet(command: Sequence[str], cwd: Path | None = None) -> str:
    """What a command prints; ends the program, with its last words, where it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout
