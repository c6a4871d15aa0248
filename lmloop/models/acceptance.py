"""What a model of others must pass before it is trained, measured on a few tokens with its own weights.

The loss is computed from hidden states and the head's matrix, documents are packed into rows, and samples are written with
a cache: each of these is wrong for some models, and the loss would still fall.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from lmloop.data.source import one_line
from lmloop.models.pretrained import Pretrained
from lmloop.models.segment_attention import NAME

_TOKENS = 24
_CUTS = (9, 1, 14)
"""Lengths of the documents of one row; the other row has them in reverse."""


@torch.no_grad()
def accept(model: Pretrained, *, bf16: bool) -> None:
    """Try the model, choose its attention and whether it packs, and leave it in the mode it was in.

    Raises:
        ValueError: it cannot be trained by this program. One line.
    """
    generator = torch.Generator().manual_seed(0)
    device = model.head_weight().device
    rows = model.causal.get_input_embeddings().weight.shape[0]
    tokens_BT = torch.randint(rows, (2, _TOKENS), generator=generator).to(device)
    slack = 3e-2 if bf16 else 1e-4  # of the largest value, for another order of summing
    what = f"model.pretrained: {model.base.name}"
    with _evaluating(model), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        _require_head(model, tokens_BT, slack, what)
        _require_causal(model, tokens_BT, slack, what)
        _require_cache(model, tokens_BT, slack, what)
        _choose_packing(model, tokens_BT, slack, what)


@contextlib.contextmanager
def _evaluating(model: Pretrained) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _require_head(model: Pretrained, tokens_BT: Tensor, slack: float, what: str) -> None:
    """The logits are the head's matrix times the hidden states: nothing is added, scaled or bent."""
    head, config = model.causal.get_output_embeddings(), model.causal.config.get_text_config(decoder=True)
    if getattr(head, "bias", None) is not None:
        raise ValueError(
            f"{what} has a bias in its output head, which the loss in chunks does not know: choose another base"
        )
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        raise ValueError(f"{what} caps its logits (at {cap:g}), which the loss in chunks does not know: choose another base")
    logits_BTV = model.causal(input_ids=tokens_BT, use_cache=False).logits
    if not bool(logits_BTV.isfinite().all()):
        raise ValueError(f"{what} gives outputs that are not finite: its weights are damaged; fetch it again")
    if not _close(model.head(model.hidden(tokens_BT)), logits_BTV, slack):
        raise ValueError(
            f"{what} makes its logits otherwise than by its head's matrix (a factor, or another head), which the loss in "
            "chunks does not know: choose another base"
        )


def _require_causal(model: Pretrained, tokens_BT: Tensor, slack: float, what: str) -> None:
    """No position sees a later one."""
    if not _close(model.hidden(_changed(tokens_BT, -1, None))[:, :-1], model.hidden(tokens_BT)[:, :-1], slack):
        raise ValueError(f"{what} lets positions see later ones: it is no model that continues text; choose another base")


def _require_cache(model: Pretrained, tokens_BT: Tensor, slack: float, what: str) -> None:
    """Tokens that come bit by bit, behind padding, have the hidden states that they have at once."""
    pad = 5
    padded_BT = torch.nn.functional.pad(tokens_BT[1:, :-pad], (pad, 0))
    try:
        cache = model.make_cache(2, _TOKENS)
        cache.pad_B = torch.tensor([0, pad], device=tokens_BT.device)
        both_BT = torch.cat([tokens_BT[:1], padded_BT])
        parts = [model.decode(both_BT[:, start:stop], cache) for start, stop in ((0, 16), (16, 17), (17, _TOKENS))]
    except (TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"{what} cannot write with a cache of keys and values ({one_line(error, 120)}): choose another"
        ) from None
    hidden_BTD = torch.cat(parts, dim=1)
    expected_BTD = model.hidden(tokens_BT)
    if not (_close(hidden_BTD[0], expected_BTD[0], slack) and _close(hidden_BTD[1, pad:], expected_BTD[1, :-pad], slack)):
        raise ValueError(f"{what} writes otherwise than it reads when rows are padded on the left: choose another base")


def _choose_packing(model: Pretrained, tokens_BT: Tensor, slack: float, what: str) -> None:
    """Our attention where the model lets it in, else the one it has, else documents one by one."""
    own = model.attention
    alone_BTD = _alone(model, tokens_BT)
    for packs, attention in ((True, NAME), (True, own), (False, own)):
        model.packs = packs
        try:
            model.attention = attention
            if model.attention == attention and _keeps_apart(model, tokens_BT, alone_BTD, slack):
                break
        except (TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError):
            continue
    else:
        raise ValueError(f"{what} cannot keep the documents of a row apart: choose another base")
    if not model.packs:
        model.notices.append(f"{what} mixes the documents of a row, so that each runs in a row of its own: that is slower")


def _alone(model: Pretrained, tokens_BT: Tensor) -> Tensor:
    """Hidden states of the documents, each by itself, in the places that they have in the rows."""
    rows = zip(tokens_BT, (_CUTS, _CUTS[::-1]), strict=True)
    return torch.stack([torch.cat([model.hidden(part_T[None])[0] for part_T in row_T.split(cuts)]) for row_T, cuts in rows])


def _keeps_apart(model: Pretrained, tokens_BT: Tensor, alone_BTD: Tensor, slack: float) -> bool:
    """Packed documents have the hidden states that they have alone, and one does not change with another."""
    segments_BT = torch.stack([_segments(_CUTS), _segments(_CUTS[::-1])]).to(tokens_BT.device)
    packed_BTD = model.hidden(tokens_BT, segments_BT)
    if not _close(packed_BTD, alone_BTD, slack):
        return False
    changed_BTD = model.hidden(_changed(tokens_BT, 0, _CUTS[0]), segments_BT)
    return _close(changed_BTD[0, _CUTS[0] :], packed_BTD[0, _CUTS[0] :], slack)


def _segments(cuts: tuple[int, ...]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(cuts)), torch.tensor(cuts))


def _changed(tokens_BT: Tensor, start: int, stop: int | None) -> Tensor:
    other_BT = tokens_BT.clone()
    other_BT[:, start:stop] = other_BT[:, start:stop].flip(0)
    return other_BT


def _close(given: Tensor, expected: Tensor, slack: float) -> bool:
    """False where something is not finite, too."""
    return bool((given.float() - expected.float()).abs().max() <= slack * expected.float().abs().max())
