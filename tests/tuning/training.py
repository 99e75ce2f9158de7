"""Small training runs that the trainer's tests and their subprocesses share.

    python -m tests.tuning.training '{"output_dir": ..., "tokenizer": ..., ...}'

trains once for each JSON argument, in its order; see `train`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoTokenizer, TrainerCallback

from graftlm.heads.heads import MultiTokenHeads
from graftlm.tuning.trainer import MultiTokenConfig, MultiTokenTrainer
from tests.conftest import tiny_model

ANCHOR_TEXTS = ["The cat sat on the mat.", "Water boils at 100 degrees.", "Paris is in France.", "A B C", "x"] * 3


def rows(count: int = 16) -> Dataset:
    """Prompts and completions of several lengths."""
    words = ["alpha", "be", "gamma delta", "epsilon", "zeta eta theta", "iota"]
    return Dataset.from_dict(
        {
            "prompt": [f"{i}: {words[i % 6]} ->" for i in range(count)],
            "completion": [f" {words[(5 * i + 1) % 6]} {i % 7}" for i in range(count)],
        }
    )


def config(output_dir: str | Path, **settings: Any) -> MultiTokenConfig:
    defaults: dict[str, Any] = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "learning_rate": 5e-3,
        "mtp_coefficient": 0.3,
        "gradient_checkpointing": False,
        "dataset_num_proc": None,
    }
    return MultiTokenConfig(output_dir=str(output_dir), **{**defaults, **settings})


def model_and_heads(
    num_heads: int = 2, dtype: torch.dtype = torch.float32, **settings: Any
) -> tuple[nn.Module, MultiTokenHeads]:
    model = tiny_model(**settings).to(dtype)
    heads = MultiTokenHeads.from_model(model, num_heads)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(dtype)
    return model, heads


def lora(dropout: float = 0.0) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


class Kill(TrainerCallback):
    """kill -9 in the middle of training."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(
    tokenizer: Any,
    output_dir: str,
    *,
    count: int = 16,
    evaluated: int = 0,
    kill_at: int | None = None,
    resume: bool = False,
    lora_dropout: float | None = None,
    anchored: bool = False,
    model_settings: dict[str, Any] | None = None,
    **settings: Any,
) -> MultiTokenTrainer:
    """Train, save the result into `output_dir` and its log as log.json there.

    evaluated: how many rows are evaluated at the end.
    kill_at: step at which the process kills itself. resume: go on from the last checkpoint.
    """
    model, heads = model_and_heads(**(model_settings or {}))
    torch.manual_seed(1)
    trainer = MultiTokenTrainer(
        model,
        config(output_dir, **settings),
        heads=heads,
        anchor_texts=ANCHOR_TEXTS if anchored else None,
        train_dataset=rows(count),
        eval_dataset=rows(evaluated) if evaluated else None,
        processing_class=tokenizer,
        peft_config=None if lora_dropout is None else lora(lora_dropout),
        callbacks=[Kill(kill_at)] if kill_at is not None else None,
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    if evaluated:
        trainer.evaluate()
    if trainer.is_world_process_zero():
        Path(output_dir, "log.json").write_text(json.dumps(trainer.state.log_history))
    return trainer


if __name__ == "__main__":
    torch.set_num_threads(1)
    for argument in sys.argv[1:]:
        given = json.loads(argument)
        train(AutoTokenizer.from_pretrained(given.pop("tokenizer")), **given)
