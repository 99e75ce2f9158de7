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

import math
from typing import Any

from graftlm.auditing.result import FactsChanged
from graftlm.tasks import Metric, TaskResult
from graftlm.tasks.comparison import changed_answers


def retention(base: TaskResult, tuned: TaskResult) -> float | None:
    """The retention of one probe; None where the base model knows nothing of it."""
    if known := metrics_of_knowledge(base):
        before, after = (
            sum(max(above_floor(metric, result.metrics[metric.name]), 0.0) for metric in known)
            for result in (base, tuned)
        )
        return after / before if before else None
    if (metric := base.likelihood) is not None:
        return math.exp(base.metrics[metric.name] - tuned.metrics[metric.name])
    return None


def metrics_of_knowledge(base: TaskResult) -> list[Metric]:
    """The metrics of a base model's result that retention is read from; none where its likelihoods tell more."""
    metrics = [metric for metric in base.declared if metric.kind == "accuracy"]
    if not metrics and base.likelihood is None:
        metrics = [metric for metric in base.declared if metric.floor is not None]
    knows = any(above_floor(metric, base.metrics[metric.name]) > 0 for metric in metrics)
    return metrics if knows or base.likelihood is None else []


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
