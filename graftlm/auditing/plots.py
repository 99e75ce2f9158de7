"""The audit's own plots: gain against retention, change by layer and module, and what each restoration brings back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from graftlm.report.markup import Markup, element, join
from graftlm.report.plots import Frame, figure, mark, number, ticks, words_at


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model: `x` its retention, `y` its gain with the 95 % interval (`low`, `high`). A line joins those that are
    `joined`."""

    label: str
    x: float
    y: float
    low: float | None
    high: float | None
    model: int
    joined: bool = False


def scatter_plot(
    title: str, description: str, points: Sequence[Point], *, x_label: str, y_label: str, near: bool = False
) -> Markup:
    """A dot a model; the base model is where the dashed lines cross (retention 1, gain 0).

    `near`: only the range that the dots take up, for models that are much like each other; the base model may be
    outside.
    """
    left, right = _range([p.x for p in points]) if near else (0.0, max(1.1, *(1.05 * p.x for p in points)))
    bounds = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    low, high = _range(bounds if near else [*bounds, 0.0])
    frame = Frame(x_top=right - left, y_top=high - low, left=48, top=14, width=340, height=200)
    bottom = frame.top + frame.height
    grid = []
    for tick in _ticks_between(left, right):
        x = frame.x(tick - left)
        grid.append(element("line", x1=x, x2=x, y1=frame.top, y2=bottom, class_="grid"))
        grid.append(words_at(f"{tick:.0%}", x, bottom + 16, anchor="middle"))
    for tick in _ticks_between(low, high):
        y = frame.y(tick - low)
        grid.append(element("line", x1=frame.left, x2=frame.left + frame.width, y1=y, y2=y, class_="grid"))
        grid.append(words_at(number(round(tick, 6)), frame.left - 6, y + 4, anchor="end"))
    places = [(frame.x(point.x - left), frame.y(point.y - low)) for point in points]
    taken = [_box(x, y, 12, 12) for x, y in places]
    if low <= 0 <= high and left <= 1 <= right:
        zero, one = frame.y(-low), frame.x(1 - left)
        taken.append(_box(one + 5 + 14, zero - 9, 28, 12))
        grid += [
            element("line", x1=frame.left, x2=frame.left + frame.width, y1=zero, y2=zero, class_="floor"),
            element("line", x1=one, x2=one, y1=frame.top, y2=bottom, class_="floor"),
            words_at("base", one + 5, zero - 5, class_="name"),
        ]
    grid += [
        words_at(x_label, frame.left + frame.width / 2, bottom + 36, anchor="middle", class_="axis"),
        element("text", y_label, x=10, y=114, text_anchor="middle", transform="rotate(-90 10 114)", class_="axis"),
    ]
    drawn = [_joined(frame, [(p.x - left, p.y - low) for p in points if p.joined])]
    for point, (x, y) in zip(points, places, strict=True):
        colour = f"var(--model-{point.model})"
        if point.low is not None and point.high is not None and point.low < point.high:
            ends = {"y1": frame.y(point.low - low), "y2": frame.y(point.high - low)}
            drawn.append(element("line", x1=x, x2=x, **ends, stroke=colour, class_="whisker"))
        label_x, label_y = _free_place(point.label, x, y, frame, taken)
        name = words_at(point.label, label_x, label_y + 4, anchor="middle", class_="name")
        drawn += [mark(point.model, x, y, colour), name]
    return figure(title, description, 440, bottom + 46, join(grid, drawn))


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def _box(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _free_place(label: str, x: float, y: float, frame: Frame, taken: list[Box]) -> tuple[float, float]:
    """The middle of a label near a point: where it is in the frame and covers nothing, which it then takes up."""
    width = 7.0 * len(label)
    beside, diagonal = 9 + width / 2, 6 + width / 2
    offsets = [(beside, 0), (-beside, 0), (0, -15), (0, 15)]
    offsets += [(side * diagonal, rise) for rise in (-13, 13, -26, 26, -39, 39) for side in (1, -1)]
    found = x + beside, y
    for across, down in offsets:
        box = _box(x + across, y + down, width, 12)
        inside = box[0] >= frame.left and box[2] <= 440 and box[1] >= 0 and box[3] <= frame.top + frame.height
        if inside and not any(_overlap(box, other) for other in taken):
            found = x + across, y + down
            break
    taken.append(_box(*found, width, 12))
    return found


def _overlap(first: Box, second: Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _joined(frame: Frame, points: Sequence[tuple[float, float]]) -> Markup:
    if len(points) < 2:
        return Markup("")
    places = " L".join(f"{frame.x(x)} {frame.y(y)}" for x, y in points)
    return element("path", d=f"M{places}", class_="frontier")


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the lowest to the highest, with a margin."""
    low, high = min(values), max(values)
    margin = 0.1 * (high - low or 0.1)
    return low - margin, high + margin


def _ticks_between(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`."""
    step = ticks(high - low)[1]
    return [place * step for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def heat_map(
    title: str, description: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]]
) -> Markup:
    """Darker is more; a cell tells its value when pointed at. `values`: row by row, None where there is no cell."""
    top = max((v for line in values for v in line if v is not None), default=0.0) or 1.0
    left, height, width = 96, 18, min(18.0, 336 / max(len(columns), 1))
    drawn = []
    for r, (name, line) in enumerate(zip(rows, values, strict=True)):
        drawn.append(words_at(name, left - 8, 6 + height * r + 13, anchor="end", class_="name"))
        for c, value in enumerate(line):
            place = {"x": round(left + width * c, 1), "y": 6 + height * r, "width": round(width - 1, 1), "height": 17}
            shade = (
                {"fill": "var(--accent)", "fill_opacity": f"{0.04 + 0.96 * value / top:.3f}"}
                if value is not None
                else {}
            )
            tip = element("title", f"{columns[c]}, {name}: {'not tuned' if value is None else f'{value:.4f}'}")
            drawn.append(element("rect", tip, **place, **shade, class_="cell" if value is not None else "empty"))
    bottom = 6 + height * len(rows)
    every = max(1, -(-len(columns) // 8))
    for c in range(0, len(columns), every):
        label = columns[c].removeprefix("layer ")
        drawn.append(words_at(label, left + width * (c + 0.5), bottom + 15, anchor="middle"))
    scale = words_at(f"darkest: {top:.3g} of the base weight's norm", left, bottom + 34, class_="axis")
    return figure(title, description, 440, bottom + 42, join(drawn, scale))


def paired_bars(
    title: str, description: str, groups: Sequence[tuple[str, float | None, float | None]], *, names: tuple[str, str]
) -> Markup:
    """Two upright bars a group, of shares; drawn from 0 to 1.2 at most, the number above says what it is."""
    frame = Frame(x_top=max(len(groups), 1), y_top=1.2, left=42, top=22, width=380, height=150)
    grid = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = frame.y(tick)
        grid.append(element("line", x1=frame.left, x2=frame.left + frame.width, y1=y, y2=y, class_="grid"))
        grid.append(words_at(f"{tick:.0%}", frame.left - 6, y + 4, anchor="end"))
    width = min(frame.width / max(len(groups), 1) * 0.36, 26)
    drawn = []
    for place, (label, first, second) in enumerate(groups):
        middle = frame.x(place + 0.5)
        for side, value in ((-1, first), (1, second)):
            if value is None:
                continue
            shown = min(max(value, 0.0), 1.2)
            x = middle - width - 1 if side < 0 else middle + 1
            drawn.append(
                element(
                    "rect",
                    element("title", f"{label}, {names[0 if side < 0 else 1]}: {value:.0%}"),
                    x=round(x, 1), y=frame.y(shown), width=round(width, 1),
                    height=max(round(frame.y(0) - frame.y(shown), 1), 0.5),
                    fill="var(--model-3)" if side < 0 else "var(--model-1)",
                )
            )  # fmt: skip
            drawn.append(words_at(f"{value:.0%}", x + width / 2, frame.y(shown) - 4, anchor="middle", class_="small"))
        drawn.append(words_at(label, middle, frame.y(0) + 17, anchor="middle"))
    return figure(title, description, 440, 200, join(grid, drawn))
