"""The peer of `benchmarks.finetuning`: one run of TRL's `SFTTrainer` with peft, by the Python that has both.

Reads a JSON object from the standard input, see `finetuning.Job`; its last line of output is a JSON object.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from typing import Any


def main() -> int:
    job = json.load(sys.stdin)
    warnings.simplefilter("ignore")
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(job["threads"])

    class Clock(TrainerCallback):
        """When training began, and when each update had ended."""

        def __init__(self) -> None:
            self.at: list[float] = []

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.at.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.at.append(time.perf_counter())

    clock = Clock()
    with open(job["data"]) as file:
        rows = [json.loads(line) for line in file]
    trainer = SFTTrainer(
        model=job["base"],
        processing_class=AutoTokenizer.from_pretrained(job["base"]),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=job["rank"],
            lora_alpha=job["alpha"],
            lora_dropout=job["dropout"],
            target_modules=job["targets"],
        ),
        args=SFTConfig(
            output_dir=job["folder"],
            seed=job["seed"],
            assistant_only_loss=True,
            max_length=job["length"],
            packing=job["packing"],
            per_device_train_batch_size=job["batch"],
            gradient_accumulation_steps=job["accumulation"],
            num_train_epochs=job["epochs"],
            learning_rate=job["learning_rate"],
            adam_beta2=job["beta2"],
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            bf16=True,
            use_cpu=True,
            gradient_checkpointing=job["checkpointing"],
            dataloader_pin_memory=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        callbacks=[clock],
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"at_s": clock.at, "losses": losses, "memory_bytes": peak}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
