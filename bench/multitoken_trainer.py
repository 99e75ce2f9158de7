"""The trainers whose steps are measured and profiled: graftlm's multi-token trainer and TRL's next-token trainer."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from multitoken_step import RANK
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from graftlm import MultiTokenConfig, MultiTokenHeads, MultiTokenTrainer

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def optimization_step(trainer: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Forward, backward, update, gradients cleared; the loss."""
    loss: torch.Tensor = trainer.training_step(trainer.model, dict(batch), (batch["labels"][:, 1:] != -100).sum())
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    return loss


def multitoken_trainer(
    model: Any, tokenizer: Any, *, num_heads: int, recompute_every: int, folder: str
) -> tuple[Any, MultiTokenHeads | None]:
    """A trainer that is ready for `training_step`, and its heads; TRL's own for num_heads=0."""
    settings: dict[str, Any] = {
        "model": model,
        "processing_class": tokenizer,
        "train_dataset": Dataset.from_list([{"input_ids": [1, 2], "labels": [1, 2]}]),
        "peft_config": LoraConfig(r=RANK, lora_alpha=16, target_modules=LINEAR, task_type="CAUSAL_LM"),
    }
    common: dict[str, Any] = {"report_to": "none", "gradient_checkpointing": False, "bf16": torch.cuda.is_available()}
    heads = MultiTokenHeads.from_model(model, num_heads) if num_heads else None
    if heads is not None:
        trainer: Any = MultiTokenTrainer(args=MultiTokenConfig(folder, **common), heads=heads, **settings)
    else:
        trainer = SFTTrainer(args=SFTConfig(folder, **common), **settings)
    trainer.state.max_steps = 1000
    trainer.create_optimizer()
    if recompute_every:  # as `train` does for gradient_checkpointing_kwargs={"every_n_layers": n}
        model.activation_checkpointing_enable(every_n_layers=recompute_every)
    return trainer, heads
