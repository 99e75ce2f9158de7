"""What a study trains: the ladder of arms and its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graftlm.errors import InputError
from graftlm.heads.config import MOST_HEADS
from graftlm.runs.config import option, require
from graftlm.runs.ranges import check_ranges

ARMS: dict[str, dict[str, Any]] = {
    "next-token-full": {"objective": "next-token", "method": "full"},
    "next-token-lora": {"objective": "next-token"},
    "cold-heads": {"objective": "multi-token", "heads": "cold", "train_heads": True},
    "distilled-heads": {"objective": "multi-token", "train_heads": True},
    "protected-layers": {"objective": "multi-token", "train_heads": True, "protect_layers": 0.5},
    "kl-anchor": {"objective": "multi-token", "train_heads": True, "protect_layers": 0.5, "anchor": "kl"},
    "entropy-weights": {
        "objective": "multi-token", "train_heads": True, "protect_layers": 0.5, "anchor": "kl", "weights": "entropy",
    },
    "importance-weights": {
        "objective": "multi-token", "train_heads": True, "protect_layers": 0.5, "anchor": "kl", "weights": "importance",
    },
}  # fmt: skip
"""Arm -> the fields of TuneConfig that make it. From the distilled heads on, each adds one to the arm before; the two
kinds of weights both add to the anchor."""

BELOW = {"importance-weights": "kl-anchor"}
"""Arm -> the rung that it is held against, where that is not the one before it."""

BASELINE = "next-token-lora"


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The ladder from next-token to fully protected multi-token tuning, every arm with the same rows and seeds."""

    model: str = option("smollm2-135m", "Model to tune: hub id, folder, or smollm2-135m.")
    data: str = option("molecules", "Training rows: a built-in task, a file or a hub id.")
    output: str = option("study", "Folder for heads, runs, results.json and report.html.")
    arms: str = option(
        "all",
        f"Comma-separated arms: {', '.join(ARMS)}. `all` has the last one only if the rows have token weights.",
    )
    seeds: int = option(3, "Trainings of each arm.", at_least=1)
    tasks: str = option("molecules", "Comma-separated tasks that show the gain.")
    probes: str = option("capitals,elements,general-text", "Comma-separated probes of what is forgotten.")
    limit: int = option(100, "Test examples of each.", at_least=2)
    num_heads: int = option(4, "Heads.", at_least=1, at_most=MOST_HEADS)
    coefficient: float = option(
        0.1, "Weight of the heads' loss (the paper's 0.01 is too small to show at 135M).", at_least=0
    )
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
        unknown = [arm for arm in self.chosen_arms if arm not in ARMS]
        if unknown:
            raise InputError(f"--arms names {unknown[0]!r}, but the arms are {', '.join(ARMS)}")
        require(len(self.chosen_arms) > 0, "arms", self.arms, "at least one arm is needed")

    @property
    def chosen_arms(self) -> list[str]:
        """In the order of the ladder."""
        named = list(ARMS) if self.arms == "all" else split_names(self.arms)
        return sorted(named, key=lambda arm: list(ARMS).index(arm) if arm in ARMS else -1)


def split_names(text: str) -> list[str]:
    """ "a, b" -> ["a", "b"]"""
    return [name.strip() for name in text.split(",") if name.strip()]
