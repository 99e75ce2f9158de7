"""What `graftlm distill` and `graftlm tune` can be told.

One field is the YAML key, the command-line flag (with dashes), its help and its default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from graftlm.config import option, require

Schedule = Literal["rsine", "sine", "linear", "constant"]
Weighting = Literal["uniform", "entropy", "surprisal", "importance"]


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Growing heads on a model by self-distillation (DESIGN 4; CAFT, arXiv 2506.07833, stage 1)."""

    model: str = option("smollm2-135m", "Model to grow heads on: hub id, folder, or the bundled smollm2-135m.")
    data: str = option("molecules", "Where the domain prompts come from: a built-in task, a file, or a hub id.")
    output: str = option("heads", "Folder for the heads, the text that the model wrote and the log.")
    num_heads: int = option(4, "Heads; head k predicts the token k further than the model itself does.")
    depth: int = option(1, "Decoder layers in each head, copied from the model's last ones.")
    copy_layer: int | None = option(None, "First layer to copy into each head (default: the last `depth` layers).")
    refresh: str | None = option(
        None,
        "Folder of heads to align to this model, a tuned one, instead of growing new ones; they keep their shape.",
    )
    text: str | None = option(None, "Folder of an earlier distillation whose written text is used again.")
    domain_tokens: int = option(45_000, "Tokens that the model writes from the domain's prompts.")
    general_tokens: int = option(10_000, "Tokens that it writes from the general prompts.")
    prompts: str | None = option(None, "File of general prompts, one a line (default: a bundled set).")
    temperature: float = option(0.7, "Sampling temperature of the written text.")
    max_new_tokens: int = option(64, "Most tokens written from one prompt.")
    sampling_batch_size: int = option(128, "Texts written at once.")
    targets: Literal["soft", "sampled"] = option(
        "soft", "What a head learns: the model's own distribution k further (soft) or the written token (sampled)."
    )
    candidates: int | None = option(
        2048, "Random words scored beside the batch's own, so that not the whole vocabulary is; null scores all."
    )
    epochs: int = option(3, "Passes over the text; the model's hidden states are computed once.")
    tokens_per_batch: int = option(512, "Positions in one step.")
    learning_rate: float = option(3e-3, "Peak learning rate of AdamW, cosine with warm-up.")
    decay: float = option(0.8, "Weight of head k in the loss: decay^k.")
    held_out: float = option(0.1, "Share of the text kept for measuring agreement.")
    seed: int = option(0, "Seed of the sampling, the order and the split.")
    trust_remote_code: bool = option(False, "Run code that the model's repository ships.")

    def __post_init__(self) -> None:
        require(self.num_heads >= 1, "num_heads", self.num_heads, "at least one head is needed")
        require(self.depth >= 1, "depth", self.depth, "a head has at least one layer")
        require(self.domain_tokens >= 0, "domain_tokens", self.domain_tokens, "it cannot be negative")
        require(self.general_tokens >= 0, "general_tokens", self.general_tokens, "it cannot be negative")
        require(self.domain_tokens + self.general_tokens > 0, "domain_tokens", 0, "the model must write some text")
        require(self.temperature > 0, "temperature", self.temperature, "sampling needs a positive one")
        require(self.max_new_tokens > self.num_heads, "max_new_tokens", self.max_new_tokens, "must exceed num-heads")
        require(self.sampling_batch_size >= 1, "sampling_batch_size", self.sampling_batch_size, "must be positive")
        require(self.epochs >= 0, "epochs", self.epochs, "it cannot be negative")
        require(self.tokens_per_batch >= 1, "tokens_per_batch", self.tokens_per_batch, "must be positive")
        require(0 < self.held_out < 1, "held_out", self.held_out, "it is a share between 0 and 1")
        require(0 < self.decay <= 1, "decay", self.decay, "it must lie in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Fine-tuning with the multi-token or the next-token objective (DESIGN 3, 5; CAFT stage 2)."""

    model: str = option("smollm2-135m", "Model to tune: hub id, folder, adapter folder, or smollm2-135m.")
    data: str = option("molecules", "Training rows: a built-in task, a JSON(L), CSV or Parquet file, or a hub id.")
    output: str = option("run", "Run folder: the tuned model, run.yaml, metrics.jsonl, checkpoints.")
    objective: Literal["multi-token", "next-token"] = option("multi-token", "What is trained.")
    heads: str | None = option(None, "Folder of distilled heads, or `cold` for undistilled copies.")
    num_heads: int = option(4, "Heads where they are cold.")
    train_heads: bool = option(False, "Train the heads along instead of keeping them frozen.")
    heads_learning_rate: float | None = option(None, "Learning rate of trained heads (default: the model's).")
    coefficient: float = option(0.01, "c in L = L0 + c · s(t) · Σ d^k · L_k.")
    decay: float = option(0.8, "d in that sum.")
    schedule: Schedule = option("rsine", "s(t): rsine falls from 1 to 0, sine and linear rise, constant stays.")
    weights: Weighting = option("uniform", "Which tokens the auxiliary heads learn from.")
    forking_fraction: float = option(0.2, "Share of tokens that --weights entropy keeps.")
    method: Literal["lora", "full", "frozen-unembedding"] = option("lora", "Which weights of the model are trained.")
    lora_rank: int = option(16, "LoRA rank.")
    lora_alpha: int = option(32, "LoRA alpha.")
    lora_dropout: float = option(0.0, "LoRA dropout.")
    protect_layers: float = option(0.0, "Share of the layers, from the bottom, that is left untouched.")
    anchor: Literal["none", "kl"] = option("none", "kl adds KL(base ‖ tuned) on general text.")
    anchor_weight: float = option(0.1, "Weight of that term.")
    anchor_data: str | None = option(None, "Text rows for it (default: a bundled set).")
    learning_rate: float = option(6e-4, "Peak learning rate of AdamW.")
    epochs: float = option(1.0, "Passes over the rows.")
    max_steps: int | None = option(None, "Stop after so many optimizer steps instead.")
    batch_size: int = option(8, "Rows on one device at once.")
    gradient_accumulation: int = option(1, "Such batches in one optimizer step.")
    max_length: int = option(1024, "Longest row in tokens; longer completions are cut.")
    packing: bool = option(False, "Pack short rows into full ones, each with its own attention and positions.")
    eval_split: str | None = option(None, "Split of the data that is evaluated during training.")
    eval_steps: int | None = option(None, "Steps between evaluations (default: once an epoch).")
    save_steps: int | None = option(None, "Steps between checkpoints (default: at the end of an epoch).")
    early_stopping: int | None = option(None, "Stop after so many evaluations without improvement.")
    seed: int = option(0, "Seed of initialisation and order.")
    report_to: str = option(
        "none", "wandb, trackio, tensorboard, ... (comma-separated); metrics.jsonl is always there."
    )
    push_to_hub: str | None = option(None, "Hub repository for the tuned model and its card (off by default).")
    trainer: dict[str, Any] = option({}, "Any further TRL SFTConfig field, as key=value.")
    trust_remote_code: bool = option(False, "Run code that the model's repository ships.")

    def __post_init__(self) -> None:
        require(
            self.objective == "next-token" or self.heads is not None,
            "heads",
            self.heads,
            "multi-token tuning needs them: run `graftlm distill` first, or give --heads cold",
        )
        require(self.num_heads >= 1, "num_heads", self.num_heads, "at least one head is needed")
        require(self.coefficient >= 0, "coefficient", self.coefficient, "it cannot be negative")
        require(0 < self.decay <= 1, "decay", self.decay, "it must lie in (0, 1]")
        require(0 < self.forking_fraction <= 1, "forking_fraction", self.forking_fraction, "it must lie in (0, 1]")
        require(0 <= self.protect_layers < 1, "protect_layers", self.protect_layers, "it is a share from 0 to below 1")
        require(self.anchor_weight >= 0, "anchor_weight", self.anchor_weight, "it cannot be negative")
        anchored = self.anchor == "kl"
        require(anchored or self.anchor_data is None, "anchor_data", self.anchor_data, "it needs --anchor kl")
        own_weight = self.anchor_weight != TuneConfig.anchor_weight
        require(anchored or not own_weight, "anchor_weight", self.anchor_weight, "it needs --anchor kl")
        require(self.max_steps is None or self.max_steps >= 1, "max_steps", self.max_steps, "must be positive")
        require(self.lora_rank >= 1, "lora_rank", self.lora_rank, "must be positive")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "must be positive")
        require(
            self.gradient_accumulation >= 1, "gradient_accumulation", self.gradient_accumulation, "must be positive"
        )
        require(self.max_length >= 2, "max_length", self.max_length, "a row has at least two tokens")
        require(
            self.early_stopping is None or self.eval_split is not None,
            "early_stopping",
            self.early_stopping,
            "it needs an --eval-split",
        )
        require(
            self.early_stopping is None or self.save_steps is None,
            "save_steps",
            self.save_steps,
            "with --early-stopping each evaluation is a checkpoint: give --eval-steps instead",
        )
