"""Built-in tasks: data, prompt and metrics in one small class each."""

from __future__ import annotations

from difflib import get_close_matches

from graftlm.errors import InputError
from graftlm.tasks.base import Task, TaskResult
from graftlm.tasks.capitals import Capitals
from graftlm.tasks.molecules import Molecules

__all__ = ["TASKS", "Capitals", "Molecules", "Task", "TaskResult", "get_task"]

TASKS: dict[str, type[Task]] = {task.name: task for task in (Molecules, Capitals)}


def get_task(name: str) -> Task:
    """The built-in task of that name; InputError, with the nearest name, if there is none."""
    if name in TASKS:
        return TASKS[name]()
    nearest = get_close_matches(name, TASKS, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose one of {', '.join(TASKS)}"
    raise InputError(f"unknown task {name!r}: {hint}")
