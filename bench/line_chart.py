"""Lines over a common frame as an SVG file, by the report's own plots."""

from __future__ import annotations

from collections.abc import Mapping

from graftlm.report.markup import Markup, element
from graftlm.report.plots import Line, line_plot

STYLE = """
svg { --a: #2563eb; --b: #d9480f; --c: #0f8a6d; --d: #8b3fc7; --e: #a8790a; --f: #737c8a; font: 12px sans-serif; }
text { fill: #555; } .grid { stroke: #ddd; } .curve, .raw { fill: none; stroke-width: 2; }
.raw { stroke-width: 1; opacity: 0.28; } .tag { font-weight: 650; }
"""
COLOURS = ("--a", "--b", "--c", "--d", "--e", "--f")
Points = list[tuple[float, float]]


def line_chart(title: str, curves: Mapping[str, Points], x_label: str, y_label: str) -> Markup:
    """Of shares, each curve by its name."""
    lines = [Line(label=name, tag=name, colour=colour, points=points)
             for colour, (name, points) in zip(COLOURS, curves.items(), strict=False)]  # fmt: skip
    drawn = line_plot(title, lines, y_top=1.0, x_label=x_label, y_label=y_label)
    head, _, rest = drawn.partition(">")
    return Markup(f"{head}>{element('style', Markup(STYLE))}{rest}\n")
