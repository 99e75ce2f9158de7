"""The built-in tasks by name, and every other task that a name can mean."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from graftlm.errors import InputError
from graftlm.tasks.base import Task
from graftlm.tasks.facts import Capitals, Elements, Glosses
from graftlm.tasks.file_probe import ENDINGS, FileProbe
from graftlm.tasks.harness import PREFIX, HarnessTask
from graftlm.tasks.molecules import Molecules
from graftlm.tasks.perplexity import Code, GeneralText
from graftlm.tasks.reasoning import PREFIX as REASONING
from graftlm.tasks.reasoning import Reasoning

TASKS: dict[str, type[Task]] = {task.name: task for task in (Molecules, Capitals, Elements, Glosses, GeneralText, Code)}


def get_task(name: str) -> Task:
    """The built-in task of that name, `reasoning-gym:NAME`, `lm-eval:NAME` of the LM Evaluation Harness, or the probe
    out of that file; InputError, with the nearest name, if there is none."""
    if name in TASKS:
        return TASKS[name]()
    if name.startswith(PREFIX):
        return HarnessTask(name)
    if name.startswith(REASONING):
        return Reasoning(name)
    if name.lower().endswith(ENDINGS):
        return FileProbe(Path(name))
    nearest = get_close_matches(name, TASKS, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose one of {', '.join(TASKS)}"
    raise InputError(f"unknown task {name!r}: {hint}")
