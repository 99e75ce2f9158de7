"""Which tokens carry the signal of RL? GRPO on the top 20 % by entropy, on the rest, on random ones, and on all.

    .venv/bin/python bench/forking_tokens.py --folder /tmp/forking                  (goes on where it was stopped)

The bundled model learns sums of three or four terms of reasoning-gym (chain_sum) in a short supervised warm start, half
of the rows worked out step by step, half answered directly, so that it half knows them: from scratch its reward is 0.
Then each arm of bench/forking_tokens.yaml trains it with the same prompts, settings and seeds, and every model is
measured on held-out problems: sampled (pass@1, pass@k) and greedy, with the share of answers worked out in steps.
Results and page go to OUTPUT/results.json and OUTPUT/report.html; how each training went lies in the folder.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from graftlm.experiments.arms import UNTRAINED, Arm, read_arm
from graftlm.experiments.run import Experiment, run_experiment
from graftlm.experiments.study import write_results
from graftlm.experiments.table import experiment_table
from graftlm.experiments.verdict import experiment_verdict
from graftlm.runs.console import plain_lines, print_findings
from graftlm.runs.files import dump_json, write_text
from graftlm.runs.run import Run
from graftlm.runs.yaml_text import parse_yaml
from graftlm.tasks import Metric, Task, TaskResult
from graftlm.tasks.reasoning import Reasoning, prompt_of
from graftlm.tasks.reasoning_answers import reasoning_gym_score
from graftlm.tuning.config import TuneConfig
from graftlm.tuning.tune import tune

MODEL, NAME = "smollm2-135m", "chain_sum"
BLOCKS: dict[str, Any] = parse_yaml(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
SETTINGS = BLOCKS["all tokens"]["reinforce"]


def problems(split: Any, size: int) -> list[dict[str, Any]]:
    return Reasoning(f"reasoning-gym:{NAME}", SETTINGS["data_options"]).problems(split, size)


def steps_of(expression: str) -> str:
    """'4 - 1 + 7' -> '4 - 1 = 3, 3 + 7 = 10'"""
    first, *rest = expression.split()
    total, written = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        after = total + int(term) if sign == "+" else total - int(term)
        written.append(f"{total} {sign} {term} = {after}")
        total = after
    return ", ".join(written)


def write_warm_rows(path: Path, count: int) -> None:
    """Every other row is worked out; the problems are other ones than RL's and the held-out ones."""
    rows = []
    for number, problem in enumerate(problems("validation", count)):
        worked = f" {steps_of(problem['metadata']['expression'])}" if number % 2 else ""
        rows.append({"prompt": prompt_of(problem["question"]),
                     "completion": f"{worked} <answer>{problem['answer']}</answer>"})  # fmt: skip
    write_text(path, "".join(dump_json(row) + "\n" for row in rows))


def warm_start(folder: Path, steps: int) -> Path:
    """The model that all arms start from."""
    model = folder / "warm" / "model"
    if not model.exists():
        write_warm_rows(folder / "warm.jsonl", 8 * steps)
        config = TuneConfig(model=MODEL, data=str(folder / "warm.jsonl"), output=str(folder / "warm"),
                            objective="next-token", method="full", learning_rate=1e-4, max_steps=steps)  # fmt: skip
        with Run.create(folder / "warm", "tune", config, {}, overwrite=(folder / "warm").exists()) as run:
            tune(config, run)
    return model


class Sums(Task):
    """Test problems that are among neither RL's prompts nor the warm start's, answered greedily and `samples` times."""

    name = "sums"
    description = "held-out sums"
    metrics = (
        Metric("pass_at_1", "pass@1", higher_is_better=True),
        Metric("pass_at_k", "pass@k", higher_is_better=True),
        Metric("greedy", "greedy", higher_is_better=True),
        Metric("steps", "worked out in steps", higher_is_better=True),
    )

    def __init__(self, count: int, samples: int) -> None:
        known = {each["question"] for split in ("train", "validation") for each in problems(split, SETTINGS["rows"])}
        self.problems = [each for each in problems("test", 2 * count) if each["question"] not in known][:count]
        self.samples = samples

    @torch.no_grad()
    def evaluate(self, model: Any, tokenizer: Any, **_: Any) -> TaskResult:
        begun = time.perf_counter()
        tokenizer.padding_side = "left"
        torch.manual_seed(0)
        examples = [entry for start in range(0, len(self.problems), 16)
                    for entry in self.answered(model, tokenizer, self.problems[start : start + 16])]  # fmt: skip
        values = {metric.name: metric.value(examples) or 0.0 for metric in self.metrics}
        return TaskResult(task=self.name, metrics=values, declared=self.metrics, examples=examples,
                          count=len(examples), seconds=time.perf_counter() - begun)  # fmt: skip

    def answered(self, model: Any, tokenizer: Any, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        score = reasoning_gym_score(NAME)
        encoded = tokenizer([prompt_of(each["question"]) for each in batch], return_tensors="pt", padding=True)
        answers = []
        for how in ({"do_sample": False}, {"do_sample": True, "top_k": 0, "num_return_sequences": self.samples}):
            output = model.generate(**encoded, **how, max_new_tokens=40, pad_token_id=tokenizer.pad_token_id)
            texts = tokenizer.batch_decode(output[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
            each = len(texts) // len(batch)
            answers.append([texts[place : place + each] for place in range(0, len(texts), each)])
        entries = []
        for problem, [greedy], sampled in zip(batch, *answers, strict=True):
            right = [float(score(text, problem) >= 1) for text in sampled]
            entries.append({"prompt": problem["question"], "reference": problem["answer"], "output": greedy,
                            "pass_at_1": sum(right) / len(right), "pass_at_k": max(right),
                            "greedy": float(score(greedy, problem) >= 1),
                            "steps": sum("=" in text for text in sampled) / len(sampled)})  # fmt: skip
        return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for the models; resumed where it is there")
    parser.add_argument("--output", type=Path, default=Path("bench/results/forking"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    given = parser.parse_args()
    start = str(warm_start(given.folder, given.warm_steps))
    common = {"model": start, "max_steps": given.steps, "learning_rate": given.learning_rate}
    arms = [read_arm(name, BLOCKS) for name in BLOCKS]
    experiment = Experiment(
        untrained=Arm(name=UNTRAINED, verb="evaluate", settings={"model": start}),
        arms=[replace(arm, settings={**arm.settings, **common}) for arm in arms],
        seeds=given.seeds,
        tasks=[Sums(given.problems, given.samples)],
    )
    results = run_experiment(experiment, given.folder, plain_lines())
    settings = {name: value for name, value in vars(given).items() if not isinstance(value, Path)}
    write_results(given.output, "results.json", results, "Which tokens carry the signal of RL?", settings)
    print_findings(experiment_table(results), experiment_verdict(results))


if __name__ == "__main__":
    main()
