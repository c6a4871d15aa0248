"""GGUF: the one file that llama.cpp, Ollama and LM Studio load."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lmloop.export.bundle import Bundle
from lmloop.export.consult import Consumer
from lmloop.export.exporter import (
    BF16_NOISE,
    DTYPES,
    Exporter,
    Stored,
    natural_kind,
    require_finite,
    rounded,
    rounding_slack,
)
from lmloop.export.gguf_shapes import SHAPES, llama3_divisors, shape_refusal
from lmloop.export.gguf_vocab import vocabulary_of
from lmloop.export.positions import context_without_window

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

STEPS = {"q8_0": 0.5 / 127, "q5_1": 1 / 31, "q5_0": 1 / 16, "q4_1": 1 / 15, "q4_0": 1 / 8}
"""Type of few bits → how far a number may be from what is stored, as a share of its block's largest.

The types that end in 0 have one level more below zero than above it and scale by the largest number: the far side is a whole
step away. Those that end in 1 have an offset and 2^b - 1 steps from the smallest to the largest.
"""

BLOCK = 32
"""Numbers that share a scale in the q types."""

ROPE_FREQS = "rope_freqs.weight"
"""Where llama.cpp looks for what its rotary frequencies are divided by."""

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "lm_head.weight")
"""Stay at 8 bits where the rest has fewer: each of their rows is a token, and there is no second chance."""


class GGUF(Exporter):
    """A file with weights, figures, tokenizer and chat template."""

    kinds = (*DTYPES, *STEPS)
    consumer = Consumer(
        name="llama.cpp",
        package="llama_cpp",
        distribution="llama-cpp-python",
        module="ask_llama_cpp",
        remedy="pip install llama-cpp-python (it is compiled, which takes minutes)",
    )

    def refusal(self, bundle: Bundle, kind: str) -> str | None:
        """An architecture, position scaling or tokenizer that llama.cpp lacks."""
        refused = shape_refusal(bundle.config)
        if refused is not None:
            return refused
        try:
            _names(bundle)
            vocabulary_of(bundle)
        except ValueError as error:
            return str(error)
        return None

    def notes(self, bundle: Bundle, kind: str) -> list[str]:
        """Matrices that cannot be quantized, a sliding window, texts of which llama.cpp makes other tokens."""
        notes = [*super().notes(bundle, kind), *vocabulary_of(bundle).notes]
        if kind in DTYPES:
            return notes
        shape, config = SHAPES[bundle.model_type], bundle.config
        matrices = [shape.to_file(name, matrix, config) for name, matrix in bundle.weights.items() if matrix.dim() == 2]
        kept = [matrix for matrix in matrices if matrix.shape[-1] % BLOCK]
        if kept:
            notes.append(f"{len(kept)} of {len(matrices)} matrices stay f16: their rows are no multiple of {BLOCK} numbers")
        return notes

    def context_tokens(self, bundle: Bundle) -> int:
        """llama.cpp runs these architectures without a sliding window."""
        return context_without_window(bundle.config)

    def same_tokens(self, bundle: Bundle, texts: Sequence[str]) -> list[str]:
        """Without those that `notes` tells of."""
        differs = vocabulary_of(bundle).exceptions
        return [text for text in texts if not differs(text)]

    def write(self, bundle: Bundle, kind: str, folder: Path) -> None:
        """Write NAME-KIND.gguf."""
        import gguf

        shape = SHAPES[bundle.model_type]
        with contextlib.closing(gguf.GGUFWriter(str(folder / f"{bundle.name}-{kind}.gguf"), shape.arch)) as writer:
            writer.add_name(bundle.name)
            writer.add_type(gguf.GGUFType.MODEL)
            writer.add_file_type(getattr(gguf.LlamaFileType, f"{'ALL' if kind == 'f32' else 'MOSTLY'}_{kind.upper()}"))
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            writer.add_vocab_size(bundle.rows)
            shape.describe(writer, bundle.config)
            vocabulary_of(bundle).write(writer, bundle)
            for name, laid, number in _entries(bundle, kind):
                block, size = gguf.GGML_QUANT_SIZES[number]
                size_bytes = laid.numel() // block * size
                writer.add_tensor_info(name, laid.shape, np.dtype(np.float32), size_bytes, raw_dtype=number)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, laid, number in _entries(bundle, kind):  # one at a time: the file may be larger than the memory
                require_finite(name, laid)
                if number == gguf.GGMLQuantizationType.F16:
                    laid = rounded(name, laid, "f16")
                writer.write_tensor_data(gguf.quants.quantize(laid.float().contiguous().numpy(), number))

    def tolerance(self, bundle: Bundle, kind: str) -> float:
        """Measured: f32 below 3e-6 (GPT-2 4e-4: llama.cpp's GELU is a table), f16 7e-4, bf16 6e-3, the q types 3e-2.

        With the q types llama.cpp rounds what is multiplied to 8 bits too.
        """
        if natural_kind(bundle) != "f32":
            return BF16_NOISE
        exact = 2e-3 if bundle.model_type == "gpt2" else 1e-4
        return {"f32": exact, "f16": 5e-3, "bf16": 3e-2}.get(kind, 6e-2)

    def stored(self, bundle: Bundle, folder: Path) -> Iterator[Stored]:
        """The file's tensors, as they are when llama.cpp has widened them."""
        import gguf

        (path,) = folder.glob("*.gguf")
        shape, config = SHAPES[bundle.model_type], bundle.config
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        name_in_file = _names(bundle)
        for name, tensor in bundle.weights.items():
            found = tensors.pop(name_in_file[name])
            wide = torch.from_numpy(np.array(gguf.quants.dequantize(found.data, found.tensor_type), dtype=np.float32))
            given = shape.to_file(name, tensor, config).float()
            slack = _slack(given, found.tensor_type.name.lower())
            yield Stored(name, shape.from_file(name, wide, config), shape.from_file(name, slack, config))
        assert set(tensors) <= {ROPE_FREQS}, sorted(tensors)


def _entries(bundle: Bundle, kind: str) -> Iterator[tuple[str, Tensor, GGMLQuantizationType]]:
    """Name in the file, tensor as it lies there, and its type."""
    from gguf import GGMLQuantizationType

    divisors_E = llama3_divisors(bundle.config)
    if divisors_E is not None:
        yield ROPE_FREQS, divisors_E, GGMLQuantizationType.F32
    name_in_file = _names(bundle)
    for name, tensor in bundle.weights.items():
        laid = SHAPES[bundle.model_type].to_file(name, tensor, bundle.config)
        yield name_in_file[name], laid, GGMLQuantizationType[_type_of(bundle, name, laid, kind).upper()]


def _type_of(bundle: Bundle, name: str, laid: Tensor, kind: str) -> str:
    """Vectors stay in fp32; where rows are no multiple of a block, f16 stands in, as in llama.cpp's own converter."""
    if laid.dim() == 1 or name.endswith(SHAPES[bundle.model_type].plain):
        return "f32"
    if kind in DTYPES:
        return kind
    if laid.shape[-1] % BLOCK:
        return "f16"
    return "q8_0" if name.endswith(EMBEDDINGS) else kind


def _slack(given: Tensor, kind: str) -> Tensor:
    """How far a number of a file may be from the model's."""
    if kind in DTYPES:
        return rounding_slack(given, DTYPES[kind])
    blocks = given.reshape(*given.shape[:-1], -1, BLOCK)
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    # The block's scale and offset are rounded to f16 themselves.
    return (largest * (STEPS[kind] + 4 * 2.0**-11) + 1e-5).expand(blocks.shape).reshape(given.shape)


def _names(bundle: Bundle) -> dict[str, str]:
    """The tensors' names in the file by the bundle's."""
    import gguf

    arch = next(arch for arch, text in gguf.MODEL_ARCH_NAMES.items() if text == SHAPES[bundle.model_type].arch)
    names = gguf.get_tensor_name_map(arch, bundle.config.get("num_hidden_layers") or bundle.config["n_layer"])
    found = {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name in bundle.weights}
    unknown = [name for name, other in found.items() if other is None]
    if unknown:
        raise ValueError(f"GGUF has no place for {', '.join(unknown[:4])}")
    return {name: other for name, other in found.items() if other is not None}
