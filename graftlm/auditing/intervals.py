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
from graftlm.auditing.retention import above_floor, metrics_of_knowledge, retention
from graftlm.tasks import TaskResult
from graftlm.tasks.comparison import same_examples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

RESAMPLES = 2000
COVERAGE = 0.95


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
    first, second = base.metrics.get(metric), tuned.metrics.get(metric)
    if first is None or second is None or not math.isfinite(first) or not math.isfinite(second):
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
        if retention(base, tuned) is None:
            continue
        drawn = _retention(base, tuned, resamples, seed + place)
        if drawn is None:
            return None
        shares.append(drawn)
    # A draw without any example that the base model knows has no retention.
    means = np.mean(shares, axis=0) if shares else np.array([np.nan])
    known = means[np.isfinite(means)]
    return _bounds(known) if len(known) else None


def _retention(base: TaskResult, tuned: TaskResult, resamples: int, seed: int) -> Values | None:
    """The retention in each draw [resamples]."""
    known = metrics_of_knowledge(base)
    if not known:
        drawn = _drawn([base, tuned], base.likelihood.name, resamples, seed) if base.likelihood else None
        return None if drawn is None else np.exp(drawn[0] - drawn[1])
    before = after = np.zeros(resamples)
    for metric in known:
        drawn = _drawn([base, tuned], metric.name, resamples, seed)
        if drawn is None:
            return None
        before = before + np.maximum(above_floor(metric, drawn[0]), 0.0)
        after = after + np.maximum(above_floor(metric, drawn[1]), 0.0)
    return np.divide(after, before, out=np.full(resamples, np.nan), where=before > 0)


def _drawn(results: Sequence[TaskResult], metric: str, resamples: int, seed: int) -> list[Values] | None:
    """The metric of each result in the same draws [resamples]; None where the results are not of the same examples, or
    these do not give the metric's value: then it is another function of the examples than its kind says."""
    if not all(same_examples(results[0], result) and metric in result.metrics for result in results):
        return None
    count, drawn = len(results[0].examples), []
    for result in results:
        columns = _columns(result, metric)
        if columns is None:
            return None
        whole, *_ = _values(result, metric, columns, np.ones((1, count), dtype=np.int64))
        if not math.isclose(whole, result.metrics[metric], rel_tol=1e-6, abs_tol=1e-9):
            return None
        drawn.append(_values(result, metric, columns, _draws(count, resamples, seed)))
    return drawn


@lru_cache(maxsize=4)
def _draws(count: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """Number of times that each of `count` examples was drawn [resamples, count]."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)


def _columns(result: TaskResult, metric: str) -> tuple[Values, Values] | None:
    """(numerators, denominators) of the examples, whose sums' ratio is the metric (its logarithm for perplexity)."""
    total, weight = ("nll", "tokens") if result.metric(metric).kind in ("nll", "perplexity") else (metric, None)
    try:
        numerators = np.array([float(example[total]) for example in result.examples])
        denominators = np.array([float(example[weight]) if weight else 1.0 for example in result.examples])
    except (KeyError, TypeError):
        return None
    finite = np.isfinite(numerators).all() and np.isfinite(denominators).all()
    return (numerators, denominators) if finite and len(numerators) > 1 else None


def _values(result: TaskResult, metric: str, columns: tuple[Values, Values], draws: NDArray[np.int64]) -> Values:
    """The metric in each draw [resamples]; `draws` [resamples, examples] says how often each example was drawn."""
    ratio: Values = (draws @ columns[0]) / np.maximum(draws @ columns[1], 1e-12)
    return np.exp(ratio) if result.metric(metric).kind == "perplexity" else ratio


def _bounds(values: Values) -> tuple[float, float]:
    tail = 50 * (1 - COVERAGE)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
