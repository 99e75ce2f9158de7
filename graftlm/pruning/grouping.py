"""Which sequences share a pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def cheapest_groups(lengths: Sequence[int], batch_tokens: int, most_rows: int, pass_cost: int) -> list[slice]:
    """Runs of sequences, each for one pass, with the least cost of all passes together, in tokens.

    `lengths` fall; all rows of a pass are as long as its first, so that a long run wastes tokens and a short one
    passes, of which each costs `pass_cost` besides. A run of more than one has at most `batch_tokens`, and `most_rows`.
    """
    assert all(one >= other for one, other in pairwise(lengths)), "lengths rise"
    costs, begins = [0], [0]
    for end in range(1, len(lengths) + 1):
        found = {}
        for begin in range(end - 1, -1, -1):
            tokens = (end - begin) * lengths[begin]
            if begin < end - 1 and (tokens > batch_tokens or end - begin > most_rows):
                break
            found[begin] = costs[begin] + tokens + pass_cost
        begins.append(min(found, key=lambda begin: found[begin]))
        costs.append(found[begins[-1]])
    groups, end = [], len(lengths)
    while end:
        groups.append(slice(begins[end], end))
        end = begins[end]
    return groups[::-1]
