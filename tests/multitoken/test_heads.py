from __future__ import annotations

import pytest
import torch

from graftlm.multitoken.heads import MultiTokenHeads
from tests.conftest import ARCHITECTURES, VOCABULARY, tiny_model


def tokens(batch: int = 2, time: int = 9) -> torch.Tensor:
    return torch.randint(0, 256, (batch, time), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fresh_head_reproduces_the_models_own_logits(architecture: str, attention: str) -> None:
    model = tiny_model(architecture)
    model.set_attn_implementation(attention)
    heads = MultiTokenHeads.from_model(model, num_heads=2).eval()
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    with torch.no_grad():
        expected = model(input_ids=tokens(), attention_mask=mask).logits
        logits = heads(model, tokens(), mask)
    assert logits.shape == (2, 2, 9, VOCABULARY)
    for head in logits:
        torch.testing.assert_close(head[mask.bool()], expected[mask.bool()], rtol=0, atol=0)
