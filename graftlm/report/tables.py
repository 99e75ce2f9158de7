"""Tables that a phone can show, and the shortening of texts for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

from graftlm.report.markup import Markup, element

Content = str | float | None
"""Content of a cell: text, markup, or a number, which is shown with three decimals; None is shown as a dash."""
Row = tuple[Markup | str, Sequence[Content]]
"""The row's name, and its cells in the order of the table's further headings."""


def table(
    caption: str, headings: Sequence[str], rows: Iterable[Row | Markup], *, class_: str = "", cells: int = 1
) -> Markup:
    """A table with a heading for each column; a row that is markup stays as it is (`group_row`).

    On a phone each row becomes a block of `cells` cells abreast, each below its heading; the roles keep it a table for
    screen readers. ValueError where a row has more or fewer cells than there are headings.
    """
    head = element("tr", [element("th", h, scope="col", role="columnheader") for h in headings], role="row")
    body = [each if isinstance(each, Markup) else _row(headings[1:], *each) for each in rows]
    return element(
        "table",
        element("caption", caption),
        element("thead", head, role="rowgroup"),
        element("tbody", body, role="rowgroup"),
        role="table",
        class_=f"stacked {class_}".strip(),
        style=f"--cells:{cells}",
    )


def number_table(caption: str, headings: Sequence[str], rows: Iterable[Row | Markup], *, cells: int = 2) -> Markup:
    """A table of numbers, which scrolls sideways where it is wider than the page."""
    return element("div", table(caption, headings, rows, class_="numbers", cells=cells), class_="scroll")


def group_row(name: Markup | str, columns: int) -> Markup:
    """The heading of the rows below it, across all columns."""
    return element("tr", element("th", name, colspan=columns), class_="group", role="row")


def _row(headings: Sequence[str], name: Markup | str, contents: Sequence[Content]) -> Markup:
    cells = [
        element("td", _shown(content), role="cell", data_label=heading)
        for heading, content in zip(headings, contents, strict=True)
    ]
    return element("tr", element("th", name, scope="row", role="rowheader"), cells, role="row")


def _shown(content: Content) -> str:
    if content is None:
        return "–"
    return content if isinstance(content, str) else f"{content:.3f}"


def arrow(better: bool, words: str) -> Markup:
    """Up in green or down in red; `words` say the same to whoever points at it."""
    return element("span", "▲" if better else "▼", class_="good" if better else "bad", title=words)


def without_common_parts(texts: Sequence[str]) -> dict[str, str]:
    """Text -> what is left of it without the beginning and the end that all share ("The capital of … is")."""
    start = _common_length(texts)
    end = _common_length([text[start:][::-1] for text in texts])
    short = {text: text[start : len(text) - end].strip() for text in texts}
    return short if all(short.values()) else {text: text for text in texts}


def _common_length(texts: Sequence[str]) -> int:
    """Number of characters with which all texts begin."""
    return sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False)))


def clipped(text: Any, longest: int) -> str:
    """At most `longest` characters of the text, then an ellipsis."""
    shown = str(text)
    if not shown.strip():
        return "(nothing)"
    return shown if len(shown) <= longest else shown[:longest] + "…"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
