from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from graftlm.pruning.greedy import Deletions, exact_order
from graftlm.pruning.scorer import Scorer
from graftlm.pruning.screened import screened_order
from tests.conftest import tiny_model

QUESTION, ANSWER = list(b"How many? "), list(b" 15.")
CHAIN = list(b"Then 12 + 3 = 15 apples and 4 pears are left, so it is 15, not 19")


class CountingScorer(Scorer):
    scored = 0

    def scores(self, units: Sequence[int]) -> Any:
        self.scored += len(units)
        return super().scores(units)


def both(objective: str, seed: int = 0) -> tuple[Deletions, Deletions, CountingScorer, CountingScorer]:
    model: Any = tiny_model(initializer_range=0.3, seed=seed).double()
    units = [[token] for token in CHAIN]
    exact, screened = (CountingScorer(model, QUESTION, units, ANSWER, objective) for _ in range(2))
    return exact_order(exact, ()), screened_order(screened, ()), exact, screened


def spearman(order: list[int], other: list[int]) -> float:
    ranks = torch.tensor([order, other]).argsort(dim=1).double()
    return float(torch.corrcoef(ranks)[0, 1])


@pytest.mark.parametrize(("objective", "least"), [("joint", 0.7), ("answer", 0.4)])
def test_screening_comes_close_to_the_exact_ranks_for_a_fraction_of_the_scores(objective: str, least: float) -> None:
    # A random model is the hard case: what its tokens do to each other has no order.
    correlations = []
    for seed in range(3):
        exact, screened, all_scored, few_scored = both(objective, seed)
        assert sorted(screened.order) == list(range(len(CHAIN)))
        assert few_scored.scored < 0.3 * all_scored.scored
        correlations.append(spearman(exact.order, screened.order))
    assert sum(correlations) / 3 > least


@pytest.mark.parametrize("objective", ["joint", "answer"])
def test_screening_that_scores_everything_is_exact(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graftlm.pruning.screened.CANDIDATES", 1000)
    exact, screened, *_ = both(objective)
    assert screened.order == exact.order
    assert screened.values == pytest.approx(exact.values, abs=1e-9)


def test_estimates_miss_only_what_comes_after_the_next_token() -> None:
    model: Any = tiny_model(initializer_range=0.3).double()
    scorer = Scorer(model, QUESTION, [[token] for token in b"abc"], [ord("d")])
    last = [scorer.scores([2])[0], scorer.estimates([2])[0]]
    assert float(last[0]) == pytest.approx(float(last[1]), abs=1e-9)  # nothing comes after it
    whole = torch.tensor([[*QUESTION, *b"abcd"]])
    log_probs = model(whole).logits[0].log_softmax(-1).detach()
    first = len(QUESTION)
    expected = [log_probs[first - 1, ord("b")], log_probs[first + 1, ord("c")], log_probs[first + 2, ord("d")]]
    assert float(scorer.estimates([0])[0]) == pytest.approx(float(sum(expected)), abs=1e-9)
