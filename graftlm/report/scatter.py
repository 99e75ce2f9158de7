"""A scatter plot of two measures, whose labels cover neither the points nor one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graftlm.report.markup import Markup, element, join
from graftlm.report.plots import LARGE, Frame, figure, mark, padded, path, text_at, ticks

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model: `x` a share, `y` with its 95 % interval (`low`, `high`), and the number of its --model colour. A line
    joins those of the same `curve`."""

    label: str
    x: float
    y: float
    low: float | None
    high: float | None
    model: int
    curve: str | None = None


def scatter_plot(
    title: str, description: str, points: Sequence[Point], *, x_label: str, y_label: str, near: bool = False
) -> Markup:
    """A dot for each point; the base is where the dashed lines cross (x = 1, y = 0).

    `near`: only the range that the points take up, for models that are much like each other; the base may be outside.
    """
    heights = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    x_low, x_top = padded([p.x for p in points]) if near else (0.0, max(1.1, *(1.05 * p.x for p in points)))
    y_low, y_top = padded(heights if near else [*heights, 0.0])
    frame = Frame(x_low=x_low, x_top=x_top, y_low=y_low, y_top=y_top, left=48, top=14, width=340, height=200)
    across, down = ticks(x_low, x_top), ticks(y_low, y_top)
    drawn = [*map(frame.column, across), *frame.column_numbers(across, percent=True)]
    drawn += [*map(frame.row, down), *frame.row_numbers(down)]
    taken = [_box(frame.x(p.x), frame.y(p.y), 12, 12) for p in points]
    if y_low <= 0 <= y_top and x_low <= 1 <= x_top:
        left, base = frame.x(1) + 5, frame.y(0)
        taken.append(_box(left + 14, base - 9, 28, 12))
        drawn += [frame.row(0, "floor"), frame.column(1, "floor"), text_at("base", left, base - 5, class_="name")]
    drawn.append(frame.axis_labels(x_label, y_label))
    for curve in dict.fromkeys(p.curve for p in points if p.curve is not None):
        drawn.append(path(frame, [(p.x, p.y) for p in points if p.curve == curve], class_="frontier"))
    drawn += [_drawn(point, frame, taken) for point in points]
    return figure(title, description, LARGE, frame.bottom + 46, drawn)


def _drawn(point: Point, frame: Frame, taken: list[Box]) -> Markup:
    """The point, its interval, and its label where nothing is `taken`."""
    x, y, colour = frame.x(point.x), frame.y(point.y), f"var(--model-{point.model})"
    whisker = None
    if point.low is not None and point.high is not None and point.low < point.high:
        ends = {"y1": frame.y(point.low), "y2": frame.y(point.high)}
        whisker = element("line", x1=x, x2=x, **ends, stroke=colour, class_="whisker")
    label_x, label_y = _free_place(point.label, x, y, frame, taken)
    name = text_at(point.label, label_x, label_y + 4, anchor="middle", class_="name")
    return join(whisker, mark(point.model, x, y, colour), name)


def _free_place(label: str, x: float, y: float, frame: Frame, taken: list[Box]) -> tuple[float, float]:
    """The middle of a label near a point: where it is in the frame and covers nothing, which it then takes up."""
    width = 7.0 * len(label)
    beside, diagonal = 9 + width / 2, 6 + width / 2
    offsets = [(beside, 0.0), (-beside, 0.0), (0.0, -15.0), (0.0, 15.0)]
    offsets += [(side * diagonal, rise) for rise in (-13.0, 13.0, -26.0, 26.0, -39.0, 39.0) for side in (1, -1)]
    boxes = [_box(x + across, y + down, width, 12) for across, down in offsets]
    free = (box for box in boxes if _inside(box, frame) and not any(_overlap(box, other) for other in taken))
    box = next(free, boxes[0])
    taken.append(box)
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _box(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _inside(box: Box, frame: Frame) -> bool:
    return box[0] >= frame.left and box[2] <= LARGE and box[1] >= 0 and box[3] <= frame.bottom


def _overlap(first: Box, second: Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
