"""How two results of one task compare: which metrics are better when low, and which answers changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftlm.tasks import TaskResult

LABELS = {
    "valid": "valid SMILES",
    "tanimoto": "Tanimoto similarity",
    "exact": "exact match",
    "nll_per_token": "NLL per token",
}


def label(metric: str) -> str:
    return LABELS.get(metric, metric.replace("_", " "))


def lower_is_better(metric: str) -> bool:
    return any(word in metric for word in ("nll", "loss", "perplexity", "divergence"))


def is_better(metric: str, difference: float) -> bool:
    """Whether a change by `difference` is for the better."""
    return difference < 0 if lower_is_better(metric) else difference > 0


def gain_metric(metrics: Iterable[str]) -> str:
    """What a task's gain is read from: the likelihood of the references, or else its first metric."""
    names = list(metrics)
    return "nll_per_token" if "nll_per_token" in names else names[0]


def gain_words(metric: str) -> str:
    return "nats per token saved" if metric == "nll_per_token" else label(metric)


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
