"""GGUF files as the gguf package reads them; what llama.cpp makes of them is in test_readers.py."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from torch import Tensor

from lmloop.export.bundle import Bundle
from lmloop.export.check import check_export
from lmloop.export.export import refusal
from lmloop.export.gguf_file import GGUF
from lmloop.export.gguf_shapes import SHAPES, llama3_divisors
from lmloop.export.gguf_vocab import vocabulary_of
from lmloop.tokens.tokenizer import Tokenizer
from tests.export.bundles import FOREIGN, OWN, SPACES, SPLITS, TEXTS, foreign, own, tokenizer

EXPORTER = GGUF()


def written(bundle: Bundle, folder: Path, kind: str = "f32") -> gguf.GGUFReader:
    """The file of a bundle, opened."""
    folder.mkdir(exist_ok=True)
    EXPORTER.write(bundle, kind, folder)
    return gguf.GGUFReader(folder / f"{bundle.name}-{kind}.gguf")


def figure(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


@pytest.fixture(autouse=True)
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(EXPORTER.consumer), "installed", property(lambda self: False))


@pytest.mark.parametrize("name", [*OWN, *FOREIGN])
def test_every_tensor_comes_back(name: str, tmp_path: Path) -> None:
    bundle = own(name) if name in OWN else foreign(name)
    reader = written(bundle, tmp_path)
    check = check_export(bundle, EXPORTER, "f32", tmp_path)
    assert check.tensors == len(bundle.weights)
    assert check.largest_difference == 0.0
    extra = 1 if name == "llama 3.1" else 0
    assert len(reader.tensors) == len(bundle.weights) + extra
    assert len(figure(reader, "tokenizer.ggml.tokens")) == bundle.rows


@pytest.mark.parametrize("kind", [kind for kind in EXPORTER.kinds if kind != "f32"])
@pytest.mark.parametrize("name", ["decoder", "gpt2", "llama"])
def test_rounded_numbers_are_as_near_as_their_type_allows(name: str, kind: str, tmp_path: Path) -> None:
    bundle = own(name) if name in OWN else foreign(name)
    written(bundle, tmp_path, kind)
    check = check_export(bundle, EXPORTER, kind, tmp_path)
    assert check.rounded
    # The bound is not idle: the model with two rows of a matrix exchanged is another one.
    name_of_matrix = next(
        name for name, tensor in bundle.weights.items() if name.endswith(("down_proj.weight", "c_fc.weight"))
    )
    other = bundle.weights[name_of_matrix].clone()
    other[[0, 1]] = other[[1, 0]]
    changed = dataclasses.replace(bundle, weights={**bundle.weights, name_of_matrix: other})
    with pytest.raises(ValueError, match="was written wrongly") as error:
        check_export(changed, EXPORTER, kind, tmp_path)
    assert name_of_matrix in str(error.value)


def test_what_is_quantized(tmp_path: Path) -> None:
    reader = written(own("untied, wide heads, one key head", intermediate_size=128), tmp_path, "q4_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.ffn_down.weight"] == "Q4_0"  # rows of 128
    assert kinds["blk.0.attn_q.weight"] == "F16"  # rows of 48
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    (note,) = (note for note in EXPORTER.notes(own("untied, wide heads, one key head"), "q4_0") if "matrices" in note)
    assert note.startswith("12 of 16 matrices stay f16")
    reader = written(own("decoder"), tmp_path / "tied", "q5_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.1.ffn_up.weight"] == "Q5_0"
    reader = written(own("gpt2"), tmp_path / "gpt2", "f16")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert (kinds["position_embd.weight"], kinds["token_embd.weight"]) == ("F32", "F16")


# ---- figures ----


def test_figures_of_the_decoder(tmp_path: Path) -> None:
    reader = written(own("untied, wide heads, one key head"), tmp_path)
    expected = {
        "general.architecture": "qwen3",
        "qwen3.context_length": 40,
        "qwen3.embedding_length": 48,
        "qwen3.block_count": 2,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 1,
        "qwen3.attention.key_length": 16,
        "qwen3.rope.freq_base": 1e6,
        "qwen3.rope.scaling.type": None,
    }
    assert {key: figure(reader, key) for key in expected} == expected
    assert figure(reader, "qwen3.attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)


def test_position_scaling(tmp_path: Path) -> None:
    reader = written(own("yarn"), tmp_path)
    assert figure(reader, "qwen3.rope.scaling.type") == "yarn"
    assert figure(reader, "qwen3.rope.scaling.factor") == pytest.approx(200 / 64)
    assert figure(reader, "qwen3.rope.scaling.original_context_length") == 64
    reader = written(own("linear"), tmp_path / "linear")
    assert figure(reader, "qwen3.rope.scaling.type") == "linear"
    assert figure(reader, "qwen3.rope.scaling.factor") == 3.0


def test_llama_3_divides_frequencies_as_transformers_does(tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    bundle = foreign("llama 3.1")
    config = LlamaConfig(**{key: value for key, value in bundle.config.items() if key not in ("rope_theta", "rope_scaling")})
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 5e5 ** -(torch.arange(0, 16, 2) / 16)
    divisors = llama3_divisors(bundle.config)
    assert divisors is not None
    torch.testing.assert_close(plain / divisors, expected, rtol=1e-5, atol=0)
    assert not torch.equal(divisors, torch.ones(8))
    stored = next(tensor for tensor in written(bundle, tmp_path).tensors if tensor.name == "rope_freqs.weight")
    assert np.array_equal(stored.data, divisors.numpy())


def test_a_sliding_window_shortens_the_context(tmp_path: Path) -> None:
    bundle = foreign("mistral, window")
    assert figure(written(bundle, tmp_path), "llama.context_length") == 32
    assert any("32 tokens there, of 128" in note for note in EXPORTER.notes(bundle, "f32"))


def test_llamas_queries_and_keys_meet_as_before() -> None:
    """llama.cpp turns neighbours, transformers turns halves: the scores have to come out alike."""
    config = {"num_attention_heads": 4, "num_key_value_heads": 2}
    generator = torch.Generator().manual_seed(0)
    hidden_TD = torch.randn(10, 24, generator=generator)
    query, key = torch.randn(4 * 8, 24, generator=generator), torch.randn(2 * 8, 24, generator=generator)
    angle_TE = torch.arange(10)[:, None] * 10_000.0 ** -(torch.arange(4) / 4)

    def halves(x_THE: Tensor) -> Tensor:
        first, second = x_THE.chunk(2, dim=-1)
        c, s = angle_TE.cos()[:, None], angle_TE.sin()[:, None]
        return torch.cat((first * c - second * s, second * c + first * s), dim=-1)

    def neighbours(x_THE: Tensor) -> Tensor:
        even, odd = x_THE[..., ::2], x_THE[..., 1::2]
        c, s = angle_TE.cos()[:, None], angle_TE.sin()[:, None]
        return torch.stack((even * c - odd * s, odd * c + even * s), dim=-1).flatten(-2)

    def scores(query: Tensor, key: Tensor, turn: Any) -> Tensor:
        query_THE = turn((hidden_TD @ query.T).view(10, 4, 8))
        key_TKE = turn((hidden_TD @ key.T).view(10, 2, 8)).repeat_interleave(2, dim=1)
        return torch.einsum("the,she->hts", query_THE, key_TKE)

    llama = SHAPES["llama"]
    laid = [
        llama.to_file(f"model.layers.0.self_attn.{name}_proj.weight", tensor, config)
        for name, tensor in (("q", query), ("k", key))
    ]
    torch.testing.assert_close(scores(*laid, neighbours), scores(query, key, halves), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores(query, key, neighbours), scores(query, key, halves), atol=0.1)
    for name, tensor, there in (("q", query, laid[0]), ("k", key, laid[1])):
        assert torch.equal(llama.from_file(f"model.layers.0.self_attn.{name}_proj.weight", there, config), tensor)


# ---- tokenizers ----


def with_tokenizer(other: Tokenizer) -> Bundle:
    """A model whose embedding has rows for it. Only its words are looked at."""
    bundle = own("decoder")
    return dataclasses.replace(bundle, tokenizer=other, config={**bundle.config, "vocab_size": other.vocab_size})


@pytest.mark.parametrize("name", ["decoder", "characters"])
def test_the_tokens_that_matter(name: str, tmp_path: Path) -> None:
    bundle = own(name)
    reader = written(bundle, tmp_path)
    ours = bundle.tokenizer
    ids = {key: figure(reader, f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos", "padding")}
    assert ids == {"bos": ours.start_id, "eos": ours.eos_id, "padding": ours.pad_id}
    assert figure(reader, "tokenizer.ggml.add_bos_token") is True
    kinds = figure(reader, "tokenizer.ggml.token_type")
    assert kinds[ours.eos_id] == kinds[ours.pad_id] == gguf.TokenType.CONTROL
    assert figure(reader, "tokenizer.chat_template") is None


def test_characters_become_pieces_with_bytes_behind_them() -> None:
    vocabulary = vocabulary_of(own("characters"))
    assert vocabulary.model == "llama"
    assert not vocabulary.space_before
    ours = tokenizer("char")
    assert vocabulary.tokens[ours.encode(" ")[0]] == "▁"
    assert vocabulary.tokens[ours.encode("ï")[0]] == "ï"
    (byte,) = (index for index, token in enumerate(vocabulary.tokens) if token == "<0xE2>")
    assert vocabulary.kinds[byte] == gguf.TokenType.BYTE
    assert ours.encode("—")[0] == byte  # which the corpus lacks


@pytest.mark.parametrize("kind", [*SPLITS, *SPACES, "bpe"])
def test_known_tokenizers(kind: str) -> None:
    vocabulary = vocabulary_of(dataclasses.replace(with_tokenizer(tokenizer(kind)), prefix=()))
    if kind in SPACES:
        assert (vocabulary.model, vocabulary.space_before) == ("llama", kind in ("llama2", "first"))
    else:
        assert vocabulary.pre == {"bpe": "llama-bpe"}.get(kind, kind)
        assert vocabulary.merges


def test_rows_without_a_token_and_tokens_of_every_kind(tmp_path: Path) -> None:
    bundle = foreign("qwen3")
    reader = written(bundle, tmp_path)
    tokens, kinds = (figure(reader, f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    kind_of = dict(zip(tokens, kinds, strict=True))
    assert kind_of["<|im_end|>"] == gguf.TokenType.CONTROL
    assert kind_of["<tool>"] == gguf.TokenType.USER_DEFINED
    assert kind_of[f"[PAD{bundle.rows - 1}]"] == gguf.TokenType.UNUSED


def test_merges_that_pass_over_a_token_have_a_name_of_their_own() -> None:
    """`llama-bpe` takes a word that is a token whole. With these merges `aba` becomes `ab`, `a`: it must not."""
    description = json.loads(tokenizer("bpe").to_json())
    model = description["tokenizer"]["model"]
    base = {token: index for index, token in enumerate(["<|endoftext|>", "<|pad|>", "a", "b", "ab", "ba", "aba"])}
    model["vocab"], model["merges"] = base, [["a", "b"], ["b", "a"], ["a", "ba"]]
    awkward = Tokenizer.from_json(json.dumps(description))
    assert awkward.encode("aba").tolist() == [4, 2]
    bundle = dataclasses.replace(own("decoder"), tokenizer=awkward)
    assert vocabulary_of(bundle).pre == "dbrx"


def changed_backend(kind: str, **parts: Any) -> Tokenizer:
    content = json.loads(tokenizer(kind).to_json())
    backend = Backend.from_str(json.dumps(content["tokenizer"]))
    for name, part in parts.items():
        setattr(backend, name, part)
    return Tokenizer(backend, content["config"])


def changed_json(kind: str, change: Any) -> Tokenizer:
    content = json.loads(tokenizer(kind).to_json())
    change(content["tokenizer"])
    return Tokenizer.from_json(json.dumps(content))


def _apart(description: dict[str, Any]) -> None:
    model = description["model"]
    index = max(model["vocab"].values()) + 1
    model["vocab"] |= {"xy": index, "xyz": index + 1, "yz": index + 2}
    model["vocab"] |= {letter: index + 3 + i for i, letter in enumerate("xyz") if letter not in model["vocab"]}
    model["merges"] += [["x", "y"], ["xy", "z"], ["y", "z"], ["x", "yz"]]


OTHER_SPLIT = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(r"\w+|\W"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
)
REFUSED_TOKENIZERS: dict[str, tuple[Any, str]] = {
    "split in another way": (lambda: changed_backend("bpe", pre_tokenizer=OTHER_SPLIT), "splits text in a way"),
    "space before": (
        lambda: changed_backend("bpe", pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        "splits text in a way",
    ),
    "lower case": (lambda: changed_backend("bpe", normalizer=normalizers.Lowercase()), r"normalizer \(Lowercase\)"),
    "pieces in lower case": (
        lambda: changed_backend("llama2", normalizer=normalizers.Lowercase()),
        "changes or splits text",
    ),
    "merges apart": (lambda: changed_json("never", _apart), "make the token 'xyz' are apart"),
}


@pytest.mark.parametrize("case", REFUSED_TOKENIZERS)
def test_tokenizers_that_llama_cpp_has_no_name_for(case: str) -> None:
    make, reason = REFUSED_TOKENIZERS[case]
    bundle = with_tokenizer(make())
    with pytest.raises(ValueError, match=reason) as error:
        vocabulary_of(bundle)
    assert "\n" not in str(error.value)
    assert refusal(bundle, "gguf", "f32") == str(error.value)


def test_a_character_that_stands_for_a_space() -> None:
    from lmloop.preset.schema import TokenizerSection
    from lmloop.tokens.build import build_tokenizer
    from tests.tokens.sources import MemorySource

    awkward = build_tokenizer(TokenizerSection(type="char"), [MemorySource("corpus", [*TEXTS, "a▁b"])])
    bundle = with_tokenizer(awkward)
    assert "a token for ▁" in (refusal(bundle, "gguf", "f32") or "")


# ---- refusals ----


def with_config(name: str, **changes: Any) -> Bundle:
    bundle = foreign(name) if name in FOREIGN else own(name)
    return dataclasses.replace(bundle, config={**bundle.config, **changes})


def positions(**changes: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64, **changes}}


REFUSED: dict[str, tuple[Bundle, str, str]] = {
    "architecture": (with_config("llama", model_type="mamba"), "f32", "no GGUF for the architecture 'mamba'"),
    "feed-forward": (with_config("llama", hidden_act="gelu"), "f32", "no gelu"),
    "gpt2's exact GELU": (own("gpt2", feed_forward="gelu"), "f32", "GPT-2 has no gelu"),
    "gpt2's feed-forward": (with_config("gpt2", activation_function="relu"), "f32", "no relu"),
    "positions": (with_config("llama", **positions(rope_type="dynamic")), "f32", "position scaling 'dynamic'"),
    "llama3 for qwen": (with_config("qwen3", **positions(rope_type="llama3")), "f32", "'llama3' is not carried"),
    "yarn's attention": (with_config("qwen3", **positions(rope_type="yarn", attention_factor=1.5)), "f32", "YaRN with"),
    "yarn's bounds": (with_config("qwen3", **positions(rope_type="yarn", beta_fast=16)), "f32", "YaRN with"),
    "a tensor too many": (
        dataclasses.replace(own("decoder"), weights={**own("decoder").weights, "value_head.weight": torch.ones(1, 64)}),
        "f32",
        "GGUF has no place for value_head.weight",
    ),
    "K types": (own("decoder"), "q4_k_m", "llama-quantize IN.gguf OUT.gguf Q4_K_M"),
    "unknown type": (own("decoder"), "q7_0", "this format has f32, bf16, f16, q8_0, q5_1, q5_0, q4_1, q4_0"),
    "stops": (dataclasses.replace(own("decoder"), stops=(0, 1, 2, 3)), "f32", "three tokens"),
    "prefix": (dataclasses.replace(own("decoder"), prefix=(0, 2)), "f32", "one token before a text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_and_why(case: str) -> None:
    bundle, kind, reason = REFUSED[case]
    refused = refusal(bundle, "gguf", kind)
    assert refused is not None
    assert reason in refused
    assert "\n" not in refused


def test_a_file_of_other_numbers_is_noticed(tmp_path: Path) -> None:
    bundle = own("decoder")
    written(bundle, tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    needle = struct.pack("<f", float(bundle.weights["model.layers.1.mlp.up_proj.weight"][5, 7]))
    assert content.count(needle) == 1
    at = content.index(needle)
    content[at : at + 4] = struct.pack("<f", 0.123)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight was written wrongly: 0\.123 stands for"):
        check_export(bundle, EXPORTER, "f32", tmp_path)
