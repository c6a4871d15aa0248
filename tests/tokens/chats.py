"""Small tokenizers with the control tokens of chat templates, and conversations to try them on."""

from __future__ import annotations

import json
import random
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from lmloop.data.document import Message
from lmloop.tokens.tokenizer import LLAMA_PATTERN, Tokenizer

CHATML = ("<|im_start|>", "<|im_end|>")
LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
INST = ("[INST]", "[/INST]")
SPECIAL = ("<s>", "</s>", "<pad>", *CHATML, *LLAMA3, *INST)

_TEXT = (
    "system user assistant tool model ipython User: Assistant: ### Instruction: Response: Input: Be brief. Four. Sure? Yes. "
    "What is two and two? <<SYS>> <</SYS>> The answer is 4, of course! No way SYS INST"
)
WORDS = _TEXT.split()
OTHERS = ("中文", "\U0001f600", "naïve", "x\n\ny", "1234", "a  b")


def sp(*, legacy: bool, special: tuple[str, ...] = ("<s>", "</s>", "<pad>")) -> Backend:
    """As SentencePiece's are converted: a mark before the first word; `legacy` puts it after every control token too."""
    symbols = [*special, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    normal = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")] if legacy else []
    backend.normalizer = normalizers.Sequence(normal) if legacy else None  # type: ignore[assignment]
    if not legacy:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[control(token) for token in symbols], show_progress=False, min_frequency=1
    )
    backend.train_from_iterator(WORDS, trainer)  # one by one: no token reaches over a space
    described = json.loads(backend.to_str())
    described["added_tokens"] = [t for t in described["added_tokens"] if not t["content"].startswith("<0x")]
    return Backend.from_str(json.dumps(described))


def byte_level(special: tuple[str, ...] = SPECIAL) -> Backend:
    """As Llama 3's and Qwen's; every word of WORDS is one token."""
    backend = Backend(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA_PATTERN), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2_000,
        special_tokens=[control(token) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=1,
    )
    backend.train_from_iterator([word for each in [*WORDS, "\n\n"] for word in (each, f" {each}")], trainer)
    return backend


def control(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def tokenizer(backend: Backend | None = None, **config: Any) -> Tokenizer:
    config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **config}
    return Tokenizer(backend or byte_level(), {key: value for key, value in config.items() if value is not None})


def chat(*said: str) -> list[Message]:
    """`chat("s:Be brief.", "u:Sure?", "a:Yes.")`."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [Message(roles[text[0]], text[2:]) for text in said]


def as_dicts(messages: list[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def random_chat(seed: int, *, system: bool = True) -> list[Message]:
    """A conversation of some turns; texts neither begin nor end with white space."""
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices([*WORDS, *OTHERS], k=rng.randint(1, 9)))

    begins = [Message("system", text())] if system and rng.random() < 0.5 else []
    turns = [(Message("user", text()), Message("assistant", text())) for _ in range(rng.randint(1, 4))]
    return [*begins, *(message for turn in turns for message in turn)]


def shown(tokenizer: Tokenizer, ids: Any) -> list[str]:
    """Each token by itself, as text."""
    return [tokenizer.backend.decode([int(token)], skip_special_tokens=False) for token in ids]
