"""The frame of every report: a title, sections, and the numbers as JSON.

One file that asks for nothing else: style and plots lie in it, and its content security policy forbids every request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from graftlm.report.markup import Markup, element
from graftlm.runs.console import words
from graftlm.runs.files import dump_json, write_text

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_page(path: Path, title: str, sections: Sequence[Markup | None]) -> None:
    """Write the page to `path`, whole or not at all (OSError names the file); sections that are None are left out."""
    write_text(path, page(title, sections))


def page(title: str, sections: Sequence[Markup | None]) -> str:
    """The HTML document."""
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
    """A section whose `note` stands below its heading."""
    introduction = None if note is None else element("p", note, class_="note")
    return element("section", element("h2", heading), introduction, content, Markup("\n"), class_=class_)


def folded(summary: str, *content: Markup | None) -> Markup:
    """Content that is shown when its summary is clicked on."""
    return element("details", element("summary", summary), content)


def panels(figures: Sequence[Markup | None], *, small: bool = False) -> Markup:
    """Figures side by side, as many as the page is wide."""
    return element("div", figures, class_=f"panels {'small' if small else 'large'}")


def captioned(heading: Markup | str, plot: Markup) -> Markup:
    """A plot below its heading."""
    title = heading if isinstance(heading, Markup) else element("h3", heading)
    return element("figure", element("figcaption", title), plot)


def legend(meanings: Mapping[str, str]) -> Markup:
    """Explain colours; `meanings`: what it stands for -> name of a CSS variable."""
    swatches = [element("span", class_="swatch", style=f"color:var({colour})") for colour in meanings.values()]
    return element("ul", [element("li", *each) for each in zip(swatches, meanings, strict=True)], class_="legend")


def verdict_section(lines: Sequence[str]) -> Markup | None:
    """The result in sentences; None without any."""
    if not lines:
        return None
    return section("Verdict", element("ul", [element("li", line) for line in lines]), class_="verdict")


def data_section(name: str, value: Any) -> Markup:
    """The numbers behind the page as JSON (element `name`), written so that nothing in it can end the element."""
    text = dump_json(value).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return element("script", Markup(text), type="application/json", id=name)


def facts_section(facts: Mapping[str, Any]) -> Markup | None:
    """A table of how the results were made, a row for each fact; None without any."""
    rows = []
    for name, value in facts.items():
        shown = ", ".join(f"{k} {words(v)}" for k, v in value.items()) if isinstance(value, Mapping) else words(value)
        rows.append(element("tr", element("th", name.replace("_", " "), scope="row"), element("td", shown)))
    if not rows:
        return None
    return section("How this was made", element("table", element("tbody", rows), class_="facts"))
