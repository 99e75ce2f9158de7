"""Shares and accuracies over optimizer steps as SVG files, by the report's own plots."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from findings import PLAIN
from measurement import mean
from problems import FORMATS

from graftlm.files import write_text
from graftlm.report.markup import Markup, element
from graftlm.report.plots import Line, line_plot

STYLE = """
svg { --a: #2563eb; --b: #d9480f; --c: #0f8a6d; --d: #8b3fc7; --e: #a8790a; --f: #737c8a; font: 12px sans-serif; }
text { fill: #555; } .grid { stroke: #ddd; } .curve, .raw { fill: none; stroke-width: 2; }
.raw { stroke-width: 1; opacity: 0.28; } .tag { font-weight: 650; }
"""
COLOURS = ("--a", "--b", "--c", "--d", "--e", "--f")
Points = list[tuple[float, float]]


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


def plot(title: str, curves: dict[str, Points], y_label: str) -> Markup:
    lines = [Line(label=name, tag=name, colour=colour, points=points)
             for colour, (name, points) in zip(COLOURS, curves.items(), strict=False)]  # fmt: skip
    ends = "; ".join(f"{name}: {points[0][1]:.2f} to {points[-1][1]:.2f}" for name, points in curves.items() if points)
    x_top = max((points[-1][0] for points in curves.values() if points), default=1)
    drawn = line_plot(title, ends, lines, x_top=x_top or 1, y_top=1.0, x_label="optimizer step", y_label=y_label)
    head, _, rest = drawn.partition(">")
    return Markup(f"{head}>{element('style', Markup(STYLE))}{rest}\n")


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
            write_text(folder / name, plot(title, curves, y_label))
            written.append((title, name))
    return written
