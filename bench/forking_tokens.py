"""Which tokens carry the signal of RL? GRPO on the top 20 % by entropy, on the rest, on random ones, and on all.

    .venv/bin/python bench/forking_tokens.py --folder /tmp/forking --minutes 50      (again and again until all is done)

The bundled model learns sums of three or four terms of reasoning-gym (chain_sum) in a short supervised warm start, half
of the rows worked out step by step, half answered directly, so that it half knows them: from scratch its reward is 0.
Then each arm trains it with the same prompts, settings and seeds by graftlm reinforce, and every model is measured on
held-out problems: sampled (pass@1, pass@k) and greedy, with the share of answers worked out in steps.

A finished run is not done again. What is there is summed up in OUTPUT/results.json and OUTPUT/results.md at the end of
every call.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from intervals import difference, mean, spread

from graftlm import load_model
from graftlm.reinforce.config import ReinforceConfig
from graftlm.reinforce.reinforce import reinforce
from graftlm.runs.console import say
from graftlm.runs.files import dump_json, read_json_lines, write_text
from graftlm.runs.provenance import versions
from graftlm.runs.run import Run
from graftlm.tasks.reasoning import Reasoning, prompt_of
from graftlm.tasks.reasoning_answers import reasoning_gym_score
from graftlm.tuning.config import TuneConfig
from graftlm.tuning.tune import tune

MODEL, NAME = "smollm2-135m", "chain_sum"
OPTIONS = {"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 1}
ARMS: dict[str, dict[str, Any]] = {
    "all tokens": {"forking_fraction": 1.0},
    "top 20 %": {"forking_fraction": 0.2},
    "bottom 80 %": {"forking_fraction": 0.2, "forking_tokens": "rest"},
    "random 20 %": {"forking_fraction": 0.2, "forking_tokens": "random"},
}
FORMATS = {"steps": "=", "direct": "^[^=]*<answer>"}
START = "start model"
PROMPTS = 2000
RESULT = "measured.json"


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
    for number, problem in enumerate(Reasoning(f"reasoning-gym:{NAME}", OPTIONS).problems("validation", count)):
        worked = f" {steps_of(problem['metadata']['expression'])}" if number % 2 else ""
        rows.append({"prompt": prompt_of(problem["question"]),
                     "completion": f"{worked} <answer>{problem['answer']}</answer>"})  # fmt: skip
    write_text(path, "".join(dump_json(row) + "\n" for row in rows))


def warm_start(folder: Path, arguments: argparse.Namespace) -> Path:
    """The model that all arms start from."""
    model = folder / "warm" / "model"
    if not model.exists():
        rows = folder / "warm.jsonl"
        write_warm_rows(rows, 8 * arguments.warm_steps)
        config = TuneConfig(model=MODEL, data=str(rows), output=str(folder / "warm"), objective="next-token",
                            method="full", learning_rate=1e-4, max_steps=arguments.warm_steps)  # fmt: skip
        with Run.create(folder / "warm", "tune", config, {}, overwrite=(folder / "warm").exists()) as run:
            tune(config, run)
    return model


def config_of(arm: str, seed: int, start: Path, folder: Path, arguments: argparse.Namespace) -> ReinforceConfig:
    return ReinforceConfig(
        model=str(start), data=f"reasoning-gym:{NAME}", data_options=OPTIONS, rows=PROMPTS, output=str(folder),
        formats=FORMATS, learning_rate=arguments.learning_rate, num_generations=8, prompts_per_step=8, batch_size=32,
        max_completion_length=40, max_steps=arguments.steps, save_steps=10, seed=seed, **ARMS[arm],
    )  # fmt: skip


def held_out(count: int) -> list[dict[str, Any]]:
    """Test problems that are among neither RL's prompts nor the warm start's."""
    task = Reasoning(f"reasoning-gym:{NAME}", OPTIONS)
    known = {each["question"] for split in ("train", "validation") for each in task.problems(split, PROMPTS)}
    return [each for each in task.problems("test", 2 * count) if each["question"] not in known][:count]


@torch.no_grad()
def measure(folder: str | Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Correctness of greedy and of sampled completions of held-out problems, one row a problem."""
    model, tokenizer = load_model(str(folder))
    model.eval()
    tokenizer.padding_side = "left"
    score = reasoning_gym_score(NAME)
    problems = held_out(arguments.problems)
    greedy, sampled, stepped = [], [], []
    torch.manual_seed(0)
    for start in range(0, len(problems), 16):
        batch = problems[start : start + 16]
        encoded = tokenizer([prompt_of(each["question"]) for each in batch], return_tensors="pt", padding=True)
        for samples in (1, arguments.samples):
            how = (
                {"do_sample": True, "top_k": 0, "num_return_sequences": samples}
                if samples > 1
                else {"do_sample": False}
            )
            output = model.generate(**encoded, **how, max_new_tokens=40, pad_token_id=tokenizer.pad_token_id)
            texts = tokenizer.batch_decode(output[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
            right = [float(score(text, batch[place // samples]) >= 1) for place, text in enumerate(texts)]
            if samples == 1:
                greedy += right
            else:
                sampled += np.array(right).reshape(-1, samples).tolist()
                stepped += ["=" in text for text in texts]
    return {"greedy": greedy, "sampled": sampled, "steps": sum(stepped) / len(stepped)}


def runs(arguments: argparse.Namespace) -> Iterator[tuple[str, int]]:
    for seed in range(arguments.seeds):
        yield from ((arm, seed) for arm in ARMS)


def train_and_measure(arm: str, seed: int, start: Path, arguments: argparse.Namespace) -> None:
    folder = arguments.folder / f"{arm.replace(' ', '-').replace('%', 'percent')}-{seed}"
    if (folder / RESULT).exists():
        return
    config = config_of(arm, seed, start, folder, arguments)
    if not (folder / "model").exists():
        with Run.create(folder, "reinforce", config, {}, resume=folder.exists()) as run:
            reinforce(config, run)
    lines = read_json_lines(folder / "metrics.jsonl")
    found = {
        "arm": arm,
        "seed": seed,
        "rewards": [line["reward"] for line in lines if "reward" in line],
        "entropy": [line["entropy"] for line in lines if "entropy" in line],
        "start_agreement": [line["forking/start_agreement"] for line in lines if "forking/start_agreement" in line],
        "shares": [line["shares"] for line in read_json_lines(folder / "formats.jsonl")],
        "seconds": next((line["train_runtime"] for line in reversed(lines) if "train_runtime" in line), None),
        **measure(folder / "model", arguments),
    }
    write_text(folder / RESULT, dump_json(found))


def table(document: dict[str, Any]) -> str:
    """Markdown: the start model, then each arm with mean, range and number of seeds."""
    start, every = document["start"], document["runs"]
    k = len(start["sampled"][0])
    lines = [
        f"| trained on | seeds | pass@1 | against all tokens | pass@{k} | greedy | worked out in steps |",
        "|---|---|---|---|---|---|---|",
        f"| {START} | | {mean(start['sampled']):.3f} | | {passed(start):.3f} | {mean(start['greedy']):.3f} | "
        f"{start['steps']:.0%} |",
    ]
    groups = {arm: [run for run in every if run["arm"] == arm] for arm in ARMS}
    whole = groups["all tokens"]
    for arm, group in groups.items():
        if not group:
            continue
        common = [run for run in group if run["seed"] in {other["seed"] for other in whole}]
        others = [run for run in whole if run["seed"] in {other["seed"] for other in common}]
        beside = (
            ""
            if arm == "all tokens" or not common
            else "{:+.3f} [{:+.3f}, {:+.3f}]".format(
                *difference(*([np.mean(run["sampled"], axis=1) for run in those] for those in (common, others)))
            )
        )
        cells = [
            spread([mean(run["sampled"]) for run in group]), beside, spread([passed(run) for run in group]),
            spread([mean(run["greedy"]) for run in group]), spread([run["steps"] for run in group]),
        ]  # fmt: skip
        lines.append(f"| {arm} | {len(group)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def passed(run: dict[str, Any]) -> float:
    """Share of problems that any of the samples solves."""
    return mean([max(samples) for samples in run["sampled"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for the models; resumed where it is there")
    parser.add_argument("--output", type=Path, default=Path("bench/results/forking"))
    parser.add_argument("--minutes", type=float, default=50, help="start no further run after so long")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    arguments = parser.parse_args()
    begun = time.monotonic()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    start = warm_start(arguments.folder, arguments)
    if not (arguments.folder / RESULT).exists():
        write_text(arguments.folder / RESULT, dump_json(measure(start, arguments)))
    for number, (arm, seed) in enumerate(runs(arguments), start=1):
        if time.monotonic() - begun > 60 * arguments.minutes:
            say(f"time is up before run {number}; call again to go on")
            break
        say(f"run {number}/{arguments.seeds * len(ARMS)}: {arm}, seed {seed}")
        train_and_measure(arm, seed, start, arguments)
    document = {
        "model": MODEL,
        "task": {"name": NAME, **OPTIONS},
        "settings": {name: value for name, value in vars(arguments).items() if not isinstance(value, Path)},
        "versions": versions(),
        "start": json.loads((arguments.folder / RESULT).read_text()),
        "runs": [json.loads(path.read_text()) for path in sorted(arguments.folder.glob(f"*/{RESULT}"))],
    }
    write_text(arguments.output / "results.json", dump_json(document) + "\n")
    write_text(arguments.output / "results.md", table(document) + "\n")
    print(table(document))


if __name__ == "__main__":
    main()
