from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from graftlm.serve.sampling import LEAST, sample, score
from graftlm.serve.sequence import seeded_generator


def exponential(*size: int) -> Tensor:
    return torch.empty(*size).exponential_(generator=torch.Generator().manual_seed(0))


def slow_sample(logits: list[float], temperature: float, top_p: float, race: list[float]) -> int:
    """The same, one token after the other."""
    weights = [math.exp((each - max(logits)) / temperature) for each in logits]
    shares = [weight / sum(weights) for weight in weights]
    kept: list[int] = []
    for token in sorted(range(len(shares)), key=lambda token: -shares[token]):
        if kept and sum(shares[other] for other in kept) >= top_p:
            break
        kept.append(token)
    return min(kept, key=lambda token: race[token] / shares[token])


@pytest.mark.parametrize("nucleus", [2, 1024])
def test_rows_of_all_kinds_are_sampled_as_a_plain_loop_samples_each(
    nucleus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftlm.serve.sampling.NUCLEUS", nucleus)
    draw = random.Random(1)
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(1)) * 3
    race = exponential(200, 50)
    settings = [(draw.choice([0.3, 1, 2]), draw.choice([0, 0.5, 0.9, 1])) for _ in range(200)]
    columns = torch.tensor(settings, dtype=torch.float32).unbind(-1)
    expected = [
        slow_sample(row, temperature, top_p, times)
        for row, (temperature, top_p), times in zip(logits.tolist(), settings, race.tolist(), strict=True)
    ]
    assert sample(logits, *columns, race).tolist() == expected


def test_sampled_tokens_come_as_often_as_their_probabilities_say() -> None:
    count = 20_000
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf])
    temperature, top_p = torch.tensor([2.0, 1.0]).unsqueeze(-1).expand(2, count)
    tokens = sample(logits.expand(count, -1), temperature, top_p, exponential(count, 4))
    shares = torch.bincount(tokens, minlength=4) / count
    torch.testing.assert_close(shares, (logits / 2).softmax(-1), atol=0.015, rtol=0)


def test_rounding_of_the_logits_hardly_ever_changes_a_draw() -> None:
    """Flat over a large vocabulary, where a cumulative distribution would change the token in most draws."""
    logits = torch.randn(100, 50_000, generator=torch.Generator().manual_seed(1))
    noise = 1e-5 * torch.randn(100, 50_000, generator=torch.Generator().manual_seed(2))
    ones, race = torch.ones(100), exponential(100, 50_000)
    assert (sample(logits, ones, ones, race) == sample(logits + noise, ones, ones, race)).sum() >= 99


def test_log_probabilities_are_the_models_own_and_finite() -> None:
    logits = torch.tensor([[1.0, 3.0, -torch.inf, 2.0]])
    ((chosen, *top),) = score(logits, torch.tensor([0]), 4)
    total = math.log(math.exp(1) + math.exp(3) + math.exp(2))
    assert chosen == (0, pytest.approx(1 - total, abs=1e-6))
    assert [token for token, _ in top] == [1, 3, 0, 2]
    assert [value for _, value in top] == pytest.approx([3 - total, 2 - total, 1 - total, LEAST], abs=1e-6)


def test_a_seed_fixes_each_choice_and_choices_differ() -> None:
    def draws(seed: int | None, choice: int) -> list[float]:
        generator = seeded_generator(seed, choice)
        return [torch.rand((), generator=generator).item() for _ in range(3)]

    assert draws(7, 0) == draws(7, 0)
    assert draws(7, 1) == draws(7, 1)
    assert len({tuple(draws(seed, choice)) for seed in (-1, 7, 8) for choice in range(3)}) == 9
    assert draws(None, 0) != draws(None, 0)
