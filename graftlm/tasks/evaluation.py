"""Measure a model on one or several tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from graftlm.errors import InputError
from graftlm.runs.console import number
from graftlm.tasks import Task, TaskResult, get_task

if TYPE_CHECKING:
    from peft import PeftModel
    from rich.table import Table
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def evaluate(
    model: str | PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase | None,
    tasks: Sequence[str | Task],
    *,
    limit: int | None = None,
    shots: int = 0,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, TaskResult]:
    """Task name -> result, in the order of `tasks`.

    `model` may be a name, which `graftlm.models.load.load_model` loads, with its tokenizer where none is given.
    The first `limit` test examples of each task are taken (None: all), with `shots` solved examples before
    each prompt. `seed` decides what a task draws, so results compare only under the same one. `progress` gets
    the task's name, the steps done and the steps in all. The model runs in eval mode; afterwards every module
    has the mode that it had.

    Raises InputError for an unknown task, no task, a task named twice, or numbers out of range.
    """
    chosen = _resolve(tasks)
    if isinstance(model, str):
        from graftlm.models.load import load_model

        model, own_tokenizer = load_model(model)
        tokenizer = tokenizer or own_tokenizer
    if tokenizer is None:
        raise InputError("evaluate needs the model's tokenizer: pass it as the second argument")
    from graftlm.models.few_rows import use_fast_cpu_products

    results = {}
    with use_fast_cpu_products(model), _eval_mode(model), _padding_side_kept(tokenizer):
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
def _eval_mode(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Eval mode; then each module's own mode again, since parts of a model may differ."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _padding_side_kept(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """graftlm's own tasks leave it alone; a user's task may not."""
    side = tokenizer.padding_side
    try:
        yield
    finally:
        tokenizer.padding_side = side
