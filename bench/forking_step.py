"""A GRPO step on forking tokens, its formats watched, beside TRL's own step, in one process and in turns.

    .venv/bin/python bench/forking_step.py --output bench/results/forking/step.json

Both trainers get the same model with a new LoRA adapter, the same prompts and the same settings, and write completions
of the same length. Told are

- the fastest step of each, and their ratio;
- what the mask and the monitor take by the clock within a step, as a share of it. This is the surer figure: on a noisy
  machine two steps differ by more than 2 % by themselves, and without Triton TRL unembeds prompts, which the other does
  not. The agreement with the start model, one pass every 20 rollout batches, falls into the first step and is clocked
  apart.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import LoraConfig
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

import graftlm.reinforce.trainer as forking
from graftlm import ForkingTokenGRPOConfig, ForkingTokenGRPOTrainer, Format, FormatMonitor, load_model
from graftlm.reinforce.prompts import load_prompts
from graftlm.runs.console import say
from graftlm.runs.files import dump_json, write_text
from graftlm.runs.provenance import versions

MODEL, DATA = "smollm2-135m", "reasoning-gym:gsm_symbolic"


class Clock:
    """Seconds spent in the functions that it is put around."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            synchronize()
            begun = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                synchronize()
                self.seconds += time.perf_counter() - begun

        timed.__name__ = getattr(function, "__name__", "timed")
        return timed


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def even_length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text) % 2) for text in completions]


def trainer(kind: type[GRPOTrainer], rewards: Any, arguments: argparse.Namespace, callbacks: list[Any]) -> Any:
    model, tokenizer = load_model(MODEL)
    config = ForkingTokenGRPOConfig if kind is ForkingTokenGRPOTrainer else GRPOConfig
    settings = config(
        tempfile.mkdtemp(),
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        per_device_train_batch_size=arguments.batch_size,
        gradient_accumulation_steps=arguments.completions // arguments.batch_size,
        num_generations=8,
        max_completion_length=arguments.tokens,
        generation_kwargs={"min_new_tokens": arguments.tokens},
        gradient_checkpointing=False,
        max_steps=arguments.steps,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    made = kind(
        model=model,
        reward_funcs=rewards,
        args=settings,
        train_dataset=load_prompts(DATA, rows=200),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=callbacks,
    )
    made.remove_callback(PrinterCallback)
    return made


def step_times(made: Any) -> list[float]:
    made.train()
    return [line["step_time"] for line in made.state.log_history if "step_time" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="of each trainer in each round")
    parser.add_argument("--completions", type=int, default=32, help="in a step")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="of each completion")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    mask, agreement, monitoring, reward = Clock(), Clock(), Clock(), Clock()
    times: dict[str, list[float]] = {"TRL": [], "forking tokens": []}
    for number in range(arguments.rounds):
        times["TRL"] += step_times(trainer(GRPOTrainer, even_length, arguments, []))
        formats = [Format("working", r"\d\s*[-+*/]\s*\d"), Format("boxed", r"\\boxed"), Format("short", r"^.{0,20}$")]
        monitor = FormatMonitor(formats)
        watched = monitoring.around(monitor.watch(reward.around(even_length)))
        ours = trainer(ForkingTokenGRPOTrainer, watched, arguments, [monitor])
        ours._weights_of = mask.around(ours._weights_of)
        ours._rollout_entropy = mask.around(ours._rollout_entropy)
        ours._log_mask = agreement.around(ours._log_mask)
        with patch.object(forking, "token_entropy", mask.around(forking.token_entropy)):
            times["forking tokens"] += step_times(ours)
        say(f"round {number + 1}/{arguments.rounds}: " + ", ".join(f"{n} {min(t):.2f} s" for n, t in times.items()))
    ours_in_all = sum(times["forking tokens"])
    document = {
        "model": MODEL,
        "settings": {name: value for name, value in vars(arguments).items() if name != "output"},
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} CPU threads",
        "versions": versions(),
        "step_seconds": times,
        "times_trl": min(times["forking tokens"]) / min(times["TRL"]),
        "mask_share": mask.seconds / ours_in_all,
        "agreement_share_at_one_in_20": agreement.seconds
        / arguments.rounds
        / 20
        / (ours_in_all / len(times["forking tokens"])),
        "monitor_share": (monitoring.seconds - reward.seconds) / ours_in_all,
    }
    write_text(arguments.output, dump_json(document, indent=1) + "\n")
    say(f"{document['times_trl']:.3f}x TRL's step; mask {document['mask_share']:.2%}, monitor "
        f"{document['monitor_share']:.3%} of a step")  # fmt: skip


if __name__ == "__main__":
    main()
