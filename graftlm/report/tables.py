"""Tables that a phone can show, and the cutting of texts for them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from graftlm.report.markup import Markup, element


def table(caption: str, headings: Sequence[str], rows: Sequence[Markup], *, class_: str = "", cells: int = 1) -> Markup:
    """On a phone each row becomes a block of `cells` cells abreast; the roles keep it a table for screen readers."""
    head = element("tr", [element("th", h, scope="col", role="columnheader") for h in headings], role="row")
    return element(
        "table",
        element("caption", caption),
        element("thead", head, role="rowgroup"),
        element("tbody", rows, role="rowgroup"),
        role="table",
        class_=f"stacked {class_}".strip(),
        style=f"--cells:{cells}",
    )


def row(name: Markup | str, cells: Sequence[Markup]) -> Markup:
    return element("tr", element("th", name, scope="row", role="rowheader"), cells, role="row")


def cell(heading: str, *content: Markup | str | None, class_: str | None = None) -> Markup:
    """`heading` is what a phone shows above it."""
    return element("td", *content, role="cell", data_label=heading, class_=class_)


def number_cell(heading: str, value: float | None) -> Markup:
    return cell(heading, "–" if value is None else f"{value:.3f}")


def arrow(better: bool, words: str) -> Markup:
    """Up in green or down in red; `words` say the same to whoever points at it."""
    return element("span", "▲" if better else "▼", class_="good" if better else "bad", title=words)


def common_part_cut(prompts: Sequence[str]) -> dict[str, str]:
    """Prompt -> what is left of it without the beginning and the end that all share ("The capital of … is")."""
    start = _alike(prompts)
    end = _alike([prompt[start:][::-1] for prompt in prompts])
    short = {prompt: prompt[start : len(prompt) - end].strip() for prompt in prompts}
    return short if all(short.values()) else {prompt: prompt for prompt in prompts}


def _alike(texts: Sequence[str]) -> int:
    """How many characters all begin with."""
    return sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False)))


def clipped(text: Any, longest: int) -> str:
    shown = str(text)
    if not shown.strip():
        return "(nothing)"
    return shown if len(shown) <= longest else shown[:longest] + "…"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
