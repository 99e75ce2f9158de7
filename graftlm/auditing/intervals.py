"""Bootstrap intervals of what differs between models, paired by example (Efron & Tibshirani 1993, chapter 13).

Examples are drawn anew with replacement, the same draw for all models, and the quantity is computed from each draw; its
2.5 % and 97.5 % quantiles are the interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from graftlm.auditing.result import Change, Estimate
from graftlm.auditing.retention import retention_metrics, share_left
from graftlm.tasks import Metric, TaskResult
from graftlm.tasks.comparison import same_examples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)


def changes(
    before: Mapping[str, TaskResult], after: Mapping[str, TaskResult], seed: int = 0
) -> dict[str, dict[str, Change]]:
    """Task or probe -> metric -> change, without metrics that cannot be compared."""
    changed: dict[str, dict[str, Change]] = {}
    for task, result in before.items():
        each = [bootstrap_change(result, after[task], metric, seed=seed) for metric in result.metrics]
        changed[task] = {change.metric.name: change for change in each if change is not None}
    return changed


def bootstrap_change(
    base: TaskResult, tuned: TaskResult, metric: str, *, resamples: int = RESAMPLES, seed: int = 0
) -> Change | None:
    """Compare `tuned` with `base` on one metric; None where one of them lacks it or it is not finite.

    The metric's kind says how it follows from the examples. Where they hold no values that give it, or where the two
    models did not answer the same examples, there is no interval and no difference is shown.
    """
    first, second = (result.metrics.get(metric, math.nan) for result in (base, tuned))
    if not math.isfinite(second - first):
        return None
    drawn = _drawn([base, tuned], metric, resamples, seed)
    low, high = (None, None) if drawn is None else _bounds(drawn[1] - drawn[0])
    declared, value = base.metric(metric), second - first
    return Change(
        metric=declared,
        base=first,
        tuned=second,
        value=value,
        low=low,
        high=high,
        shown=low is not None and high is not None and (low > 0 or high < 0),
        better=declared.is_better(value),
    )


def bootstrap_gap_closed(
    base: TaskResult, steered: TaskResult, tuned: TaskResult, metric: str, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate | None:
    """(steered - base) / (tuned - base) on one metric: 1 where `steered` does as well as `tuned`.

    None where `tuned` does not differ from `base` beyond its interval, so that there is no gap.
    """
    gap = bootstrap_change(base, tuned, metric, resamples=resamples, seed=seed)
    drawn = _drawn([base, steered, tuned], metric, resamples, seed)
    if gap is None or not gap.shown or drawn is None:
        return None
    low, high = _bounds((drawn[1] - drawn[0]) / (drawn[2] - drawn[0]))
    return Estimate(value=(steered.metrics[metric] - gap.base) / gap.value, low=low, high=high)


def bootstrap_retention(
    pairs: Sequence[tuple[TaskResult, TaskResult]], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """Interval of the mean `retention` over probes, each (base model's result, tuned model's).

    None where no probe has a retention, or one that has holds no values by example.
    """
    shares = []
    for place, (base, tuned) in enumerate(pairs):
        before, after, metrics = {}, {}, retention_metrics(base)
        for metric in metrics:
            drawn = _drawn([base, tuned], metric.name, resamples, seed + place)
            if drawn is None:
                return None
            before[metric.name], after[metric.name] = drawn
        if metrics:
            shares.append(share_left(metrics, before, after))
    # A draw without any example that the base model knows has no retention.
    means: Values = np.mean(shares, axis=0) if shares else np.array([])
    known = means[np.isfinite(means)]
    return _bounds(known) if len(known) else None


def _drawn(results: Sequence[TaskResult], metric: str, resamples: int, seed: int) -> list[Values] | None:
    """The metric of each result in the same draws [resamples]; None where the results are not of the same examples, or
    these do not give the metric's value: then it is another function of the examples than its kind says."""
    if not all(same_examples(results[0], result) and metric in result.metrics for result in results):
        return None
    draws, drawn = _draws(len(results[0].examples), resamples, seed), []
    for result in results:
        values = _values(result, result.metric(metric), draws)
        if values is None or not math.isclose(values[0], result.metrics[metric], rel_tol=1e-6, abs_tol=1e-9):
            return None
        drawn.append(values[1:])
    return drawn


@lru_cache(maxsize=4)
def _draws(count: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """Number of times that each of `count` examples was drawn [1 + resamples, count]; the first row has all once."""
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.vstack([np.ones_like(draws[:1]), draws])


def _values(result: TaskResult, metric: Metric, draws: NDArray[np.int64]) -> Values | None:
    """The metric in each of the draws, a ratio of sums over the examples (its exponential for perplexity); None where
    the examples lack what it is made of."""
    total, weight = ("nll", "tokens") if metric.needs_likelihood else (metric.name, None)
    try:
        numerators = np.array([float(example[total]) for example in result.examples])
        denominators = np.array([float(example[weight]) if weight else 1.0 for example in result.examples])
    except (KeyError, TypeError):
        return None
    if len(numerators) < 2 or not np.isfinite([numerators, denominators]).all():
        return None
    ratio: Values = (draws @ numerators) / np.maximum(draws @ denominators, 1e-12)
    return np.exp(ratio) if metric.kind == "perplexity" else ratio


def _bounds(values: Values) -> tuple[float, float]:
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)
