"""The result of one model of an experiment: what it scored, example by example."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftlm.experiments.arms import label
from graftlm.tasks import TaskResult
from graftlm.tasks.metric import read_metrics

# 97.5 % quantile of Student's t with 1, 2, ... degrees of freedom.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True, kw_only=True)
class Result:
    """An arm at a strength ({} or {setting: value}) with a seed, and its scores: task -> result, with the examples.

    `training_seconds` is None for a model that was not trained, or not in one go.
    """

    arm: str
    strength: Mapping[str, Any] = field(default_factory=dict)
    seed: int
    scores: Mapping[str, TaskResult]
    training_seconds: float | None = None
    training_loss: float | None = None

    @property
    def label(self) -> str:
        return label(self.arm, self.strength)

    def value(self, task: str, metric: str) -> float:
        return self.scores[task].metrics[metric]


def read_result(file: Path) -> Result:
    """A result out of its JSON file, in which null is a number that is not finite."""
    document = json.loads(file.read_text("utf-8"))
    return Result(**{**document, "scores": {task: read_score(each) for task, each in document["scores"].items()}})


def read_score(document: Mapping[str, Any]) -> TaskResult:
    metrics = {name: math.nan if value is None else value for name, value in document["metrics"].items()}
    return TaskResult(**{**document, "metrics": metrics, "declared": read_metrics(document["declared"])})


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean over seeds; `half_width`: half the 95 % interval of Student's t, None for a single seed."""

    mean: float
    half_width: float | None


def spread(values: Sequence[float]) -> Spread:
    """Mean and interval of the values of independent seeds; ValueError for none."""
    if not values:
        raise ValueError("no values")
    if not all(map(math.isfinite, values)):
        return Spread(mean=math.nan, half_width=None)
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Spread(mean=mean, half_width=None)
    return Spread(mean=mean, half_width=quantile_975(count - 1) * statistics.stdev(values) / math.sqrt(count))


def quantile_975(freedom: int) -> float:
    """Quantile of Student's t; beyond the table by the expansion in 1 / freedom, which is right to 0.2 % there."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
