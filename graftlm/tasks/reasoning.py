"""Problems of reasoning-gym (extra `reasoning`): made from a seed, checked by their own `score_answer`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from graftlm.decoding.batches import generate_completions
from graftlm.errors import InputError
from graftlm.tasks.base import Progress, Split, Task, TaskResult, check_options, count_steps
from graftlm.tasks.metric import Metric
from graftlm.tasks.scorers import reasoning_gym_score

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PREFIX = "reasoning-gym:"
SIZES = {"train": 2000, "validation": 200, "test": 200}
SEEDS = {"train": 0, "validation": 1_000_003, "test": 2_000_003}
MAX_NEW_TOKENS = 128


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

    def __init__(self, name: str, options: Mapping[str, Any] | None = None) -> None:
        """InputError where reasoning-gym is not installed, has no such data set, or refuses its options."""
        self.name = name  # type: ignore[misc]
        self.asked, self.options = name.removeprefix(PREFIX), dict(options or {})
        try:
            from reasoning_gym.factory import DATASETS
        except ImportError as error:
            raise InputError(f"{name} needs reasoning-gym: pip install 'graftlm[reasoning]'") from error
        if self.asked not in DATASETS:
            nearest = get_close_matches(self.asked, DATASETS, n=1, cutoff=0.5)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise InputError(f"reasoning-gym has no data set {self.asked!r}{hint}")

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

        problems = self.problems(split, size)
        return Dataset.from_dict(
            {
                "prompt": [prompt_of(problem["question"]) for problem in problems],
                "completion": [f" {problem['answer']}" for problem in problems],
                "answer": [str(problem["answer"]) for problem in problems],
                "entry": [json.dumps(problem, default=str) for problem in problems],
            }
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
        """Greedy completions, scored by the data set; with `shots` training problems before each."""
        check_options(limit, shots, batch_size)
        begin = time.perf_counter()
        problems = self.problems("test")[:limit]
        shown = self.problems("train", shots) if shots else []
        prefix = "".join(f"{prompt_of(each['question'])} {each['answer']}\n\n" for each in shown)
        prompts = [prefix + prompt_of(problem["question"]) for problem in problems]
        outputs = generate_completions(
            model, tokenizer, prompts, MAX_NEW_TOKENS, batch_size, stop="\n\n" if shots else None,
            on_batch=count_steps(progress, len(problems)),
        )  # fmt: skip
        score = reasoning_gym_score(self.asked)
        examples: list[dict[str, Any]] = []
        for problem, prompt, output in zip(problems, prompts, outputs, strict=True):
            value = score(output, problem)
            texts = {"prompt": prompt, "reference": str(problem["answer"]), "output": output.strip()}
            examples.append({**texts, "score": value, "correct": float(value >= 1)})
        answers = [str(problem["answer"]) for problem in self.problems("train", 200)]
        usual = max(sorted(set(answers)), key=answers.count)
        floors = [score(usual, problem) for problem in problems]
        return TaskResult(
            task=self.name,
            metrics={key: sum(e[key] for e in examples) / len(examples) for key in ("score", "correct")},
            declared=self.metrics,
            floors={
                "score": sum(floors) / len(floors),
                "correct": sum(value >= 1 for value in floors) / len(floors),
            },
            examples=examples,
            count=len(examples),
            seconds=time.perf_counter() - begin,
        )


def prompt_of(question: str) -> str:
    return f"Question: {question.strip()}\nAnswer:"
