"""One RL run from a pretrained model: GRPO with TRL's trainer, or expert iteration; what becomes of the formats.

    .venv/bin/python bench/format_collapse/reinforcement.py --models M --results R --scale small --mixture 4x

Where this differs from the paper:
1. An epoch has PROBLEMS problems, not 7,473; a run has EPOCHS of them, not 10.
2. The temperature is 1, so that what is measured is the policy that is trained.
3. Advantages are divided by the standard deviation of the batch, not of the group: a guard's rewards differ a little
   within a group of correct completions, and the group's own deviation would blow that up.
4. Expert iteration draws as many completions an epoch as GRPO, not 64 for each problem, and trains the last
   iteration's model on. Equal completions stay: solutions this short repeat, and without repeats the shares level.
5. PPO is left out: TRL 1.16 has no PPO trainer any more, not even among its experimental ones.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from measurement import NEW_TOKENS, condensed, measure, sample, some_problems
from pretrain import MIXTURES, SCALES, descend, load, pretrain
from problems import FORMATS, Problem, format_of, read_answer
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from graftlm.reinforce.format_guards import FormatDivergence, Guard, WithinFormat
from graftlm.reinforce.format_monitor import FormatMonitor
from graftlm.reinforce.formats import Format
from graftlm.runs.console import say
from graftlm.runs.files import write_text

PROBLEMS = 640  # in an epoch
EPOCHS = 3
PROMPTS, GENERATIONS = 8, 8  # of an optimizer step, and of each prompt
STEPS = PROBLEMS // PROMPTS  # in an epoch
LEARNING_RATE = {"small": 4e-4, "large": 2e-4}
EXPERT_RATE = {"small": 8e-4, "large": 4e-4}
BATCH = 64  # completions in a step of expert iteration
QUICK, FULL = 4, 64  # samples of each held-out problem
QUICK_PROBLEMS, FULL_PROBLEMS = 96, 64
QUICK_STEPS = {STEPS // 8, STEPS // 4, STEPS // 2, STEPS * 3 // 4}  # besides every end of an epoch
GUARDS: dict[str, Guard | None] = {
    "none": None, "within-format": WithinFormat(), "format-divergence": FormatDivergence(0.3),
    "format-divergence-0.1": FormatDivergence(0.1),  # added when the price of 0.3 was known
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Run:
    """A cell of the grid and a seed; `beta` is GRPO's KL coefficient, `guard` a key of GUARDS."""

    scale: str
    mixture: str
    algorithm: str = "grpo"
    beta: float = 0.0
    guard: str = "none"
    seed: int = 0

    @property
    def arm(self) -> str:
        if self.algorithm != "grpo":
            return self.algorithm
        return f"grpo beta {self.beta:g}" if self.guard == "none" else f"grpo {self.guard}"

    @property
    def name(self) -> str:
        return f"{self.scale}-{self.mixture}-{self.arm.replace(' ', '-')}-seed-{self.seed}"


class Record(TrainerCallback):
    """The run's JSON, written anew after every measurement; `step` is the optimizer step of GRPO, or what equals it."""

    def __init__(self, run: Run, path: Path, model: Any, tokenizer: Any) -> None:
        self.path, self.model, self.tokenizer = path, model, tokenizer
        self.begun = time.monotonic()
        self.found: dict[str, Any] = {"run": {**asdict(run), "arm": run.arm}, "complete": False, "measurements": []}
        self.quick, self.full = some_problems("test", QUICK_PROBLEMS, 1), some_problems("test", FULL_PROBLEMS, 2)

    def measure(self, step: int) -> None:
        """At the start, the first epoch's end and the end with 64 samples of each problem, else with 4."""
        full = step in (0, STEPS, STEPS * EPOCHS)
        tasks, each = (self.full, FULL) if full else (self.quick, QUICK)
        found = measure(self.model, self.tokenizer, tasks, each=each, seed=step)
        self.found["measurements"].append({"step": step, "epoch": step / STEPS, "full": full, **found})
        self.write()

    def write(self) -> None:
        self.found["seconds"] = time.monotonic() - self.begun
        write_text(self.path, json.dumps(self.found, indent=1) + "\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in QUICK_STEPS or state.global_step % STEPS == 0:
            self.measure(state.global_step)
            self.model.train()


def reward(prompts: list[str], completions: list[str], answer: list[int], **_: Any) -> list[float]:
    return [float(read_answer(text) == right) for text, right in zip(completions, answer, strict=True)]


def grpo(run: Run, model: Any, tokenizer: Any, tasks: list[Problem], shares: dict[str, float], record: Record) -> None:
    formats = [Format(name, lambda text, name=name: format_of(text) == name) for name in FORMATS]
    monitor = FormatMonitor(formats, guard=GUARDS[run.guard], start_shares=shares)
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            folder, learning_rate=LEARNING_RATE[run.scale], lr_scheduler_type="constant", max_steps=STEPS * EPOCHS,
            per_device_train_batch_size=PROMPTS * GENERATIONS, num_generations=GENERATIONS, beta=run.beta,
            max_completion_length=NEW_TOKENS, temperature=1.0, scale_rewards="batch", seed=run.seed,
            logging_steps=STEPS, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, bf16=False,
            gradient_checkpointing=False, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=model, args=settings, reward_funcs=monitor.watch(reward), processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": task.prompt, "answer": task.answer} for task in tasks]),
            callbacks=[monitor, record],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    record.found["rollouts"] = condensed(monitor.history)


def expert_iteration(run: Run, model: Any, tokenizer: Any, tasks: list[Problem], record: Record) -> None:
    """Sample GENERATIONS completions of every problem, train once on the correct ones, repeat."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=EXPERT_RATE[run.scale], weight_decay=0.0)
    draw = random.Random(run.seed)
    for epoch in range(1, EPOCHS + 1):
        prompts = [task.prompt for task in tasks]
        written = sample(model, tokenizer, prompts, each=GENERATIONS, seed=1000 * run.seed + epoch)
        kept = [(task.prompt, text) for task, texts in zip(tasks, written, strict=True)
                for text in texts if read_answer(text) == task.answer]  # fmt: skip
        draw.shuffle(kept)
        model.train()
        for start in range(0, len(kept), BATCH):
            descend(model, tokenizer, optimizer, kept[start : start + BATCH])
        record.measure(epoch * STEPS)


def reinforce(run: Run, models: Path, results: Path) -> dict[str, Any]:
    """What the run's JSON says, run if it is not complete; the model must be pretrained, or is now."""
    path = results / f"{run.name}.json"
    if path.exists() and (found := json.loads(path.read_text()))["complete"]:
        return found
    folder = pretrain(models, run.scale, run.mixture)
    base = json.loads((folder / "pretraining.json").read_text())
    torch.manual_seed(run.seed)
    model, tokenizer = load(folder)
    tasks = some_problems("train", PROBLEMS, seed=-1)
    record = Record(run, path, model, tokenizer)
    record.found["settings"] = {
        "problems": PROBLEMS, "epochs": EPOCHS, "prompts": PROMPTS, "generations": GENERATIONS,
        "learning_rate": (LEARNING_RATE if run.algorithm == "grpo" else EXPERT_RATE)[run.scale],
        "parameters": base["parameters"], "mixture": base["mixture"], "threads": torch.get_num_threads(),
    }  # fmt: skip
    record.measure(0)
    if run.algorithm == "grpo":
        grpo(run, model, tokenizer, tasks, base["sampled"]["shares"], record)
    else:
        expert_iteration(run, model, tokenizer, tasks, record)
    assert all(parameter.isfinite().all() for parameter in model.parameters()), "the weights are not finite"
    record.found["complete"] = True
    record.write()
    return record.found


def told(found: dict[str, Any]) -> str:
    """A line on how a run went: shares before -> after its first epoch -> at its end, and pass@1, pass@k, majority."""
    full = [each for each in found["measurements"] if each["full"]]
    parts = [f"{form} {' → '.join(format(each['shares'][form], '.0%') for each in full)}" for form in FORMATS]
    for key, name in (("pass_at_1", "pass@1"), ("pass_at_k", "pass@64"), ("majority_at_k", "majority@64")):
        parts.append(f"{name} {' → '.join(format(each[key], '.1%') for each in full)}")
    return ", ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--scale", choices=SCALES, required=True)
    parser.add_argument("--mixture", choices=MIXTURES, required=True)
    parser.add_argument("--algorithm", choices=("grpo", "expert-iteration"), default="grpo")
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--guard", choices=GUARDS, default="none")
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    models, results = given.pop("models"), given.pop("results")
    run = Run(**given)
    say(f"{run.name}: {told(reinforce(run, models, results))}")


if __name__ == "__main__":
    main()
