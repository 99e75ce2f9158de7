"""Means and their spread, for the tables of the benches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def mean(values: Any) -> float:
    return float(np.mean(values))


def spread(values: Sequence[float]) -> str:
    """The mean, and of several values the least and the largest."""
    return f"{mean(values):.3f}" + (f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else "")


def difference(ours: Sequence[Any], theirs: Sequence[Any]) -> tuple[float, float, float]:
    """(difference, low, high) of the means of two sets of runs [runs, examples]: 95 % bootstrap over the examples."""
    change = np.mean(np.asarray(ours), axis=0) - np.mean(np.asarray(theirs), axis=0)
    draws = np.random.default_rng(0).integers(len(change), size=(2000, len(change)))
    low, high = np.quantile(change[draws].mean(axis=1), [0.025, 0.975])
    return float(change.mean()), float(low), float(high)
