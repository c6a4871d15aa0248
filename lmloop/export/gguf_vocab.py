"""Tokenizers as llama.cpp knows them: byte-level BPE, or pieces as SentencePiece has them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmloop.export.bundle import Bundle
from lmloop.tokens.tokenizer import LLAMA_PATTERN

if TYPE_CHECKING:
    from gguf import GGUFWriter

SPACE = "▁"
"""How SentencePiece writes a space."""

_QWEN_PATTERN = LLAMA_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {LLAMA_PATTERN: "llama-bpe", _QWEN_PATTERN: "qwen2", _TEKKEN_PATTERN: "tekken"}
"""Where text is split before bytes are merged → llama.cpp's name of it."""


@dataclass(frozen=True)
class Vocabulary:
    """What the file says of the tokenizer.

    kinds: gguf's TokenType of each token. notes: which texts llama.cpp cuts into other tokens, a line each. exceptions: a
    text is one of these.
    """

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str] | None = None
    scores: list[float] | None = None
    space_before: bool = False
    notes: tuple[str, ...] = ()
    exceptions: Callable[[str], bool] = lambda text: False

    def write(self, writer: GGUFWriter, bundle: Bundle) -> None:
        """Add it to the file's head."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.space_before)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        if bundle.prefix:
            writer.add_bos_token_id(bundle.prefix[0])
        writer.add_add_bos_token(bool(bundle.prefix))
        writer.add_add_eos_token(False)
        writer.add_eos_token_id(bundle.stops[0])
        for add, stop in zip((writer.add_eot_token_id, writer.add_eom_token_id), bundle.stops[1:], strict=False):
            add(stop)
        writer.add_pad_token_id(bundle.tokenizer.pad_id)
        if bundle.chat_template is not None:
            writer.add_chat_template(bundle.chat_template)


def vocabulary_of(bundle: Bundle) -> Vocabulary:
    """The tokenizer in llama.cpp's terms.

    Raises:
        ValueError: llama.cpp would cut text into other tokens; one line with the reason.
    """
    description = bundle.tokenizer_json
    model = description["model"]
    if model["type"] != "BPE":
        raise ValueError(f"a tokenizer of type {model['type']} is not carried to GGUF")
    if len(bundle.prefix) > 1:
        raise ValueError(f"GGUF puts one token before a text, not {len(bundle.prefix)}")
    if len(bundle.stops) > 3:
        raise ValueError(
            f"GGUF has places for three tokens that end a text (end of text, turn, message), not {len(bundle.stops)}"
        )
    return _pieces(bundle, description) if model["byte_fallback"] else _byte_level(bundle, description)


def _rows(bundle: Bundle, description: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Every row of the embedding: its token and kind; rows without a token get a name that no text has."""
    from gguf import TokenType

    tokens = [f"[PAD{index}]" for index in range(bundle.rows)]
    kinds = [int(TokenType.UNUSED)] * bundle.rows
    for token, index in description["model"]["vocab"].items():
        tokens[index], kinds[index] = token, int(TokenType.NORMAL)
    for added in description["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]], kinds[added["id"]] = added["content"], int(kind)
    return tokens, kinds


# ---- byte-level BPE ----


def _byte_level(bundle: Bundle, description: dict[str, Any]) -> Vocabulary:
    if description["normalizer"] not in (None, {"type": "NFC"}):
        raise ValueError(f"the tokenizer's normalizer ({description['normalizer']['type']}) is not carried to GGUF")
    pre = _split(description["pre_tokenizer"])
    merges = [_pair(merge) for merge in description["model"]["merges"]]
    if pre == "llama-bpe" and not description["model"].get("ignore_merges") and _has_shortcuts(description):
        pre = "dbrx"  # the same expression; but llama-bpe takes a word that is a token whole, and these merges would not
    tokens, kinds = _rows(bundle, description)
    written = [f"{left} {right}" for left, right in merges]
    if description["normalizer"] is None:
        return Vocabulary("gpt2", pre, tokens, kinds, merges=written)
    note = "llama.cpp does not normalise text: characters that are not in Unicode's form NFC become other tokens"
    return Vocabulary(
        "gpt2",
        pre,
        tokens,
        kinds,
        merges=written,
        notes=(note,),
        exceptions=lambda text: not unicodedata.is_normalized("NFC", text),
    )


def _split(splitter: dict[str, Any] | None) -> str:
    """llama.cpp's name for how text is split before merging."""
    steps = splitter.get("pretokenizers", [splitter]) if splitter else []
    last = steps[-1] if steps else {}
    if last.get("type") == "ByteLevel" and not last["add_prefix_space"]:
        if len(steps) == 1 and last["use_regex"]:
            return "gpt-2"
        split = steps[0]
        plain = len(steps) == 2 and not last["use_regex"] and split["type"] == "Split"
        if plain and split["behavior"] == "Isolated" and not split["invert"]:
            name = PATTERNS.get(split["pattern"].get("Regex"))
            if name is not None:
                return name
    raise ValueError(
        "the tokenizer splits text in a way that llama.cpp has no name for: "
        f"it has to split as one of gpt-2, {', '.join(PATTERNS.values())}"
    )


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _has_shortcuts(description: dict[str, Any]) -> bool:
    """Some token is not what the merges make of its own characters."""
    from tokenizers import models

    model = description["model"]
    bare = models.BPE(vocab=model["vocab"], merges=[_pair(merge) for merge in model["merges"]])
    special = {added["content"] for added in description["added_tokens"]}
    return any(len(bare.tokenize(token)) != 1 for token in model["vocab"] if token not in special)


# ---- pieces with fall-back to bytes ----


def _pieces(bundle: Bundle, description: dict[str, Any]) -> Vocabulary:
    """As SentencePiece: llama.cpp joins the two neighbours whose union has the highest score, again and again.

    Merges in their order are that, with the first merge's rank for a score, if no other token's merge lies between two
    merges that make the same token.
    """
    from gguf import TokenType

    tokens, kinds = _rows(bundle, description)
    spaces = _spaces(description)
    if not spaces.escaped:
        if SPACE in description["model"]["vocab"]:
            raise ValueError(f"the tokenizer has a token for {SPACE}, which GGUF writes for a space")
        tokens = [SPACE if token == " " else token for token in tokens]
    merges = [_pair(merge) for merge in description["model"]["merges"]]
    if spaces.escaped is False and merges:
        raise ValueError("the tokenizer falls back to bytes but does not write spaces as SentencePiece does")
    scores = [0.0] * len(tokens)
    index_of = {token: index for index, token in enumerate(tokens)}
    ranks: dict[str, int] = {}
    newest = ""
    for rank, (left, right) in enumerate(merges):
        made = left + right
        if made in ranks and made != newest:
            raise ValueError(f"the merges that make the token {made!r} are apart: llama.cpp's pieces cannot do that")
        ranks.setdefault(made, rank)
        newest = made
        scores[index_of[made]] = -float(ranks[made])
    for index, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[index] = int(TokenType.BYTE)
    unknown = description["model"].get("unk_token")
    if unknown is not None:
        kinds[index_of[unknown]] = int(TokenType.UNKNOWN)
    note = f"llama.cpp reads {SPACE} (U+2581) in a text as a space"
    if spaces.skips:
        note = f"{note}, and puts a space before a text also where it begins with one"
    return Vocabulary(
        "llama",
        "default",
        tokens,
        kinds,
        scores=scores,
        space_before=spaces.before,
        notes=(note,),
        exceptions=lambda text: SPACE in text or (spaces.skips and text.startswith(" ")),
    )


@dataclass(frozen=True)
class _Spaces:
    """How a tokenizer treats them.

    escaped: written as SPACE. before: one is put before a text. skips: but not where it begins with one.
    """

    escaped: bool
    before: bool
    skips: bool = False


def _spaces(description: dict[str, Any]) -> _Spaces:
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    normalizer, splitter = description["normalizer"], description["pre_tokenizer"]
    if splitter is None:
        steps = list(_steps(normalizer))
        if steps in ([], [escape], [prepend, escape]):
            return _Spaces(escaped=bool(steps), before=prepend in steps)
    elif splitter["type"] == "Metaspace" and normalizer is None and splitter["replacement"] == SPACE:
        scheme = splitter["prepend_scheme"]
        if not splitter.get("split", True) and scheme in ("first", "never"):
            return _Spaces(escaped=True, before=scheme == "first", skips=scheme == "first")
    raise ValueError("the tokenizer falls back to bytes but changes or splits text in a way that GGUF does not carry")


def _steps(normalizer: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if normalizer is not None:
        yield from normalizer.get("normalizers", [normalizer]) if normalizer["type"] == "Sequence" else [normalizer]
