"""Small RL runs that the trainer's tests and their subprocesses share.

python -m tests.reinforce.training '{"output_dir": ..., "tokenizer": ..., ...}'

trains once; see `train`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from graftlm.reinforce.format_guards import WithinFormat
from graftlm.reinforce.format_monitor import FormatMonitor
from graftlm.reinforce.formats import Format
from graftlm.reinforce.trainer import MASK, ForkingTokenGRPOConfig, ForkingTokenGRPOTrainer, loss_mask
from graftlm.tuning.terms.base import Term
from tests.conftest import tiny_model
from tests.tuning.training import Kill

TRL_WARNING = "ignore:.(is_)?gradient_checkpointing. is deprecated:FutureWarning"
"""Of transformers, to TRL."""
SMALL: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 6,
    "max_steps": 3,
    "learning_rate": 1e-2,
    "gradient_checkpointing": False,
}


def rows(count: int = 12, longest: int = 2) -> Dataset:
    """Prompts of several lengths."""
    return Dataset.from_dict({"prompt": [f"{'ab' * (i % (longest + 1))}{i}:" for i in range(count)]})


def small_bytes(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The share of low bytes among the tokens: a reward that differs between any two completions."""
    return [sum(token < 100 for token in ids) / (len(ids) + 0.1 * ids[0]) for ids in completion_ids]


def config(folder: str | Path, kind: type[GRPOConfig] = ForkingTokenGRPOConfig, **settings: Any) -> GRPOConfig:
    return kind(output_dir=str(folder), **{**SMALL, **settings})


class Recording(ForkingTokenGRPOTrainer):
    """Keeps each rollout batch with its mask, and each batch that the loss was taken from."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.rollouts: list[dict[str, Any]] = []
        self.entropies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def _rollout_entropy(self, output: dict[str, Any], mask: torch.Tensor) -> torch.Tensor:
        entropy = super()._rollout_entropy(output, mask)
        if self._recorded is not None:
            self.entropies.append((entropy, self._entropy_now(output)))
        return entropy

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        self.rollouts.append(dict(output))
        return output

    def chosen(self, batch: int = 0) -> set[tuple[tuple[int, ...], int]]:
        """(prompt and completion, place in it) of the kept tokens of a rollout batch."""
        output = self.rollouts[batch]
        kept = output[MASK] > 0
        assert not (kept & ~loss_mask(output)).any()
        ids = [
            tuple(row[mask.bool()].tolist())
            for row, mask in zip(output["prompt_ids"], output["prompt_mask"], strict=True)
        ]
        texts = [tuple(row.tolist()) for row in output["completion_ids"]]
        return {((*ids[row], *texts[row]), place) for row, place in kept.nonzero().tolist()}


def trainer(
    tokenizer: Any,
    folder: str | Path,
    *,
    kind: type[GRPOTrainer] = Recording,
    lora: bool = False,
    callbacks: list[Any] | None = None,
    reward: Any = small_bytes,
    model: Any = None,
    longest: int = 2,
    terms: Sequence[Term] = (),
    **settings: Any,
) -> GRPOTrainer:
    own = issubclass(kind, ForkingTokenGRPOTrainer)
    torch.manual_seed(0)
    return kind(
        model=tiny_model() if model is None else model,
        reward_funcs=reward,
        args=config(folder, ForkingTokenGRPOConfig if own else GRPOConfig, **settings),
        train_dataset=rows(longest=longest),
        processing_class=tokenizer,
        callbacks=callbacks,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
        **({"terms": terms} if own else {}),
    )


def train(
    tokenizer: Any,
    output_dir: str,
    *,
    kill_at: int | None = None,
    resume: bool = False,
    guarded: bool = False,
    **settings: Any,
) -> GRPOTrainer:
    """Train, save the result into `output_dir`, and what was kept of each rollout batch as chosen.json there."""
    callbacks: list[Any] = [Kill(kill_at)] if kill_at else []
    if guarded:
        monitor = FormatMonitor([Format("ascii", r"^[ -~]")], guard=WithinFormat())
        settings["reward"] = monitor.watch(small_bytes)
        callbacks.append(monitor)
    made = trainer(tokenizer, output_dir, callbacks=callbacks, **settings)
    made.train(resume_from_checkpoint=resume)
    gathered = [sorted(chosen_by_all(made, batch)) for batch in range(len(made.rollouts))]
    made.save_model()
    if made.is_world_process_zero():
        Path(output_dir, "chosen.json").write_text(json.dumps(gathered))
        Path(output_dir, "log.json").write_text(json.dumps(made.state.log_history))
    return made


def chosen_by_all(made: Any, batch: int) -> set[tuple[tuple[int, ...], int]]:
    from accelerate.utils import gather_object

    return set(gather_object(sorted(made.chosen(batch))))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for argument in sys.argv[1:]:
        given = json.loads(argument)
        train(AutoTokenizer.from_pretrained(given.pop("tokenizer")), **given)
