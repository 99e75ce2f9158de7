"""What two results of one task differ by, and whether their examples show a difference at all.

A metric is the mean of a value over the examples, or, for `X_per_token`, sum of X / sum of tokens over them. Either way
each example pulls the metric away from its mean by an *influence*, and the standard error is that of the mean
influence; of a difference between two models on the same examples it is that of the influences' differences (paired,
which takes out that some examples are hard for both).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftlm.tasks import TaskResult

Results = Mapping[str, "Mapping[str, TaskResult]"]
"""Model name -> task name -> result."""

Z_95 = 1.96
LABELS = {
    "valid": "valid SMILES",
    "tanimoto": "Tanimoto similarity",
    "exact": "exact match",
    "nll_per_token": "NLL per token",
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """`value` = after - before; `standard_error` None where the examples hold no values of their own.

    `shown`: zero lies outside the 95 % interval; for right-or-wrong metrics, an exact sign test (McNemar) at 5 %.
    """

    value: float
    standard_error: float | None
    shown: bool


def label(metric: str) -> str:
    return LABELS.get(metric, metric.replace("_", " "))


def lower_is_better(metric: str) -> bool:
    return any(word in metric for word in ("nll", "loss", "perplexity", "divergence"))


def is_better(metric: str, difference: float) -> bool:
    """Whether a change by `difference` is for the better."""
    return difference < 0 if lower_is_better(metric) else difference > 0


def tuned_models(results: Results) -> list[str]:
    """All but those named "untrained", "untrained, 4 shots" and the like."""
    return [name for name in results if not name.startswith("untrained")]


def task_metrics(results: Results) -> list[tuple[str, str]]:
    """(task, metric), in order, of all that any model was measured on."""
    pairs = [
        (task, metric) for by_task in results.values() for task, result in by_task.items() for metric in result.metrics
    ]
    tasks = list(dict.fromkeys(task for task, _ in pairs))
    return sorted(dict.fromkeys(pairs), key=lambda pair: tasks.index(pair[0]))


def metric_value(results: Results, model: str, task: str, metric: str) -> float | None:
    """None where it was not measured or is not finite."""
    result = results.get(model, {}).get(task)
    value = None if result is None else result.metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None


def is_probe(result: TaskResult) -> bool:
    """A task that asks facts, each answered right or wrong."""
    return any(metric.endswith("_accuracy") for metric in result.metrics)


def standard_error(result: TaskResult, metric: str) -> float | None:
    """Standard error of the metric over the examples; None with fewer than two, or without values of their own."""
    pulls = _influences(result, metric)
    return None if pulls is None else _error_of_mean(pulls)


def difference(before: TaskResult, after: TaskResult, metric: str) -> Difference | None:
    """How `after` differs from `before`; None where one of them lacks the metric."""
    first, second = before.metrics.get(metric), after.metrics.get(metric)
    if first is None or second is None or not math.isfinite(first) or not math.isfinite(second):
        return None
    value = second - first
    paired = same_examples(before, after)
    if paired and (pairs := _right_or_wrong(before, after, metric)) is not None:
        changes = [b - a for a, b in pairs]
        error = _error_of_mean([change - value for change in changes])
        return Difference(value=value, standard_error=error, shown=_sign_test(changes) < 0.05)
    pulls_before, pulls_after = _influences(before, metric), _influences(after, metric)
    if pulls_before is None or pulls_after is None:
        return Difference(value=value, standard_error=None, shown=False)
    if paired:
        error = _error_of_mean([b - a for a, b in zip(pulls_before, pulls_after, strict=True)])
    else:
        error = math.hypot(_error_of_mean(pulls_before), _error_of_mean(pulls_after))
    return Difference(value=value, standard_error=error, shown=abs(value) > Z_95 * error)


def same_examples(before: TaskResult, after: TaskResult) -> bool:
    keys = [[(e.get("prompt"), e.get("reference")) for e in r.examples] for r in (before, after)]
    return bool(keys[0]) and keys[0] == keys[1]


def changed_answers(
    before: TaskResult, after: TaskResult, metric: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
    """(lost, won): the examples of `after` that were right before and are wrong now, and the other way round.

    None where the two were not asked the same examples, or the metric is not right-or-wrong.
    """
    pairs = _right_or_wrong(before, after, metric) if same_examples(before, after) else None
    if pairs is None:
        return None
    lost = [e for e, (a, b) in zip(after.examples, pairs, strict=True) if a > b]
    return lost, [e for e, (a, b) in zip(after.examples, pairs, strict=True) if a < b]


def _right_or_wrong(before: TaskResult, after: TaskResult, metric: str) -> list[tuple[float, float]] | None:
    values = [[example.get(metric) for example in result.examples] for result in (before, after)]
    if len(values[0]) < 2 or any(value not in (0, 1) for column in values for value in column):
        return None
    return [(float(a), float(b)) for a, b in zip(*values, strict=True)]


def _influences(result: TaskResult, metric: str) -> list[float] | None:
    if len(result.examples) < 2:
        return None
    if all(_finite(example.get(metric)) for example in result.examples):
        values = [float(example[metric]) for example in result.examples]
        return [value - sum(values) / len(values) for value in values]
    total = metric.removesuffix("_per_token")
    if total == metric or not all(_finite(e.get(total)) and e.get("tokens") for e in result.examples):
        return None
    tokens = sum(example["tokens"] for example in result.examples)
    ratio = sum(example[total] for example in result.examples) / tokens
    scale = len(result.examples) / tokens
    return [(example[total] - ratio * example["tokens"]) * scale for example in result.examples]


def _error_of_mean(influences: Sequence[float]) -> float:
    count = len(influences)
    return math.sqrt(math.fsum(pull * pull for pull in influences) / (count - 1) / count)


def _sign_test(changes: Sequence[float]) -> float:
    """Two-sided p of so uneven a split of the changed answers, were losses as likely as gains."""
    lost, won = sum(change < 0 for change in changes), sum(change > 0 for change in changes)
    tail = sum(math.comb(lost + won, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / 2 ** (lost + won))


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
