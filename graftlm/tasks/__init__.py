"""Tasks: data, prompt and metrics in one small class each. Imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftlm.lazy import lazy_attributes

if TYPE_CHECKING:
    from graftlm.tasks.asking import Answer, Example
    from graftlm.tasks.base import Task
    from graftlm.tasks.builtin import TASKS, get_task
    from graftlm.tasks.facts import Capitals, Elements, Glosses
    from graftlm.tasks.file_probe import FileProbe
    from graftlm.tasks.harness import HarnessTask
    from graftlm.tasks.metric import Metric
    from graftlm.tasks.molecules import Molecules
    from graftlm.tasks.perplexity import Code, GeneralText
    from graftlm.tasks.reasoning import Reasoning
    from graftlm.tasks.result import TaskResult

__all__ = [
    "TASKS",
    "Answer",
    "Capitals",
    "Code",
    "Elements",
    "Example",
    "FileProbe",
    "GeneralText",
    "Glosses",
    "HarnessTask",
    "Metric",
    "Molecules",
    "Reasoning",
    "Task",
    "TaskResult",
    "get_task",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "TASKS": "graftlm.tasks.builtin",
        "Answer": "graftlm.tasks.asking",
        "Capitals": "graftlm.tasks.facts",
        "Code": "graftlm.tasks.perplexity",
        "Elements": "graftlm.tasks.facts",
        "Example": "graftlm.tasks.asking",
        "FileProbe": "graftlm.tasks.file_probe",
        "GeneralText": "graftlm.tasks.perplexity",
        "Glosses": "graftlm.tasks.facts",
        "HarnessTask": "graftlm.tasks.harness",
        "Metric": "graftlm.tasks.metric",
        "Molecules": "graftlm.tasks.molecules",
        "Reasoning": "graftlm.tasks.reasoning",
        "Task": "graftlm.tasks.base",
        "TaskResult": "graftlm.tasks.result",
        "get_task": "graftlm.tasks.builtin",
    },
)
