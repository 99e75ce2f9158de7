from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from graftlm.pruning.greedy import Deletions, exact_order
from graftlm.pruning.scorer import Scorer
from graftlm.pruning.screened import DOUBT, Screen, screened_order
from tests.conftest import tiny_model

QUESTION, ANSWER = list(b"How many? "), list(b" 15.")
CHAIN = list(b"Then 12 + 3 = 15 apples and 4 pears are left, so it is 15, not 19")


class CountingScorer(Scorer):
    positions = 0

    def _run(self, ids: torch.Tensor, *others: Any) -> torch.Tensor:
        self.positions += ids.numel()
        return super()._run(ids, *others)


def counting(objective: str, seed: int) -> CountingScorer:
    model: Any = tiny_model(initializer_range=0.3, seed=seed).double()
    return CountingScorer(model, QUESTION, [[token] for token in CHAIN], ANSWER, objective)


def both(objective: str, seed: int = 0) -> tuple[Deletions, Deletions, CountingScorer, CountingScorer]:
    exact, screened = counting(objective, seed), counting(objective, seed)
    return exact_order(exact, ()), screened_order(screened, ()), exact, screened


def spearman(order: list[int], other: list[int]) -> float:
    ranks = torch.tensor([order, other]).argsort(dim=1).double()
    return float(torch.corrcoef(ranks)[0, 1])


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "least"), [("joint", 0.7), ("answer", 0.5)])
def test_screening_comes_close_to_the_exact_ranks_for_a_fraction_of_the_positions(
    objective: str, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A random model is the hard case: what its tokens do to each other has no order.
    correlations, read = [], []
    for seed in range(3):
        exact, screened, all_read, few_read = both(objective, seed)
        assert sorted(screened.order) == list(range(len(CHAIN)))
        assert 0.1 * all_read.positions < few_read.positions < 0.6 * all_read.positions
        correlations.append(spearman(exact.order, screened.order))
        read.append(few_read.positions)
    assert sum(correlations) / 3 > least
    monkeypatch.setattr("graftlm.pruning.screened.AHEAD", 1000)
    scorers = [counting(objective, seed) for seed in range(3)]
    for scorer in scorers:
        screened_order(scorer, ())
    to_the_end = sum(scorer.positions for scorer in scorers)
    assert sum(read) < 0.95 * to_the_end if objective == "joint" else sum(read) == to_the_end


def test_of_those_read_in_part_the_best_is_scored_and_whatever_may_be_better() -> None:
    true = {1: -5.0, 2: -3.0, 3: -9.0, 4: -1.0}
    asked: list[list[int]] = []

    class Told(Screen):
        def __init__(self) -> None:
            pass

        def read(self, units: Sequence[int], reach: int | None = None) -> dict[int, float]:
            asked.append(list(units))
            return {unit: true[unit] for unit in units}

    upper = {1: -2.0, 2: -2.5, 3: -6.0, 4: -5.5}
    assert Told()._finals(upper, {}) == {1: -5.0, 2: -3.0} and asked == [[1], [2]]
    asked.clear()
    assert Told()._finals(upper, {9: -2.2}) == {1: -5.0} and asked == [[1]]
    asked.clear()
    assert Told()._finals(upper, {9: -1.0}) == {} and asked == []


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["joint", "answer"])
def test_screening_that_scores_everything_is_exact(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graftlm.pruning.screened.CANDIDATES", 1000)
    monkeypatch.setattr("graftlm.pruning.screened.AHEAD", 1000)
    exact, screened, *_ = both(objective)
    assert screened.order == exact.order
    assert screened.values == pytest.approx(exact.values, abs=1e-9)


def test_estimates_miss_only_what_comes_after_the_next_token() -> None:
    model: Any = tiny_model(initializer_range=0.3).double()
    scorer = Scorer(model, QUESTION, [[token] for token in b"axbc"], [ord("d")])
    scorer.estimates([0, 1, 2, 3])
    scorer.delete(1)
    last = [scorer.scores([3])[0], scorer.estimates([3])[0]]
    assert float(last[0]) == pytest.approx(float(last[1]), abs=1e-9)  # nothing comes after it
    whole = torch.tensor([[*QUESTION, *b"abcd"]])
    log_probs = model(whole).logits[0].log_softmax(-1).detach()
    first = len(QUESTION)
    expected = [log_probs[first - 1, ord("b")], log_probs[first + 1, ord("c")], log_probs[first + 2, ord("d")]]
    assert float(scorer.estimates([0])[0]) == pytest.approx(float(sum(expected)), abs=1e-9)


def log_probs(model: Any, units: dict[int, bytes], answer: bytes) -> dict[tuple[int, int], float]:
    """Of each token, named by its unit and its place there, in a plain pass."""
    names = [(unit, place) for unit, tokens in units.items() for place in range(len(tokens))]
    names += [(len(UNITS), place) for place in range(len(answer))]
    ids = torch.tensor([*QUESTION, *b"".join(units.values()), *answer])
    found = model(input_ids=ids[None]).logits[0].log_softmax(-1).detach()
    first = len(QUESTION)
    return {name: float(found[first + place - 1, ids[first + place]]) for place, name in enumerate(names)}


UNITS = [b"So", b" 2", b"+", b"3 is", b" 5"]


@pytest.mark.parametrize("objective", ["joint", "answer"])
def test_what_has_come_about_already_is_not_expected_again(objective: str) -> None:
    model: Any = tiny_model(initializer_range=0.3).double()
    whole, answer = dict(enumerate(UNITS)), b" 5."

    def counted(found: dict[tuple[int, int], float]) -> dict[tuple[int, int], float]:
        return {name: value for name, value in found.items() if objective == "joint" or name[0] == len(UNITS)}

    def without(units: dict[int, bytes], *gone: int) -> dict[tuple[int, int], float]:
        return counted(log_probs(model, {unit: text for unit, text in units.items() if unit not in gone}, answer))

    scorer = Scorer(model, QUESTION, [list(unit) for unit in UNITS], list(answer), objective)  # type: ignore[arg-type]
    screen = Screen(scorer)
    screen.scale = 2.0
    scores = screen.read(list(whole))
    assert scores == pytest.approx({unit: sum(without(whole, unit).values()) for unit in whole}, abs=1e-9)
    for unit, guess in screen.guesses(list(whole)).items():  # nothing has come about since
        assert guess == pytest.approx((scores[unit], scores[unit]), abs=1e-9)

    scorer.delete(2)
    then, now = without(whole), without(whole, 2)
    left = [unit for unit in whole if unit != 2]
    guesses, seen = screen.guesses(left), False
    for unit in left:
        after = next((name for name in log_probs(model, whole, answer) if name[0] > unit and name[0] != 2), None)
        expected = shared = 0.0
        for name, value in now.items():
            alone = without(whole, unit).get(name, 0.0)
            if name[0] < unit:
                expected += value
            elif name == after:
                expected += without(whole, unit, 2)[name]
            elif name[0] > unit:
                effect, come = alone - then[name], value - then[name]
                left_over = effect if effect * come < 0 else effect - min(abs(come), abs(effect)) * (effect > 0 or -1)
                expected += value + left_over
                shared += min(abs(come), abs(effect))
        assert guesses[unit] == pytest.approx((expected, expected + (DOUBT * 2.0 * shared) ** 0.5), abs=1e-9)
        seen |= shared > 1e-3
    assert seen
