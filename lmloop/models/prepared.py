"""A copy of a model's weights laid out for writing one token after another on a CPU: `Steps` runs on it.

Why a copy. PyTorch's product of one row with a matrix as it is trained runs at a fraction of the memory's speed: oneDNN
lays the matrix out anew each time (bf16), or walks along it in the wrong direction (fp32). Here that is done once; q, k and
v are one product, gate and up are one, and the weights of norms are folded into the matrices behind them.

The model's own `decode` says what is right; this gives the same to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn

from lmloop.models.attention import Attention
from lmloop.models.decoder import Decoder, DecoderBlock
from lmloop.models.feedforward import SquaredReLU, SwiGLU
from lmloop.models.gpt2 import GPT2, Conv1D, GPT2Attention, GPT2Block
from lmloop.models.norm import RMSNorm
from lmloop.models.transformer import Transformer

FP16_ENGINES = ("x86", "fbgemm")
"""PyTorch's engines for quantized products that have one with weights in fp16."""

Map = Callable[[Tensor], Tensor]
"""From rows to rows, [B, ...] each."""


@dataclass(frozen=True)
class Turn:
    """What is done to q and k of every layer: norms of heads, and the turn by position.

    Elements that are turned together lie side by side, see `side_by_side`, as the two parts of a complex number.

    weights_LHE: of the norms, for the heads of q and then those of k; q's hold 1 / √E, the scale of attention.
    floor: √(E · eps). rotary: cosines and sines of positions.
    """

    weights_LHE: Tensor
    floor: Tensor
    rotary: Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Layer:
    """One block as five maps. `query_key_value` gives heads of q, k and v, [B, (H + 2 K) · E]."""

    mixer_norm: Map
    query_key_value: Map
    out: Map
    feed_forward_norm: Map
    feed_forward: Map


@dataclass(frozen=True)
class Layout:
    """How matrices are stored: for batches of `rows` rows, in fp32 or bf16 as `dtype` says, or in fp16 in place of bf16."""

    rows: int
    dtype: torch.dtype
    fp16: bool = False

    @property
    def inputs(self) -> torch.dtype:
        """What a product takes."""
        return torch.float32 if self.fp16 else self.dtype


@dataclass(frozen=True)
class Prepared:
    """The copy. Products are of 16 or 32 bits, everything else is fp32, as under autocast.

    layout: of the matrices. heads, kv_heads, head_dim: of the attention. state: of the weights when they were copied, see
    `state_of`.
    """

    model: Transformer
    layout: Layout
    heads: int
    kv_heads: int
    head_dim: int
    layers: list[Layer]
    turn: Turn | None
    last_norm: Map
    head: Map
    state: tuple[tuple[int, int], ...]

    def serves(self, rows: int, dtype: torch.dtype) -> bool:
        """It was made for that, and the weights are still those that were copied."""
        return (self.layout.rows, self.layout.dtype, self.state) == (rows, dtype, state_of(self.model))


def can_prepare(model: nn.Module) -> TypeGuard[Transformer]:
    """Whether there is a prepared form: an own architecture, in fp32 on the CPU, whole on this process."""
    return (
        type(model) in PREPARE  # another class, as sharding makes of a model, may compute something else
        and not cast(Transformer, model).tokens_before
        and all(type(x) is nn.Parameter and x.dtype == torch.float32 and x.device.type == "cpu" for x in model.parameters())
    )


def state_of(model: nn.Module) -> tuple[tuple[int, int], ...]:
    """Differs once a weight has been changed in place or replaced; a change through `.data` is not seen."""
    return tuple((x.data_ptr(), x._version) for x in model.parameters())


@torch.no_grad()
def prepare(model: Transformer, rows: int, dtype: torch.dtype) -> Prepared:
    """Copy the weights of a model that `can_prepare` for batches of `rows` rows; `dtype`: of the products, fp32 or bf16."""
    assert can_prepare(model), type(model)
    assert dtype in (torch.float32, torch.bfloat16), dtype
    return PREPARE[type(model)](model, _layout(model, rows, dtype))


def _layout(model: Transformer, rows: int, dtype: torch.dtype) -> Layout:
    """16 bits are bf16, but for one row fp16 where its numbers reach far enough: PyTorch's product of fp32 inputs with fp16
    weights takes two thirds of the time of bf16 there, and rounds eight times as finely."""
    if dtype == torch.bfloat16 and rows == 1 and torch.backends.quantized.engine in FP16_ENGINES:
        # What is stored is a weight, or that of a matrix by that of a norm and √D.
        largest = max(float(parameter.abs().max()) for parameter in model.parameters())
        if max(largest, 1.0) ** 2 * math.sqrt(model.head_weight().shape[1]) < torch.finfo(torch.float16).max:
            return Layout(rows, dtype, fp16=True)
    return Layout(rows, dtype)


def _decoder(model: Transformer, layout: Layout) -> Prepared:
    model = cast(Decoder, model)
    blocks = cast(Iterable[DecoderBlock], model.blocks())
    layers, weights = [], []
    mixer = None
    for block in blocks:
        mixer, feed_forward = cast(Attention, block.self_attn), block.mlp
        before = cast(RMSNorm, block.input_layernorm), cast(RMSNorm, block.post_attention_layernorm)
        E = mixer.head_dim
        query, key = (side_by_side(x.weight.unflatten(0, (-1, E)), 1).flatten(0, 1) for x in (mixer.q_proj, mixer.k_proj))
        query_key_value = torch.cat([query, key, mixer.v_proj.weight])
        layers.append(
            Layer(
                _root_mean_square(before[0].eps, query_key_value.shape[1], layout),
                _product(_folded(query_key_value, before[0]), layout),
                _product(mixer.o_proj.weight, layout),
                _root_mean_square(before[1].eps, query_key_value.shape[1], layout),
                _feed_forward(cast(SwiGLU | SquaredReLU, feed_forward), before[1], layout),
            )
        )
        heads, kv_heads = (x.weight.shape[0] // E for x in (mixer.q_proj, mixer.k_proj))
        # A head over its length is a normalised one over √E: for q, that is the scale of attention.
        of_key = mixer.k_norm.weight * math.sqrt(E)
        of_heads = torch.cat([mixer.q_norm.weight.expand(heads, -1), of_key.expand(kv_heads, -1)])
        weights.append(side_by_side(of_heads, 1))
    assert mixer is not None, "no layers"
    E = mixer.head_dim
    norm = cast(RMSNorm, model.model.norm)
    return Prepared(
        model,
        layout,
        mixer.q_proj.weight.shape[0] // E,
        mixer.k_proj.weight.shape[0] // E,
        E,
        layers,
        Turn(torch.stack(weights), torch.tensor(math.sqrt(E * mixer.q_norm.eps)), model.rotary),
        _root_mean_square(norm.eps, norm.weight.shape[0], layout),
        _product(_folded(model.head_weight(), norm), layout),
        state_of(model),
    )


def _gpt2(model: Transformer, layout: Layout) -> Prepared:
    blocks = list(cast(Iterable[GPT2Block], model.blocks()))
    layers = [_gpt2_layer(block, layout) for block in blocks]
    heads = cast(GPT2Attention, blocks[0].attn).num_heads
    last = _layer_norm(cast(nn.LayerNorm, cast(GPT2, model).transformer.ln_f), layout)
    head = _product(model.head_weight(), layout)
    head_dim = model.head_weight().shape[1] // heads
    return Prepared(model, layout, heads, heads, head_dim, layers, None, last, head, state_of(model))


def _gpt2_layer(block: GPT2Block, layout: Layout) -> Layer:
    mixer, feed_forward = cast(GPT2Attention, block.attn), block.mlp
    D = mixer.c_proj.weight.shape[0]
    scale = torch.ones(3 * D)
    scale[:D] = (D // mixer.num_heads) ** -0.5
    up, down = (_product(_transposed(x), layout, x.bias) for x in (feed_forward.c_fc, feed_forward.c_proj))
    return Layer(
        _layer_norm(block.ln_1, layout),
        _product(_transposed(mixer.c_attn) * scale[:, None], layout, mixer.c_attn.bias * scale),
        _product(_transposed(mixer.c_proj), layout, mixer.c_proj.bias),
        _layer_norm(block.ln_2, layout),
        lambda x: down(feed_forward.gelu(up(x))),
    )


PREPARE: dict[type, Callable[[Transformer, Layout], Prepared]] = {Decoder: _decoder, GPT2: _gpt2}
"""The architectures with a prepared form; any other writes by its own `decode`."""


def side_by_side(heads: Tensor, dim: int) -> Tensor:
    """The elements of heads, which are dimension `dim`, in the order 0, E/2, 1, E/2 + 1, ...: pairs that turn together."""
    return heads.unflatten(dim, (2, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def _transposed(layer: Conv1D) -> Tensor:
    return layer.weight.T


def _folded(weight_OD: Tensor, norm: RMSNorm) -> Tensor:
    """The matrix for a row over its length, which is a normalised row over √D."""
    return weight_OD * (norm.weight * math.sqrt(weight_OD.shape[1]))


def _root_mean_square(eps: float, width: int, layout: Layout) -> Map:
    """x / √(|x|² + D · eps), three calls where PyTorch's `rms_norm` makes seven; the result is valid until the next call."""
    floor, result_BD = torch.tensor(math.sqrt(width * eps)), torch.empty(layout.rows, width, dtype=layout.inputs)
    return lambda x_BD: torch.div(x_BD, torch.linalg.vector_norm(x_BD, 2, -1, keepdim=True).hypot_(floor), out=result_BD)


def _layer_norm(norm: nn.LayerNorm, layout: Layout) -> Map:
    weight_D, bias_D = norm.weight.detach().clone(), norm.bias.detach().clone()
    return lambda x_BD: nn.functional.layer_norm(x_BD, weight_D.shape, weight_D, bias_D, norm.eps).to(layout.inputs)


def _feed_forward(layer: SwiGLU | SquaredReLU, norm: RMSNorm, layout: Layout) -> Map:
    down = _product(layer.down_proj.weight, layout)
    if isinstance(layer, SquaredReLU):
        up = _product(_folded(layer.up_proj.weight, norm), layout)
        return lambda x_BD: down(up(x_BD).relu_().square_())
    both = _product(_folded(torch.cat([layer.gate_proj.weight, layer.up_proj.weight]), norm), layout)

    def swiglu(x_BD: Tensor) -> Tensor:
        gate, up = both(x_BD).chunk(2, -1)
        return down(nn.functional.silu(gate).mul_(up))

    return swiglu


def _product(weight_OI: Tensor, layout: Layout, bias_O: Tensor | None = None) -> Map:
    """x · weightᵀ + bias with a copy of the weight in the layout that is fastest here; its result may be overwritten."""
    rows, dtype = layout.rows, layout.dtype
    if layout.fp16:
        packed = torch.ops.quantized.linear_prepack_fp16(weight_OI.contiguous(), None if bias_O is None else bias_O.clone())
        product = torch.ops.quantized.linear_dynamic_fp16.default
        return lambda x_BI: product(x_BI, packed)
    weight_OI = weight_OI.detach().to(dtype).contiguous()
    bias_O = None if bias_O is None else bias_O.detach().to(dtype, copy=True)
    if dtype == torch.float32 and rows == 1:  # one row walks along the columns
        weight_IO = weight_OI.T.contiguous()
        if bias_O is None:
            return lambda x_BI: torch.mm(x_BI, weight_IO)
        return lambda x_BI: torch.addmm(bias_O, x_BI, weight_IO)
    if _has_onednn(dtype):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI, rows)
        linear = torch.ops.mkldnn._linear_pointwise.default
        return lambda x_BI: linear(x_BI, packed, bias_O, "none", [], "")
    copied = weight_OI.clone()
    return lambda x_BI: nn.functional.linear(x_BI, copied, bias_O)


def _has_onednn(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has the products with a matrix laid out beforehand, which its compiler uses."""
    ops = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(ops, "_linear_pointwise"):  # pyright: ignore[reportAttributeAccessIssue]
        return False
    return dtype == torch.float32 or bool(ops._is_mkldnn_bf16_supported())
