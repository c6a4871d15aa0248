"""Models with random weights and real tokenizers, in a second: of our architectures, and of transformers'."""

from __future__ import annotations

import functools
import itertools
import json
from typing import Any

import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from lmloop.export.bundle import Bundle
from lmloop.export.foreign import bundle_of_transformers
from lmloop.export.gguf_vocab import PATTERNS
from lmloop.export.own import bundle
from lmloop.models.build import build_model
from lmloop.preset.schema import GenerationSection, ModelSection, TokenizerSection
from lmloop.tokens.build import build_tokenizer
from lmloop.tokens.tokenizer import Tokenizer
from tests.tokens.sources import MemorySource

PROSE = """The tokenizer learns which pairs of bytes stand side by side most often, and gives each such pair a row of its
own. What's frequent becomes short: words, endings, even whole phrases; what is rare stays spelled out in bytes. In 1987
and 2024 the same text needed fewer tokens than it has letters, and nothing that people write is ever lost on the way.
"""
CODE = "def area(width, height):\n    return {'size': [width * height, 12345]}  # x != y\n\n"
WORLD = "naïve café, Größe, Ελληνικά, русский, 中文字符, 日本語, 한국어 €5 🙂\n"
TEXTS = [PROSE * 3, CODE * 5, WORLD * 3]

DECODER = ModelSection(hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, seq_length=64)
GPT2 = ModelSection(architecture="gpt2", hidden_size=64, num_layers=2, num_heads=4, seq_length=48)
OWN: dict[str, tuple[ModelSection, str]] = {
    "decoder": (DECODER, "bpe"),
    "characters": (ModelSection(hidden_size=32, num_layers=2, num_heads=2, seq_length=64), "char"),
    "untied, wide heads, one key head": (
        ModelSection(
            hidden_size=48,
            num_layers=2,
            num_heads=4,
            num_kv_heads=1,
            head_dim=16,
            seq_length=40,
            tie_embeddings=False,
            rope_theta=1e6,
            norm_eps=1e-5,
        ),
        "bpe",
    ),
    "linear": (
        ModelSection(hidden_size=64, num_heads=2, seq_length=192, position_scaling="linear", original_seq_length=64),
        "bpe",
    ),
    "yarn": (
        ModelSection(hidden_size=128, num_heads=2, seq_length=200, position_scaling="yarn", original_seq_length=64),
        "bpe",
    ),
    "gpt2": (GPT2, "bpe"),
    "gpt2, characters": (GPT2, "char"),
    "gpt2, untied, narrow": (GPT2.model_copy(update={"tie_embeddings": False, "intermediate_size": 96}), "bpe"),
    "short": (ModelSection(hidden_size=64, num_layers=1, num_heads=4, seq_length=8), "bpe"),
}
"""What can be trained here, and with which tokenizer."""


def randomise(model: torch.nn.Module) -> None:
    """Weights far from their start, so that norms, biases and positions matter."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@functools.cache
def tokenizer(kind: str) -> Tokenizer:
    """`char` or `bpe` as trained here; else one of SPLITS or SPACES."""
    if kind in ("char", "bpe"):
        section = TokenizerSection(type=kind, vocab_size=400 if kind == "bpe" else 8_192)  # type: ignore[arg-type]
        return build_tokenizer(section, [MemorySource("corpus", TEXTS)])
    return _byte_level(SPLITS[kind]) if kind in SPLITS else _pieces(kind)


def own(name: str = "decoder", generation: GenerationSection | None = None, **changes: Any) -> Bundle:
    """One of OWN, or it with some keys of its section changed."""
    section, kind = OWN[name]
    section = ModelSection(**{**section.model_dump(), **changes})
    model = build_model(section, tokenizer(kind).vocab_size, seed=1)
    randomise(model)
    options = generation or GenerationSection(prompts=["def ", "The "])
    return bundle("tiny", section, model.eval(), tokenizer(kind), options)


@functools.cache
def memorised(architecture: str = "decoder", kind: str = "bpe") -> Bundle:
    """A model that has learned two short documents by heart, their ends too."""
    section = ModelSection(architecture=architecture, hidden_size=64, num_layers=1, num_heads=4, seq_length=48)  # type: ignore[arg-type]
    tokens = tokenizer(kind)
    model = build_model(section, tokens.vocab_size, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    documents = [
        torch.tensor([tokens.start_id, *tokens.encode(text).tolist(), tokens.eos_id])
        for text in ("def x(y):", "What is rare")
    ]
    for _ in range(60):
        losses = [
            torch.nn.functional.cross_entropy(model.head(model.hidden(line[None, :-1]))[0], line[1:]) for line in documents
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
    return bundle("memorised", section, model.eval(), tokens, GenerationSection(prompts=["def", "What"]))


# ---- tokenizers of other models ----

SPLITS = {"gpt-2": None, **{name: pattern for pattern, name in PATTERNS.items()}}
"""Byte-level BPE by where it splits text."""

SPACES = ("llama2", "replaced", "first", "never")
"""Pieces as SentencePiece has them, by what they do with spaces."""


def _byte_level(pattern: str | None) -> Tokenizer:
    backend = Backend(models.BPE())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    backend.pre_tokenizer = (
        to_bytes
        if pattern is None
        else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), to_bytes])
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_special_tokens([AddedToken("<|im_end|>", special=True, normalized=False)])
    backend.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return Tokenizer(backend, {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"})


def _pieces(spaces: str) -> Tokenizer:
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    if spaces == "llama2":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    elif spaces == "replaced":
        backend.normalizer = normalizers.Sequence([replace])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=spaces, split=False)  # type: ignore[arg-type]
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if spaces in ("llama2", "first") else steps)
    special = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False, limit_alphabet=80)
    words = [word for text in TEXTS for word in text.split()]
    backend.train_from_iterator([f"{first} {second}" for first, second in itertools.pairwise(words)], trainer)
    description = json.loads(backend.to_str())
    description["added_tokens"] = [token for token in description["added_tokens"] if "<0x" not in token["content"]]
    made: dict[str, list[Any]] = {}  # SentencePiece has a token's merges side by side
    for merge in description["model"]["merges"]:
        made.setdefault("".join(merge), []).append(merge)
    description["model"]["merges"] = [merge for merges in made.values() for merge in merges]
    backend = Backend.from_str(json.dumps(description))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"})


# ---- models of transformers ----

FOREIGN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "llama-bpe", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "llama 3.1": (
        "LlamaConfig",
        "llama-bpe",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama 2": ("LlamaConfig", "llama2", {"num_key_value_heads": 4}),
    "llama, biases": ("LlamaConfig", "llama-bpe", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralConfig", "first", {"sliding_window": None}),
    "mistral, window": ("MistralConfig", "tekken", {"sliding_window": 32}),
    "qwen2": ("Qwen2Config", "qwen2", {}),
    "qwen3": ("Qwen3Config", "qwen2", {"head_dim": 32}),
}
"""Name → configuration class, tokenizer, what its configuration adds."""


@functools.cache
def foreign(name: str, dtype: torch.dtype = torch.float32) -> Bundle:
    """One of FOREIGN, with rows of the embedding that no token has, as many published models have them."""
    import transformers

    config_name, kind, changes = FOREIGN[name]
    config = getattr(transformers, config_name)(
        **{
            "vocab_size": tokenizer(kind).vocab_size + 5,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            **changes,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)  # with others it may write a row that no token has, which mlx-lm cannot show
        model = transformers.AutoModelForCausalLM.from_config(config)
    randomise(model)
    model = model.to(dtype).eval()
    assert model.generation_config is not None
    model.generation_config.eos_token_id = tokenizer(kind).eos_id
    return bundle_of_transformers("foreign", model, tokenizer(kind))
