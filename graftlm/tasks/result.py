"""TaskResult: the metrics of one model on one task, each beside what a trivial answer reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from graftlm.errors import InputError
from graftlm.tasks.metric import Metric


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """Outcome of one task on one model.

    `metrics` holds the value of each metric; `declared` its `Metric`, in the same order (more may be given);
    `floors` what a trivial answer reaches, which goes before the declared floor; `examples` one dict per example with
    "prompt", "reference", "output" and its own metric values; `count` the number of examples; `seconds` the wall-clock
    time.

    Raises InputError for a metric that is not declared.
    """

    task: str
    metrics: dict[str, float]
    declared: Sequence[Metric] = ()
    floors: dict[str, float] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    count: int
    seconds: float

    def __post_init__(self) -> None:
        known = {metric.name: metric for metric in self.declared}
        if not self.metrics:
            raise InputError(f"task {self.task} measures nothing")
        for name in self.metrics:
            if name not in known:
                raise InputError(
                    f"task {self.task} measures {name!r} but does not declare it: add "
                    f"Metric({name!r}, {name.replace('_', ' ')!r}, higher_is_better=...) to what it declares"
                )
        measured = [replace(known[name], floor=self.floors.get(name, known[name].floor)) for name in self.metrics]
        object.__setattr__(self, "declared", tuple(measured))
        object.__setattr__(self, "floors", {each.name: each.floor for each in measured if each.floor is not None})

    def metric(self, name: str) -> Metric:
        """KeyError for one that was not measured."""
        return {metric.name: metric for metric in self.declared}[name]

    @property
    def likelihood(self) -> Metric | None:
        """The metric of the kind "nll"."""
        return next((metric for metric in self.declared if metric.kind == "nll"), None)

    @property
    def gain_metric(self) -> Metric:
        """The metric that a task's gain is read from: the likelihood of the references, or else its first one."""
        return self.likelihood or self.declared[0]
