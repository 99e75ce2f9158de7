from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from graftlm.pruning.greedy import exact_order
from graftlm.pruning.known_sequences import KnownSequences
from graftlm.pruning.scorer import STATES_IN_PASS, Scorer
from graftlm.pruning.screened import screened_order
from tests.conftest import tiny_model

QUESTION, CHAIN, ANSWER = list(b"How many?"), list(b"2 + 3 = 5, and 5 - 1 = 4, so it is 4"), list(b" 4.")
BATCH_TOKENS = 64


class WatchedScorer(Scorer):
    """`positions` read, `passes`, the `most` tokens whose states are kept, and that are in one pass of several rows,
    those that stand there twice counted twice."""

    positions = passes = most_kept = most_in_pass = 0

    def _run(self, ids: torch.Tensor, cache: Any, begins: Sequence[int] = (0,)) -> torch.Tensor:
        self.positions += ids.numel()
        self.passes += 1
        if len(ids) > 1:
            copies = 2 if len(set(begins)) > 1 else 1
            self.most_in_pass = max(self.most_in_pass, copies * len(ids) * (max(begins) + ids.shape[1]))
        return super()._run(ids, cache, begins)

    def _read_rows(self, rows: Any, *, together: bool) -> dict[int, torch.Tensor]:
        found = super()._read_rows(rows, together=together)
        states = {id(known.states): known.states for known in self.known.known.values() if known.states is not None}
        self.most_kept = max(self.most_kept, sum(each[0].shape[0] * each[0].shape[-2] for each in states.values()))
        return found


def scorer_that_keeps(batches: int, monkeypatch: pytest.MonkeyPatch, question: list[int] = QUESTION) -> WatchedScorer:
    monkeypatch.setattr("graftlm.pruning.scorer.STATES_KEPT", batches)
    model = tiny_model(initializer_range=0.3).double()
    return WatchedScorer(model, question, [[token] for token in CHAIN], ANSWER, batch_tokens=BATCH_TOKENS)


@pytest.mark.slow
def test_what_still_holds_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = scorer_that_keeps(0, monkeypatch)
    plain = exact_order(nothing, ())
    for batches, share in [(12, 0.9), (64, 0.8)]:
        scorer = scorer_that_keeps(batches, monkeypatch)
        found = exact_order(scorer, ())
        assert found.order == plain.order and found.values == pytest.approx(plain.values, abs=1e-9)
        assert scorer.positions < share * nothing.positions


@pytest.mark.slow
@pytest.mark.parametrize("batches", [2, 12])
def test_no_more_is_kept_than_said(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_that_keeps(batches, monkeypatch)
    exact_order(scorer, ())
    assert 0.3 * batches * BATCH_TOKENS < scorer.most_kept <= batches * BATCH_TOKENS


@pytest.mark.slow
@pytest.mark.parametrize("order", [exact_order, screened_order])
def test_a_long_question_does_not_fill_the_memory(order: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_that_keeps(32, monkeypatch, list(b"How many? " * 10))
    order(scorer, ())
    assert 0.5 * STATES_IN_PASS * BATCH_TOKENS < scorer.most_in_pass <= STATES_IN_PASS * BATCH_TOKENS


def test_going_on_from_the_best_takes_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_that_keeps(32, monkeypatch)
    while len(scorer.left) > 20:
        scores = scorer.scores(scorer.left)
        before = scorer.passes
        scorer.delete(scorer.left[int(scores.argmax())])
        assert scorer.passes == before
    worst = int(scorer.scores(scorer.left).argmin())
    before = scorer.passes
    scorer.delete(scorer.left[worst])
    assert scorer.passes == before + 1


def test_passes_of_which_single_rows_are_left_make_room() -> None:
    known = KnownSequences(0, tokens=32)  # four rows of four tokens, twice
    for rows in (4, 3, 2, 1):  # 40 tokens, of which ten rows are still of use
        spans = {unit: (unit, unit + 1) for unit in range(rows)}
        known.add(spans, [torch.zeros(5)] * rows, [torch.zeros(rows, 4, 2)])
    known.delete(4)
    assert [unit for unit in range(4) if known.log_probs(unit) is not None] == [0, 1, 2]
