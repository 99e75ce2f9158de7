"""What passes over sequences without one unit found out, for as long as it holds.

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


class Held(NamedTuple):
    """The sequence without the unit of `size` tokens at `start` is before `until` what it was when it was read."""

    start: int
    size: int
    until: int


class Known(NamedTuple):
    """What a pass found out of a sequence: log-probabilities [time], and `states`, of which it is one `row`."""

    log_probs: Tensor
    states: States
    row: int


class KnownSequences:
    """By the unit that each lacks; `first` is where the chain starts.

    States of at most `tokens` tokens are kept: those nearest to the chain's start, which hold longest.
    """

    def __init__(self, first: int, tokens: int) -> None:
        self.first, self.tokens = first, tokens
        self.end = first + math.isqrt(tokens // 2)
        """Of positions from here on nothing is kept: then all sequences find room up to here, and once more while
        those of one step take the place of those before."""
        self.known: dict[int, Known] = {}
        self.held: dict[int, Held] = {}
        """Of each unit whose sequence was read since a token before it went, whether states of it are kept or not."""

    def held_until(self, unit: int) -> int:
        """Before which position of the sequence without `unit` nothing has changed since it was read; 0 if all may."""
        return self.held[unit].until if unit in self.held else 0

    def log_probs(self, unit: int) -> Tensor | None:
        """[time], what holds of the sequence without `unit`, as far as its states are kept, if any are."""
        found = self.known.get(unit)
        # The last token went through no layer.
        return None if found is None else found.log_probs[:-1][: min(self.end, self.held_until(unit))]

    def add(self, spans: Mapping[int, tuple[int, int]], log_probs: Sequence[Tensor], states: Sequence[Tensor]) -> None:
        """The results of a pass whose rows lack the units of `spans`, where those are: log-probabilities [time] each.

        `states`: each [rows, ..., time - 1 or more, size], from the question's first position on.
        """
        for (unit, (start, stop)), found in zip(spans.items(), log_probs, strict=True):
            self.held[unit] = Held(start, stop - start, len(found))
        near = [(row, unit, span) for row, (unit, span) in enumerate(spans.items()) if span[0] < self.end]
        if not near:
            return
        kept = [state[..., self.first : self.end, :][[row for row, _, _ in near]] for state in states]
        for place, (row, unit, _) in enumerate(near):
            self.known[unit] = Known(log_probs[row], kept, place)

    def delete(self, start: int) -> None:
        """The unit that starts at `start` is gone for good."""
        self.held = {
            other: found._replace(until=min(found.until, start - found.size))
            for other, found in self.held.items()
            if found.start < start
        }
        self.known = {other: found for other, found in self.known.items() if other in self.held}
        self._make_room()

    def before(self, units: Sequence[int], shared: Sequence[Tensor], begin: int) -> list[Tensor]:
        """States [rows, ..., begin, size] of the positions before `begin` of the sequences without each of `units`, as
        far as they are known.

        `shared`: those [1, ..., time, size] of the sequence that lacks none, which hold for what is not known.
        """
        sources: dict[int, tuple[States, list[int], list[int]]] = {}
        for row, unit in enumerate(units):
            found = self.known.get(unit)
            if found is not None:
                _, here, there = sources.setdefault(id(found.states), (found.states, [], []))
                here.append(row)
                there.append(found.row)
        result = []
        for index, state in enumerate(shared):
            rows = state[..., :begin, :].expand(len(units), *state.shape[1:-2], -1, -1)
            if sources and begin > self.first:
                rows = rows.clone()
                for states, here, there in sources.values():
                    known = states[index][..., : begin - self.first, :][there]
                    rows[here, ..., self.first : self.first + known.shape[-2], :] = known
            result.append(rows)
        return result

    def _make_room(self) -> None:
        while self.tokens < sum({id(found.states): _tokens(found.states) for found in self.known.values()}.values()):
            last = self.known[max(self.known, key=lambda unit: self.held[unit].start)].states
            self.known = {unit: found for unit, found in self.known.items() if found.states is not last}


def _tokens(states: States) -> int:
    return states[0].shape[0] * states[0].shape[-2]
