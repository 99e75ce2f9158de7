"""Greedy pruning: the token goes whose deletion leaves the objective highest, again and again.

    u_k = argmax_u f(R_{k-1} \\ u),   R_k = R_{k-1} \\ u_k,   f(R') = log P(R', A | Q)  or  log P(A | Q, R')

Source: Singh and Hakkani-Tür, "Do LLMs Encode Functional Importance of Reasoning Tokens?" (arXiv 2601.03066). Where
this differs:

1. Sequences without this or that token share the keys and values of what precedes it (`graftlm.pruning.scorer`).
2. Of deletions that leave the objective equally high to TIE nats the first in the text counts: results depend on a
   batch's shape by about a tenth of that.
3. Words can be deleted instead of tokens, and what is protected goes last.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from graftlm.pruning.scorer import Scorer

TIE = 1e-4
"""Nats."""

OnStep = Callable[[int], None]
"""Gets the number of units just deleted."""


def exact_order(scorer: Scorer, protected: Collection[int], on_step: OnStep | None = None) -> Deletions:
    """Delete all units of `scorer`, those in `protected` after the others."""
    deletions = Deletions(scorer, on_step)
    while scorer.left:
        units = eligible(scorer.left, protected)
        scores = dict(zip(units, scorer.scores(units).tolist(), strict=True))
        deletions.add(best(scores), scores)
    return deletions


class Deletions:
    """Units in the order in which they were deleted, and the objective in nats before the first and after each.

    `single`: of the units scored at the first step, the objective without each alone.
    """

    def __init__(self, scorer: Scorer, on_step: OnStep | None = None) -> None:
        self.scorer, self.on_step = scorer, on_step
        self.order: list[int] = []
        self.values = [scorer.value]
        self.single: Mapping[int, float] = {}

    def add(self, unit: int, scores: Mapping[int, float] | None = None) -> None:
        if not self.order:
            self.single = scores or {}
        self.scorer.delete(unit)
        self.order.append(unit)
        self.values.append(self.scorer.value)
        if self.on_step is not None:
            self.on_step(1)


def eligible(left: Sequence[int], protected: Collection[int]) -> list[int]:
    return [unit for unit in left if unit not in protected] or list(left)


def best(scores: Mapping[int, float]) -> int:
    """The first of the units whose score is the highest, to TIE nats."""
    bar = max(scores.values()) - TIE
    return min(unit for unit, score in scores.items() if score >= bar)
