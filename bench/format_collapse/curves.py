"""Shares and accuracies over optimizer steps as SVG files, by the report's own plots."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from findings import PLAIN
from line_chart import Points, line_chart
from measurement import mean
from problems import FORMATS

from graftlm.runs.files import write_text


def rollout_curves(runs: Sequence[dict[str, Any]]) -> tuple[dict[str, Points], dict[str, Points]]:
    """Share and accuracy of each format over steps, of all seeds' rollouts of a step together."""
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    correct: dict[int, Counter[str]] = defaultdict(Counter)
    for found in runs:
        for line in found.get("rollouts", []):
            for form in FORMATS:
                counts[line["step"]][form] += line["counts"][form]
                correct[line["step"]][form] += line["correct"][form]
    steps = sorted(counts)
    shares = {form: [(step, counts[step][form] / counts[step].total()) for step in steps] for form in FORMATS}
    accuracy = {
        form: [(step, correct[step][form] / counts[step][form]) for step in steps if counts[step][form]]
        for form in FORMATS
    }
    return shares, accuracy


def minority_curve(runs: Sequence[dict[str, Any]]) -> Points:
    """Held-out share of all formats but the largest, mean over seeds at each step that all of them measured."""
    found: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        for each in run["measurements"]:
            found[each["step"]].append(1 - max(each["shares"].values()))
    return [(step, mean(values) or 0.0) for step, values in sorted(found.items()) if len(values) == len(runs)]


def write_plots(
    cells: dict[tuple[str, str, str], list[dict[str, Any]]], places: Sequence[tuple[str, str]], folder: Path
) -> list[tuple[str, str]]:
    """Three plots for each base model; returns (title, file name)."""
    written = []
    for scale, mixture in places:
        runs = cells.get((scale, mixture, PLAIN), [])
        shares, accuracy = rollout_curves(runs)
        arms = {arm.removeprefix("grpo "): minority_curve(those)
                for (s, m, arm), those in sorted(cells.items()) if (s, m) == (scale, mixture)}  # fmt: skip
        for kind, curves, y_label in (
            ("shares", shares, "share of the completions"),
            ("accuracy", accuracy, "accuracy within the format"),
            ("minority", arms, "share of all formats but the largest"),
        ):
            title, name = f"{scale}, {mixture}: {y_label}", f"{kind}-{scale}-{mixture}.svg"
            write_text(folder / name, line_chart(title, curves, "optimizer step", y_label))
            written.append((title, name))
    return written
