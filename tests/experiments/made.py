"""Results made up for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graftlm.experiments.comparison import Results
from graftlm.experiments.config import StudyConfig
from graftlm.experiments.results import Result
from graftlm.tasks import Metric, TaskResult

SCORE = Metric("score", "score", higher_is_better=True)


def result(arm: str, seed: int, values: Mapping[str, Mapping[str, float]], declared: Any = None, **more: Any) -> Result:
    """`values`: task -> metric -> value; `declared`: task -> metrics, by default `SCORE`."""
    scores = {
        task: TaskResult(
            task=task, metrics=dict(each), declared=(declared or {}).get(task, [SCORE]), count=100, seconds=0
        )
        for task, each in values.items()
    }
    return Result(arm=arm, seed=seed, scores=scores, **more)


def scored(arm: str, *values: float) -> list[Result]:
    """One result a seed on the task `t`."""
    return [result(arm, seed, {"t": {"score": value}}) for seed, value in enumerate(values)]


def ladder(every: Sequence[Result], **measured: Any) -> Results:
    """Results of arms of the ladder, below an untrained model that scores 0."""
    arms = StudyConfig(arms=list(dict.fromkeys(each.arm for each in every))).chosen_arms
    return Results(every=[*scored("untrained", 0.0), *every], arms=arms, **{"tasks": ["t"], "probes": [], **measured})
