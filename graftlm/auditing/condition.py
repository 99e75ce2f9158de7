"""Conditions such as `retention<0.9`, with which an audit can fail a CI run."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from graftlm.auditing.result import AuditResult, TunedAudit
from graftlm.errors import InputError
from graftlm.tasks import Task

BOUND = re.compile(r"(<=|>=|<|>)\s*(-?\d+(?:\.\d+)?)\s*\Z")
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Condition:
    """`quantity` is retention (the mean over the probes), retention.PROBE, divergence (nats per token) or
    TASK.METRIC (the tuned model's)."""

    text: str
    quantity: str
    comparison: str
    bound: float

    def value(self, audited: TunedAudit) -> float | None:
        """The quantity of one tuned model; None where it was not measured."""
        if self.quantity == "retention":
            return audited.mean_retention
        if self.quantity == "divergence":
            return audited.divergence
        kind, _, probe = self.quantity.partition(".")
        if kind == "retention":
            return audited.retention.get(probe)
        task = task_of(self.quantity, audited.results)
        return None if task is None else audited.results[task].metrics.get(self.quantity[len(task) + 1 :])


def parse_condition(text: str) -> Condition:
    """InputError where `text` is not QUANTITY<NUMBER, with <, <=, > or >=."""
    match = BOUND.search(text)
    if match is None or not (quantity := text[: match.start()].strip()):
        raise InputError(f"--fail-if is {text!r}, but a condition such as 'retention<0.9' is expected")
    return Condition(text, quantity, match[1], float(match[2]))


def task_of(quantity: str, tasks: Iterable[str]) -> str | None:
    """The task whose metric `quantity` is; a task's name may have full stops in it."""
    return max((task for task in tasks if quantity.startswith(f"{task}.")), key=len, default=None)


def check_conditions(conditions: Sequence[Condition], tasks: Sequence[Task], probes: Sequence[Task]) -> None:
    """Before the long work: InputError for a quantity that this audit cannot have."""
    measured = {task.name: task for task in (*tasks, *probes)}
    retentions = ["retention", *(f"retention.{probe.name}" for probe in probes)] if probes else []
    for condition in conditions:
        if condition.quantity in (*retentions, "divergence"):
            continue
        choices = [*retentions, "divergence", "TASK.METRIC"]
        if (task := task_of(condition.quantity, measured)) is not None:
            choices = [f"{task}.{metric.name}" for metric in measured[task].metrics]
            if condition.quantity in choices:
                continue
        raise InputError(
            f"--fail-if {condition.text}: {condition.quantity!r} is not in this audit; it has {', '.join(choices)}"
        )


def failures(conditions: Sequence[Condition], result: AuditResult) -> list[str]:
    """One line for each tuned model and condition that holds of it.

    Raises InputError where the quantity was not measured: a check that cannot fail is none.
    """
    lines = []
    for name, audited in result.tuned.items():
        for condition in conditions:
            value = condition.value(audited)
            if value is None or not math.isfinite(value):
                raise InputError(f"--fail-if {condition.text}: {name} has no {condition.quantity}, or no finite one")
            if OPERATORS[condition.comparison](value, condition.bound):
                lines.append(f"{name}: {condition.quantity} is {value:.3f} ({condition.text})")
    return lines
