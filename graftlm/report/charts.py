"""What reports plot of a training: losses by head, and the agreement of distilled heads."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from graftlm.report.markup import Markup, element, join
from graftlm.report.plots import Line, bar_plot, head_colour, line_plot, round_up
from graftlm.report.tables import capital, cell, row, table

HEAD_LOSS = re.compile(r"(?:head_(\d+)_loss|loss_(\d+))")  # of tuning and of distillation


def loss_plots(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Markup:
    """One plot a run, a line a head, the same vertical axis for all; "" where no run has a loss."""
    runs = {name: head_losses(lines) for name, lines in curves.items()}
    runs = {name: losses for name, losses in runs.items() if losses}
    if not runs:
        return Markup("")
    heads = max(max(losses) for losses in runs.values())
    y_top = round_up(max(y for losses in runs.values() for points in losses.values() for _, y in points))
    figures = []
    for name, losses in runs.items():
        lines = [_line(head, heads, points) for head, points in losses.items()]
        ends = "; ".join(f"{line.label}: {line.points[0][1]:.2f} to {line.points[-1][1]:.2f}" for line in lines)
        plot = line_plot(
            f"Loss by head, {name}",
            f"NLL in nats per token from the first to the last step. {ends}",
            lines,
            x_top=max(x for points in losses.values() for x, _ in points) or 1,
            y_top=y_top,
            x_label="optimizer step",
            y_label="NLL (nats per token)",
        )
        figures.append(element("figure", element("figcaption", element("h3", name)), plot))
    present = sorted({head for losses in runs.values() for head in losses})
    return join(_legend(present, heads), element("div", figures, class_="panels large"))


def head_losses(lines: Sequence[Mapping[str, Any]]) -> dict[int, list[tuple[float, float]]]:
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


def _line(head: int, heads: int, points: Sequence[tuple[float, float]]) -> Line:
    tag = "own" if head == 0 else f"+{head}"
    return Line(label=_head_name(head), tag=tag, colour=_colour(head, heads), points=points)


def _head_name(head: int) -> str:
    return "the model's own head" if head == 0 else f"head {head} ({head + 1} tokens ahead)"


def _colour(head: int, heads: int) -> str:
    return "--own" if head == 0 else head_colour(head, heads)


def _legend(present: Sequence[int], heads: int) -> Markup:
    items = []
    for head in present:
        swatch = element("span", class_="swatch", style=f"color:var({_colour(head, heads)})", aria_hidden="true")
        items.append(element("li", swatch, _head_name(head)))
    return element("ul", items, class_="legend")


def agreement_plots(agreement: Mapping[str, Any]) -> Markup:
    """Bars a head for each kind of text, with the undistilled copies beside them; `agreement`: agreement.json."""
    shares: Mapping[str, Sequence[float]] = agreement["heads"]
    copies: Mapping[str, Sequence[float]] = agreement.get("undistilled_copies") or {}
    positions: Mapping[str, int] = agreement.get("held_out_positions") or {}
    top = min(1.0, round_up(1.12 * max((s for values in shares.values() for s in values), default=1.0), about=4))
    figures, rows = [], []
    for kind, values in shares.items():
        bare = copies.get(kind) or []
        bars = [(f"head {k + 1}", share, bare[k] if k < len(bare) else None) for k, share in enumerate(values)]
        shown = ", ".join(f"{name} {share:.1%}" for name, share, _ in bars)
        held_out = f", {positions[kind]:,} held-out positions" if kind in positions else ""
        heading = element("figcaption", element("b", f"{capital(kind)} text"), element("small", held_out))
        plot = bar_plot(f"Agreement on {kind} text", shown, bars, top=top)
        figures.append(element("figure", heading, plot))
        for name, share, copy in bars:
            after, before = f"{share:.1%}", "–" if copy is None else f"{copy:.1%}"
            cells = [cell("head", name), cell("distilled", after), cell("undistilled copy", before)]
            rows.append(row(kind, cells))
    numbers = table(
        "Share of positions", ["text", "head", "distilled", "undistilled copy"], rows, class_="numbers", cells=3
    )
    folded = element("details", element("summary", "The numbers"), numbers)
    return join(element("div", figures, class_="panels small"), folded)
