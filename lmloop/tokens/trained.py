"""Tokenizers built from the corpus: one token a character, or byte-pair encoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from lmloop.data.source import Source
from lmloop.preset.schema import TokenizerSection
from lmloop.tokens.tokenizer import END_OF_TEXT, LLAMA_PATTERN, PAD, Tokenizer

_CONFIG = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PAD}


def train_char(section: TokenizerSection, sources: Sequence[Source]) -> Tokenizer:
    """A token for each character of the sample, and one for each byte: what the sample lacks is spelled in UTF-8.

    To the library it is byte-pair encoding without a single merge, with fall-back to bytes as in SentencePiece.
    """
    characters: set[str] = set()
    for text in sample(sources, section.train_bytes):
        characters.update(text)
    characters -= {chr(code) for code in range(0xD800, 0xE000)}
    tokens = [END_OF_TEXT, PAD, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(characters)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([_control(END_OF_TEXT), _control(PAD)])
    return Tokenizer(backend, _CONFIG)


def train_bpe(section: TokenizerSection, sources: Sequence[Source]) -> Tokenizer:
    """Byte-pair encoding (arXiv 1508.07909) over bytes, with `section.vocab_size` rows, fewer if the sample ends first.

    Only bytes that occur in UTF-8 have a token (243 of 256), which leaves room in a vocabulary of 256.
    """
    backend = Backend(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA_PATTERN), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=section.vocab_size,
        min_frequency=2,  # a pair seen once teaches nothing
        show_progress=False,
        special_tokens=[_control(END_OF_TEXT), _control(PAD)],
        initial_alphabet=_alphabet(),
    )
    texts = (text.encode("utf-8", "replace").decode() for text in sample(sources, section.train_bytes))
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, _CONFIG)


def sample(sources: Sequence[Source], limit_bytes: int) -> Iterator[str]:
    """Texts from the head of each source, `limit_bytes` of UTF-8 in all, dealt out fairly.

    The next document comes from the source that gave least so far, and no document takes more than its source's share:
    one huge file does not crowd out the rest.

    Raises:
        ValueError: there is no text at all.
    """
    readers = {index: source.read({}) for index, source in enumerate(sources)}
    given = dict.fromkeys(readers, 0)
    share = max(limit_bytes // max(len(sources), 1), 1)
    left = limit_bytes
    while readers and left > 0:
        index = min(readers, key=lambda i: (given[i], i))
        document = next(readers[index], None)
        if document is None:
            del readers[index]
            continue
        text = document[0].text[: min(share, left)]  # a character is at least a byte
        size = len(text.encode("utf-8", "replace"))
        if size > min(share, left):
            text = text.encode("utf-8", "replace")[: min(share, left)].decode("utf-8", "ignore")
            size = min(share, left)
        given[index] += max(size, 1)  # so that a source of empty texts does not hold up the others
        left -= size
        if text:
            yield text
    if left == limit_bytes:
        names = ", ".join(source.name for source in sources) or "none"
        raise ValueError(f"tokenizer: the sources ({names}) have no text to build it from: correct data.sources")


def _control(content: str) -> AddedToken:
    return AddedToken(content, special=True, normalized=False)


def _alphabet() -> list[str]:
    """How the library writes the bytes that occur in UTF-8: all but C0, C1 and F5 to FF.

    Encoded characters show them: each one- and two-byte character, and one each of three and four bytes per lead byte.
    """
    leads = [*range(0x800), *range(0x800, 0xD800, 0x100), *range(0xE000, 0x10000, 0x100), *range(0x10000, 0x110000, 0x4000)]
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    written = splitter.pre_tokenize_str("".join(map(chr, leads)))
    alphabet = sorted({character for part, _ in written for character in part})
    assert len(alphabet) == 243, len(alphabet)
    return alphabet
