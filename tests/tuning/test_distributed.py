"""Two gloo processes under torchrun, DDP or FSDP2, train as one process does."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from tests.tuning.plain import assert_same

ROOT = Path(__file__).parents[2]


def torchrun(processes: int, *settings: dict[str, Any], module: str = "tests.tuning.training") -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(processes),
            "-m",
            module,
            *map(json.dumps, settings),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_processes_give_the_loss_curve_of_one(
    method: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    logs, states = [], []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        settings = {
            "tokenizer": str(tmp_path / "tokenizer"),
            "output_dir": str(folder),
            "per_device_train_batch_size": 4 // processes,
            "gradient_accumulation_steps": 2,
            "max_steps": 5,
            "count": 40,
            "evaluated": 7,  # the second process has to repeat a row
            "per_device_eval_batch_size": 2,
            "train_heads": True,
            "lora_dropout": 0.0 if method == "lora" else None,
            "ddp_backend": "gloo",
        }
        torchrun(processes, settings)
        logs.append(json.loads((folder / "log.json").read_text()))
        file = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
        states.append((load_file(folder / file), load_file(folder / "heads" / "model.safetensors")))
    for name in (
        "loss",
        "grad_norm",
        "next_token_loss",
        "head_1_loss",
        "head_2_loss",
        "mean_token_accuracy",
        "entropy",
        "num_tokens",
    ):
        one, two = ([line[name] for line in log if name in line] for log in logs)
        assert len(one) == 5
        assert two == pytest.approx(one, rel=1e-4), name
    for name in ("eval_loss", "eval_next_token_loss", "eval_head_2_loss", "eval_entropy", "eval_num_tokens"):
        assert logs[1][-1][name] == pytest.approx(logs[0][-1][name], rel=1e-4), name
    for one, two in zip(*states, strict=True):
        assert_same(two, one, 1e-3)


@pytest.mark.slow
def test_sharded_weights_get_the_gradients_of_whole_ones() -> None:
    kinds = itertools.product((False, True), repeat=3)
    torchrun(
        2,
        *({"tied": tied, "adapted": adapted, "train_heads": heads} for tied, adapted, heads in kinds),
        module="tests.tuning.sharding",
    )
