"""Task: examples, the score of an answer, and metrics. How a model is measured on them is written here, once."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graftlm.errors import InputError
from graftlm.tasks.asking import Answer, Example, Progress, ask
from graftlm.tasks.metric import Metric
from graftlm.tasks.result import TaskResult

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Split = Literal["train", "validation", "test"]


class Task(ABC):
    """One set of data with its prompt and its metrics.

    A subclass has a name, a description, `metrics`, `examples` and `score`; entered in `graftlm.tasks.TASKS`, the
    command line knows it. Completions are generated where `max_new_tokens` is positive, choices are ranked where all
    examples have them, and the likelihood of the right completions is measured where a metric is read from it. A task
    that does something else altogether overrides `evaluate`.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    max_new_tokens: ClassVar[int] = 0
    """Longest output in tokens; 0: nothing is generated."""
    stop: ClassVar[str | None] = "\n"
    """Text that ends an output; None: the model ends it, or, with shots, the text that follows each of them."""
    shots_from: ClassVar[Split] = "train"
    """Split that the solved examples of a few-shot prompt are drawn from."""
    shot_end: ClassVar[str] = ""
    """Text that follows each of them."""

    @property
    @abstractmethod
    def metrics(self) -> Sequence[Metric]:
        """All that may be measured; a subclass assigns them: `metrics = (Metric(...), ...)`."""

    def examples(self, split: Split, seed: int = 0) -> Sequence[Example]:
        """Examples of a split; any first n should be a random sample. `seed` decides what is drawn (choices).

        Raises InputError if the task has no such split.
        """
        raise InputError(f"task {self.name} has no examples: define examples(self, split, seed=0)")

    def score(self, example: Example, answer: Answer) -> dict[str, Any]:
        """Values of the metrics for one answer, but for those of the kinds "nll" and "perplexity", which follow from
        the likelihood; anything else in it goes into `TaskResult.examples` too."""
        return {}

    def floors(self, examples: Sequence[Example]) -> dict[str, float]:
        """Values that a trivial answer reaches, by metric, where they depend on the examples."""
        return {}

    def new_tokens(self, longest: int) -> int:
        """Longest output in tokens; `longest`: tokens of the longest right completion, 0 if not measured."""
        return self.max_new_tokens

    def few_shot_prefix(self, shots: int, seed: int) -> str:
        """`shots` solved examples drawn by `seed`, one after the other; the same stand before every prompt."""
        if shots == 0:
            return ""
        examples = self.examples(self.shots_from)
        if shots > len(examples):
            raise InputError(f"task {self.name} has {len(examples)} {self.shots_from} examples, not {shots} shots")
        return self.solved(random.Random(seed).sample(examples, shots))

    def solved(self, examples: Sequence[Example]) -> str:
        return "".join(f"{example.prompt}{example.completion}{self.shot_end}" for example in examples)

    def rows(self, split: Split) -> Dataset:
        """Columns `prompt` and `completion` (str) of a split; InputError if the task has no such split."""
        from datasets import Dataset

        examples = self.examples(split)
        return Dataset.from_dict(
            {"prompt": [e.prompt for e in examples], "completion": [e.completion for e in examples]}
        )

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
        """Measure the model, in eval mode, on the first `limit` test examples with `shots` solved ones before each.

        `seed` draws what a task draws: shots, choices. Raises InputError for numbers out of range.
        """
        check_options(limit, shots, batch_size)
        begin = time.perf_counter()
        examples = self.examples("test", seed)[:limit]
        floors = self.floors(examples)  # first: it finds that a package is missing
        answers = ask(
            model,
            tokenizer,
            examples,
            prefix=self.few_shot_prefix(shots, seed),
            likelihoods=any(metric.needs_likelihood for metric in self.metrics),
            new_tokens=self.new_tokens if self.max_new_tokens else None,
            stop=self.stop or (self.shot_end if shots else None),
            batch_size=batch_size,
            progress=progress,
        )
        entries = [self._entry(*each) for each in zip(examples, answers, strict=True)]
        values = {metric.name: metric.value(entries) for metric in self.metrics}
        return TaskResult(
            task=self.name,
            metrics={name: value for name, value in values.items() if value is not None},
            declared=self.metrics,
            floors=floors,
            examples=entries,
            count=len(entries),
            seconds=time.perf_counter() - begin,
        )

    def _entry(self, example: Example, answer: Answer) -> dict[str, Any]:
        """The example's entry in `TaskResult.examples`."""
        entry: dict[str, Any] = {"prompt": example.prompt, "reference": example.reference, "output": answer.text}
        entry |= self.score(example, answer)
        if answer.likelihood is not None:
            entry |= {"nll": -answer.likelihood[0], "tokens": answer.likelihood[1]}
        return entry


def check_options(limit: int | None, shots: int, batch_size: int) -> None:
    """InputError for numbers that make no sense."""
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, not {limit}")
    if shots < 0:
        raise InputError(f"shots must not be negative, not {shots}")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
