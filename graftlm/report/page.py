"""The frame of every report and the sections that several have.

One file that asks for nothing else: style and plots lie in it, and its content security policy forbids every request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from graftlm.report.charts import agreement_plots, loss_plots
from graftlm.report.markup import Markup, element
from graftlm.runs.console import words
from graftlm.runs.files import dump_json

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, sections: Sequence[Markup | None]) -> str:
    style = files("graftlm.report").joinpath("style.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Markup(style)),
    )
    body = element("body", element("main", element("h1", title), sections))
    return f'<!DOCTYPE html>\n<html lang="en">{head}\n{body}</html>\n'


def section(heading: str, *content: Markup | None, note: str | None = None, class_: str | None = None) -> Markup:
    introduction = None if note is None else element("p", note, class_="note")
    return element("section", element("h2", heading), introduction, content, Markup("\n"), class_=class_)


def verdict_section(lines: Sequence[str]) -> Markup | None:
    if not lines:
        return None
    return section("Verdict", element("ul", [element("li", line) for line in lines]), class_="verdict")


def losses_section(curves: Mapping[str, list[dict[str, Any]]]) -> Markup | None:
    plots = loss_plots(curves)
    if not plots:
        return None
    return section(
        "Loss by head",
        plots,
        note="Head k predicts k tokens further than the model's own head. The vertical axis is the same in all plots; "
        "a line of many points is their moving average, with the points faint behind it.",
    )


def agreement_section(agreement: Mapping[str, Any]) -> Markup | None:
    if not agreement.get("heads"):
        return None
    return section(
        "Agreement of the distilled heads",
        agreement_plots(agreement),
        note="Share of held-out positions where a head's likeliest token is the model's own greedy one, as many tokens "
        "ahead. The line across each bar: the same head before distillation, a bare copy of the last layer.",
    )


def data_section(name: str, value: Any) -> Markup:
    """The numbers behind the page as JSON (element `name`), written so that nothing in it can end the element."""
    text = dump_json(value).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return element("script", Markup(text), type="application/json", id=name)


def facts_section(facts: Mapping[str, Any]) -> Markup | None:
    rows = []
    for name, value in facts.items():
        shown = ", ".join(f"{k} {words(v)}" for k, v in value.items()) if isinstance(value, Mapping) else words(value)
        rows.append(element("tr", element("th", name.replace("_", " "), scope="row"), element("td", shown)))
    if not rows:
        return None
    return section("How this was made", element("table", element("tbody", rows), class_="facts"))
