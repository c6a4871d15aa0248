"""The models give what transformers' Qwen3ForCausalLM and GPT2LMHeadModel give on the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmloop.models.build import build_model
from lmloop.models.loading import load_weights
from lmloop.models.rotary import rotary_frequencies
from lmloop.preset.schema import ModelSection

VOCAB = 61
TOLERANCE = 1e-5


def qwen3(section: ModelSection) -> torch.nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": section.rope_theta}
    if section.position_scaling != "none":
        assert section.original_seq_length is not None
        rope |= {"rope_type": section.position_scaling, "factor": section.seq_length / section.original_seq_length}
    if section.position_scaling == "yarn":
        rope["original_max_position_embeddings"] = section.original_seq_length
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=section.hidden_size,
        intermediate_size=section.resolved_intermediate_size,
        num_hidden_layers=section.num_layers,
        num_attention_heads=section.num_heads,
        num_key_value_heads=section.resolved_kv_heads,
        head_dim=section.resolved_head_dim,
        max_position_embeddings=section.seq_length,
        rms_norm_eps=section.norm_eps,
        tie_word_embeddings=section.tie_embeddings,
        rope_parameters=rope,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Qwen3ForCausalLM._from_config(config, attn_implementation="eager")


def gpt2(section: ModelSection) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=section.hidden_size,
        n_inner=section.intermediate_size,
        n_layer=section.num_layers,
        n_head=section.num_heads,
        n_positions=section.seq_length,
        activation_function="gelu" if section.feed_forward == "gelu" else "gelu_new",
        layer_norm_epsilon=section.norm_eps,
        tie_word_embeddings=section.tie_embeddings,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel._from_config(config, attn_implementation="eager")


CASES = {
    "plain": (qwen3, ModelSection(hidden_size=32, num_layers=2, num_heads=4, seq_length=64)),
    "grouped queries, untied, wide heads": (
        qwen3,
        ModelSection(
            hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, seq_length=64, tie_embeddings=False
        ),
    ),
    "one key head, other base": (
        qwen3,
        ModelSection(hidden_size=32, num_layers=1, num_heads=4, num_kv_heads=1, rope_theta=1e6, norm_eps=1e-5),
    ),
    "linear": (
        qwen3,
        ModelSection(hidden_size=32, num_heads=2, seq_length=96, position_scaling="linear", original_seq_length=32),
    ),
    "yarn": (
        qwen3,
        ModelSection(
            hidden_size=64, num_layers=2, num_heads=2, seq_length=512, position_scaling="yarn", original_seq_length=128
        ),
    ),
    "gpt2": (gpt2, ModelSection(architecture="gpt2", hidden_size=32, num_layers=2, num_heads=4, seq_length=64)),
    "gpt2, exact GELU": (gpt2, ModelSection(architecture="gpt2", hidden_size=32, num_heads=2, feed_forward="gelu")),
    "gpt2 untied": (
        gpt2,
        ModelSection(
            architecture="gpt2", hidden_size=32, num_heads=2, intermediate_size=48, seq_length=50, tie_embeddings=False
        ),
    ),
}


def randomise(model: torch.nn.Module) -> None:
    """Weights far from their start, so that norms and biases matter too."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_all_gradients(case: str) -> None:
    make_theirs, section = CASES[case]
    ours = build_model(section, VOCAB, seed=1)
    randomise(ours)
    theirs = make_theirs(section)
    theirs.load_state_dict(ours.state_dict(), strict=True)  # the names are equal, none is missing, none is left
    ours.train()
    theirs.eval()  # their dropout rates are not 0; nothing else depends on the mode

    generator = torch.Generator().manual_seed(2)
    tokens_BT = torch.randint(VOCAB, (3, 48), generator=generator)
    upstream_BTV = torch.randn(3, 48, VOCAB, generator=generator) / 48
    logits_BTV = ours.head(ours.hidden(tokens_BT))
    expected_BTV = theirs(input_ids=tokens_BT, use_cache=False).logits
    torch.testing.assert_close(logits_BTV, expected_BTV, atol=TOLERANCE, rtol=TOLERANCE)

    logits_BTV.backward(upstream_BTV)
    expected_BTV.backward(upstream_BTV)
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    compared = 0
    for name, parameter in ours.named_parameters():
        grad, wanted = parameter.grad, expected.get(name)
        if wanted is None:  # the two libraries may list a tied matrix under different names
            assert section.tie_embeddings, name
            wanted = theirs.get_parameter(name).grad
        torch.testing.assert_close(grad, wanted, atol=TOLERANCE, rtol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")
        compared += 1
    assert compared == len(expected)


def test_weights_come_back_from_transformers() -> None:
    section = CASES["plain"][1]
    theirs = qwen3(section)
    ours = build_model(section, VOCAB, seed=1)
    without_tied_head = {name: t for name, t in theirs.state_dict().items() if name != "lm_head.weight"}
    report = load_weights(ours, without_tied_head)
    tokens_BT = torch.arange(40).view(2, 20)
    torch.testing.assert_close(ours.head(ours.hidden(tokens_BT)), theirs(tokens_BT).logits, atol=TOLERANCE, rtol=TOLERANCE)
    assert not report.new
    assert len(report.loaded) == len(dict(ours.named_parameters()))


@pytest.mark.parametrize("theta", [10_000.0, 1_000_000.0])
@pytest.mark.parametrize(("length", "original"), [(64, 64), (4_096, 1_024), (100_000, 2_048), (96, 32)])
def test_yarn_frequencies(theta: float, length: int, original: int) -> None:
    from transformers import Qwen3Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": length / original,
        "original_max_position_embeddings": original,
    }
    config = Qwen3Config(head_dim=64, max_position_embeddings=length, rope_parameters=rope)
    expected, expected_amplitude = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    frequencies, amplitude = rotary_frequencies(
        head_dim=64, theta=theta, scaling="yarn", length=length, original_length=original
    )
    torch.testing.assert_close(frequencies, expected, atol=0, rtol=1e-6)
    assert amplitude == pytest.approx(expected_amplitude, rel=1e-12)


def test_scaling_leaves_a_context_alone_that_has_not_grown() -> None:
    plain, _ = rotary_frequencies(head_dim=32, theta=1e4, scaling="none", length=64, original_length=64)
    for scaling in ("linear", "yarn"):
        frequencies, amplitude = rotary_frequencies(head_dim=32, theta=1e4, scaling=scaling, length=32, original_length=64)
        assert torch.equal(frequencies, plain)
        assert amplitude == 1.0
