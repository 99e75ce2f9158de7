"""Plots as inline SVG, drawn by hand: their colours are the page's own (style.css), so both themes and paper fit.

Text is 12 units high at a width of 440 or 300, so it stays readable where a phone shrinks the plot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graftlm.report.markup import Markup, element, join

SMOOTH_FROM = 40  # from so many points on, a line is its moving average, and the points stand behind it
HEAD_SHADES = 8  # --head-1 to --head-8 in style.css


@dataclass(frozen=True, kw_only=True)
class Line:
    """`colour`: name of a CSS variable; `tag`: what stands at the line's end."""

    label: str
    tag: str
    colour: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Maps x in 0..x_top and y in y_bottom..y_top to a plot's inside."""

    x_top: float
    y_top: float
    left: float
    top: float
    width: float
    height: float
    y_bottom: float = 0.0

    def x(self, value: float) -> float:
        return round(self.left + self.width * value / self.x_top, 1)

    def y(self, value: float) -> float:
        return round(self.top + self.height * (self.y_top - value) / (self.y_top - self.y_bottom), 1)


def line_plot(
    title: str,
    description: str,
    lines: Sequence[Line],
    *,
    x_top: float,
    y_top: float,
    x_label: str,
    y_label: str,
    y_bottom: float = 0.0,
) -> Markup:
    """Lines over a common frame, each with its tag at its end; `y_bottom` is 0 or below."""
    step = ticks(y_top - y_bottom)[1]
    bottom = step * math.floor(y_bottom / step + 1e-9)
    frame = Frame(x_top=x_top, y_top=y_top, y_bottom=bottom, left=56, top=14, width=340, height=212)
    grid = [
        *(_gridline(frame, step * tick) for tick in range(round(bottom / step), math.floor(y_top / step * 1.0001) + 1)),
        *(
            words_at(number(t), frame.x(t), frame.top + frame.height + 18, anchor="middle")
            for t in ticks(x_top, whole=True)
        ),
        words_at(x_label, frame.left + frame.width / 2, 266, anchor="middle", class_="axis"),
        element("text", y_label, x=11, y=120, text_anchor="middle", transform="rotate(-90 11 120)", class_="axis"),
    ]
    curves = [_curve(frame, line) for line in lines if line.points]
    ends = _apart([(frame.y(smooth(line.points)[-1][1]), line) for line in lines if line.points])
    tags = [
        words_at(line.tag, frame.x(line.points[-1][0]) + 6, y + 4, class_="tag", style=f"fill:var({line.colour})")
        for y, line in ends
    ]
    room = 7 * max((len(line.tag) for line in lines if line.points), default=0)
    return figure(title, description, max(440, frame.left + frame.width + 6 + room), 274, join(grid, curves, tags))


def _curve(frame: Frame, line: Line) -> Markup:
    stroke = f"var({line.colour})"
    smoothed = smooth(line.points)
    behind = None if smoothed == list(line.points) else _path(frame, line.points, stroke, class_="raw")
    return join(behind, _path(frame, smoothed, stroke, class_="curve own" if line.tag == "own" else "curve"))


def _path(frame: Frame, points: Sequence[tuple[float, float]], stroke: str, *, class_: str) -> Markup:
    if len(points) == 1:
        return element("circle", cx=frame.x(points[0][0]), cy=frame.y(points[0][1]), r=3, fill=stroke)
    steps = " L".join(f"{frame.x(x)} {frame.y(y)}" for x, y in points)
    return element("path", d=f"M{steps}", stroke=stroke, class_=class_)


def smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Centred moving average over a twentieth of the points (fewer at the ends); few points stay as they are."""
    if len(points) < SMOOTH_FROM:
        return list(points)
    reach = max(1, len(points) // 40)
    means = []
    for place, (x, _) in enumerate(points):
        near = min(reach, place, len(points) - 1 - place)
        window = [y for _, y in points[place - near : place + near + 1]]
        means.append((x, sum(window) / len(window)))
    return means


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One row: a mean, half the length of its 95 % interval, and which of the --model colours it has."""

    label: str
    value: float
    reach: float | None
    model: int


def dot_plot(title: str, description: str, dots: Sequence[Dot], *, lines: Mapping[str, float] | None = None) -> Markup:
    """One row a dot, over the range that the dots and their intervals take up, which need not begin at 0.

    `lines`: name -> value that is drawn across, dashed, where it lies within that range.
    """
    row, top, left, width = 24, 18, 118, 142
    bottom = top + row * len(dots)
    ends = [dot.value + side * (dot.reach or 0) for dot in dots for side in (-1, 1)]
    margin = 0.08 * (max(ends) - min(ends) or 0.1)
    low, high = min(ends) - margin, max(ends) + margin

    def x(value: float) -> float:
        return round(left + width * (value - low) / (high - low), 1)

    step = ticks(high - low, about=3)[1]
    drawn = []
    for tick in range(math.ceil(low / step), math.floor(high / step) + 1):
        place = x(tick * step)
        drawn.append(element("line", x1=place, x2=place, y1=top, y2=bottom, class_="grid"))
        drawn.append(words_at(number(round(tick * step, 6)), place, bottom + 15, anchor="middle"))
    for name, value in (lines or {}).items():
        if low <= value <= high:
            drawn.append(element("line", x1=x(value), x2=x(value), y1=top, y2=bottom, class_="floor"))
            drawn.append(words_at(name, x(value), top - 5, anchor="middle", class_="small"))
    for place, dot in enumerate(dots):
        y, colour = top + row * (place + 0.5), f"var(--model-{dot.model})"
        drawn.append(words_at(dot.label, left - 8, y + 4, anchor="end", class_="name"))
        if dot.reach:
            ends = [x(dot.value - dot.reach), x(dot.value + dot.reach)]
            drawn.append(element("line", x1=ends[0], x2=ends[1], y1=y, y2=y, stroke=colour, class_="whisker"))
        drawn.append(mark(dot.model, x(dot.value), y, colour))
        drawn.append(words_at(f"{dot.value:.3f}", left + width + 8, y + 4, class_="value"))
    return figure(title, description, 312, bottom + 22, join(drawn))


def mark(model: int, x: float, y: float, fill: str) -> Markup:
    """Another shape for each model, for whoever sees no colours."""
    if model % 3 == 1:
        return element("rect", x=x - 4.5, y=y - 4.5, width=9, height=9, fill=fill)
    if model % 3 == 2:
        return element("path", d=f"M{x - 6} {y}L{x} {y - 6}L{x + 6} {y}L{x} {y + 6}Z", fill=fill)
    return element("circle", cx=x, cy=y, r=5, fill=fill)


def bar_plot(title: str, description: str, bars: Sequence[tuple[str, float, float | None]], *, top: float) -> Markup:
    """Upright bars (label, share, share of a copy that learnt nothing or None), the latter as a mark across the bar."""
    frame = Frame(x_top=max(len(bars), 1), y_top=top, left=42, top=18, width=252, height=130)
    grid = [_gridline(frame, tick, percent=True) for tick in ticks(top, about=4)]
    drawn = []
    width = min(frame.width / max(len(bars), 1) * 0.56, 40)
    for place, (name, share, copy) in enumerate(bars):
        middle, y = frame.x(place + 0.5), frame.y(share)
        drawn += [
            element(
                "rect",
                x=round(middle - width / 2, 1),
                y=y,
                width=round(width, 1),
                height=round(frame.y(0) - y, 1),
                fill=f"var({head_colour(place + 1, len(bars))})",
            ),
            words_at(f"{share:.1%}", middle, y - 5, anchor="middle", class_="value"),
            words_at(name, middle, frame.y(0) + 17, anchor="middle"),
        ]
        if copy is not None:
            ends = {"x1": round(middle - width * 0.7, 1), "x2": round(middle + width * 0.7, 1)}
            drawn.append(element("line", **ends, y1=frame.y(copy), y2=frame.y(copy), class_="copy"))
    return figure(title, description, 300, 174, join(grid, drawn))


def head_colour(head: int, heads: int) -> str:
    """The CSS variable of head `head` (1-based) of `heads`: shades in order, spread over all there are."""
    shade = round((head - 1) * (HEAD_SHADES - 1) / max(heads - 1, 1))
    return f"--head-{shade + 1}"


def figure(title: str, description: str, width: float, height: float, content: Markup) -> Markup:
    """An SVG as wide as its place, with the two texts for whoever does not see it."""
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        content,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=f"{title}. {description}",
    )


def ticks(top: float, *, about: int = 5, whole: bool = False) -> list[float]:
    """Round numbers from 0 to `top`, about so many."""
    rough = top / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    if whole:
        step = max(1.0, step)
    return [step * place for place in range(math.floor(top / step * 1.0001) + 1)]


def round_up(value: float, *, about: int = 5) -> float:
    """The first tick at or above `value`, for the end of an axis."""
    if value <= 0:
        return 1.0
    step = ticks(value, about=about)[1]
    return step * math.ceil(value / step - 1e-9)


def number(value: float) -> str:
    return f"{value:,.10g}" if value < 1e6 else f"{value:g}"


def _gridline(frame: Frame, value: float, *, percent: bool = False) -> Markup:
    y = frame.y(value)
    return join(
        element("line", x1=frame.left, x2=frame.left + frame.width, y1=y, y2=y, class_="grid"),
        words_at(f"{value:.0%}" if percent else number(round(value, 6)), frame.left - 6, y + 4, anchor="end"),
    )


def words_at(text: str, x: float, y: float, *, anchor: str | None = None, **attributes: str) -> Markup:
    return element("text", text, x=round(x, 1), y=round(y, 1), text_anchor=anchor, **attributes)


def _apart(ends: Sequence[tuple[float, Line]], distance: float = 13) -> list[tuple[float, Line]]:
    """Heights moved so far that no two tags overlap, as little as is needed from the lowest line up."""
    placed: list[tuple[float, Line]] = []
    for y, line in sorted(ends, key=lambda end: -end[0]):
        limit = placed[-1][0] - distance if placed else y
        placed.append((min(y, limit), line))
    return placed
