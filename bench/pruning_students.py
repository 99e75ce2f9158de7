"""Students of pruned chains: does a model learn as well from the tokens that matter, and by which measure of that?

    .venv/bin/python bench/pruning_students.py --folder /tmp/students --minutes 50       (again and again until done)

Two kinds of problems of reasoning-gym: short ones of GSM-Symbolic with its own solutions, and weekdays (so many days
before or after a date), worked out here step by step. The bundled model ranks the tokens of each training chain:
greedily (weekdays exactly, the longer chains of GSM-Symbolic screened) and by each baseline. Then the same model, the
student, is tuned on the chains cut to a share, and answers held-out problems: share correct, and tokens written. Beside
it stand the untrained model, the most frequent answer, and a student of answers without any chain.

A finished part is not done again. What is there is summed up in OUTPUT/students.json and OUTPUT/students.md at the end
of every call.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from intervals import difference, mean, spread

from graftlm import load_model
from graftlm.decoding.batches import generate_completions
from graftlm.pruning.config import Objective, PruneConfig
from graftlm.pruning.prune import prune
from graftlm.runs.console import plain_lines, prefixed, say
from graftlm.runs.files import dump_json, read_json_lines, write_text
from graftlm.runs.provenance import versions
from graftlm.runs.run import Run, call_verb
from graftlm.tasks.reasoning import Reasoning, prompt_of
from graftlm.tuning.config import TuneConfig
from graftlm.tuning.tune import tune

MODEL = "smollm2-135m"
ANSWER = "\nThe answer is "
FURTHEST = 20
"""Days; with 100 the student does not learn it from so few rows."""
LONGEST = 45
"""Tokens of a chain of GSM-Symbolic."""
NEW_TOKENS = 72
RESULT = "measured.json"
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


class Arm(NamedTuple):
    mode: str
    keep: float


GREEDY = {"weekdays": "exact", "gsm-symbolic": "screened"}
"""The mode of greedy pruning; a chain of 40 tokens takes a minute of one core exactly."""
WHOLE = Arm("greedy", 1.0)
NO_CHAIN = Arm("no chain", 0.0)
ARMS = (
    WHOLE, Arm("greedy", 0.7), Arm("random", 0.7), Arm("surprisal", 0.7), NO_CHAIN, Arm("attention", 0.7),
    Arm("truncation", 0.7), Arm("greedy", 0.5), Arm("greedy", 0.9), Arm("greedy", 0.8),
)  # fmt: skip


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


def rows_of(kind: str, arm: Arm, folder: Path) -> Path:
    """The training rows of an arm."""
    path = folder / kind / f"{arm.mode}-{arm.keep:g}-rows.jsonl".replace(" ", "-")
    if path.exists():
        return path
    if arm in (WHOLE, NO_CHAIN):  # nothing is to be ranked
        rows = read_json_lines(folder / kind / "train.jsonl")
        lines = (
            {"prompt": row["prompt"],
             "completion": row["chain"] + row["answer"] if arm == WHOLE else f" {row['answer'].strip()}"}
            for row in rows
        )  # fmt: skip
        write_text(path, "".join(dump_json(line) + "\n" for line in lines))
        return path
    mode = GREEDY[kind] if arm.mode == "greedy" else arm.mode
    ranks = ranked(kind, mode, folder)
    settings = {"data": str(ranks), "output": str(path), "pruner": MODEL, "mode": mode, "keep": [arm.keep]}
    call_verb("prune", PruneConfig, prune, settings, resume=True)
    return path


def measure(model: Any, tokenizer: Any, kind: str, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Of each held-out problem whether the greedy answer is right, and how many tokens it has."""
    held_out = problems(kind, "test", arguments.problems, tokenizer)
    outputs = generate_completions(model, tokenizer, [each["prompt"] for each in held_out], NEW_TOKENS, stop=None)
    right = [float(answer_of(text) == answer_of(each["answer"])) for text, each in zip(outputs, held_out, strict=True)]
    return {"right": right, "tokens": [len(tokenizer(text)["input_ids"]) for text in outputs]}


def answer_of(text: str) -> str | None:
    """'18' of '... The answer is 18.'; None where nothing is answered."""
    found = re.search(r"The answer is (\S+?)\.?(?:\s|$)", text)
    return found and found[1]


def student(kind: str, arm: Arm, seed: int, folder: Path, arguments: argparse.Namespace) -> None:
    data = rows_of(kind, arm, folder)
    name = f"{arm.mode}-{arm.keep:g}-{seed}".replace(" ", "-")
    output = folder / kind / name
    if (output / RESULT).exists():
        return
    config = TuneConfig(
        model=MODEL, data=str(data), output=str(output), objective="next-token", method="lora", seed=seed,
        learning_rate=arguments.learning_rate, epochs=arguments.epochs, batch_size=8,
        trainer={"bf16": False},  # on a GPU what a CPU does
    )  # fmt: skip
    if not (output / "model").exists():
        with Run.create(output, "tune", config, {}, overwrite=output.exists()) as run:
            tune(config, run)
    model, tokenizer = load_model(str(output / "model"))
    found = measure(model.eval(), tokenizer, kind, arguments)
    about = {"kind": kind, "mode": arm.mode, "keep": arm.keep, "seed": seed, "device": model.device.type}
    write_text(output / RESULT, dump_json({**about, **found}))


def jobs(arguments: argparse.Namespace) -> Iterator[tuple[int, str, Arm]]:
    for seed in range(arguments.seeds):
        for arm in ARMS:
            for kind in arguments.kinds:
                yield seed, kind, arm


def prepare(kind: str, folder: Path, arguments: argparse.Namespace) -> None:
    """The rows, and what the untrained model and the most frequent answer reach."""
    if (folder / kind / RESULT).exists():
        return
    model, tokenizer = load_model(MODEL)
    rows = problems(kind, "train", arguments.rows, tokenizer)
    write_text(folder / kind / "train.jsonl", "".join(dump_json(row) + "\n" for row in rows))
    usual = Counter(row["answer"] for row in rows).most_common(1)[0][0]
    held_out = problems(kind, "test", arguments.problems, tokenizer)
    floor = [float(each["answer"] == usual) for each in held_out]
    write_text(folder / kind / RESULT, dump_json({"floor": floor, **measure(model, tokenizer, kind, arguments)}))


def table(document: dict[str, Any]) -> str:
    """Markdown: accuracy and tokens of each arm, mean over seeds with (min to max), and beside the whole chains."""
    lines = []
    for kind, untrained in document["untrained"].items():
        every = [run for run in document["runs"] if run["kind"] == kind]
        lines += [
            f"**{kind}**, {len(untrained['right'])} held-out problems", "",
            "| student of | share kept | seeds | correct | against whole chains | tokens an answer |",
            "|---|---|---|---|---|---|",
            f"| (the most frequent answer) | | | {mean(untrained['floor']):.3f} | | |",
            f"| (untrained) | | | {mean(untrained['right']):.3f} | | {mean(untrained['tokens']):.1f} |",
        ]  # fmt: skip
        groups = {arm: [run for run in every if (run["mode"], run["keep"]) == arm] for arm in sorted(ARMS, key=order)}
        for arm, group in groups.items():
            if not group:
                continue
            seeds = {run["seed"] for run in group} & {run["seed"] for run in groups[WHOLE]}
            ours, theirs = ([run["right"] for run in those if run["seed"] in seeds] for those in (group, groups[WHOLE]))
            change = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*difference(ours, theirs)) if seeds and arm != WHOLE else ""
            name = {"greedy": "greedy pruning", "no chain": "answers alone"}.get(arm.mode, arm.mode)
            lines.append(
                f"| {'whole chains' if arm == WHOLE else name} | {arm.keep:g} | {len(group)} | "
                f"{spread([mean(run['right']) for run in group])} | {change} | "
                f"{mean([mean(run['tokens']) for run in group]):.1f} |"
            )
        lines.append("")
    return "\n".join(lines)


def order(arm: Arm) -> tuple[bool, bool, float, str]:
    return arm != WHOLE, arm.mode != "greedy", -arm.keep, arm.mode


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for rows and models; resumed where it is there")
    parser.add_argument("--output", type=Path, default=Path("bench/results/pruning"))
    parser.add_argument("--kinds", nargs="+", default=["weekdays", "gsm-symbolic"])
    parser.add_argument("--minutes", type=float, default=50, help="start no further student after so long")
    parser.add_argument("--first", type=int, help="train so many students only")
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    begun = time.monotonic()
    for kind in arguments.kinds:
        prepare(kind, arguments.folder, arguments)
    every = list(jobs(arguments))[: arguments.first]
    for number, (seed, kind, arm) in enumerate(every, start=1):
        if time.monotonic() - begun > 60 * arguments.minutes:
            say(f"time is up before student {number}; call again to go on")
            break
        say(f"student {number}/{len(every)}: {kind}, {arm.mode} {arm.keep:g}, seed {seed}")
        student(kind, arm, seed, arguments.folder, arguments)
    document = {
        "model": MODEL,
        "settings": {name: value for name, value in vars(arguments).items() if not isinstance(value, Path)},
        "versions": versions(),
        "untrained": {kind: json.loads((arguments.folder / kind / RESULT).read_text()) for kind in arguments.kinds},
        "runs": [json.loads(path.read_text()) for path in sorted(arguments.folder.glob(f"*/*/{RESULT}"))],
    }
    write_text(arguments.output / "students.json", dump_json(document) + "\n")
    write_text(arguments.output / "students.md", table(document) + "\n")
    print(table(document))


if __name__ == "__main__":
    main()
