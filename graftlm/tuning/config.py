"""What `graftlm tune` can be told.

One field is the YAML key, the command-line flag (with dashes), its help and its default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from graftlm.heads.config import MOST_HEADS
from graftlm.runs.config import option, require
from graftlm.runs.ranges import LARGEST_SEED, check_ranges
from graftlm.tuning.terms.settings import Schedule, Weighting


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Fine-tuning with the multi-token or the next-token objective (DESIGN 3, 5; CAFT stage 2)."""

    model: str = option("smollm2-135m", "Model to tune: hub id, folder, adapter folder, or smollm2-135m.")
    data: str = option("molecules", "Training rows: a built-in task, a JSON(L), CSV or Parquet file, or a hub id.")
    output: str = option("run", "Run folder: the tuned model, run.yaml, metrics.jsonl, checkpoints.")
    objective: Literal["multi-token", "next-token"] = option("multi-token", "What is trained.")
    heads: str | None = option(None, "Folder of distilled heads, or `cold` for undistilled copies.")
    num_heads: int = option(4, "Heads where they are cold.", at_least=1, at_most=MOST_HEADS)
    train_heads: bool = option(False, "Train the heads along instead of keeping them frozen.")
    heads_learning_rate: float | None = option(None, "Learning rate of trained heads (default: the model's).", above=0)
    coefficient: float = option(0.01, "c in L = L0 + c · s(t) · Σ d^k · L_k.", at_least=0)
    decay: float = option(0.8, "d in that sum.", above=0, at_most=1)
    schedule: Schedule = option("rsine", "s(t): rsine falls from 1 to 0, sine and linear rise, constant stays.")
    weights: Weighting = option("uniform", "Which tokens the auxiliary heads learn from.")
    forking_fraction: float = option(0.2, "Share of tokens that --weights entropy keeps.", above=0, at_most=1)
    method: Literal["lora", "full", "frozen-unembedding"] = option("lora", "Which weights of the model are trained.")
    lora_rank: int = option(16, "LoRA rank.", at_least=1)
    lora_alpha: int = option(32, "LoRA alpha.", at_least=1)
    lora_dropout: float = option(0.0, "LoRA dropout.", at_least=0, below=1)
    protect_layers: float = option(
        0.0, "Share of the layers, from the bottom, that is left untouched.", at_least=0, below=1
    )
    anchor: Literal["none", "kl"] = option("none", "kl adds KL(base ‖ tuned) on general text.")
    anchor_weight: float = option(0.1, "Weight of that term.", at_least=0)
    anchor_data: str | None = option(None, "Text rows for it (default: a bundled set).")
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
        require(
            self.objective == "next-token" or self.heads is not None,
            "heads",
            self.heads,
            "multi-token tuning needs them: run `graftlm distill` first, or give --heads cold",
        )
        anchored = self.anchor == "kl"
        require(anchored or self.anchor_data is None, "anchor_data", self.anchor_data, "it needs --anchor kl")
        own_weight = self.anchor_weight != TuneConfig.anchor_weight
        require(anchored or not own_weight, "anchor_weight", self.anchor_weight, "it needs --anchor kl")
        for name in ("early_stopping", "eval_steps"):
            value = getattr(self, name)
            require(value is None or self.eval_split is not None, name, value, "it needs an --eval-split")
        require(
            self.early_stopping is None or self.save_steps is None,
            "save_steps",
            self.save_steps,
            "with --early-stopping each evaluation is a checkpoint: give --eval-steps instead",
        )
