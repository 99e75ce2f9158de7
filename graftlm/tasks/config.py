"""The options of `graftlm evaluate`. Nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass

from graftlm.decoding.config import Steering
from graftlm.errors import InputError
from graftlm.runs.config import REQUIRED, option
from graftlm.runs.ranges import LARGEST_SEED, check_ranges


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Steering):
    """Options of `graftlm evaluate`."""

    models: list[str] = option(REQUIRED, "Hub ids, folders, adapters.", argument="MODEL...")
    tasks: list[str] = option([], "Task to measure on; repeatable (default: all built-in ones).", flag="--task")
    limit: int | None = option(None, "Test examples of each task (default: all).", at_least=1)
    shots: int = option(0, "Solved examples before each prompt.", at_least=0)
    batch_size: int = option(32, "Examples at once.", at_least=1)
    seed: int = option(0, "Seed of what a task draws.", at_least=0, at_most=LARGEST_SEED)
    output: str | None = option(
        None,
        "Folder for results.json with every example's output, or a file that ends in .json.",
        files=(".json",),
        resumable=False,
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if len(set(self.models)) < len(self.models):
            raise InputError("a model is given twice; give each one once")
