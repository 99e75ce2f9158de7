from __future__ import annotations

from typing import Any

import pytest
import torch

from graftlm.pruning.greedy import OnStep, exact_order
from graftlm.pruning.scorer import Scorer
from tests.conftest import tiny_model

QUESTION, CHAIN, ANSWER = list(b"How many?"), list(b"2 + 3 = 5, and 5 - 1 = 4, so it is 4"), list(b" 4.")


class CountingScorer(Scorer):
    positions = 0

    def _run(self, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        self.positions += ids.numel()
        return super()._run(ids, cache)


def exact(kept: int, monkeypatch: pytest.MonkeyPatch, watch: Any = None) -> tuple[list[int], list[float], int]:
    monkeypatch.setattr("graftlm.pruning.scorer.KEPT_PASSES", kept)
    model = tiny_model(initializer_range=0.3).double()
    scorer = CountingScorer(model, QUESTION, [[token] for token in CHAIN], ANSWER, batch_tokens=64)
    on_step: OnStep | None = None if watch is None else lambda _: watch(scorer)
    found = exact_order(scorer, (), on_step)
    return found.order, found.values, scorer.positions


def test_what_still_holds_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    order, values, positions = exact(0, monkeypatch)
    for kept, share in [(6, 0.9), (32, 0.8)]:
        found, new_values, fewer = exact(kept, monkeypatch)
        assert found == order and new_values == pytest.approx(values, abs=1e-9)
        assert fewer < share * positions


@pytest.mark.parametrize("kept", [1, 6])
def test_no_more_is_kept_than_said(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0

    def watch(scorer: Scorer) -> None:
        nonlocal most
        states = {id(found.states): found.states for found in scorer.known.known.values()}
        most = max(most, sum(each[0].shape[0] * each[0].shape[-2] for each in states.values()))

    exact(kept, monkeypatch, watch)
    assert 0.3 * kept * 64 < most <= kept * 64
