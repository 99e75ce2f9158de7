"""Plots as inline SVG, drawn by hand: their colours are the page's own (style.css), so both themes and paper fit.

A plot is a `Frame`, which maps values to places, and the marks drawn in it. Text is 12 units high at a width of 440 or
300, so it stays readable where a phone shrinks the plot. Colours are given as names of CSS variables ("--model-1").
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from graftlm.report.markup import Child, Markup, element, join

SMOOTH_FROM = 40  # from so many points on, a line is its moving average, and the points stand behind it
SHADES = 8  # --head-1 to --head-8 in style.css
LARGE, SMALL = 440, 300  # widths of plots
TAG_HEIGHT, TAG_LETTER = 13, 7
ROW = 18  # height of a heat map's row


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The inside of a plot, to which x in x_low..x_top and y in y_low..y_top are mapped."""

    x_top: float
    y_top: float
    left: float
    top: float
    width: float
    height: float
    x_low: float = 0.0
    y_low: float = 0.0

    @property
    def bottom(self) -> float:
        return self.top + self.height

    def x(self, value: float) -> float:
        return round(self.left + self.width * (value - self.x_low) / (self.x_top - self.x_low), 1)

    def y(self, value: float) -> float:
        return round(self.top + self.height * (self.y_top - value) / (self.y_top - self.y_low), 1)

    def row(self, value: float, class_: str = "grid") -> Markup:
        """A line across at y = `value`."""
        y = self.y(value)
        return element("line", x1=self.left, x2=self.left + self.width, y1=y, y2=y, class_=class_)

    def column(self, value: float, class_: str = "grid") -> Markup:
        """A line from top to bottom at x = `value`."""
        x = self.x(value)
        return element("line", x1=x, x2=x, y1=self.top, y2=self.bottom, class_=class_)

    def row_numbers(self, values: Sequence[float], *, percent: bool = False) -> list[Markup]:
        return [text_at(number(v, percent=percent), self.left - 6, self.y(v) + 4, anchor="end") for v in values]

    def column_numbers(self, values: Sequence[float], *, percent: bool = False) -> list[Markup]:
        return [text_at(number(v, percent=percent), self.x(v), self.bottom + 16, anchor="middle") for v in values]

    def axis_labels(self, x_label: str, y_label: str) -> Markup:
        middle = self.top + self.height / 2
        turn = f"rotate(-90 11 {middle:g})"
        return join(
            text_at(x_label, self.left + self.width / 2, self.bottom + 38, anchor="middle", class_="axis"),
            text_at(y_label, 11, middle, anchor="middle", transform=turn, class_="axis"),
        )


@dataclass(frozen=True, kw_only=True)
class Line:
    """`tag`: what stands at the line's end."""

    label: str
    tag: str
    colour: str
    points: Sequence[tuple[float, float]]


def line_plot(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    description: str | None = None,
    y_top: float | None = None,
) -> Markup:
    """Lines over a common frame, each with its tag at its end; lines without points are left out.

    The axes begin at 0, the upright one below it where a value is negative, and end where the lines do, the upright one
    at `y_top` where it is given. The description is by default each line's first and last value.
    """
    lines = [line for line in lines if line.points]
    values = [0.0, *(y for line in lines for _, y in line.points)]
    x_top = max((x for line in lines for x, _ in line.points), default=0) or 1.0
    y_top = y_top or round_up(max(values))
    step = tick_step(y_top - min(values))
    low = step * math.floor(min(values) / step + 1e-9)
    frame = Frame(x_top=x_top, y_top=y_top, y_low=low, left=56, top=14, width=340, height=212)
    heights, places = ticks(low, y_top, step), ticks(0, x_top, max(1.0, tick_step(x_top)))
    described = description or "; ".join(f"{e.label}: {e.points[0][1]:.4g} to {e.points[-1][1]:.4g}" for e in lines)
    longest_tag = max((len(line.tag) for line in lines), default=0)
    return figure(
        title,
        described,
        max(LARGE, frame.left + frame.width + 6 + TAG_LETTER * longest_tag),
        274,
        [*map(frame.row, heights), *frame.row_numbers(heights), *frame.column_numbers(places)],
        frame.axis_labels(x_label, y_label),
        [_curve(frame, line) for line in lines],
        _tags(frame, lines),
    )


def _curve(frame: Frame, line: Line) -> Markup:
    stroke = f"var({line.colour})"
    smoothed = smooth(line.points)
    behind = None if smoothed == list(line.points) else path(frame, line.points, stroke=stroke, class_="raw")
    return join(behind, path(frame, smoothed, stroke=stroke, class_="curve own" if line.tag == "own" else "curve"))


def _tags(frame: Frame, lines: Iterable[Line]) -> Iterator[Markup]:
    """The lines' tags at their ends, moved up from the lowest on as little as is needed for no two to overlap."""
    limit = math.inf
    for y, line in sorted(((frame.y(smooth(line.points)[-1][1]), line) for line in lines), key=lambda end: -end[0]):
        y = min(y, limit)
        limit = y - TAG_HEIGHT
        yield text_at(line.tag, frame.x(line.points[-1][0]) + 6, y + 4, class_="tag", style=f"fill:var({line.colour})")


def path(frame: Frame, points: Sequence[tuple[float, float]], *, class_: str, stroke: str | None = None) -> Markup:
    """The points joined by straight lines; a single one is a dot."""
    if len(points) == 1:
        return element("circle", cx=frame.x(points[0][0]), cy=frame.y(points[0][1]), r=3, fill=stroke)
    steps = " L".join(f"{frame.x(x)} {frame.y(y)}" for x, y in points)
    return element("path", d=f"M{steps}", stroke=stroke, class_=class_)


def smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Centred moving average over a twentieth of the points (fewer at the ends); few points stay as they are."""
    if len(points) < SMOOTH_FROM:
        return list(points)
    means = []
    for place, (x, _) in enumerate(points):
        near = min(len(points) // 40, place, len(points) - 1 - place)
        means.append((x, statistics.fmean(y for _, y in points[place - near : place + near + 1])))
    return means


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One row: a mean, half the width of its 95 % interval, and the number of its --model colour."""

    label: str
    value: float
    half_width: float | None
    model: int


def dot_plot(title: str, description: str, dots: Sequence[Dot], *, lines: Mapping[str, float]) -> Markup:
    """One row a dot, over the range that the dots and their intervals take up, which need not begin at 0.

    `lines`: name -> value that is drawn across, dashed, where it lies within that range.
    """
    low, high = padded([dot.value + side * (dot.half_width or 0) for dot in dots for side in (-1, 1)], margin=0.08)
    height = 24 * len(dots)
    frame = Frame(x_low=low, x_top=high, y_low=len(dots), y_top=0, left=118, top=18, width=142, height=height)
    values = ticks(low, high, about=3)
    drawn = [*map(frame.column, values), *frame.column_numbers(values)]
    for name, value in lines.items():
        if low <= value <= high:
            drawn.append(frame.column(value, "floor"))
            drawn.append(text_at(name, frame.x(value), frame.top - 5, anchor="middle", class_="small"))
    for place, dot in enumerate(dots):
        y, colour = frame.y(place + 0.5), f"var(--model-{dot.model})"
        drawn.append(text_at(dot.label, frame.left - 8, y + 4, anchor="end", class_="name"))
        if dot.half_width:
            x1, x2 = frame.x(dot.value - dot.half_width), frame.x(dot.value + dot.half_width)
            drawn.append(element("line", x1=x1, x2=x2, y1=y, y2=y, stroke=colour, class_="whisker"))
        drawn.append(mark(dot.model, frame.x(dot.value), y, colour))
        drawn.append(text_at(f"{dot.value:.3f}", frame.left + frame.width + 8, y + 4, class_="value"))
    return figure(title, description, 312, frame.bottom + 22, drawn)


def mark(model: int, x: float, y: float, fill: str) -> Markup:
    """A dot of another shape for each model, for whoever sees no colours."""
    if model % 3 == 1:
        return element("rect", x=x - 4.5, y=y - 4.5, width=9, height=9, fill=fill)
    if model % 3 == 2:
        return element("path", d=f"M{x - 6} {y}L{x} {y - 6}L{x + 6} {y}L{x} {y + 6}Z", fill=fill)
    return element("circle", cx=x, cy=y, r=5, fill=fill)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A share; `tip` is shown to whoever points at it; `reference`: another share, drawn as a line across the bar."""

    share: float
    colour: str
    tip: str | None = None
    reference: float | None = None


def bar_plot(
    title: str, description: str, groups: Sequence[tuple[str, Sequence[Bar]]], *, top: float, small: bool = False
) -> Markup:
    """Upright bars in groups (label, bars), drawn from 0 to `top`; the number above a bar says what it is."""
    size = {"width": 252, "height": 130} if small else {"width": 380, "height": 150}
    frame = Frame(x_top=max(len(groups), 1), y_top=top, left=42, top=20, **size)
    values = ticks(0, top, about=4)
    drawn = [*map(frame.row, values), *frame.row_numbers(values, percent=True)]
    most = max((len(bars) for _, bars in groups), default=1)
    width = round(min(frame.width / frame.x_top * 0.72 / most, 40), 1)
    for place, (label, bars) in enumerate(groups):
        middle = frame.x(place + 0.5)
        drawn.append(text_at(label, middle, frame.bottom + 17, anchor="middle"))
        for index, bar in enumerate(bars):
            drawn.append(_bar(frame, bar, middle + (index - len(bars) / 2 + 0.5) * (width + 2), width, small=small))
    return figure(title, description, SMALL if small else LARGE, frame.bottom + 26, drawn)


def _bar(frame: Frame, bar: Bar, middle: float, width: float, *, small: bool) -> Markup:
    y = frame.y(min(max(bar.share, 0.0), frame.y_top))
    across = None
    if bar.reference is not None:
        left, right, height = round(middle - width * 0.7, 1), round(middle + width * 0.7, 1), frame.y(bar.reference)
        across = element("line", x1=left, x2=right, y1=height, y2=height, class_="copy")
    place = {"x": round(middle - width / 2, 1), "y": y, "width": width, "height": max(round(frame.bottom - y, 1), 0.5)}
    number_above = f"{bar.share:.1%}" if small else f"{bar.share:.0%}"
    return join(
        element("rect", _tip(bar.tip), **place, fill=f"var({bar.colour})"),
        text_at(number_above, middle, y - 5, anchor="middle", class_="value" if small else "small"),
        across,
    )


def shade(place: int, count: int) -> str:
    """The colour of one of `count` things in an order (`place` from 1), spread over all shades."""
    return f"--head-{round((place - 1) * (SHADES - 1) / max(count - 1, 1)) + 1}"


def heat_map(
    title: str,
    description: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    unit: str,
) -> Markup:
    """Darker is more; a cell tells its value when pointed at. `values`: row by row, None where there is no cell;
    `unit`: what the darkest cell's value is of."""
    highest = max((v for line in values for v in line if v is not None), default=0.0) or 1.0
    size = {"width": min(ROW * len(columns), 336), "height": ROW * len(rows)}
    frame = Frame(x_top=len(columns), y_low=len(rows), y_top=0, left=96, top=6, **size)
    cell = round(frame.width / frame.x_top - 1, 1)
    drawn = []
    for r, (name, line) in enumerate(zip(rows, values, strict=True)):
        drawn.append(text_at(name, frame.left - 8, frame.y(r) + 13, anchor="end", class_="name"))
        for c, value in enumerate(line):
            look = {"class_": "empty"} if value is None else {"class_": "cell", "fill": "var(--accent)"}
            look |= {} if value is None else {"fill_opacity": f"{0.04 + 0.96 * value / highest:.3f}"}
            tip = _tip(f"{columns[c]}, {name}: {'none' if value is None else f'{value:.4f}'}")
            drawn.append(element("rect", tip, x=frame.x(c), y=frame.y(r), width=cell, height=ROW - 1, **look))
    for c in range(0, len(columns), max(1, -(-len(columns) // 8))):
        drawn.append(text_at(columns[c].split()[-1], frame.x(c + 0.5), frame.bottom + 15, anchor="middle"))
    drawn.append(text_at(f"darkest: {highest:.3g} {unit}", frame.left, frame.bottom + 34, class_="axis"))
    return figure(title, description, LARGE, frame.bottom + 42, drawn)


def _tip(text: str | None) -> Markup | None:
    return None if text is None else element("title", text)


def figure(title: str, description: str, width: float, height: float, *content: Child | Iterable[Child]) -> Markup:
    """An SVG as wide as its place, with the two texts for whoever does not see it."""
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *content,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=f"{title}. {description}",
    )


def text_at(text: str, x: float, y: float, *, anchor: str | None = None, **attributes: str) -> Markup:
    return element("text", text, x=round(x, 1), y=round(y, 1), text_anchor=anchor, **attributes)


def number(value: float, *, percent: bool = False) -> str:
    """A tick's label."""
    if percent:
        return f"{value:.0%}"
    return f"{round(value, 6):,.10g}" if value < 1e6 else f"{value:g}"


def tick_step(span: float, about: int = 5) -> float:
    """The round number that goes into `span` about so many times."""
    rough = span / about
    unit = 10.0 ** math.floor(math.log10(rough))
    return next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)


def ticks(low: float, high: float, step: float | None = None, *, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`: multiples of `step`, or about so many."""
    step = step or tick_step(high - low, about)
    return [place * step for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def round_up(value: float, *, about: int = 5) -> float:
    """The first tick at or above `value`, for the end of an axis."""
    if value <= 0:
        return 1.0
    step = tick_step(value, about)
    return step * math.ceil(value / step - 1e-9)


def padded(values: Sequence[float], *, margin: float = 0.1) -> tuple[float, float]:
    """From the lowest value to the highest, with a share of the range as margin on both sides."""
    low, high = min(values), max(values)
    pad = margin * (high - low or 0.1)
    return low - pad, high + pad
