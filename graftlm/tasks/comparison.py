"""How two results of one task compare: whether they asked the same, and which answers changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftlm.tasks import Metric, TaskResult


def same_examples(before: TaskResult, after: TaskResult) -> bool:
    keys = [[(e.get("prompt"), e.get("reference")) for e in r.examples] for r in (before, after)]
    return bool(keys[0]) and keys[0] == keys[1]


def changed_answers(
    before: TaskResult, after: TaskResult, metric: Metric
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
    """(lost, won): the examples of `after` that were right before and are wrong now, and the other way round.

    None where the two were not asked the same examples, or the metric is not right-or-wrong.
    """
    values = [[example.get(metric.name) for example in result.examples] for result in (before, after)]
    if not same_examples(before, after) or len(values[0]) < 2 or any(v not in (0, 1) for v in values[0] + values[1]):
        return None
    differences = [float(b) - float(a) for a, b in zip(*values, strict=True)]
    lost = [e for e, change in zip(after.examples, differences, strict=True) if metric.is_better(-change)]
    return lost, [e for e, change in zip(after.examples, differences, strict=True) if metric.is_better(change)]
