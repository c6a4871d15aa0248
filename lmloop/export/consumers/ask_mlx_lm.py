"""mlx-lm, on whatever MLX runs on here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx  # pyright: ignore[reportMissingImports] - no dependency
import numpy as np
from mlx_lm import load, stream_generate  # pyright: ignore[reportMissingImports] - no dependency

from lmloop.export.questions import Answers, Questions, Written


def answer(folder: Path, questions: Questions) -> Answers:
    """Load the folder and answer."""
    loaded: Any = load(str(folder))
    model, tokenizer = loaded[0], loaded[1]

    def write(prompt: list[int], processors: Any = None) -> Written:
        tokens: list[int] = []
        ended = False
        for piece in stream_generate(
            model, tokenizer, prompt, max_tokens=questions.new_tokens, logits_processors=processors
        ):
            ended = piece.finish_reason == "stop"
            if not ended:
                tokens.append(int(piece.token))
        # Not the streamed text, which mlx-lm shows without a space at its beginning.
        return Written(tokens, tokenizer.decode(tokens, skip_special_tokens=True), ended)

    def only(stop: int) -> Any:
        def forced(tokens: Any, logits: Any) -> Any:
            return mx.where(mx.arange(logits.shape[-1]) == stop, 0.0, -1e9)[None]

        return forced

    logits = [np.array(model(mx.array([row]))[0].astype(mx.float32)) for row in questions.rows]
    rendered = None
    if questions.messages:
        rendered = tokenizer.apply_chat_template(questions.messages, tokenize=False, add_generation_prompt=True)
    return Answers(
        logits=logits,
        ids=[tokenizer.encode(text) for text in questions.texts],
        written=[write(prompt) for prompt in questions.prompts],
        forced=[len(write(questions.prompts[0], [only(stop)]).tokens) for stop in questions.stops],
        rendered=rendered,
    )
