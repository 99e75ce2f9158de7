"""Settings of `graftlm distill` and `graftlm export`.

One field is the YAML key, the command-line flag (with dashes), its help and its default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from graftlm.runs.config import REQUIRED, option, require
from graftlm.runs.ranges import LARGEST_SEED, check_ranges

MOST_HEADS = 128  # each is a decoder layer; more fill the memory of any machine


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Growing heads on a model by self-distillation (CAFT, arXiv 2506.07833, stage 1)."""

    model: str = option("smollm2-135m", "Model to grow heads on: hub id, folder, or the bundled smollm2-135m.")
    data: str = option("molecules", "Where the domain prompts come from: a built-in task, a file, or a hub id.")
    output: str = option("heads", "Folder for the heads, the text that the model wrote and the log.")
    num_heads: int = option(
        4, "Heads; head k predicts the token k further than the model itself does.", at_least=1, at_most=MOST_HEADS
    )
    depth: int = option(1, "Decoder layers in each head, copied from the model's last ones.", at_least=1)
    copy_layer: int | None = option(
        None, "First layer to copy into each head (default: the last `depth` layers).", at_least=0
    )
    refresh: str | None = option(
        None,
        "Folder of heads to align to this model, a tuned one, instead of growing new ones; they keep their shape.",
    )
    text: str | None = option(None, "Folder of an earlier distillation whose written text is used again.")
    domain_tokens: int = option(45_000, "Tokens that the model writes from the domain's prompts.", at_least=0)
    general_tokens: int = option(10_000, "Tokens that it writes from the general prompts.", at_least=0)
    prompts: str | None = option(None, "File of general prompts, one a line (default: a bundled set).")
    temperature: float = option(0.7, "Sampling temperature of the written text.", above=0)
    max_new_tokens: int = option(64, "Most tokens written from one prompt.", at_least=1)
    sampling_batch_size: int = option(128, "Texts written at once.", at_least=1)
    targets: Literal["soft", "sampled"] = option(
        "soft", "What a head learns: the model's own distribution k further (soft) or the written token (sampled)."
    )
    candidates: int | None = option(
        2048,
        "Random words scored beside the batch's own, so that not the whole vocabulary is; null scores all.",
        at_least=1,
    )
    epochs: int = option(3, "Passes over the text; the model's hidden states are computed once.", at_least=0)
    tokens_per_batch: int = option(512, "Positions in one step.", at_least=1)
    learning_rate: float = option(3e-3, "Peak learning rate of AdamW, cosine with warm-up.", above=0)
    decay: float = option(0.8, "Weight of head k in the loss: decay^k.", above=0, at_most=1)
    held_out: float = option(0.1, "Share of the text kept for measuring agreement.", above=0, below=1)
    seed: int = option(0, "Seed of the sampling, the order and the split.", at_least=0, at_most=LARGEST_SEED)
    trust_remote_code: bool = option(False, "Run code that the model's repository ships.")

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.domain_tokens + self.general_tokens > 0, "domain_tokens", 0, "the model must write some text")
        require(self.max_new_tokens > self.num_heads, "max_new_tokens", self.max_new_tokens, "must exceed num-heads")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Options of `graftlm export`."""

    model: str = option(REQUIRED, "Hub id, folder or adapter folder that the heads belong to.", argument="MODEL")
    heads: str = option(REQUIRED, "Folder of heads of `graftlm distill`.")
    output: str = option(REQUIRED, "Folder for config.json and model.safetensors.", resumable=False)
    verifier: str | None = option(None, "Where the engine finds the model (default: MODEL).")
    trust_remote_code: bool = option(False, "Run code that the model's repository ships.")
