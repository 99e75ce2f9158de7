"""Greedy pruning that scores a few deletions at each step: those that look best by the results of earlier steps.

    f(R \\ u) ≈ g(R, u) + Σ_t r_ut ± (d s Σ_t min(|c_t|, |e_ut|))^½,    r_ut = e_ut - clamp(c_t, between 0 and e_ut)
    e_ut = log P(x_t | R' \\ u) - log P(x_t | R'),    c_t = log P(x_t | R) - log P(x_t | R')

g (`Scorer.estimates`) is what the objective would be if no token but the one right after u noticed its absence. It is
exact for those tokens, where most of the effect lies, and read off what is known of R itself. Of the others that are
left, e_ut is what u meant to them when it was scored last, in R' (0 before); what the deletions since have brought
about already, c_t, u's own cannot bring about once more, and how far off that may be grows with what they share; s is
the mean of |Σ_t e_ut| at the first step, and d is DOUBT. So at each step are looked at

1. the CANDIDATES (or the SHARE) that are best by that, its upper end, and the NEIGHBOURS of what was deleted last;
2. those that come within MARGIN s of the best that was looked at, again and again, up to MOST times as many;
3. the better half at the first step, and all when FEW are left.

A unit that was never scored gets the pass that `exact` takes. Of the others only the next AHEAD tokens are read, from
where the sequence without the unit is not what it was when it was read last: there most of the change lies, and e_ut is
put right. The one with the highest upper end is then read to its end, and so are those whose upper end is above its
score. The best of the scores is deleted. With the objective `answer`, whose tokens come last, all are read to the end.

The numbers were chosen on six chains of GSM-Symbolic with 61 to 78 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from graftlm.pruning.greedy import Deletions, OnStep, best, eligible
from graftlm.pruning.scorer import Scorer

CANDIDATES = 2
SHARE, FIRST_SHARE = 0.05, 0.5
"""Shares of the units that are left, where that is more than CANDIDATES; the second while none of them was scored."""
NEIGHBOURS = 1  # on each side
DOUBT, MARGIN = 0.25, 0.5
AHEAD = 14  # tokens
MOST = 6
FEW = 5
ANSWER = -1
"""In place of a unit's number."""


def screened_order(scorer: Scorer, protected: Collection[int], on_step: OnStep | None = None) -> Deletions:
    """Delete all units of `scorer`, those in `protected` after the others."""
    deletions = Deletions(scorer, on_step)
    screen = Screen(scorer)
    near: Sequence[int] = ()
    while scorer.left:
        units = eligible(scorer.left, protected)
        scores = screen.promising(units, near) if len(units) > FEW else screen.read(units)
        chosen = best(scores)
        place = scorer.left.index(chosen)
        near = [*scorer.left[max(place - NEIGHBOURS, 0) : place], *scorer.left[place + 1 : place + 1 + NEIGHBOURS]]
        deletions.add(chosen, scores)
        screen.scored.pop(chosen)
    return deletions


Guess = tuple[float, float]
"""The objective without a unit, as far as can be told without a pass, and what it may reach; nats."""


class Screen:
    """The known effects of each unit's deletion."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        sizes = torch.tensor(scorer.sizes)
        self.stops = sizes.cumsum(0)
        self.unit_at = torch.cat(
            [torch.arange(len(sizes)).repeat_interleave(sizes), torch.full([scorer.answer], ANSWER)]
        )
        """The unit of each token of the chain and the answer, when nothing was deleted."""
        self.scored: dict[int, tuple[Tensor, Tensor]] = {}
        """For each unit that was scored: log P of those tokens without it and with it, when each was read, or 0."""
        self.scale = 0.0
        """s, nats."""

    def promising(self, units: Sequence[int], near: Collection[int]) -> dict[int, float]:
        """Score those of `units` that are worth a pass: the objective without each, in nats."""
        guesses = self.guesses(units)
        first = self.scored.keys().isdisjoint(units)
        ranked = sorted(units, key=lambda unit: -guesses[unit][1])
        count = max(CANDIDATES, math.ceil((FIRST_SHARE if first else SHARE) * len(units)))
        chosen = {*ranked[:count], *near}.intersection(units)
        most = MOST * len(chosen)
        scores: dict[int, float] = {}
        looked: set[int] = set()
        while chosen:
            new = chosen - self.scored.keys()
            scores |= self.read(sorted(new)) | self.read(sorted(chosen - new), AHEAD)
            looked |= chosen
            if first and not self.scale:
                self.scale = sum(abs(scores[unit] - guesses[unit][0]) for unit in scores) / len(scores)
            guesses |= self.guesses(sorted(chosen))
            bar = max(guesses[unit][0] for unit in looked) - MARGIN * self.scale
            left = [unit for unit in ranked if unit not in looked and guesses[unit][1] > bar]
            chosen = set(left[: most - len(looked)])
        return scores | self._finals({unit: guesses[unit][1] for unit in looked if unit not in scores}, scores)

    def _finals(self, looked: dict[int, float], scores: Mapping[int, float]) -> dict[int, float]:
        """Score those of `looked` whose upper guess is above the best score: first the best of them, then those that
        are above that too."""
        final: dict[int, float] = {}
        for count in (1, len(looked)):
            bar = max([*scores.values(), *final.values()], default=-math.inf)
            promising = sorted((unit for unit in looked if looked[unit] > bar), key=lambda unit: -looked[unit])
            chosen = [unit for unit in promising if unit not in final][:count]
            if chosen:
                final |= self.read(sorted(chosen))
        return final

    def guesses(self, units: Sequence[int]) -> dict[int, Guess]:
        """Guess for each of `units`."""
        middle, doubt = self._effects(units)
        middle = self.scorer.estimates(units) + middle
        pairs = zip(middle.tolist(), (middle + doubt).tolist(), strict=True)
        return dict(zip(units, pairs, strict=True))

    def read(self, units: Sequence[int], ahead: int | None = None) -> dict[int, float]:
        """Score `units`: the objective without each, in nats; with `ahead` only those whose sequence ends within it."""
        if not units:
            return {}
        places, now = self._left()
        scores = {}
        for unit, log_probs in self.scorer.read_without(units, ahead).items():
            others = places[self.unit_at[places] != unit]
            read = others[: len(log_probs) - self.scorer.first]
            without, then = (each.clone() for each in self.scored.get(unit, (now, now)))
            without[read], then[read] = log_probs[self.scorer.first :], now[read]
            self.scored[unit] = without, then
            if len(read) == len(others):
                scores[unit] = float(log_probs.sum())
        return scores

    def _effects(self, units: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Σ_t r_ut, and how far off it may be: [len(units)], nats."""
        places, now = self._left()
        scored = [self.scored.get(unit, (now, now)) for unit in units]
        without, then = (torch.stack([each[side][places] for each in scored]) for side in (0, 1))
        effects = without - then
        come = now[places] - then
        expected = effects - come.clamp(effects.clamp(max=0), effects.clamp(min=0))
        shared = torch.minimum(come.abs(), effects.abs())
        # g knows what becomes of the token right after each.
        after = places[torch.searchsorted(places, self.stops[list(units)])]
        counting = places > after[:, None]
        return (expected * counting).sum(1), (DOUBT * self.scale * (shared * counting).sum(1)).sqrt()

    def _left(self) -> tuple[Tensor, Tensor]:
        """Places of the chain's and the answer's tokens that are left, and log P of every token, 0 if it is gone."""
        places = torch.isin(self.unit_at, torch.tensor([*self.scorer.left, ANSWER])).nonzero()[:, 0]
        now = self.scorer.log_probs.new_zeros(len(self.unit_at))
        now[places] = self.scorer.log_probs[self.scorer.first :]
        return places, now
