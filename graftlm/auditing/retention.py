"""Retention: the share of what the base model knew that is left in the tuned one.

    accuracies        sum of (tuned - floor) / sum of (base - floor), floor: what a guess reaches
    NLL per token     exp(base - tuned), the ratio of the perplexities

The accuracies of a probe (greedy and ranking) are summed before the ratio is taken, so that one on which the base model
hardly beats a guess counts for little. A probe without accuracies, or on which the base model does not beat a guess,
has the second. Where neither was measured, the first is taken of what declares a floor, which is an upper bound where
lower is better. A probe without any of them has nothing to lose, and no retention. 1: nothing lost; above 1: something
won.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graftlm.auditing.result import FactsChanged
from graftlm.tasks import Metric, TaskResult
from graftlm.tasks.comparison import changed_answers


def retention(base: TaskResult, tuned: TaskResult) -> float | None:
    """The retention of one probe; None where the base model knows nothing of it."""
    metrics = retention_metrics(base)
    return float(share_left(metrics, base.metrics, tuned.metrics)) if metrics else None


def retention_metrics(base: TaskResult) -> list[Metric]:
    """The metrics of a base model's result that retention is read from; none where it knows nothing."""
    metrics = [metric for metric in base.declared if metric.kind == "accuracy"]
    if not metrics and base.likelihood is None:
        metrics = [metric for metric in base.declared if metric.floor is not None]
    if any(above_floor(metric, base.metrics[metric.name]) > 0 for metric in metrics):
        return metrics
    return [] if base.likelihood is None else [base.likelihood]


def share_left(metrics: Sequence[Metric], before: Mapping[str, Any], after: Mapping[str, Any]) -> Any:
    """The retention read from `metrics`, whose values (numbers, or arrays of one shape) are given by name; NaN where
    there was nothing before."""
    if metrics[0].kind == "nll":
        return np.exp(before[metrics[0].name] - after[metrics[0].name])
    had, has = (
        sum(np.maximum(above_floor(metric, values[metric.name]), 0.0) for metric in metrics)
        for values in (before, after)
    )
    return has / np.where(had > 0, had, np.nan)


def above_floor(metric: Metric, value: Any) -> Any:
    """Distance by which a value is better than a trivial answer's; for an accuracy without a floor, than 0."""
    return metric.sign * (value - (metric.floor or 0.0))


def facts_changed(base: TaskResult, tuned: TaskResult) -> dict[str, FactsChanged]:
    """Metric -> the answers that were lost and won, for each right-or-wrong metric."""
    changed = {}
    for metric in base.declared:
        if (answers := changed_answers(base, tuned, metric)) is not None:
            lost, won = answers
            right = sum(example[metric.name] == metric.higher_is_better for example in tuned.examples)
            changed[metric.name] = FactsChanged(lost=lost, won=won, kept=right - len(won))
    return changed
