"""Students of pruned chains: does a model learn as well from the tokens that matter, and by which measure of that?

    .venv/bin/python bench/pruning_students.py --folder /tmp/students               (goes on where it was stopped)

Two kinds of problems of reasoning-gym: short ones of GSM-Symbolic with its own solutions, and weekdays (so many days
before or after a date), worked out here step by step. The bundled model ranks the tokens of each training chain:
greedily (weekdays exactly, the longer chains of GSM-Symbolic screened) and by each baseline. Then the same model, the
student, is tuned on the chains cut to a share, and answers held-out problems: share correct, and tokens written. Beside
it stand the untrained model, the most frequent answer, and a student of answers without any chain. Results and page go
to OUTPUT/students-KIND.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from datetime import date
from pathlib import Path
from statistics import fmean as mean
from typing import Any

from graftlm import load_model
from graftlm.decoding.batches import generate_completions
from graftlm.experiments.arms import UNTRAINED, Arm, read_arm
from graftlm.experiments.run import Experiment, run_experiment
from graftlm.experiments.study import write_results
from graftlm.experiments.table import experiment_table
from graftlm.experiments.verdict import experiment_verdict
from graftlm.pruning.config import Objective, PruneConfig
from graftlm.pruning.prune import prune
from graftlm.runs.console import plain_lines, prefixed, print_findings, say
from graftlm.runs.files import dump_json, read_json_lines, write_text
from graftlm.runs.run import call_verb
from graftlm.tasks import Metric, Task, TaskResult
from graftlm.tasks.reasoning import Reasoning, prompt_of

MODEL = "smollm2-135m"
ANSWER = "\nThe answer is "
FURTHEST = 20
"""Days; with 100 the student does not learn it from so few rows."""
LONGEST = 45
"""Tokens of a chain of GSM-Symbolic."""
NEW_TOKENS = 72
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


GREEDY = {"weekdays": "exact", "gsm-symbolic": "screened"}
"""The mode of greedy pruning; a chain of 40 tokens takes a minute of one core exactly."""
WHOLE, NO_CHAIN = "whole chains", "answers alone"
STUDENTS = {
    WHOLE: ("greedy", 1.0), "greedy 0.9": ("greedy", 0.9), "greedy 0.8": ("greedy", 0.8), "greedy 0.7": ("greedy", 0.7),
    "greedy 0.5": ("greedy", 0.5), "attention 0.7": ("attention", 0.7), "random 0.7": ("random", 0.7),
    "surprisal 0.7": ("surprisal", 0.7), "truncation 0.7": ("truncation", 0.7), NO_CHAIN: ("no chain", 0.0),
}  # fmt: skip
"""Arm -> how the tokens of its chains are ranked, and the share of them that is kept."""


def weekday_chain(entry: dict[str, Any]) -> str:
    """' 47 = 6 * 7 + 5. Thursday minus 5 days: Wednesday, Tuesday, Monday, Sunday, Saturday.'"""
    days = entry["metadata"]["offset_days"]
    first = date.fromisoformat(entry["metadata"]["start_date"]).weekday()
    weeks, left = divmod(abs(days), 7)
    step = 1 if days > 0 else -1
    named = [WEEKDAYS[(first + step * count) % 7] for count in range(1, left + 1)]
    walked = f"{WEEKDAYS[first]} {'plus' if step > 0 else 'minus'} {left} days: {', '.join(named) or WEEKDAYS[first]}."
    return f" {abs(days)} = {weeks} * 7 + {left}. {walked}"


def problems(kind: str, split: Any, count: int, tokenizer: Any) -> list[dict[str, str]]:
    """prompt, chain and answer; no question of one split stands in another."""
    if kind == "weekdays":
        options = {"tasks": ["weekday_offset"], "offset_upper_bound": FURTHEST}
        entries = Reasoning("reasoning-gym:calendar_arithmetic", options).problems(split, 3 * count)
        made = [(entry["question"], weekday_chain(entry), entry["answer"]) for entry in entries]
    else:
        entries = Reasoning("reasoning-gym:gsm_symbolic").problems(split, 25 * count)
        chains = [f" {entry['metadata']['answer_cot'].rpartition('####')[0].strip()}" for entry in entries]
        made = [(entry["question"], chain, entry["answer"]) for entry, chain in zip(entries, chains, strict=True)]
        made = [each for each in made if len(tokenizer(each[1])["input_ids"]) <= LONGEST]
    others = {"train": 0, "test": 1}[split]
    different = {question: (question, chain, answer) for question, chain, answer in made if hash_of(question) == others}
    return [
        {"prompt": prompt_of(question), "chain": chain, "answer": f"{ANSWER}{answer}."}
        for question, chain, answer in list(different.values())[:count]
    ]


def hash_of(question: str) -> int:
    """Half of all questions are 0, half 1, whatever the split that made them."""
    return sum(question.encode()) % 2


def ranked(kind: str, mode: str, folder: Path, objective: Objective = "joint", limit: int | None = None) -> Path:
    """The training rows with their ranks, or the first `limit` of them."""
    name = mode if objective == "joint" else f"{objective}-{limit}"
    path = folder / kind / f"{name}.jsonl"
    if not path.exists():
        say(f"ranking {kind} by {name}")
        settings = {"data": str(folder / kind / "train.jsonl"), "output": str(path), "pruner": MODEL, "mode": mode,
                    "objective": objective, "keep": [1.0], "limit": limit}  # fmt: skip
        report = prefixed(plain_lines(), f"{kind} {name}")
        call_verb("prune", PruneConfig, prune, settings, resume=True, progress=report)
    return path


def rows_of(kind: str, arm: str, folder: Path) -> Path:
    """The training rows of an arm."""
    mode, keep = STUDENTS[arm]
    path = folder / kind / f"{mode}-{keep:g}-rows.jsonl".replace(" ", "-")
    if path.exists():
        return path
    if arm in (WHOLE, NO_CHAIN):  # nothing is to be ranked
        lines = (
            {"prompt": row["prompt"],
             "completion": row["chain"] + row["answer"] if arm == WHOLE else f" {row['answer'].strip()}"}
            for row in read_json_lines(folder / kind / "train.jsonl")
        )  # fmt: skip
        write_text(path, "".join(dump_json(line) + "\n" for line in lines))
        return path
    mode = GREEDY[kind] if mode == "greedy" else mode
    ranks = ranked(kind, mode, folder)
    settings = {"data": str(ranks), "output": str(path), "pruner": MODEL, "mode": mode, "keep": [keep]}
    call_verb("prune", PruneConfig, prune, settings, resume=True)
    return path


class HeldOut(Task):
    """Problems answered greedily: right or not, and the tokens of the answer. The floor is the most frequent answer of
    the training rows."""

    description = "held-out problems"
    metrics = (
        Metric("right", "share correct", higher_is_better=True, kind="accuracy"),
        Metric("tokens", "tokens an answer", higher_is_better=False),
    )

    def __init__(self, kind: str, rows: list[dict[str, Any]], held_out: list[dict[str, str]]) -> None:
        self.name = kind  # type: ignore[misc]
        self.held_out = held_out
        usual = Counter(row["answer"] for row in rows).most_common(1)[0][0]
        self.floor = mean([each["answer"] == usual for each in held_out])

    def evaluate(self, model: Any, tokenizer: Any, **_: Any) -> TaskResult:
        begun = time.monotonic()
        outputs = generate_completions(
            model, tokenizer, [each["prompt"] for each in self.held_out], NEW_TOKENS, stop=None
        )
        examples = [
            {"prompt": each["prompt"], "reference": each["answer"], "output": text,
             "right": float(answer_of(text) == answer_of(each["answer"])), "tokens": len(tokenizer(text)["input_ids"])}
            for text, each in zip(outputs, self.held_out, strict=True)
        ]  # fmt: skip
        values = {metric.name: metric.value(examples) or 0.0 for metric in self.metrics}
        return TaskResult(task=self.name, metrics=values, declared=self.metrics, floors={"right": self.floor},
                          examples=examples, count=len(examples), seconds=time.monotonic() - begun)  # fmt: skip


def answer_of(text: str) -> str | None:
    """'18' of '... The answer is 18.'; None where nothing is answered."""
    found = re.search(r"The answer is (\S+?)\.?(?:\s|$)", text)
    return found and found[1]


def experiment(kind: str, folder: Path, given: argparse.Namespace) -> Experiment:
    """An arm for each way to shorten the chains, all compared with the whole ones."""
    tokenizer = load_model(MODEL)[1]
    train = folder / kind / "train.jsonl"
    if not train.exists():
        rows = problems(kind, "train", given.rows, tokenizer)
        write_text(train, "".join(dump_json(row) + "\n" for row in rows))
    settings = {"model": MODEL, "objective": "next-token", "learning_rate": given.learning_rate,
                "epochs": given.epochs, "trainer": {"bf16": False}}  # fmt: skip  # on a GPU what a CPU does
    blocks: dict[str, Any] = {
        arm: {"from": WHOLE, "tune": {"data": str(rows_of(kind, arm, folder))}} for arm in STUDENTS
    }
    blocks[WHOLE] = {"tune": settings | blocks[WHOLE]["tune"]}
    held_out = problems(kind, "test", given.problems, tokenizer)
    return Experiment(
        untrained=Arm(name=UNTRAINED, verb="evaluate", settings={"model": MODEL}),
        arms=[read_arm(arm, blocks) for arm in blocks],
        seeds=given.seeds,
        tasks=[HeldOut(kind, read_json_lines(train), held_out)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for rows and models; resumed where it is there")
    parser.add_argument("--output", type=Path, default=Path("bench/results/pruning"))
    parser.add_argument("--kinds", nargs="+", default=["weekdays", "gsm-symbolic"])
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    given = parser.parse_args()
    settings = {name: value for name, value in vars(given).items() if not isinstance(value, Path)}
    for kind in given.kinds:
        results = run_experiment(experiment(kind, given.folder, given), given.folder / kind, plain_lines())
        title = f"Students of pruned chains: {kind}"
        write_results(given.output / f"students-{kind}", "results.json", results, title, settings)
        print_findings(experiment_table(results), experiment_verdict(results))


if __name__ == "__main__":
    main()
