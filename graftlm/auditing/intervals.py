"""Bootstrap intervals of a change between two models, paired by example (Efron & Tibshirani 1993, chapter 13).

Examples are drawn anew with replacement, the same draw for both models, and the metric is computed from each draw; the
2.5 % and 97.5 % quantiles of the difference are the interval.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from graftlm.auditing.result import Change
from graftlm.tasks import TaskResult
from graftlm.tasks.comparison import is_better, same_examples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

RESAMPLES = 2000
COVERAGE = 0.95


def bootstrap_change(
    base: TaskResult, tuned: TaskResult, metric: str, *, resamples: int = RESAMPLES, seed: int = 0
) -> Change | None:
    """`tuned` against `base` on one metric; None where one of them lacks it or it is not finite.

    A metric is the mean of the examples' own values of that name; `X_per_token` the sum of their X over the sum of
    their "tokens"; `perplexity` the exponential of the latter for "nll". Without such values, or where the two models
    did not answer the same examples, there is no interval and no difference is shown.
    """
    first, second = base.metrics.get(metric), tuned.metrics.get(metric)
    if first is None or second is None or not math.isfinite(first) or not math.isfinite(second):
        return None
    value = second - first
    low = high = None
    ours, theirs = _columns(base, metric), _columns(tuned, metric)
    if ours is not None and theirs is not None and same_examples(base, tuned):
        count = len(ours[0])
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        spread = _metric(theirs, draws, metric) - _metric(ours, draws, metric)
        tail = 50 * (1 - COVERAGE)
        low, high = (float(bound) for bound in np.percentile(spread, [tail, 100 - tail]))
    shown = low is not None and high is not None and (low > 0 or high < 0)
    return Change(
        base=first, tuned=second, value=value, low=low, high=high, shown=shown, better=is_better(metric, value)
    )


def _columns(result: TaskResult, metric: str) -> tuple[Values, Values] | None:
    """(numerators, denominators) of the examples, whose sums' ratio is the metric (its logarithm for perplexity)."""
    if len(result.examples) < 2:
        return None
    total = "nll" if metric == "perplexity" else metric.removesuffix("_per_token")
    weight = None if total == metric else "tokens"
    try:
        numerators = [float(example[total]) for example in result.examples]
        denominators = [float(example[weight]) if weight else 1.0 for example in result.examples]
    except (KeyError, TypeError):
        return None
    found = np.array(numerators), np.array(denominators)
    return found if all(np.isfinite(column).all() for column in found) else None


def _metric(columns: tuple[Values, Values], draws: NDArray[np.int64], metric: str) -> Values:
    """The metric of each draw [resamples]; `draws` [resamples, examples] says how often each example was drawn."""
    ratio: Values = (draws @ columns[0]) / np.maximum(draws @ columns[1], 1e-12)
    return np.exp(ratio) if metric == "perplexity" else ratio
