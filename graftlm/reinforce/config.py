"""Settings of `graftlm reinforce`.

One field is the YAML key, the command-line flag (with dashes), its help and its default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from graftlm.errors import InputError
from graftlm.reinforce.built_in_rewards import specs
from graftlm.runs.config import option, require
from graftlm.runs.ranges import LARGEST_SEED, check_ranges
from graftlm.tuning.config import TermOptions
from graftlm.tuning.terms import term_class


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig(TermOptions):
    """Reinforcement learning with a verifiable reward, on forking tokens (arXiv 2506.01939), its formats watched
    (arXiv 2504.07912)."""

    model: str = option("smollm2-135m", "Model to train: hub id, folder, adapter folder, or smollm2-135m.")
    data: str = option(
        "reasoning-gym:chain_sum", "Prompts: reasoning-gym:NAME, a built-in task, a file with prompts, or a hub id."
    )
    data_options: dict[str, Any] = option({}, "Settings of a reasoning-gym data set, as key=value.")
    rows: int = option(1000, "Prompts made by reasoning-gym; of other data at most so many rows.", at_least=1)
    output: str = option("run", "Run folder: the trained model, run.yaml, metrics.jsonl, formats.jsonl, report.html.")
    reward: str | None = option(
        None,
        f"{', '.join(specs())}, or module:function of yours (default: the data set's own).",
    )
    reward_seconds: float = option(
        5.0,
        "Time that the reward of one completion may take (of n in one call of yours: sqrt(n) times it); then it is 0.",
        above=0,
    )
    overlong_buffer: int = option(
        0, "Last tokens of the longest completion in which its reward falls by up to 1.", at_least=0
    )
    formats: dict[str, str] = option(
        {},
        "Output format to watch, as a name and a regular expression; repeatable; the first that matches counts.",
        flag="--format",
    )
    guard: Literal["none", "within-format", "divergence"] = option(
        "none", "What keeps formats alive: compare completions within their format, or pay for a share that has grown."
    )
    guard_coefficient: float = option(0.3, "Price of the guard `divergence`, in rewards per nat.", above=0)
    forking_fraction: float = option(
        0.2, "Share of the tokens, highest entropy first, that are learnt from; 1: all.", above=0, at_most=1
    )
    forking_scope: Literal["rollout", "micro-batch", "response"] = option("rollout", "Over what the share is taken.")
    forking_normaliser: Literal["kept", "all"] = option(
        "kept", "What the policy loss is divided by: the kept tokens (paper) or all (TRL)."
    )
    forking_tokens: Literal["top", "rest", "random"] = option(
        "top", "Which tokens: the top by entropy, all others, or random ones."
    )
    beta: float = option(0.0, "Weight of the KL to the start model, over all tokens.", at_least=0)
    epsilon: float = option(0.2, "Lower clip of the probability ratio.", above=0)
    epsilon_high: float = option(0.28, "Upper clip (DAPO's clip-higher).", above=0)
    method: Literal["lora", "full"] = option("lora", "Which weights of the model are trained.")
    lora_rank: int = option(16, "LoRA rank.", at_least=1)
    lora_alpha: int = option(32, "LoRA alpha.", at_least=1)
    learning_rate: float = option(1e-5, "Learning rate of AdamW, constant.", above=0)
    num_generations: int = option(8, "Completions of each prompt, which are compared with one another.", at_least=2)
    prompts_per_step: int = option(8, "Prompts in one rollout batch, on all devices together.", at_least=1)
    batch_size: int = option(16, "Completions on one device at once while training.", at_least=1)
    updates_per_rollout: int = option(1, "Optimizer steps that a rollout batch is divided into.", at_least=1)
    max_completion_length: int = option(256, "Longest completion in tokens.", at_least=1)
    temperature: float = option(1.0, "Sampling temperature.", above=0)
    epochs: float = option(1.0, "Passes over the prompts.", above=0)
    max_steps: int | None = option(None, "Stop after so many optimizer steps instead.", at_least=1)
    save_steps: int | None = option(None, "Steps between checkpoints (default: at the end of an epoch).", at_least=1)
    vllm: bool = option(False, "Let vLLM write the rollouts, in the trainer's own process (GPU).")
    seed: int = option(0, "Seed of initialisation, order and sampling.", at_least=0, at_most=LARGEST_SEED)
    report_to: str = option(
        "none", "wandb, trackio, tensorboard, ... (comma-separated); metrics.jsonl is always there."
    )
    push_to_hub: str | None = option(None, "Hub repository for the trained model and its card (off by default).")
    trainer: dict[str, Any] = option({}, "Any further TRL GRPOConfig field, as key=value.")
    trust_remote_code: bool = option(False, "Run code that the model's repository ships.")

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in self.term_settings():
            if name in (self.terms or {}) and term_class(name).needs_labels:
                raise InputError(f"terms: {name} reads supervised labels, which completions do not have")
        require(
            self.overlong_buffer < self.max_completion_length,
            "overlong_buffer", self.overlong_buffer, "it must be below max-completion-length",
        )  # fmt: skip
        for name, pattern in self.formats.items():
            if not isinstance(pattern, str):  # out of a YAML file
                raise InputError(f"--format {name} is {pattern!r}, but a regular expression is expected (quote it)")
        require(
            self.guard == "none" or bool(self.formats),
            "guard",
            self.guard,
            "it needs --format NAME=REGEX",
        )
        completions = self.prompts_per_step * self.num_generations
        require(
            completions % (self.batch_size * self.updates_per_rollout) == 0,
            "batch_size", self.batch_size,
            f"{self.prompts_per_step} prompts x {self.num_generations} completions = {completions} must be divisible "
            f"by batch-size x updates-per-rollout = {self.batch_size * self.updates_per_rollout}",
        )  # fmt: skip
