"""`report.html` of an RL run: reward, entropy, and whether its formats lived or died."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from graftlm.reinforce.format_monitor import ALARM_SHARE, DEAD_SHARE
from graftlm.report.markup import Markup
from graftlm.report.page import (
    captioned,
    data_section,
    facts_section,
    panels,
    section,
    verdict_section,
    write_page,
)
from graftlm.report.plots import Line, line_plot
from graftlm.report.tables import number_table
from graftlm.runs.provenance import versions

COLOURS = 5  # --model-1 to --model-5 in style.css
WINDOW = 0.1  # share of the steps whose mean stands for the start and for the end
Steps = Sequence[Mapping[str, Any]]


def write_reinforce_report(
    path: Path, metrics: Steps, formats: Steps, *, title: str, settings: Mapping[str, Any]
) -> None:
    """Write the page to `path`, whole or not at all (OSError names the file).

    metrics: lines of metrics.jsonl, or a trainer's log_history; formats: lines of formats.jsonl, or a monitor's
    history; empty where no formats are watched.
    """
    steps = [line for line in metrics if line.get("reward") is not None]
    sections = [
        verdict_section(reinforce_verdict(steps, formats)),
        _rewards(steps),
        _formats(formats),
        _numbers(steps, formats),
        facts_section({"settings": settings, "versions": versions()}),
        data_section("formats", list(formats)),
    ]
    write_page(path, title, sections)


def reinforce_verdict(steps: Steps, formats: Steps) -> list[str]:
    """Sentences on how reward, entropy and formats changed; none on what a single run cannot show."""
    lines = []
    if steps:
        before, after = ends(steps, reward_of)
        lines.append(f"Mean reward {before:.3f} → {after:.3f} over {len(steps)} logged steps.")
        if all(line.get("entropy") is not None for line in steps):
            before, after = ends(steps, lambda line: line["entropy"])
            lines.append(f"Entropy of the tokens {before:.3f} → {after:.3f} nats.")
    if formats:
        for name in formats[0]["shares"]:
            before, after = ends(formats, lambda line, name=name: line["shares"][name])  # type: ignore[misc]
            if max(before, after) > 0:
                lines.append(f"Format {name}: {before:.0%} → {after:.0%} of the completions{fate(before, after)}.")
        before, after = ends(formats, lambda line: line["pass_at_1"])
        wide = ends(formats, lambda line: line["pass_at_k"])
        k = formats[0]["k"]
        lines.append(f"pass@1 {before:.3f} → {after:.3f}, pass@{k} {wide[0]:.3f} → {wide[1]:.3f} (of the rollouts).")
    if lines:
        lines.append("One run, measured on its own rollouts; start and end are means over a tenth of the steps.")
    return lines


def fate(before: float, after: float) -> str:
    if after > ALARM_SHARE > before:
        return ", it has swallowed the rest"
    return ", it has died" if after < DEAD_SHARE <= before else ""


def reward_of(line: Mapping[str, Any]) -> float:
    """As it was given, before a guard shaped it; all reward functions together."""
    return float(line["reward"]) - float(line.get("guard/shift") or 0.0)


def ends(lines: Steps, value: Callable[[Mapping[str, Any]], float]) -> tuple[float, float]:
    """Mean of a value over the first and over the last tenth of the lines."""
    width = max(1, round(WINDOW * len(lines)))
    first, last = ([value(line) for line in part] for part in (lines[:width], lines[-width:]))
    return sum(first) / len(first), sum(last) / len(last)


def _rewards(steps: Steps) -> Markup | None:
    if not steps:
        return None
    plots = [_plot("Reward", steps, {"reward": reward_of}, "mean reward")]
    if any(line.get("entropy") is not None for line in steps):
        plots.append(_plot("Entropy", steps, {"tokens": lambda line: line.get("entropy")}, "nats per token"))
    return section("Reward and entropy", panels(plots))


def _formats(formats: Steps) -> Markup | None:
    if not formats:
        return None
    names = [name for name in formats[0]["shares"] if any(line["shares"][name] for line in formats)]
    shares = {name: (lambda line, name=name: line["shares"][name]) for name in names}
    accuracy = {name: (lambda line, name=name: line["accuracy"][name]) for name in names}
    spread = {"entropy": lambda line: line["entropy"], "distance": lambda line: line["distance"]}
    k = formats[0]["k"]
    passed = {"pass@1": lambda line: line["pass_at_1"], f"pass@{k}": lambda line: line["pass_at_k"]}
    plots = [
        _plot("Share of each format", formats, shares, "share of the completions", top=1.0),
        _plot("Accuracy within each format", formats, accuracy, "share correct", top=1.0),
        _plot("Entropy of the shares, distance to the start model's", formats, spread, "nats"),
        _plot("pass@1 and pass@k", formats, passed, "share of the prompts", top=1.0),
    ]
    return section(
        "Formats",
        panels(plots),
        note="RL amplifies one format and buries the others, often within the first epoch: then one line goes to 1, "
        "the others to 0, and the entropy to 0. Points are rollout batches; lines of many are moving averages.",
    )


def _plot(
    title: str,
    lines: Steps,
    values: Mapping[str, Callable[[Mapping[str, Any]], float | None]],
    y_label: str,
    top: float | None = None,
) -> Markup | None:
    drawn = []
    for place, (name, value) in enumerate(values.items()):
        points = [(float(line["step"]), y) for line in lines if (y := value(line)) is not None]
        if points:
            colour = f"--model-{place % COLOURS + 1}"
            drawn.append(Line(label=name, tag=name, colour=colour, points=points))
    if not drawn:
        return None
    return captioned(title, line_plot(title, drawn, x_label="optimizer step", y_label=y_label, y_top=top))


def _numbers(steps: Steps, formats: Steps) -> Markup | None:
    """Start and end of everything plotted."""
    measures: dict[str, tuple[float, float]] = {}
    if steps:
        measures["mean reward"] = ends(steps, reward_of)
    for name in formats[0]["shares"] if formats else []:
        measures[f"share of {name}"] = ends(formats, lambda line, name=name: line["shares"][name])  # type: ignore[misc]
    for key, words in (("entropy", "entropy of the shares (nats)"), ("distance", "distance to the start's (nats)"),
                       ("pass_at_1", "pass@1"), ("pass_at_k", "pass@k"),
                       ("distinct_answers", "distinct answers a prompt")):  # fmt: skip
        if formats:
            measures[words] = ends(formats, lambda line, key=key: line[key])  # type: ignore[misc]
    if not measures:
        return None
    caption, headings = "Means over the first and the last tenth", ["measure", "start", "end"]
    return section("The numbers", number_table(caption, headings, list(measures.items())))
