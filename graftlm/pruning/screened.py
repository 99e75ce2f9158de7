"""Greedy pruning that scores a few deletions at each step: those that look best by what earlier steps found out.

    f(R \\ u) ≈ g(R, u) + r_u,    r_u = f(R' \\ u) - g(R', u) when u was scored last

g (`Scorer.estimates`) is what the objective would be if no token but the one right after u noticed its absence. It is
exact for those tokens, where most of the effect lies, and read off what is known of R itself; r_u, the effect on the
rest, changes slowly where nothing is deleted nearby. So at each step are scored, with the pass that `exact` takes:

1. the CANDIDATES (or the SHARE) that are best by that, and the NEIGHBOURS of what was deleted last, whose r_u changed;
2. more, AT_ONCE at a time, up to twice as many, while one that was not scored comes within MARGIN of the best that was;
3. all of them at the first step, and when FEW are left.

The best that was scored is deleted. The numbers were chosen on two chains of GSM-Symbolic with 67 tokens each.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from graftlm.pruning.greedy import Deletions, OnStep, best, eligible
from graftlm.pruning.scorer import Scorer

CANDIDATES = 3
SHARE = 0.05
"""Of the units that are left, where that is more than CANDIDATES."""
NEIGHBOURS = 2
"""On each side."""
MARGIN = 1.0
"""Nats."""
AT_ONCE = 3
FEW = 8


def screened_order(scorer: Scorer, protected: Collection[int], on_step: OnStep | None = None) -> Deletions:
    """Delete all units of `scorer`, those in `protected` after the others."""
    deletions = Deletions(scorer, on_step)
    screen = Screen(scorer)
    near: Sequence[int] = ()
    while scorer.left:
        units = eligible(scorer.left, protected)
        scored_before = screen.effects.keys() >= set(units)
        scores = screen.promising(units, near) if scored_before and len(units) > FEW else screen.score(units)
        chosen = best(scores)
        place = scorer.left.index(chosen)
        near = [*scorer.left[max(place - NEIGHBOURS, 0) : place], *scorer.left[place + 1 : place + 1 + NEIGHBOURS]]
        deletions.add(chosen, scores)
    return deletions


class Screen:
    """What is known of the effect of each unit's deletion."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.effects: dict[int, float] = {}
        """r_u, in nats."""

    def promising(self, units: Sequence[int], near: Collection[int]) -> dict[int, float]:
        """The objective in nats without each of those of `units` that are worth a pass."""
        guesses = {unit: estimate + self.effects[unit] for unit, estimate in self._estimates(units).items()}
        ranked = sorted(units, key=lambda unit: -guesses[unit])
        count = max(CANDIDATES, math.ceil(SHARE * len(units)))
        chosen = {*ranked[:count], *near}.intersection(units)
        most = 2 * len(chosen)
        scores: dict[int, float] = {}
        while chosen:
            scores |= self.score(sorted(chosen))
            bar = max(scores.values()) - MARGIN
            left = [unit for unit in ranked if unit not in scores and guesses[unit] > bar]
            chosen = set(left[: max(min(AT_ONCE, most - len(scores)), 0)])
        return scores

    def score(self, units: Sequence[int]) -> dict[int, float]:
        """The objective in nats without each of `units`."""
        scores = dict(zip(units, self.scorer.scores(units).tolist(), strict=True))
        self.effects |= {unit: scores[unit] - estimate for unit, estimate in self._estimates(units).items()}
        return scores

    def _estimates(self, units: Sequence[int]) -> dict[int, float]:
        return dict(zip(units, self.scorer.estimates(units).tolist(), strict=True))
