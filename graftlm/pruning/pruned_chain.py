"""A chain with the order in which its tokens went, what is left of it at a share, and how far two orders agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from graftlm.errors import InputError
from graftlm.pruning.encoding import ChainToken


@dataclass(frozen=True, kw_only=True)
class PrunedChain:
    """Result of `prune_chain`.

    `tokens`: of the chain, n of them. `order`: their positions in the order of deletion, a permutation of range(n); a
    word's tokens follow one another in their order. `ranks`: of each token the step at which it was deleted, from 1;
    the later, the more it is worth; the tokens of a word share a step. `single_deletions`: of each token the objective
    of the whole chain without it (or its word) alone, in nats; None where that was not scored: what is protected, and
    all tokens of a baseline.
    """

    chain: str
    tokens: list[ChainToken]
    order: list[int]
    ranks: list[int]
    single_deletions: list[float | None]
    measure: Callable[[], list[float]] = field(repr=False, compare=False)
    """Called for `log_likelihoods`."""

    @cached_property
    def log_likelihoods(self) -> list[float]:
        """The objective in nats before the first deletion and after each: one more than there are steps.

        A baseline, which needs none of them for its order, computes them when first asked, with one pass a step.
        """
        return self.measure()

    def text(self, keep: float) -> str:
        """The chain without all but the `ceil(keep * n)` tokens that were deleted last.

        Tokens that share a character, or a word where words were deleted, are kept as soon as one of them is, so that
        no character is cut in half. `keep` = 1 gives the chain as it was. InputError outside (0, 1].
        """
        return kept_text(self.chain, [(token.start, token.stop) for token in self.tokens], self.ranks, keep)


def kept_text(chain: str, spans: Sequence[tuple[int, int]], ranks: Sequence[int], keep: float) -> str:
    """`PrunedChain.text` of a chain whose tokens have these characters and ranks."""
    return "".join(
        chain[spans[group[0]][0] : max(spans[place][1] for place in group)] for group in kept_groups(spans, ranks, keep)
    )


def kept_groups(spans: Sequence[tuple[int, int]], ranks: Sequence[int], keep: float) -> list[list[int]]:
    """Positions of the tokens that are kept, those together that cannot be told apart in the text."""
    if not 0 < keep <= 1:
        raise InputError(f"keep is {keep}: give a share above 0 and at most 1")
    kept = kept_places(ranks, keep)
    return [group for group in _inseparable(spans, ranks) if not kept.isdisjoint(group)]


def kept_places(ranks: Sequence[float], keep: float) -> set[int]:
    """Positions of the `ceil(keep * n)` tokens of highest rank; of equal ranks the later in the text."""
    count = math.ceil(keep * len(ranks) - 1e-9)  # 0.07 * 100 is 7.000000000000001
    order = sorted(range(len(ranks)), key=lambda place: (ranks[place], place))
    return set(order[len(order) - count :])


def _inseparable(spans: Sequence[tuple[int, int]], ranks: Sequence[int]) -> list[list[int]]:
    groups: list[list[int]] = []
    reached = 0
    for place, (start, stop) in enumerate(spans):
        same_step = place > 0 and ranks[place] == ranks[place - 1]
        if groups and (same_step or start < reached or start == stop):
            groups[-1].append(place)
        else:
            groups.append([place])
        reached = max(reached, stop)
    return groups


def rank_agreement(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation, equal values with their mean rank; 1 where there is nothing to rank."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return 1.0
    return float(np.corrcoef(_mean_ranks(first), _mean_ranks(second))[0, 1])


def _mean_ranks(values: Sequence[float]) -> np.ndarray:
    _, places, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
