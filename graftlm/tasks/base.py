"""What a task is: rows to train on, and an evaluation with metrics, each beside the floor that a trivial
answer reaches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graftlm.errors import InputError
from graftlm.tasks.metric import Metric

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

    `metrics` holds the value of each metric; `declared` what it says of itself, in the same order (more may be given);
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
        """What a task's gain is read from: the likelihood of the references, or else its first metric."""
        return self.likelihood or self.declared[0]


class Task(ABC):
    """One set of data with its prompt and its metrics. To add one: subclass, and enter it in
    `graftlm.tasks.TASKS`."""

    name: ClassVar[str]
    description: ClassVar[str]

    @property
    @abstractmethod
    def metrics(self) -> Sequence[Metric]:
        """All that `evaluate` may measure; a subclass assigns them: `metrics = (Metric(...), ...)`."""

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
