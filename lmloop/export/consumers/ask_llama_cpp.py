"""llama.cpp through llama-cpp-python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import Llama, llama_vocab_is_eog  # pyright: ignore[reportMissingImports] - no dependency
from llama_cpp.llama_chat_format import Jinja2ChatFormatter  # pyright: ignore[reportMissingImports] - no dependency

from lmloop.export.questions import Answers, Questions, Written

F32 = 0  # ggml's number for fp32


def answer(folder: Path, questions: Questions) -> Answers:
    """Load the folder's file and answer; its cache in fp32, so that what differs is the file's doing."""
    (path,) = folder.glob("*.gguf")
    model: Any = Llama(
        str(path),
        n_ctx=questions.longest + 8,
        n_batch=512,
        logits_all=True,
        type_k=F32,
        type_v=F32,
        n_gpu_layers=0,
        verbose=False,
    )
    likeliest = {"temperature": 0.0, "repeat_penalty": 1.0, "max_tokens": questions.new_tokens}

    def write(prompt: list[int]) -> Written:
        model.reset()
        tokens: list[int] = []
        ended = False
        for token in model.generate(prompt, temp=0.0, repeat_penalty=1.0):
            ended = bool(llama_vocab_is_eog(model._model.vocab, token))
            if ended or len(tokens) == questions.new_tokens:
                break
            tokens.append(token)
            if len(tokens) == questions.new_tokens:
                break
        return Written(tokens, model.detokenize(tokens, prev_tokens=prompt).decode("utf-8", "replace"), ended)

    def forced(stop: int) -> int:
        model.reset()
        made = model.create_completion(questions.prompts[0], logit_bias={str(stop): 1e6}, **likeliest)
        assert made["choices"][0]["finish_reason"] in ("stop", "length"), made
        return 0 if made["choices"][0]["finish_reason"] == "stop" else made["usage"]["completion_tokens"]

    logits: list[np.ndarray] = []
    for row in questions.rows:
        model.reset()
        model.eval(row)
        logits.append(np.array(model.scores[: len(row)], dtype=np.float32))
    rendered = None
    if questions.messages:
        names = {kind: model._model.token_get_text(getattr(model, f"token_{kind}")()) for kind in ("bos", "eos")}
        formatter = Jinja2ChatFormatter(
            model.metadata["tokenizer.chat_template"], eos_token=names["eos"], bos_token=names["bos"]
        )
        messages: Any = questions.messages
        rendered = formatter(messages=messages).prompt
    return Answers(
        logits=logits,
        ids=[model.tokenize(text.encode(), add_bos=True, special=False) for text in questions.texts],
        written=[write(prompt) for prompt in questions.prompts],
        forced=[forced(stop) for stop in questions.stops],
        rendered=rendered,
    )
