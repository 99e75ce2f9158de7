"""How much of what the base model knew is left in the tuned one.

    accuracies        sum of (tuned - floor) / sum of (base - floor), floor: what a guess reaches
    nll_per_token     exp(base - tuned), the ratio of the perplexities

The accuracies of a probe (greedy and ranking) are summed before the ratio is taken, so that one on which the base model
hardly beats a guess counts for little. A probe without accuracies, or on which the base model does not beat a guess,
has the second; where that was not measured either, it has nothing to lose, and no retention. 1: nothing lost; above 1:
something won.
"""

from __future__ import annotations

import math

from graftlm.auditing.result import FactsChanged
from graftlm.tasks import TaskResult
from graftlm.tasks.comparison import changed_answers


def retention(base: TaskResult, tuned: TaskResult) -> float | None:
    """Of one probe; None where the base model knows nothing of it."""
    if known := accuracies(base):
        before, after = (
            sum(max(result.metrics[metric] - base.floors.get(metric, 0.0), 0.0) for metric in known)
            for result in (base, tuned)
        )
        return after / before if before else None
    if "nll_per_token" in base.metrics:
        return math.exp(base.metrics["nll_per_token"] - tuned.metrics["nll_per_token"])
    return None


def accuracies(result: TaskResult) -> list[str]:
    """The metrics of a base model's result that retention is read from; none where its likelihoods tell more."""
    found = [metric for metric in result.metrics if metric.endswith("accuracy")]
    knows = any(result.metrics[metric] > result.floors.get(metric, 0.0) for metric in found)
    return found if knows or "nll_per_token" not in result.metrics else []


def facts_changed(base: TaskResult, tuned: TaskResult) -> dict[str, FactsChanged]:
    """Metric -> the answers that were lost and won, for each right-or-wrong metric."""
    found = {}
    for metric in base.metrics:
        answers = changed_answers(base, tuned, metric)
        if answers is not None:
            lost, won = answers
            right = sum(example[metric] == 1 for example in tuned.examples)
            found[metric] = FactsChanged(lost=lost, won=won, kept=right - len(won))
    return found
