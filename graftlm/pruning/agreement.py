"""How far two rankings of a chain's tokens agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def rank_agreement(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation, equal values with their mean rank; 1 where there is nothing to rank."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return 1.0
    return float(np.corrcoef(_mean_ranks(first), _mean_ranks(second))[0, 1])


def _mean_ranks(values: Sequence[float]) -> np.ndarray:
    _, places, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
