"""Results of passes over sequences without one unit, for as long as they hold.

Once a token c goes for good, a sequence that lacks a unit before c is up to c what it was: its keys, values and
log-probabilities there hold, and only what comes after has to be computed anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

States = list[Tensor]
"""Each [rows, ..., time, size], of the positions from the chain's first on: keys, values, hidden states."""


class Known(NamedTuple):
    """Results of a pass over the sequence without the unit of `size` tokens at `start`; they hold before `until`.

    `log_probs`: [time]. `states`: those of the pass, of which the sequence is one `row`; None where they were dropped.
    """

    start: int
    size: int
    until: int
    log_probs: Tensor
    states: States | None
    row: int


class KnownSequences:
    """Results by the unit that each sequence lacks; `first` is where the chain starts.

    States of at most `tokens` tokens are kept: those nearest to the chain's start, which hold longest.
    """

    def __init__(self, first: int, tokens: int) -> None:
        self.first, self.tokens = first, tokens
        self.end = first + math.isqrt(tokens // 2)
        """Nothing is kept of positions from here on: then all sequences find room up to here, and once more while
        those of one step take the place of those before."""
        self.known: dict[int, Known] = {}

    def held_until(self, unit: int) -> int:
        """Before which position of the sequence without `unit` nothing has changed since it was read; 0 if all may."""
        return self.known[unit].until if unit in self.known else 0

    def log_probs(self, unit: int) -> Tensor | None:
        """[time], what holds of the sequence without `unit`, as far as its states are kept, if any are."""
        known = self.known.get(unit)
        if known is None or known.states is None:
            return None
        return known.log_probs[:-1][: min(self.end, known.until)]  # the last token went through no layer

    def add(self, spans: Mapping[int, tuple[int, int]], log_probs: Sequence[Tensor], states: Sequence[Tensor]) -> None:
        """Add the results of a pass whose rows lack the units of `spans`, where those are: log-probabilities [time].

        `states`: each [rows, ..., time - 1 or more, size], from the question's first position on.
        """
        near = [row for row, (start, _) in enumerate(spans.values()) if start < self.end]
        kept = [state[..., self.first : self.end, :][near] for state in states] if near else None
        for row, (unit, (start, stop)) in enumerate(spans.items()):
            place = near.index(row) if row in near else None
            rest = (None, 0) if place is None else (kept, place)
            self.known[unit] = Known(start, stop - start, len(log_probs[row]), log_probs[row], *rest)

    def delete(self, start: int) -> None:
        """Forget what does not hold now that the unit that starts at `start` is gone for good."""
        self.known = {
            unit: known._replace(until=min(known.until, start - known.size))
            for unit, known in self.known.items()
            if known.start < start
        }
        self._make_room()

    def before(self, units: Sequence[int], shared: Sequence[Tensor], begin: int) -> list[Tensor]:
        """States [rows, ..., begin, size] of the positions before `begin` of the sequences without each of `units`, as
        far as they are known.

        `shared`: those [1, ..., time, size] of the sequence that lacks none, which hold for what is not known.
        """
        sources: dict[int, tuple[States, list[int], list[int]]] = {}
        for row, unit in enumerate(units):
            known = self.known.get(unit)
            if known is not None and known.states is not None:
                _, here, there = sources.setdefault(id(known.states), (known.states, [], []))
                here.append(row)
                there.append(known.row)
        result = []
        for index, state in enumerate(shared):
            rows = state[..., :begin, :].expand(len(units), *state.shape[1:-2], -1, -1)
            if sources and begin > self.first:
                rows = rows.clone()
                for states, here, there in sources.values():
                    old = states[index][..., : begin - self.first, :][there]
                    rows[here, ..., self.first : self.first + old.shape[-2], :] = old
            result.append(rows)
        return result

    def _make_room(self) -> None:
        """Drop states, those nearest to the chain's end first, until no more are kept than may be."""
        while True:
            kept = [known for known in self.known.values() if known.states is not None]
            passes = {id(known.states): known.states[0] for known in kept if known.states is not None}
            if sum(state.shape[0] * state.shape[-2] for state in passes.values()) <= self.tokens:
                return
            last = max(kept, key=lambda known: known.start).states
            self.known = {
                unit: known._replace(states=None) if known.states is last else known
                for unit, known in self.known.items()
            }
