from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lmloop.models.step_attention import BLOCK, StepAttention

TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("filled", [3, BLOCK, 2 * BLOCK - 1])
def test_it_is_attention(filled: int, heads: tuple[int, int], dtype: torch.dtype) -> None:
    """Over the ends of blocks, beside PyTorch's own; of the second row the first three tokens are hidden."""
    (H, K), B, E, layers, tokens = heads, 2, 8, 2, 2 * BLOCK + 3
    generator = torch.Generator().manual_seed(filled)
    query, key, value = (torch.randn(layers, B, n, tokens, E, generator=generator) for n in (H, K, K))
    attention = StepAttention(layers, (B, H, K, E), tokens, dtype)
    for layer in range(layers):
        attention.fill(layer, key[layer, :, :, :filled], value[layer, :, :, :filled])
    bias_BS = torch.zeros(B, tokens).masked_fill(torch.arange(tokens) < torch.tensor([[0], [3]]), -torch.inf)
    for place in range(filled, tokens):
        attention.move_to(place + 1)
        for layer in range(layers):
            query_BHE, key_BKE, value_BKE = (x[layer, :, :, place] for x in (query, key, value))
            bias_B1S = bias_BS[:, None, : place + 1]
            mixed_BHE = attention.mix(layer, query_BHE / E**0.5, key_BKE, value_BKE, bias_B1S.to(dtype))
            keys_BKSE, values_BKSE = (x[layer, :, :, : place + 1] for x in (key, value))
            expected_BH1E = scaled_dot_product_attention(
                query_BHE[:, :, None], keys_BKSE, values_BKSE, attn_mask=bias_B1S[:, None], enable_gqa=True
            )
            torch.testing.assert_close(mixed_BHE.float(), expected_BH1E[:, :, 0], rtol=0, atol=TOLERANCE[dtype])
