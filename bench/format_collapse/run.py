"""The grid: scales × mixtures × algorithms, KL coefficients and guards × seeds. What is complete is not run again.

    .venv/bin/python bench/format_collapse/run.py --models M --results R --minutes 60 --threads 2

The first seed of all cells comes first, within it one arm after the other, so that whenever the minutes are over, what
is there compares something completely. A killed call loses at most the run under way.
"""

from __future__ import annotations

import argparse
import collections
import json
import time
from pathlib import Path

import torch
from measurement import mean
from pretrain import MIXTURES, SCALES, pretrain
from reinforcement import Run, reinforce, told

from graftlm.runs.console import say

ARMS = (
    {"beta": 0.0}, {"algorithm": "expert-iteration"}, {"beta": 0.01}, {"guard": "within-format"},
    {"guard": "format-divergence"}, {"beta": 0.001}, {"guard": "format-divergence-0.1"},
)  # fmt: skip
SEEDS = 3


def grid(seeds: int = SEEDS) -> list[Run]:
    return [
        Run(scale=scale, mixture=mixture, seed=seed, **arm)
        for seed in range(seeds) for arm in ARMS for mixture in MIXTURES for scale in SCALES
    ]  # fmt: skip


def expected_seconds(runs: list[Run], results: Path) -> float | None:
    """Of these runs together, from what complete ones of the same scale, or else all, took; None before the first."""
    taken = collections.defaultdict(list)
    for path in results.glob("*.json"):
        found = json.loads(path.read_text())
        if found["complete"]:
            taken[found["run"]["scale"]].append(found["seconds"])
    if not taken:
        return None
    all_of_them = mean(value for values in taken.values() for value in values) or 0.0
    return sum(mean(taken[run.scale]) or all_of_them for run in runs)


def complete(run: Run, results: Path) -> bool:
    path = results / f"{run.name}.json"
    return path.exists() and bool(json.loads(path.read_text())["complete"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of the pretrained models")
    parser.add_argument("--results", type=Path, required=True, help="folder for one JSON a run")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after so many no new run is started")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    begun = time.monotonic()
    runs = grid(arguments.seeds)
    missing = [run for run in runs if not complete(run, arguments.results)]
    for run in missing:
        pretrain(arguments.models, run.scale, run.mixture)
    for place, run in enumerate(missing):
        minutes = (time.monotonic() - begun) / 60
        if minutes > arguments.minutes:
            say(f"{minutes:.0f} minutes are over: {len(missing) - place} of {len(runs)} runs are left")
            return
        found = reinforce(run, arguments.models, arguments.results)
        left = expected_seconds(missing[place + 1 :], arguments.results) or 0.0
        done = len(runs) - len(missing) + place + 1
        say(f"{done}/{len(runs)} {run.name} ({found['seconds']:.0f} s, {left / 60:.0f} min left): {told(found)}")


if __name__ == "__main__":
    main()
