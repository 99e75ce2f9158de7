"""The forking mask against a plain reference, and the entropy against its closed form."""

from __future__ import annotations

import math

import pytest
import torch

from graftlm.models.forking import forking_token_mask, token_entropy


def plain_mask(entropy: torch.Tensor, mask: torch.Tensor, fraction: float) -> list[list[bool]]:
    """Sorted by hand: highest entropy first, then the earlier place."""
    rows, columns = entropy.shape
    places = [(-float(entropy[i, j]), i, j) for i in range(rows) for j in range(columns) if mask[i, j]]
    kept = {(i, j) for _, i, j in sorted(places)[: max(1, math.ceil(fraction * len(places)))]} if places else set()
    return [[(i, j) in kept for j in range(columns)] for i in range(rows)]


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_the_mask_is_the_plain_reference_with_ties_and_empty_rows(fraction: float, levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    for lengths in ([5, 0, 1, 9], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [9, 9, 9, 9]):
        entropy = torch.randint(levels, (4, 9), generator=generator) / levels
        mask = torch.arange(9) < torch.tensor(lengths)[:, None]
        assert forking_token_mask(entropy, mask, fraction).tolist() == plain_mask(entropy, mask, fraction)


def test_an_integer_mask_is_a_mask_and_no_index() -> None:
    # The authors' published code once took the entropies at places 0 and 1 (PAPERS: commit 137d8d1e).
    entropy = torch.tensor([[0.9, 0.8, 0.1, 0.7, 0.2]])
    assert forking_token_mask(entropy, torch.tensor([[0, 0, 1, 1, 1]]), 0.3).tolist() == [[False] * 3 + [True, False]]


def test_the_entropy_is_its_closed_form_in_float64() -> None:
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    expected = -(p * p.log()).sum(-1)
    torch.testing.assert_close(token_entropy(logits), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(token_entropy(logits.float()).double(), expected, rtol=1e-5, atol=1e-5)
    assert float(token_entropy(torch.zeros(8))) == pytest.approx(math.log(8))


def test_words_that_cannot_be_sampled_count_nothing() -> None:
    logits = torch.tensor([0.0, 0.0, -math.inf, -math.inf])
    assert float(token_entropy(logits)) == pytest.approx(math.log(2))


class TestForkingTokenMask:
    def test_keeps_exactly_the_highest_entropies_over_the_whole_batch(self) -> None:
        entropy = torch.rand(4, 25, generator=torch.Generator().manual_seed(0))
        kept = forking_token_mask(entropy, torch.ones(4, 25, dtype=torch.bool), 0.2)
        assert kept.shape == (4, 25) and kept.dtype == torch.bool
        assert kept.sum() == 20
        assert entropy[kept].min() > entropy[~kept].max()

    @pytest.mark.parametrize(("count", "fraction"), [(1, 0.2), (2, 0.2), (7, 0.2), (13, 0.5), (9, 1.0), (3, 0.01)])
    def test_keeps_the_exact_count_within_the_mask(self, count: int, fraction: float) -> None:
        mask = torch.zeros(3, 7, dtype=torch.bool)
        mask.view(-1)[torch.randperm(21, generator=torch.Generator().manual_seed(1))[:count]] = True
        entropy = torch.rand(3, 7) + 10 * ~mask  # the highest lie outside
        kept = forking_token_mask(entropy, mask, fraction)
        assert kept.sum() == max(1, math.ceil(fraction * count))
        assert not (kept & ~mask).any()

    def test_keeps_none_of_an_empty_mask(self) -> None:
        assert not forking_token_mask(torch.rand(2, 3), torch.zeros(2, 3, dtype=torch.bool), 0.2).any()
        assert forking_token_mask(torch.rand(0), torch.zeros(0, dtype=torch.bool), 0.2).shape == (0,)

    def test_keeps_the_exact_count_among_ties(self) -> None:
        mask = torch.ones(10, 10, dtype=torch.bool)
        mask[5:] = False
        assert forking_token_mask(torch.ones(10, 10), mask, 0.2).sum() == 10
        assert not forking_token_mask(torch.zeros(10, 10), mask, 0.2)[5:].any()

    def test_does_not_mind_a_sliced_tensor_or_an_integer_mask(self) -> None:
        entropy = torch.arange(12.0).view(3, 4).t()
        kept = forking_token_mask(entropy, torch.ones(3, 4, dtype=torch.long).t(), 0.25)
        assert sorted(entropy[kept].tolist()) == [9, 10, 11]
