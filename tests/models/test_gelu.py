"""The GELU that is written out, against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lmloop.models import gelu
from lmloop.models.gelu import tanh_gelu
from lmloop.models.gpt2 import GPT2MLP
from lmloop.preset.schema import ModelSection


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("chunk", [7, 2**18])
def test_value_and_derivative_equal_pytorchs(
    dtype: torch.dtype, tolerance: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gelu, "_CHUNK", chunk)
    x = (torch.randn(3, 5, 20, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    x[0, 0, :6] = torch.tensor([0.0, -0.0, 60.0, -60.0, 1e-6, -8.0])
    upstream = torch.randn(3, 5, 20, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    value, exact = tanh_gelu(ours), functional.gelu(theirs, approximate="tanh")
    value.backward(upstream)
    exact.backward(upstream.double())
    assert value.dtype == dtype
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(value.double(), exact, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=3 * tolerance, rtol=tolerance)


def test_which_form_a_model_has() -> None:
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    for feed_forward, form in (("swiglu", "tanh"), ("gelu", "none")):
        shape = {"architecture": "gpt2", "hidden_size": 16, "num_heads": 2, "feed_forward": feed_forward}
        layer = GPT2MLP(ModelSection.model_validate(shape))
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
        hidden = functional.gelu(x @ layer.c_fc.weight + layer.c_fc.bias, approximate=form)
        torch.testing.assert_close(layer(x), hidden @ layer.c_proj.weight + layer.c_proj.bias)
    with pytest.raises(ValueError, match="feed_forward gelu: only `gpt2` has it"):
        ModelSection(feed_forward="gelu")
    with pytest.raises(ValueError, match="GPT-2 has neither"):
        ModelSection(architecture="gpt2", feed_forward="relu2")


def test_views_and_passes_without_gradient() -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).T.requires_grad_()
    with torch.no_grad():
        plain = tanh_gelu(x)
    torch.testing.assert_close(tanh_gelu(x), plain)
    torch.testing.assert_close(plain, functional.gelu(x, approximate="tanh"))
