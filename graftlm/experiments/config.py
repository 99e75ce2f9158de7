"""Settings of `graftlm study`, arms × seeds × measures, and of `graftlm proxy sweep`, an experiment over alpha."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graftlm.errors import InputError
from graftlm.experiments.arms import Arm, mapping, read_arm
from graftlm.heads.config import MOST_HEADS
from graftlm.runs.config import REQUIRED, describe_unknown, option, read_config_file, require, takes_earlier_names
from graftlm.runs.ranges import LARGEST_SEED, check_ranges
from graftlm.tasks import get_task

LADDER = Path("study")
"""The recipe with the arms that there are without any of the user's own."""
ALPHAS = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0]
MEASURES = {"gain": "tasks", "retention": "probes"}


@takes_earlier_names
@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Arms trained on the same rows with the same seeds, each measured on the same tasks and probes."""

    model: str = option("smollm2-135m", "Model to tune: hub id, folder, or smollm2-135m.")
    data: str = option("molecules", "Training rows: a built-in task, a file or a hub id.")
    output: str = option("study", "Folder for heads, runs, results.json and report.html.")
    arms: list[str] = option(
        ["all"],
        "Comma-separated arms, of the file's or of the ladder's (`graftlm recipes study`). `all` leaves out "
        "importance-weights unless the rows have token weights.",
    )
    own_arms: dict[str, Any] = option({}, "An arm beside the ladder's, as NAME={...}; a file has them under `arms`.")
    baseline: str = option("next-token-lora", "Arm that every later one is compared with besides.")
    seeds: int = option(3, "Trainings of each arm.", at_least=1)
    tasks: list[str] = option(["molecules"], "Comma-separated tasks that show the gain.")
    probes: list[str] = option(["capitals", "elements", "general-text"], "Comma-separated probes of what is forgotten.")
    limit: int = option(100, "Test examples of each.", at_least=2)
    num_heads: int = option(4, "Heads.", at_least=1, at_most=MOST_HEADS)
    mtp_coefficient: float = option(
        0.1, "Weight of the heads' loss (the paper's 0.01 is too small to show at 135M).", at_least=0,
        formerly="coefficient",
    )  # fmt: skip
    max_steps: int = option(50, "Optimizer steps of each training.", at_least=1)
    batch_size: int = option(8, "Rows in a step.", at_least=1)
    learning_rate: float = option(6e-4, "Peak learning rate of LoRA.", above=0)
    full_learning_rate: float = option(2e-4, "Peak learning rate of full tuning.", above=0)
    heads_learning_rate: float = option(1e-4, "Learning rate of the heads.", above=0)
    domain_tokens: int = option(26_000, "Domain text that the heads are distilled on, in tokens.", at_least=0)
    general_tokens: int = option(6_000, "General text, in tokens.", at_least=0)
    distillation_epochs: int = option(3, "Passes over that text.", at_least=0)

    def __post_init__(self) -> None:
        check_ranges(self)
        require(len(self.chosen_arms) > 0, "arms", self.arms, "at least one arm is needed")
        for measure in MEASURES.values():
            for text in getattr(self, measure):
                require(len(split_names([text])) > 0, measure, text, "names of tasks are expected")
            for name in split_names(getattr(self, measure)):
                try:
                    get_task(name)
                except InputError as error:
                    raise InputError(f"--{measure}: {error}") from error

    @staticmethod
    def from_words(given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that an experiment's own words give: `arms` may be a mapping of name to block, and `measure`
        holds `tasks` and `probes` as {gain: [...], retention: [...]}."""
        fields = dict(given)
        for name, names in mapping(fields.pop("measure", None), "measure", MEASURES).items():
            fields[MEASURES[name]] = names
        if isinstance(fields.get("arms"), Mapping):
            fields["own_arms"] = fields.pop("arms")
        return fields

    @property
    def chosen_arms(self) -> dict[str, Arm]:
        """Name -> arm, in the order of the ladder and then of the file; with the file's go those that they are from.

        Raises InputError for an unknown arm, and for a block that no arm can have.
        """
        own = {name: block for name, block in self.own_arms.items() if block is not None}
        blocks = {**read_config_file(LADDER, "study")["arms"], **own}
        wanted = split_names(self.arms)
        if wanted == ["all"]:
            parents = [read_arm(name, blocks).parent for name in own]
            wanted = [name for name in blocks if not self.own_arms or name in self.own_arms or name in parents]
        if unknown := [name for name in wanted if name not in blocks]:
            raise InputError(f"--arms names {describe_unknown(unknown[0], blocks)}")
        return {name: read_arm(name, blocks) for name in blocks if name in wanted}

    def filled(self, arm: Arm, heads: str) -> Arm:
        """The arm, with the study's settings where it has none of its own; `heads`: folder of distilled heads."""
        given: dict[str, Any] = {"model": self.model}
        if arm.verb != "evaluate":
            given["data"] = self.data
        if arm.verb == "tune":
            full = arm.settings.get("method") == "full"
            rate = self.full_learning_rate if full else self.learning_rate
            given |= {"max_steps": self.max_steps, "batch_size": self.batch_size, "learning_rate": rate}
            terms = arm.settings.get("terms")
            if arm.settings.get("objective") != "next-token" if terms is None else "multi_token" in terms:
                given |= {"heads": heads, "num_heads": self.num_heads}
                given |= {"mtp_coefficient": self.mtp_coefficient} if terms is None else {}
                given |= {"heads_learning_rate": self.heads_learning_rate} if arm.settings.get("train_heads") else {}
        return replace(arm, settings={**given, **arm.settings})


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A model steered at several strengths, measured on tasks and probes."""

    base: str = option(REQUIRED, "The model to steer.", argument="BASE")
    tuned: list[str] = option([], "Models tuned directly, to compare with.", argument="[TUNED]...")
    expert: str = option(REQUIRED, "Small tuned model or adapter that steers the model.")
    antiexpert: str | None = option(
        None, "That small model untuned. [default: the base model of an expert that is an adapter]"
    )
    tasks: list[str] = option(REQUIRED, "What the expert was tuned for; repeatable.", flag="--task")
    probes: list[str] = option(
        [], "What they should still know; repeatable. [default: those of graftlm audit]", flag="--probe"
    )
    alphas: list[float] = option(ALPHAS, "Comma-separated strengths.")
    limit: int = option(100, "Test examples of each.", at_least=2)
    batch_size: int = option(32, "Examples at once.", at_least=1)
    seed: int = option(0, "Seed of what is drawn.", at_least=0, at_most=LARGEST_SEED)
    output: str = option("sweep", "Folder for sweep.json and report.html.")

    def __post_init__(self) -> None:
        check_ranges(self)
        if not any(self.alphas):
            raise InputError("no alpha besides 0 is given: there is nothing to sweep")


def split_names(texts: Iterable[str]) -> list[str]:
    """["a, b", "c"] -> ["a", "b", "c"]"""
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]
