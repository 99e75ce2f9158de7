"""Conditions such as `retention<0.9`, with which an audit can fail a CI run."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass

from graftlm.auditing.result import AuditResult, TunedAudit
from graftlm.errors import InputError
from graftlm.tasks import Task

BOUND = re.compile(r"(<=|>=|<|>)\s*(-?\d+(?:\.\d+)?)\s*\Z")
OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Condition:
    """`quantity`: retention (mean over the probes), retention.PROBE, divergence (nats per token) or TASK.METRIC."""

    text: str
    quantity: str
    comparison: str
    bound: float


def parse_condition(text: str) -> Condition:
    """InputError where `text` is not QUANTITY<NUMBER, with <, <=, > or >=."""
    match = BOUND.search(text)
    if match is None or not (quantity := text[: match.start()].strip()):
        raise InputError(f"--fail-if is {text!r}, but a condition such as 'retention<0.9' is expected")
    return Condition(text, quantity, match[1], float(match[2]))


def quantities(audited: TunedAudit) -> dict[str, float | None]:
    """The quantities of one tuned model by name; None where one was not measured."""
    return {
        "retention": audited.mean_retention,
        "divergence": audited.divergence,
        **{f"retention.{probe}": share for probe, share in audited.retention.items()},
        **{f"{task}.{name}": v for task, each in audited.results.items() for name, v in each.metrics.items()},
    }


def check_conditions(conditions: Sequence[Condition], tasks: Sequence[Task], probes: Sequence[Task]) -> None:
    """Raise InputError, before the long work, for a quantity that this audit cannot have."""
    general = ["divergence", *(["retention"] if probes else []), *(f"retention.{probe.name}" for probe in probes)]
    metrics = [(f"{task.name}.", f"{task.name}.{metric.name}") for task in (*tasks, *probes) for metric in task.metrics]
    for condition in conditions:
        if condition.quantity not in [*general, *(name for _, name in metrics)]:
            of_task = [name for task, name in metrics if condition.quantity.startswith(task)]
            raise InputError(
                f"--fail-if {condition.text}: {condition.quantity!r} is not in this audit; "
                f"it has {', '.join(of_task or [*general, 'TASK.METRIC'])}"
            )


def failures(conditions: Sequence[Condition], result: AuditResult) -> list[str]:
    """One line for each tuned model and condition that holds of it.

    Raises InputError where the quantity was not measured: a check that cannot fail is none.
    """
    lines = []
    for name, audited in result.tuned.items():
        for condition in conditions:
            value = quantities(audited).get(condition.quantity)
            if value is None or not math.isfinite(value):
                raise InputError(f"--fail-if {condition.text}: {name} has no {condition.quantity}, or no finite one")
            if OPERATORS[condition.comparison](value, condition.bound):
                lines.append(f"{name}: {condition.quantity} is {value:.3f} ({condition.text})")
    return lines
