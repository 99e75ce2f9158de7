"""Parts of a page that audits, sweeps and studies share: gain against retention, and a change in a table's cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

from graftlm.auditing.result import Change, TunedAudit
from graftlm.report.markup import Markup, element, join
from graftlm.report.page import section
from graftlm.report.scatter import Point, scatter_plot
from graftlm.report.tables import arrow
from graftlm.tasks import Metric


def gain_section(points: Sequence[Point | None], metric: Metric, *, note: str, near: bool = False) -> Markup | None:
    """Gain on `metric` (y) against retention (x), a point a model; None where no model has both."""
    shown = [point for point in points if point is not None and math.isfinite(point.x) and math.isfinite(point.y)]
    if not shown:
        return None
    plot = scatter_plot(
        "Gain against retention",
        "; ".join(f"{point.label}: retention {point.x:.0%}, gain {point.y:.3f}" for point in shown),
        shown,
        x_label="retention (mean over the probes)",
        y_label=f"gain: {metric.gain_words}",
        near=near,
    )
    return section("Gain against retention", element("figure", plot), note=note)


def change_point(label: str, audited: TunedAudit, task: str, metric: Metric, *, model: int) -> Point | None:
    """The point of an audited model in `gain_section`; None where its retention or its gain was not measured."""
    change, retention = audited.changes[task].get(metric.name), audited.mean_retention
    if change is None or retention is None:
        return None
    gain, low, high = change.gain
    return Point(label=label, x=retention, y=gain, low=low, high=high, model=min(model, 5))


def change_cell(change: Change | None) -> Markup | None:
    """The tuned model's value, an arrow where the difference counts as one, and below it the difference."""
    if change is None:
        return None
    word = "better" if change.better else "worse"
    sign = join(" ", arrow(change.better, f"{word} than base")) if change.shown else None
    return join(f"{change.tuned:.3f}", sign, element("small", change.difference))


def change_legend() -> Markup:
    """The meaning of the arrows of `change_cell`."""
    return join(
        arrow(True, "better"), " better and ", arrow(False, "worse"),
        " worse than the base model: the 95 % interval of the difference leaves out zero. Floor: what "
        "a trivial answer reaches.",
    )  # fmt: skip
