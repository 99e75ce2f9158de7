"""Bootstrap intervals of what differs between models, paired by example (Efron & Tibshirani 1993, chapter 13).

Examples are drawn anew with replacement, the same draw for all models, and the quantity is computed from each draw; its
2.5 % and 97.5 % quantiles are the interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from graftlm.auditing.result import Change, Estimate
from graftlm.auditing.retention import above_floor, of_knowledge, retention
from graftlm.tasks import Metric, TaskResult
from graftlm.tasks.comparison import same_examples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

RESAMPLES = 2000
COVERAGE = 0.95


def bootstrap_change(
    base: TaskResult, tuned: TaskResult, metric: str, *, resamples: int = RESAMPLES, seed: int = 0
) -> Change | None:
    """`tuned` against `base` on one metric; None where one of them lacks it or it is not finite.

    How a metric follows from the examples, its kind says. Where they hold no values from which it follows, or where the
    two models did not answer the same examples, there is no interval and no difference is shown.
    """
    first, second = base.metrics.get(metric), tuned.metrics.get(metric)
    if first is None or second is None or not math.isfinite(first) or not math.isfinite(second):
        return None
    declared, value = base.metric(metric), second - first
    low = high = None
    ours, theirs = _columns(base, metric), _columns(tuned, metric)
    if ours is not None and theirs is not None and same_examples(base, tuned):
        draws = _draws(len(ours[0]), resamples, seed)
        low, high = _bounds(_values(declared, theirs, draws) - _values(declared, ours, draws))
    shown = low is not None and high is not None and (low > 0 or high < 0)
    return Change(
        metric=declared,
        base=first,
        tuned=second,
        value=value,
        low=low,
        high=high,
        shown=shown,
        better=declared.is_better(value),
    )


def bootstrap_gap_closed(
    base: TaskResult, steered: TaskResult, tuned: TaskResult, metric: str, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate | None:
    """(steered - base) / (tuned - base) on one metric: 1 where `steered` does as well as `tuned`.

    None where `tuned` does not differ from `base` beyond its interval, so that there is no gap.
    """
    gap = bootstrap_change(base, tuned, metric, resamples=resamples, seed=seed)
    change = bootstrap_change(base, steered, metric, resamples=resamples, seed=seed)
    columns = [found for result in (base, steered, tuned) if (found := _columns(result, metric)) is not None]
    if gap is None or change is None or not gap.shown or len(columns) < 3 or not same_examples(base, steered):
        return None
    draws = _draws(len(base.examples), resamples, seed)
    start, reached, wanted = (_values(base.metric(metric), column, draws) for column in columns)
    low, high = _bounds((reached - start) / (wanted - start))
    return Estimate(value=change.value / gap.value, low=low, high=high)


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
    """Of each draw [resamples]."""
    if not same_examples(base, tuned):
        return None
    draws = _draws(len(base.examples), resamples, seed)

    def drawn(result: TaskResult, metric: Metric) -> Values | None:
        columns = _columns(result, metric.name)
        return None if columns is None else _values(metric, columns, draws)

    known = of_knowledge(base)
    read = known or [metric for metric in [base.likelihood] if metric is not None]
    values = [[drawn(result, metric) for metric in read] for result in (base, tuned)]
    before, after = ([value for value in side if value is not None] for side in values)
    if len(before) + len(after) < 2 * len(values[0]):
        return None
    if not known:
        return np.exp(before[0] - after[0])
    had, left = (
        np.sum([np.maximum(above_floor(*each), 0.0) for each in zip(known, side, strict=True)], axis=0)
        for side in (before, after)
    )
    return np.divide(left, had, out=np.full(resamples, np.nan), where=had > 0)


def _draws(count: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """How often each of `count` examples was drawn [resamples, count]."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)


def _bounds(values: Values) -> tuple[float, float]:
    tail = 50 * (1 - COVERAGE)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _columns(result: TaskResult, metric: str) -> tuple[Values, Values] | None:
    """(numerators, denominators) of the examples, whose sums' ratio is the metric (its logarithm for perplexity).

    None where they do not give the metric's value: then it is another function of the examples than its kind says.
    """
    if len(result.examples) < 2:
        return None
    declared = result.metric(metric)
    total, weight = ("nll", "tokens") if declared.kind in ("nll", "perplexity") else (metric, None)
    try:
        numerators = [float(example[total]) for example in result.examples]
        denominators = [float(example[weight]) if weight else 1.0 for example in result.examples]
    except (KeyError, TypeError):
        return None
    found = np.array(numerators), np.array(denominators)
    if not all(np.isfinite(column).all() for column in found):
        return None
    [value] = _values(declared, found, np.ones((1, len(numerators)), dtype=np.int64))
    return found if math.isclose(value, result.metrics[metric], rel_tol=1e-6, abs_tol=1e-9) else None


def _values(metric: Metric, columns: tuple[Values, Values], draws: NDArray[np.int64]) -> Values:
    """The metric of each draw [resamples]; `draws` [resamples, examples] says how often each example was drawn."""
    ratio: Values = (draws @ columns[0]) / np.maximum(draws @ columns[1], 1e-12)
    return np.exp(ratio) if metric.kind == "perplexity" else ratio
