"""What a chat template writes around messages, found by rendering words of our own in their place.

So it is known which characters of a rendered conversation are the template's and which were said by somebody: only the
former may become control tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Job = tuple[list[tuple[str, str]], bool]
"""What is rendered: messages (role, content), and whether a prompt for the assistant is added."""

Render = Callable[[Sequence[Job]], list[list[str]]]
"""`[text]` for each job, or `["", reason]`; see template_worker.py."""


_MOST_SEARCHED = 10**9
"""Characters that are looked through for the messages of one conversation: about a second's worth."""


class ChatTemplateError(ValueError):
    """A template, or a template and a conversation, that do not fit; the message is one line."""


@dataclass(frozen=True)
class Skeleton:
    """The template's own text for one sequence of roles.

    texts: before the first message, between messages, after the last; one more than there are messages.
    given: for each message, how many characters of the text before it the model is given; what follows them, an assistant
        writes itself.
    """

    texts: tuple[str, ...]
    given: tuple[int, ...]


def skeleton(render: Render, roles: Sequence[str], *, prompted: bool = False) -> Skeleton:
    """The skeleton of conversations with these roles; `prompted`: with the prompt for the next answer at its end.

    Raises:
        ChatTemplateError: the template refuses the roles, or leaves out, repeats, changes or moves a message.
    """
    said = [(role, _word(index)) for index, role in enumerate(roles)]
    answers = [index for index, role in enumerate(roles) if role == "assistant"]
    # How an answer is asked for depends on whom it answers and whether it is the first: each is rendered once.
    settings = {index: (roles[index - 1] if index else "", index == answers[0]) for index in answers}
    examples = {setting: index for index, setting in reversed(settings.items())}
    jobs: list[Job] = [(said, prompted)]
    for index in examples.values():
        jobs += [(said[:index], False), (said[:index], True)]
    (whole, *refusal), *asked = render(jobs)
    if refusal:
        raise ChatTemplateError(refusal[0])
    texts = _between(whole, roles)
    given = [len(text) for text in texts[:-1]]
    for (setting, example), plain, prompt in zip(examples.items(), asked[::2], asked[1::2], strict=True):
        if len(prompt) > 1 or (example and _word(example - 1) not in prompt[0]):
            continue
        question = prompt[0].rpartition(_word(example - 1))[2]
        for index in answers:
            if settings[index] != setting or not texts[index].startswith(question):
                continue
            # Without a prompt of its own, a template leaves no more than white space to the model.
            if prompt != plain or not texts[index][len(question) :].strip():
                given[index] = len(question)
    return Skeleton(tuple(texts), tuple(given))


_WORD = re.compile(r"Zq([0-9]+)qZ")


def _word(index: int) -> str:
    """What stands for a message: nothing that a template writes or looks for, and no part of another one."""
    return f"Zq{index}qZ"


def _between(text: str, roles: Sequence[str]) -> list[str]:
    words = list(_WORD.finditer(text))
    order = [int(word[1]) for word in words]
    if order == list(range(len(roles))):
        starts, ends = [word.start() for word in words], [word.end() for word in words]
        return [text[end:start] for end, start in zip([0, *ends], [*starts, len(text)], strict=True)]
    times = Counter(order)
    for index, role in enumerate(roles):
        if times[index] != 1:
            what = "repeats" if times[index] else "leaves out or changes"
            raise ChatTemplateError(f"the template {what} what the {role} says (messages[{index}])")
    raise ChatTemplateError("the template changes the order of messages")


def align(found: Skeleton, said: Sequence[str], text: str) -> list[str] | None:
    """What of each message is in `text`, where that is the skeleton filled with the messages, some stripped; else None."""
    if not text.startswith(found.texts[0]):
        return None
    at = len(found.texts[0])
    kept: list[str] = []
    for content, after in zip(said, found.texts[1:], strict=True):
        for form in (content, content.strip("\n"), content.lstrip(), content.rstrip(), content.strip()):
            if text.startswith(form, at) and text.startswith(after, at + len(form)):
                kept.append(form)
                at += len(form) + len(after)
                break
        else:
            return None
    return kept if at == len(text) else None


def search(found: Skeleton, said: Sequence[str], text: str) -> tuple[Skeleton, list[str]]:
    """The skeleton of a text in which a template wrote something else than usual because of what was said, and the
    messages in it. Each must occur once, stripped, and in order.

    Raises:
        ChatTemplateError: one does not.
    """
    if len(said) * len(text) > _MOST_SEARCHED:
        raise ChatTemplateError("the template does not write the same around all messages, and the conversation is too long")
    kept = [content.strip() for content in said]
    texts, given, rest = [], [], text
    for index, content in enumerate(kept):
        before, there, rest = rest.partition(content)
        if not there or text.count(content) != 1:
            raise ChatTemplateError(
                f"the template {'repeats' if there else 'leaves out or changes'} a part of messages[{index}]"
            )
        usual = found.texts[index][: found.given[index]]
        texts.append(before)
        given.append(len(usual) if before.startswith(usual) else len(before))
    return Skeleton((*texts, rest), tuple(given)), kept
