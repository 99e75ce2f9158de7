"""The options of `graftlm generate`, and those of all commands that can steer a model. Nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from graftlm.data.readers import read_lines
from graftlm.errors import InputError
from graftlm.runs.config import option
from graftlm.runs.ranges import LARGEST_SEED, check_ranges


@dataclass(frozen=True, kw_only=True)
class Steering:
    """A small tuned model that steers the model (proxy-tuning)."""

    expert: str | None = option(None, "Small tuned model or adapter that steers the model (proxy-tuning).")
    antiexpert: str | None = option(
        None, "That small model untuned (default: the base model of an expert that is an adapter)."
    )
    alpha: float | None = option(
        None, "How strongly it steers: 0 not at all, 1 as in the paper (default: 1, or as it was saved)."
    )


@dataclass(frozen=True, kw_only=True)
class Drafting(Steering):
    """Heads that draft for the model."""

    heads: str | None = option(
        None, "Folder of heads of `graftlm distill` that draft: the same text in fewer passes.", formerly="draft"
    )

    def __post_init__(self) -> None:
        if self.heads is not None and self.expert is not None:
            raise InputError(
                "--heads and --expert exclude each other: the heads know the model without its expert; leave one out"
            )


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Drafting):
    """Options of `graftlm generate`."""

    model: str = option("smollm2-135m", "Hub id, folder or adapter folder.", argument="MODEL")
    prompts: list[str] = option([], "Prompt to continue or answer; repeatable.", flag="--prompt")
    file: str | None = option(None, "Text file with one prompt a line.")
    max_new_tokens: int = option(128, "Most tokens to write for each prompt.", at_least=1)
    temperature: float = option(0.0, "Sampling temperature; 0 takes the likeliest token each time.", at_least=0)
    seed: int = option(0, "Seed of the sampling.", at_least=0, at_most=LARGEST_SEED)
    chat: bool | None = option(None, "Use the chat template (default: if there is one).")
    compare: bool = option(False, "With --heads: write each text again without, and say how much faster they are.")
    output: str | None = option(None, "Folder for texts.jsonl (default: texts are only printed).", resumable=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self)
        if not self.prompts and self.file is None:
            raise InputError("there is no prompt; give --prompt TEXT or --file FILE")
        if self.compare and self.heads is None:
            raise InputError("--compare needs --heads FOLDER: there is nothing to compare")

    @property
    def all_prompts(self) -> list[str]:
        """Those of the flag, then those of the file."""
        prompts = [*self.prompts, *(read_lines(Path(self.file), "--file") if self.file is not None else [])]
        if not prompts:
            raise InputError(f"--file {self.file} holds no prompt; write one a line")
        return prompts
