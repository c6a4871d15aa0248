"""Whether an export is the model that was trained: asked of its file, and of the program that will read it.

The file is always read back and compared tensor by tensor, each number with what its type allows. Then, where the program
is installed, it loads the file in a process of its own and has to agree with the model in five things: the logits at every
position of two rows, the tokens of awkward texts, the text that it writes with the likeliest token each time, that it stops
at each token that ends a text, and the chat template.

Where numbers are rounded (f16, q8_0, ...), the program is compared with the trained model under the same rounded weights:
so the tolerance can be narrow enough to notice a wrong file at any type. What the rounding itself has done is measured as
well, and reported.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lmloop.export.bundle import Bundle, Logits
from lmloop.export.consult import NotHereError, available_bytes
from lmloop.export.exporter import TORCH_NAMES, Exporter, natural_kind
from lmloop.export.questions import Answers, Questions, Written
from lmloop.tokens.rendering import Untrusted

NEW_TOKENS = 24
"""Likeliest tokens that are written for each prompt."""

LOGITS_IN_A_ROW = 8_000_000
"""Positions times vocabulary: bounds the rows that are compared, which have from 16 to 256 tokens otherwise."""

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces, a tab\tand a line\nthen two\n\nthen three\n\n\n   and spaces before this",
    "don't I'LL we've it's THEY'RE 1 12 123 1234 12345 3.14159 1,000,000 2nd x86_64",
    "naïve café, Größe, Ελληνικά, русский, 中文字符, 日本語, 한국어, עברית, العربية, हिन्दी",
    "🙂 👩‍👩‍👧 €uro № ½ … “quotes” — dash",
    "def f(x):\n    return {'a': [1, 2], \"b\": x ** 2}  # comment\n\n\tif x != y: pass\r\n",
    "trailing spaces   ",
    "x",
)
"""What tokenizers are known to disagree about."""

MESSAGES = (
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "Well."},
    {"role": "user", "content": "And now?"},
)
"""A conversation that every chat template can render."""


@dataclass(frozen=True)
class Check:
    """What was compared, and how well it agrees. All of it agrees well enough: else there is a ValueError instead.

    tensors, largest_difference: of the file. rounded: some number is not the model's own. reader: the program and its
    version; None: it was not asked, for the reason in `unasked`, and what follows is empty. positions: at which logits were
    compared. difference: root of their mean squared difference, as a share of the logits' own standard deviation;
    tolerance: the most that was allowed. written_tokens: that were the same. texts: of which it made the same tokens.
    rounding_nats: Kullback-Leibler divergence of the exported model's predictions from the trained one's, a token.
    """

    tensors: int
    largest_difference: float
    rounded: bool
    reader: str | None = None
    unasked: str = ""
    positions: int = 0
    difference: float = 0.0
    tolerance: float = 0.0
    written_tokens: int = 0
    texts: int = 0
    rounding_nats: float | None = None

    def lines(self, exporter: Exporter) -> list[str]:
        """For people: which check was made."""
        difference = f"largest difference {self.largest_difference:.2g}, from rounding" if self.rounded else "all equal"
        lines = [f"read back: {self.tensors} tensors compared with the model's: {difference}"]
        if self.reader is None:
            return [*lines, f"{exporter.consumer.name} itself has not loaded it: {self.unasked}"]
        lines.append(
            f"{self.reader} loaded it: logits at {self.positions} positions differ by {self.difference:.1e} of their spread "
            f"(allowed: {self.tolerance:.0e}); the text it writes ({self.written_tokens} tokens), the tokens it makes of "
            f"{self.texts} texts and where it stops are the same"
        )
        if self.rounding_nats is not None:
            lines.append(f"rounding moves the model's predictions by {self.rounding_nats:.2g} nats a token")
        return lines


def check_export(bundle: Bundle, exporter: Exporter, kind: str, folder: Path) -> Check:
    """Compare what was written with the model.

    Raises:
        ValueError: they differ; one line that says in what.
    """
    _conversation(bundle)  # a template that is broken is noticed here, whoever is installed
    check, tensors = _read_back(bundle, exporter, folder, keep=kind != natural_kind(bundle))
    unasked = "" if exporter.consumer.installed else f"it is not installed here; for that: {exporter.consumer.remedy}"
    need_bytes = sum(path.stat().st_size for path in folder.iterdir())
    if check.rounded:
        need_bytes += sum(tensor.nbytes for tensor in tensors.values())
    free_bytes = available_bytes()
    if not unasked and free_bytes is not None and free_bytes < need_bytes:
        unasked = f"that needs {need_bytes / 1e9:.1f} GB of memory, and {free_bytes / 1e9:.1f} are free"
    if unasked:
        return replace(check, unasked=unasked)
    reference = bundle.rebuild(tensors) if check.rounded else bundle.logits
    questions = questions_for(bundle, exporter)
    try:
        answers = exporter.consumer.ask(folder, questions)
    except NotHereError as error:
        return replace(check, unasked=str(error))
    return compare(bundle, exporter, kind, check, reference, questions, answers)


def _read_back(bundle: Bundle, exporter: Exporter, folder: Path, *, keep: bool) -> tuple[Check, Mapping[str, Tensor]]:
    """`keep` the tensors, for a model that is built of them; of the model's own type they are the model's."""
    largest, kept, seen = 0.0, dict[str, Tensor](), set[str]()
    for stored in exporter.stored(bundle, folder):
        given = bundle.weights[stored.name].float()
        if stored.tensor.shape != given.shape:
            raise ValueError(
                f"{stored.name} was written as {tuple(stored.tensor.shape)} and is {tuple(given.shape)} in the model"
            )
        difference = (stored.tensor - given).abs()
        if not bool((difference <= stored.slack).all()):
            worst = int((difference - stored.slack).argmax())
            raise ValueError(
                f"{stored.name} was written wrongly: {stored.tensor.flatten()[worst]:.6g} stands for "
                f"{given.flatten()[worst]:.6g}"
            )
        largest = max(largest, float(difference.max()))
        seen.add(stored.name)
        if keep:
            kept[stored.name] = stored.tensor.to(bundle.weights[stored.name].dtype)
    missing = sorted(set(bundle.weights) - seen)
    if missing:
        raise ValueError(f"{', '.join(missing[:4])} did not get into the export")
    assert keep or largest == 0.0, f"rounded by {largest} to the type that the model has"
    return Check(len(seen), largest, rounded=largest > 0.0), kept


def questions_for(bundle: Bundle, exporter: Exporter) -> Questions:
    """Questions that fit the model's context and vocabulary. ValueError: its chat template cannot be used."""
    encode = bundle.tokenizer.encode
    context = exporter.context_tokens(bundle)
    longest = min(max(LOGITS_IN_A_ROW // bundle.rows, 16), 256, context)
    text = [int(token) for token in encode(" ".join([*bundle.prompts, *TEXTS]))]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(bundle.tokenizer.vocab_size, (longest,), generator=generator).tolist()
    rows = [[*bundle.prefix, *tokens][:longest] for tokens in (text, noise)]
    room = max(context - NEW_TOKENS, 1)
    beginnings = [*bundle.prompts[:2], TEXTS[0][:10], ""]
    prompts = [[*bundle.prefix, *(int(token) for token in encode(beginning))][:room] for beginning in beginnings]
    return Questions(
        rows=rows,
        texts=exporter.same_tokens(bundle, TEXTS),
        prompts=[list(prompt) for prompt in dict.fromkeys(map(tuple, prompts)) if prompt],
        new_tokens=min(NEW_TOKENS, context - 1),
        stops=list(bundle.stops),
        messages=[] if _conversation(bundle) is None else list(MESSAGES),
        dtype=TORCH_NAMES[natural_kind(bundle)],
    )


def compare(
    bundle: Bundle, exporter: Exporter, kind: str, check: Check, reference: Logits, questions: Questions, answers: Answers
) -> Check:
    """The answers against `reference`, the model under the weights as they were written. ValueError: they differ."""
    name = exporter.consumer.title
    wanted = [reference(torch.tensor([row]))[0] for row in questions.rows]
    given = [torch.from_numpy(logits) for logits in answers.logits]
    wanted_PV, given_PV = torch.cat(wanted), torch.cat(given)
    spread = float((wanted_PV - wanted_PV.mean(dim=-1, keepdim=True)).square().mean().sqrt())
    difference = float((given_PV - wanted_PV).square().mean().sqrt()) / spread
    tolerance = exporter.tolerance(bundle, kind)
    if not difference <= tolerance:
        raise ValueError(
            f"{name} does not compute what was trained: its logits differ by {difference:.2g} of their spread, "
            f"allowed are {tolerance:.0e}"
        )
    _same_tokens(bundle, name, questions, answers)
    written = 0
    for prompt, one in zip(questions.prompts, answers.written, strict=True):
        written += _same_text(bundle, name, reference, prompt, one, questions.new_tokens, 4 * tolerance * spread)
    for stop, count in zip(questions.stops, answers.forced, strict=True):
        if count:
            raise ValueError(f"{name} writes on after the end token {bundle.token(stop)!r}")
    conversation = _conversation(bundle)
    if conversation is not None and answers.rendered != conversation:
        raise ValueError(f"{name} renders a conversation as {(answers.rendered or '')[:80]!r}, not {conversation[:80]!r}")
    nats = None
    if check.rounded:
        before_PV = torch.cat([bundle.logits(torch.tensor([row]))[0] for row in questions.rows]).log_softmax(dim=-1)
        after_PV = given_PV.log_softmax(dim=-1)
        nats = float((before_PV.exp() * (before_PV - after_PV)).sum(dim=-1).mean())
    return replace(
        check,
        reader=name,
        positions=sum(len(row) for row in questions.rows),
        difference=difference,
        tolerance=tolerance,
        written_tokens=written,
        texts=len(questions.texts),
        rounding_nats=nats,
    )


def _same_tokens(bundle: Bundle, name: str, questions: Questions, answers: Answers) -> None:
    for text, ids in zip(questions.texts, answers.ids, strict=True):
        wanted = [*bundle.prefix, *(int(token) for token in bundle.tokenizer.encode(text))]
        if list(ids) != wanted:
            at = next((i for i, (a, b) in enumerate(zip(ids, wanted, strict=False)) if a != b), min(len(ids), len(wanted)))
            raise ValueError(
                f"{name} makes other tokens of {text[:40]!r}: from token {at} on {list(ids)[at : at + 4]}, "
                f"not {wanted[at : at + 4]}"
            )


def _same_text(
    bundle: Bundle, name: str, reference: Logits, prompt: list[int], written: Written, limit: int, tie: float
) -> int:
    """Each token written is the model's likeliest, or within `tie` logits of it; the number of tokens."""
    tokens = [*written.tokens, *([bundle.stops[0]] if written.ended else [])]
    logits_TV = reference(torch.tensor([prompt + written.tokens]))[0, len(prompt) - 1 :]
    for index, token in enumerate(tokens):
        row_V = logits_TV[index]
        chosen = row_V[list(bundle.stops)].max() if index == len(written.tokens) else row_V[token]
        if float(row_V.max() - chosen) > tie:
            raise ValueError(
                f"{name} writes {bundle.token(token)!r} as token {index + 1} after "
                f"{bundle.tokenizer.decode(prompt)[-40:]!r}, the model {bundle.token(int(row_V.argmax()))!r}"
            )
    if not written.ended and len(written.tokens) < limit:
        raise ValueError(f"{name} stops after {len(written.tokens)} tokens without an end token")
    # Decoders differ in a space at the beginning, and in bytes that are no character: up to there the texts are compared.
    wanted, given = bundle.tokenizer.decode(written.tokens).lstrip(" "), written.text.lstrip(" ")
    legible = min(len(text.partition("\ufffd")[0]) for text in (wanted, given))
    if wanted[:legible] != given[:legible] or (legible < len(wanted)) != (legible < len(given)):
        raise ValueError(f"{name} shows its tokens as {given[:60]!r}, which are {wanted[:60]!r}")
    return len(tokens)


def _conversation(bundle: Bundle) -> str | None:
    """MESSAGES in the chat template; None: there is none, or it depends on the day. ValueError: it cannot be used."""
    template = bundle.chat_template
    if template is None or "strftime_now" in template:
        return None
    named = {key: value for key, value in bundle.tokenizer_config.items() if key.endswith("_token")}
    return _rendered(template, tuple(named.items()))


@functools.lru_cache(maxsize=4)
def _rendered(template: str, named: tuple[tuple[str, str], ...]) -> str:
    rendering = Untrusted(template, dict(named))
    try:
        messages = [(message["role"], message["content"]) for message in MESSAGES]
        text, *reason = rendering([(messages, True)])[0]
    finally:
        rendering.close()
    if reason:
        raise ValueError(f"the chat template cannot be used: {reason[0]}")
    return text
