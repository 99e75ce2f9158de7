"""Tasks of the LM Evaluation Harness (lm-eval, the extra `eval`), run by it on the model that is loaded already."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from graftlm.data.encoding import without_end
from graftlm.errors import InputError
from graftlm.runs.console import say
from graftlm.tasks.asking import Example, Progress
from graftlm.tasks.base import Split, Task, check_options
from graftlm.tasks.metric import Kind, Metric
from graftlm.tasks.result import TaskResult

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PREFIX = "lm-eval:"
NAMES = {"acc": "accuracy", "acc_norm": "normalised_accuracy"}


@cache
def task_manager() -> Any:
    """Indexes all of the harness's files, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


class HarnessTask(Task):
    """`lm-eval:NAME`, NAME being a task, a group with a figure of its own, or the path of a task's YAML file.

    Metrics are the harness's own, with `acc` and `acc_norm` written out; where its filters give one metric several
    values, the filter stands in brackets. Floors: a guess among the choices, for accuracies.
    """

    description = "a task of the LM Evaluation Harness"

    def __init__(self, name: str) -> None:
        """InputError where lm-eval is not installed or has no such task, or where the name stands for several."""
        self.name = name  # type: ignore[misc]
        self.asked = name.removeprefix(PREFIX)
        try:
            self.manager = task_manager()
        except ImportError as error:
            raise InputError(f"{name} needs lm-eval: pip install 'graftlm[eval]'") from error
        if self.asked.endswith((".yaml", ".yml")):
            return
        matching = self.manager.match_tasks([self.asked])
        if not matching:
            raise InputError(f"lm-eval has no task {self.asked!r}; `lm-eval ls tasks` lists them")
        if len(matching) == 1 and matching[0] in self.manager.all_tags:
            matching = sorted(self.manager.task_index[matching[0]].tags)
        if len(matching) != 1:
            shown = ", ".join(f"{PREFIX}{each}" for each in matching[:4]) + (", ..." if len(matching) > 4 else "")
            raise InputError(f"{name} stands for {len(matching)} tasks, each with its own figures: name them ({shown})")
        [self.asked] = matching
        entry = self.manager.task_index[self.asked]
        if self.asked in self.manager.all_groups and not (entry.cfg or {}).get("aggregate_metric_list"):
            raise InputError(f"lm-eval has no figure for the group {name} as a whole: name its tasks")

    @cached_property
    def metrics(self) -> Sequence[Metric]:
        """As lm-eval declares them; InputError for one whose direction it does not know, or of which the tasks of a
        group do not agree."""
        from lm_eval.tasks import get_task_dict

        metrics: dict[str, Metric] = {}
        for task in _leaves(get_task_dict([self.asked], self.manager)):
            filters = [each["name"] for each in task.config.filter_list or []] or ["none"]
            for (metric, higher), chosen in itertools.product(task.higher_is_better().items(), filters):
                name = metric_name(metric, chosen)
                if higher is None or (name in metrics and metrics[name].higher_is_better != higher):
                    raise InputError(
                        f"lm-eval does not say whether {metric} of {self.name} is better high or low: set "
                        "higher_is_better in the metric_list of its YAML file"
                    )
                kind: Kind = "accuracy" if metric in NAMES and higher else "mean"
                metrics[name] = Metric(name, name.replace("_", " "), higher_is_better=higher, kind=kind)
        return tuple(metrics.values())

    def examples(self, split: Split, seed: int = 0) -> list[Example]:
        """The prompts and right answers of the harness's own evaluation set."""
        from lm_eval.tasks import get_task_dict

        if split != "test":
            raise InputError(f"{self.name} is only evaluated: it has no split {split!r}")
        examples = [each for task in _leaves(get_task_dict([self.asked], self.manager)) for each in _examples(task)]
        if not all(example.prompt for example in examples):
            raise InputError(f"{self.name} has no prompts: name another probe, on which layers can be restored")
        return examples

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
        """`limit` counts for each task of a group; the harness draws its few-shot examples with `seed`."""
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        check_options(limit, shots, batch_size)
        declared = self.metrics  # what it refuses, it refuses before the model runs
        begin = time.perf_counter()
        if progress is not None:
            progress(0, 1)
        measured: Any = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=without_end(tokenizer), batch_size=batch_size),
            tasks=[self.asked],
            task_manager=self.manager,
            num_fewshot=shots or None,
            limit=limit,
            log_samples=True,
            bootstrap_iters=0,  # the audit draws its own intervals
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
        if progress is not None:
            progress(1, 1)
        samples = [sample for of_task in measured["samples"].values() for sample in of_task]
        examples = merged_examples(samples)
        return TaskResult(
            task=self.name,
            metrics=self._declared_values(measured["results"]),
            declared=declared,
            floors=guess_floors(samples),
            examples=examples,
            count=len(examples),
            seconds=time.perf_counter() - begin,
        )

    def _declared_values(self, results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Values of the declared metrics, of the task or the group as a whole; InputError if there are none."""
        values = read_metrics(results[self.asked] if self.asked in results else next(iter(results.values())))
        known = {metric.name for metric in self.metrics}
        if unknown := [name for name in values if name not in known]:
            say(f"{self.name}: {', '.join(unknown)} left out: lm-eval does not say whether it is better high or low")
        if not known & values.keys():
            raise InputError(f"lm-eval has no figure for {self.name} as a whole: name its tasks")
        return {name: value for name, value in values.items() if name in known}


def read_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """{"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": ...} -> {"accuracy": 0.5}"""
    metrics = {}
    for key, value in result.items():
        metric, comma, chosen = key.partition(",")
        if comma and "_stderr" not in metric and isinstance(value, (int, float)):
            metrics[metric_name(metric, chosen)] = float(value)
    return metrics


def metric_name(metric: str, chosen: str) -> str:
    name = NAMES.get(metric, metric)
    return name if chosen == "none" else f"{name} ({chosen})"


def merged_examples(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One example a document: the harness lists it once for each filter."""
    examples: dict[str, dict[str, Any]] = {}
    for sample in samples:
        arguments, target = _arguments(sample), sample["target"]
        key = f"{sample['doc_id']} {sample['doc_hash']}"
        chosen = isinstance(target, int) and 0 <= target < len(arguments) > 1
        example = examples.setdefault(
            key,
            {
                "prompt": str(arguments[0][0]),
                "reference": str(arguments[target][1] if chosen else target).strip(),
                "output": _output(sample, arguments),
            },
        )
        for metric in sample["metrics"]:
            if isinstance(sample[metric], (int, float)):
                example[metric_name(metric, sample["filter"])] = float(sample[metric])
    return list(examples.values())


def guess_floors(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """A guess among the choices, where there is more than one."""
    choices = [len(sample["arguments"]) for sample in samples]
    if not choices or min(choices) < 2:
        return {}
    guess = sum(1 / count for count in choices) / len(choices)
    known = {metric_name(metric, sample["filter"]) for sample in samples for metric in sample["metrics"]}
    return {name: guess for name in known if name in NAMES.values()}


def _arguments(sample: Mapping[str, Any]) -> list[Any]:
    given = sample["arguments"]
    return list(given.values()) if isinstance(given, Mapping) else list(given)


def _output(sample: Mapping[str, Any], arguments: Sequence[Any]) -> str:
    """The generated text, or the likeliest choice."""
    answers = sample["filtered_resps"]
    if len(answers) == len(arguments) > 1:
        best = max(range(len(answers)), key=lambda place: answers[place][0])
        return str(arguments[best][1]).strip()
    return str(answers[0]) if isinstance(answers[0], str) else ""


def _leaves(tasks: Mapping[Any, Any]) -> Iterator[Any]:
    """The tasks of a group and of its groups."""
    for task in tasks.values():
        if isinstance(task, Mapping):
            yield from _leaves(task)
        else:
            yield task


def _examples(task: Any) -> Iterator[Example]:
    """One example for each document."""
    multiple_choice = task.config.output_type == "multiple_choice"
    for document in task.test_docs() if task.has_test_docs() else task.validation_docs():
        target = task.doc_to_target(document)
        if multiple_choice and isinstance(target, int):
            target = task.doc_to_choice(document)[target]
        yield Example(task.doc_to_text(document), f"{task.config.target_delimiter}{target}")
