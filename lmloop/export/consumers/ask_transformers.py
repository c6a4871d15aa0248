"""transformers, asked as its own users would: `from_pretrained` on a folder, `generate`, `apply_chat_template`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList
from transformers.utils import logging

from lmloop.export.questions import Answers, Questions, Written


def answer(folder: Path, questions: Questions) -> Answers:
    """Load and answer; in fp32, whatever the file's numbers are. ValueError, one line, where it does not load whole."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=getattr(torch, questions.dtype), output_loading_info=True
    )
    model, report = loaded
    wrong = [f"{name}: {kind.replace('_', ' ')}" for kind, names in report.items() for name in names]
    if wrong:
        raise ValueError(f"transformers does not take the weights as they are: {'; '.join(wrong[:4])}")
    model.eval()

    def write(prompt: list[int], processors: Any = None) -> Written:
        tokens_BT = torch.tensor([prompt])
        with torch.no_grad():
            made = model.generate(
                tokens_BT,
                attention_mask=torch.ones_like(tokens_BT),
                max_new_tokens=questions.new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                min_p=None,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                logits_processor=processors,
            )[0, len(prompt) :].tolist()
        ended = bool(made) and made[-1] in questions.stops
        made = made[:-1] if ended else made
        return Written(made, tokenizer.decode(made, skip_special_tokens=True), ended)

    class Only(LogitsProcessor):
        """Makes one token the likeliest."""

        def __init__(self, token: int) -> None:
            self.token = token

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            forced = torch.full_like(scores, -1e9)
            forced[:, self.token] = 0.0
            return forced

    logits: list[np.ndarray] = []
    with torch.no_grad():
        for row in questions.rows:
            logits.append(model(torch.tensor([row])).logits[0].float().numpy())
    rendered = None
    if questions.messages:
        rendered = tokenizer.apply_chat_template(questions.messages, tokenize=False, add_generation_prompt=True)
    return Answers(
        logits=logits,
        ids=[tokenizer(text)["input_ids"] for text in questions.texts],
        written=[write(prompt) for prompt in questions.prompts],
        forced=[len(write(questions.prompts[0], LogitsProcessorList([Only(stop)])).tokens) for stop in questions.stops],
        rendered=rendered,
    )
