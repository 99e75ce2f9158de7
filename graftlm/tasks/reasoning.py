"""Problems of reasoning-gym (extra `reasoning`): made from a seed, checked by their own `score_answer`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from graftlm.errors import InputError
from graftlm.tasks.asking import Answer, Example
from graftlm.tasks.base import Split, Task
from graftlm.tasks.metric import Metric
from graftlm.tasks.reasoning_answers import check_data_set, reasoning_gym_score

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "reasoning-gym:"
SIZES = {"train": 2000, "validation": 200, "test": 200}
SEEDS = {"train": 0, "validation": 1_000_003, "test": 2_000_003}


class Reasoning(Task):
    """`reasoning-gym:NAME`, any data set of reasoning-gym with its default settings, or with those given.

    `score`: mean of the data set's own score, 0 to 1; `correct`: share of full scores. Floor: the most frequent answer
    of the training problems given to all.
    """

    description = "a data set of reasoning-gym"
    metrics = (
        Metric("score", "score", higher_is_better=True, best=1.0),
        Metric("correct", "full scores", higher_is_better=True, best=1.0, kind="accuracy"),
    )
    max_new_tokens = 128
    stop = None
    shot_end = "\n\n"

    def __init__(self, name: str, options: Mapping[str, Any] | None = None) -> None:
        """InputError where reasoning-gym is not installed, has no such data set, or refuses its options."""
        self.name = name  # type: ignore[misc]
        self.asked, self.options = name.removeprefix(PREFIX), dict(options or {})
        try:
            check_data_set(self.asked)
        except ImportError as error:
            raise InputError(f"{name} needs reasoning-gym: pip install 'graftlm[reasoning]'") from error

    def problems(self, split: Split, size: int | None = None) -> list[dict[str, Any]]:
        """Entries of the split: question, answer, metadata. The same size gives the same ones."""
        import reasoning_gym

        if split not in SIZES:
            raise InputError(f"task {self.name} has no split {split!r}: choose train, validation or test")
        try:
            made = reasoning_gym.create_dataset(
                self.asked, size=size or SIZES[split], seed=SEEDS[split], **self.options
            )
            return [made[place] for place in range(len(made))]
        except (AssertionError, TypeError, ValueError) as error:
            raise InputError(f"reasoning-gym refuses {self.asked} with {self.options}: {error}") from error

    def rows(self, split: Split, size: int | None = None) -> Dataset:
        """Columns `prompt`, `completion`, `answer` and `entry` (JSON, which the reward reads)."""
        from datasets import Dataset

        rows = []
        for problem in self.problems(split, size):
            example, entry = example_of(problem), json.dumps(problem, default=str)
            columns = {"prompt": example.prompt, "completion": example.completion}
            rows.append({**columns, "answer": str(problem["answer"]), "entry": entry})
        return Dataset.from_list(rows)

    def examples(self, split: Split, seed: int = 0) -> list[Example]:
        return [example_of(problem) for problem in self.problems(split)]

    def score(self, example: Example, answer: Answer) -> dict[str, Any]:
        value = self.scored(answer.text, example.data)
        return {"score": value, "correct": float(value >= 1)}

    def floors(self, examples: Sequence[Example]) -> dict[str, float]:
        answers = [str(problem["answer"]) for problem in self.problems("train", 200)]
        most_frequent = max(sorted(set(answers)), key=answers.count)
        values = [self.scored(most_frequent, example.data) for example in examples]
        return {"score": sum(values) / len(values), "correct": sum(value >= 1 for value in values) / len(values)}

    def few_shot_prefix(self, shots: int, seed: int) -> str:
        """The first `shots` training problems, solved."""
        return self.solved([example_of(problem) for problem in self.problems("train", shots)]) if shots else ""

    @cached_property
    def scored(self) -> Callable[[str, Any], float]:
        return reasoning_gym_score(self.asked)


def example_of(problem: Mapping[str, Any]) -> Example:
    return Example(f"Question: {problem['question'].strip()}\nAnswer:", f" {problem['answer']}", data=problem)
