"""Sections of a report on heads: losses while they train, and how often they agree with the model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from graftlm.report.markup import Markup, element, join
from graftlm.report.page import captioned, folded, legend, panels, section
from graftlm.report.plots import Bar, Line, bar_plot, line_plot, round_up, shade
from graftlm.report.tables import capital, number_table

HEAD_LOSS = re.compile(r"(?:head_(\d+)_loss|loss_(\d+))")  # of tuning and of distillation


def losses_section(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Markup | None:
    """One plot a run, a line a head, the same vertical axis for all; None where no run has a loss.

    `curves`: name of a run -> the lines of its metrics.jsonl.
    """
    runs = {name: losses for name, lines in curves.items() if (losses := loss_curves(lines))}
    if not runs:
        return None
    present = sorted({head for losses in runs.values() for head in losses})
    top = round_up(max(y for losses in runs.values() for points in losses.values() for _, y in points))
    figures = []
    for name, losses in runs.items():
        lines = [
            Line(label=_name(head), tag=f"+{head}" if head else "own", colour=_colour(head, present), points=points)
            for head, points in losses.items()
        ]
        plot = line_plot(
            f"Loss by head, {name}", lines, x_label="optimizer step", y_label="NLL (nats per token)", y_top=top
        )
        figures.append(captioned(name, plot))
    return section(
        "Loss by head",
        legend({_name(head): _colour(head, present) for head in present}),
        panels(figures),
        note="Head k predicts k tokens further than the model's own head. The vertical axis is the same in all plots; "
        "a line of many points is their moving average, with the points faint behind it.",
    )


def loss_curves(lines: Sequence[Mapping[str, Any]]) -> dict[int, list[tuple[float, float]]]:
    """Head (0: the model's own) -> its (step, loss) points, out of the lines of a metrics.jsonl.

    A run that logs no `next_token_loss` has only one loss, which is the model's own.
    """
    own = "next_token_loss" if any("next_token_loss" in line for line in lines) else "loss"
    losses: dict[int, list[tuple[float, float]]] = {}
    for line in lines:
        for key, value in line.items():
            match = HEAD_LOSS.fullmatch(key)
            head = 0 if key == own else int(match[1] or match[2]) if match else None
            if head is not None and "step" in line and value is not None and math.isfinite(value):
                losses.setdefault(head, []).append((float(line["step"]), float(value)))
    return dict(sorted(losses.items()))


def _name(head: int) -> str:
    return "the model's own head" if head == 0 else f"head {head} ({head + 1} tokens ahead)"


def _colour(head: int, present: Sequence[int]) -> str:
    return "--own" if head == 0 else shade(head, max(present))


def agreement_section(agreement: Mapping[str, Any]) -> Markup | None:
    """Bars a head for each kind of text, across them the undistilled copies; `agreement`: agreement.json."""
    shares: Mapping[str, Sequence[float]] = agreement.get("heads") or {}
    if not shares:
        return None
    copies: Mapping[str, Sequence[float]] = agreement.get("undistilled_copies") or {}
    positions: Mapping[str, int] = agreement.get("held_out_positions") or {}
    top = min(1.0, round_up(1.12 * max((s for values in shares.values() for s in values), default=1.0), about=4))
    figures, rows = [], []
    for kind, values in shares.items():
        groups = []
        for head, (share, copy) in enumerate(zip_longest(values, copies.get(kind, [])[: len(values)]), start=1):
            groups.append((f"head {head}", [Bar(share=share, colour=shade(head, len(values)), reference=copy)]))
            rows.append((kind, [f"head {head}", f"{share:.1%}", None if copy is None else f"{copy:.1%}"]))
        held_out = f", {positions[kind]:,} held-out positions" if kind in positions else ""
        heading = join(element("b", f"{capital(kind)} text"), element("small", held_out))
        shown = ", ".join(f"{name} {bar.share:.1%}" for name, [bar] in groups)
        figures.append(captioned(heading, bar_plot(f"Agreement on {kind} text", shown, groups, top=top, small=True)))
    headings = ["text", "head", "distilled", "undistilled copy"]
    return section(
        "Agreement of the distilled heads",
        panels(figures, small=True),
        folded("The numbers", number_table("Share of positions", headings, rows, cells=3)),
        note="Share of held-out positions where a head's likeliest token is the model's own greedy one, as many tokens "
        "ahead. The line across each bar: the same head before distillation, a bare copy of the last layer.",
    )
