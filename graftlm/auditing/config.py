"""The options of `graftlm audit`. Nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass

from graftlm.decoding.config import Steering
from graftlm.runs.config import REQUIRED, option
from graftlm.runs.ranges import LARGEST_SEED, check_ranges

DEFAULT_PROBES = ("capitals", "elements", "glosses", "general-text", "code")


@dataclass(frozen=True, kw_only=True)
class AuditConfig(Steering):
    """Options of `graftlm audit`."""

    base: str = option(REQUIRED, "The model that the others were tuned from.", argument="BASE")
    tuned: list[str] = option([], "Folders, adapters, hub ids.", argument="[TUNED]...")
    tasks: list[str] = option([], "What they were tuned for; repeatable.", flag="--task")
    probes: list[str] = option(
        list(DEFAULT_PROBES),
        "What they should still know: a built-in task, a file of prompts, or lm-eval:NAME; repeatable.",
        flag="--probe",
    )
    limit: int | None = option(100, "Test examples of each; null takes all.", at_least=2)
    layer_groups: int = option(6, "Groups of layers, each restored by itself.", at_least=1)
    formats: dict[str, str] = option(
        {}, "Output format to count, as a name and a regular expression; repeatable.", flag="--format"
    )
    fail_if: list[str] = option([], "Exit with 1 if this holds, such as 'retention<0.9'; repeatable.")
    batch_size: int = option(32, "Examples at once.", at_least=1)
    seed: int = option(0, "Seed of what is drawn.", at_least=0, at_most=LARGEST_SEED)
    output: str = option("audit", "Folder for audit.json and report.html.", resumable=False)

    def __post_init__(self) -> None:
        check_ranges(self)
