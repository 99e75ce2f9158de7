"""Settings of `graftlm tune`.

One field is the YAML key, the command-line flag (with dashes), its help and its default.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from graftlm.errors import InputError
from graftlm.heads.config import MOST_HEADS
from graftlm.runs.config import coerce, declared, describe, option, require, takes_earlier_names
from graftlm.runs.ranges import LARGEST_SEED, check_ranges
from graftlm.tuning.terms import TERMS, term_class
from graftlm.tuning.terms.settings import (
    KLAnchorSettings,
    MultiTokenSettings,
    Schedule,
    TermSettings,
    Weighting,
    read_settings,
)

MULTI_TOKEN_FLAGS = {
    "mtp_coefficient": "weight",
    "mtp_decay": "decay",
    "mtp_schedule": "schedule",
    "mtp_weights": "token_weights",
    "forking_fraction": "forking_fraction",
}
"""Field of TuneConfig -> field of MultiTokenSettings."""
OF_HEADS = ("heads", "num_heads", "train_heads", "heads_learning_rate")


def refuse_idle(config: Any, names: Iterable[str], rule: str, prefix: str = "--") -> None:
    """InputError for the first of these fields that is not at its default, since nothing reads it."""
    for name in names:
        value, default = getattr(config, name), type(config).__dataclass_fields__[name].default
        if value != default:
            shown = name.replace("_", "-") if prefix else name
            raise InputError(f"{prefix}{shown} is {describe(value)}, but {rule}")


@dataclass(frozen=True, kw_only=True)
class TermOptions:
    """Terms of the loss that keep what the base model knows.

    FLAGS: term that has fields of its own here -> its settings, the fields of them, and the flag that asks for it.
    """

    FLAGS: ClassVar[dict[str, tuple[type[TermSettings], dict[str, str], str]]] = {
        "kl_anchor": (KLAnchorSettings, {"anchor_weight": "weight", "anchor_data": "data"}, "--anchor kl")
    }

    anchor: Literal["none", "kl"] = option("none", "kl adds KL(base ‖ tuned) on general text.")
    anchor_weight: float = declared(KLAnchorSettings, "weight")
    anchor_data: str | None = declared(KLAnchorSettings, "data")
    terms: dict[str, Any] | None = option(
        None,
        f"Terms added to the loss, as NAME={{setting: value, ...}}; names: {', '.join(TERMS)}. Flags stand for some.",
    )

    @property
    def terms_of_flags(self) -> list[str]:
        """The terms that flags ask for."""
        return ["kl_anchor"] if self.anchor == "kl" else []

    def term_settings(self) -> dict[str, TermSettings]:
        """The terms beside the loss itself with their settings, from the flags and from `terms`.

        Raises InputError for an unknown term or setting, and for a setting of a term that is not there.
        """
        settings: dict[str, TermSettings] = {}
        for name, (kind, flags, asked) in self.FLAGS.items():
            if name in (self.terms or {}):
                refuse_idle(self, flags, f"terms gives the settings of {name}: say it there")
            elif name in self.terms_of_flags:
                settings[name] = kind(**{name: getattr(self, flag) for flag, name in flags.items()})
            else:
                refuse_idle(self, flags, f"it needs {asked}")
        for name, given in (self.terms or {}).items():
            culprit = f"terms: {name}"
            block = coerce({} if given is None else given, dict[str, Any], culprit)
            settings[name] = read_settings(term_class(name).Settings, block, culprit)
        return settings


@takes_earlier_names
@dataclass(frozen=True, kw_only=True)
class TuneConfig(TermOptions):
    """Fine-tuning with the multi-token or the next-token objective, and terms that keep what the base model knows."""

    FLAGS: ClassVar[dict[str, tuple[type[TermSettings], dict[str, str], str]]] = {
        "multi_token": (MultiTokenSettings, MULTI_TOKEN_FLAGS, "--objective multi-token"),
        **TermOptions.FLAGS,
    }

    model: str = option("smollm2-135m", "Model to tune: hub id, folder, adapter folder, or smollm2-135m.")
    data: str = option("molecules", "Training rows: a built-in task, a JSON(L), CSV or Parquet file, or a hub id.")
    output: str = option("run", "Run folder: the tuned model, run.yaml, metrics.jsonl, checkpoints.")
    objective: Literal["multi-token", "next-token"] = option("multi-token", "What is trained.")
    heads: str | None = option(None, "Folder of distilled heads, or `cold` for undistilled copies.")
    num_heads: int = option(4, "Heads where they are cold.", at_least=1, at_most=MOST_HEADS)
    train_heads: bool = option(False, "Train the heads along instead of keeping them frozen.")
    heads_learning_rate: float | None = option(None, "Learning rate of trained heads (default: the model's).", above=0)
    mtp_coefficient: float = declared(MultiTokenSettings, "weight", formerly="coefficient")
    mtp_decay: float = declared(MultiTokenSettings, "decay", formerly="decay")
    mtp_schedule: Schedule = declared(MultiTokenSettings, "schedule", formerly="schedule")
    mtp_weights: Weighting = declared(MultiTokenSettings, "token_weights", formerly="weights")
    forking_fraction: float = declared(MultiTokenSettings, "forking_fraction")
    method: Literal["lora", "full", "frozen-unembedding"] = option("lora", "Which weights of the model are trained.")
    lora_rank: int = option(16, "LoRA rank.", at_least=1)
    lora_alpha: int = option(32, "LoRA alpha.", at_least=1)
    lora_dropout: float = option(0.0, "LoRA dropout.", at_least=0, below=1)
    protect_layers: float = option(
        0.0, "Share of the layers, from the bottom, that is left untouched.", at_least=0, below=1
    )
    learning_rate: float = option(6e-4, "Peak learning rate of AdamW.", above=0)
    epochs: float = option(1.0, "Passes over the rows.", above=0)
    max_steps: int | None = option(None, "Stop after so many optimizer steps instead.", at_least=1)
    batch_size: int = option(8, "Rows on one device at once.", at_least=1)
    gradient_accumulation: int = option(1, "Such batches in one optimizer step.", at_least=1)
    max_length: int = option(1024, "Longest row in tokens; longer completions are cut.", at_least=2)
    packing: bool = option(False, "Pack short rows into full ones, each with its own attention and positions.")
    eval_split: str | None = option(None, "Split of the data that is evaluated during training.")
    eval_steps: int | None = option(None, "Steps between evaluations (default: once an epoch).", at_least=1)
    save_steps: int | None = option(None, "Steps between checkpoints (default: at the end of an epoch).", at_least=1)
    early_stopping: int | None = option(None, "Stop after so many evaluations without improvement.", at_least=1)
    seed: int = option(0, "Seed of initialisation and order.", at_least=0, at_most=LARGEST_SEED)
    report_to: str = option(
        "none", "wandb, trackio, tensorboard, ... (comma-separated); metrics.jsonl is always there."
    )
    push_to_hub: str | None = option(None, "Hub repository for the tuned model and its card (off by default).")
    trainer: dict[str, Any] = option({}, "Any further TRL SFTConfig field, as key=value.")
    trust_remote_code: bool = option(False, "Run code that the model's repository ships.")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.terms is not None and "multi_token" not in self.terms:
            object.__setattr__(self, "objective", "next-token")
        self.term_settings()
        self._check_heads()
        for name in ("early_stopping", "eval_steps"):
            value = getattr(self, name)
            require(value is None or self.eval_split is not None, name, value, "it needs an --eval-split")
        require(
            self.early_stopping is None or self.save_steps is None,
            "save_steps",
            self.save_steps,
            "with --early-stopping each evaluation is a checkpoint: give --eval-steps instead",
        )

    @property
    def terms_of_flags(self) -> list[str]:
        return [*super().terms_of_flags, *(["multi_token"] if self.objective == "multi-token" else [])]

    def _check_heads(self) -> None:
        if self.objective == "next-token":
            both = "multi_token" in (self.terms or {})
            require(not both, "objective", self.objective, "terms has multi_token: leave out one")
            refuse_idle(self, OF_HEADS, "it needs --objective multi-token")
            return
        require(
            self.heads is not None,
            "heads",
            self.heads,
            "multi-token tuning needs them: run `graftlm distill` first, or give --heads cold",
        )
        if not self.train_heads:
            refuse_idle(self, ["heads_learning_rate"], "it needs --train-heads")
