"""Measure a model on one or several tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from graftlm.errors import InputError
from graftlm.models.given import Given, given_model
from graftlm.models.load import load_model
from graftlm.runs.console import Report, number, prefixed
from graftlm.runs.run import Run
from graftlm.tasks import TASKS, Task, TaskResult, get_task
from graftlm.tasks.config import EvaluateConfig

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedTokenizerBase


def evaluate(
    model: Given,
    tokenizer: PreTrainedTokenizerBase | None = None,
    tasks: Sequence[str | Task] | None = None,
    *,
    limit: int | None = None,
    shots: int = 0,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, TaskResult]:
    """Task name -> result, in the order of `tasks`.

    `model` is a name, which `load_model` loads, or a loaded model; without a tokenizer, its own is loaded. `tasks` are
    all built-in ones where none are given. The first `limit` test examples of each task are taken (None: all), with
    `shots` solved examples before each prompt. `seed` decides what a task draws, so results compare only under the same
    one. `progress` gets the task's name, the steps done and the steps in all. The model runs in eval mode; afterwards
    every module has the mode that it had.

    Raises InputError for an unknown task, no task, a task named twice, or numbers out of range.
    """
    chosen = _resolve(list(TASKS) if tasks is None else tasks)
    model, tokenizer = given_model(model, tokenizer)
    from graftlm.models.few_rows import use_fast_cpu_products
    from graftlm.models.modes import at_rest

    results = {}
    with use_fast_cpu_products(model), at_rest(model), _padding_side_kept(tokenizer):
        for task in chosen:
            results[task.name] = task.evaluate(
                model,
                tokenizer,
                limit=limit,
                shots=shots,
                batch_size=batch_size,
                seed=seed,
                progress=_named(progress, task.name),
            )
    return results


def evaluation_table(results: Mapping[str, Mapping[str, TaskResult]]) -> Table:
    """Rows task and metric, columns the trivial floor and each model; `results` by model and task."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("task", "metric", "floor", *results):
        table.add_column(Text(heading), justify="left" if heading in ("task", "metric") else "right")
    models = list(results.values())
    for task, first in models[0].items():
        label = f"{task} ({first.count})"
        for metric in first.declared:
            values = [number(model[task].metrics.get(metric.name)) for model in models]
            table.add_row(label, metric.name, number(metric.floor), *values)
            label = ""
    return table


def run_evaluate(
    config: EvaluateConfig, run: Run, *, load: Callable[[str], Any] = load_model, progress: Report | None = None
) -> dict[str, dict[str, TaskResult]]:
    """Model -> task -> result; where the run has an output, it is written there as JSON with every example's output.

    `load` gives a model and its tokenizer by name.
    """
    tasks = [get_task(name) for name in config.tasks or TASKS]
    results = {}
    for name in config.models:
        model, tokenizer = load(name)
        results[name] = evaluate(
            model, tokenizer, tasks, limit=config.limit, shots=config.shots, batch_size=config.batch_size,
            seed=config.seed, progress=None if progress is None else prefixed(progress, name),
        )  # fmt: skip
        del model
    run.write_json(run.file or "results.json", results_document(results, config, examples=True))
    return results


def results_document(
    results: Mapping[str, Mapping[str, TaskResult]], config: EvaluateConfig, *, examples: bool = False
) -> dict[str, Any]:
    """{"settings": ..., "results": {model: {task: {metrics, floors, count, seconds}}}}, for JSON."""
    left_out = {"task"} if examples else {"task", "examples"}
    shown = {
        model: {
            task: {key: value for key, value in asdict(result).items() if key not in left_out}
            for task, result in tasks.items()
        }
        for model, tasks in results.items()
    }
    settings: dict[str, Any] = {name: getattr(config, name) for name in ("limit", "shots", "batch_size", "seed")}
    if config.expert is not None:
        settings |= {"expert": config.expert, "antiexpert": config.antiexpert, "alpha": 1.0}
    if config.alpha is not None:
        settings["alpha"] = config.alpha
    return {"settings": settings, "results": shown}


def _resolve(tasks: Sequence[str | Task]) -> list[Task]:
    if isinstance(tasks, str):
        tasks = [tasks]
    chosen = [get_task(task) if isinstance(task, str) else task for task in tasks]
    names = [task.name for task in chosen]
    if not names:
        raise InputError("no task given: name at least one, for example 'molecules'")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"task {name!r} is given twice: name each task once")
    return chosen


def _named(progress: Callable[[str, int, int], None] | None, name: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(name, done, total)


@contextmanager
def _padding_side_kept(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """graftlm's own tasks leave it alone; a user's task may not."""
    side = tokenizer.padding_side
    try:
        yield
    finally:
        tokenizer.padding_side = side
