"""What a task is: rows to train on, and an evaluation with metrics, each beside the floor that a trivial
answer reaches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graftlm.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Split = Literal["train", "validation", "test"]
Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all); a step is one example passed through one of the task's
measurements."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """Outcome of one task on one model.

    `metrics` holds the mean of each metric over the examples (of `nll_per_token` over all tokens, in nats);
    `floors` the value that a trivial answer reaches, for the metrics that have one; `examples` one dict per
    example with "prompt", "reference", "output" and its own metric values; `count` the number of examples;
    `seconds` the wall-clock time.
    """

    task: str
    metrics: dict[str, float]
    floors: dict[str, float] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    count: int
    seconds: float


class Task(ABC):
    """One set of data with its prompt and its metrics. To add one: subclass, and enter it in
    `graftlm.tasks.TASKS`."""

    name: ClassVar[str]
    description: ClassVar[str]

    @abstractmethod
    def rows(self, split: Split) -> Dataset:
        """Rows of the split, columns `prompt` and `completion` (str); InputError if the task has no such
        split."""

    @abstractmethod
    def evaluate(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        limit: int | None = None,
        shots: int = 0,
        batch_size: int = 32,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> TaskResult:
        """Measure the model, in eval mode, on the first `limit` test examples with `shots` examples in the
        prompt."""


def check_options(limit: int | None, shots: int, batch_size: int) -> None:
    """InputError for numbers that make no sense."""
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, not {limit}")
    if shots < 0:
        raise InputError(f"shots must not be negative, not {shots}")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")


def count_steps(progress: Progress | None, total: int) -> Callable[[int], None]:
    """A callback for "n more examples are finished" that tells `progress` how many of `total` are."""
    done = 0

    def advance(finished: int) -> None:
        nonlocal done
        done += finished
        if progress is not None:
            progress(done, total)

    return advance
