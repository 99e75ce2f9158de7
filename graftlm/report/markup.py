"""HTML and SVG as text in which nothing can stay unescaped: a plain str is escaped, a `Markup` is not.

The page is well-formed XML as well, so a test can parse it.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = frozenset({"meta", "link", "line", "rect", "circle", "path", "br"})  # written <tag/> without content


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | float | None
"""Content of an element; None is left out."""


def element(tag: str, /, *children: Child | Iterable[Child], **attributes: str | float | None) -> Markup:
    """`<tag attributes>children</tag>`; in attribute names a last _ is dropped and others become hyphens."""
    names = {key: key.rstrip("_").replace("_", "-") for key in attributes}
    given = "".join(f' {names[key]}="{escape(value)}"' for key, value in attributes.items() if value is not None)
    content = join(*children)
    return Markup(f"<{tag}{given}/>" if tag in VOID and not content else f"<{tag}{given}>{content}</{tag}>")


def join(*children: Child | Iterable[Child]) -> Markup:
    """The children one after the other."""
    plain = (Markup("") if child is None else child for child in children)
    return Markup("".join(escape(child) if isinstance(child, (str, int, float)) else join(*child) for child in plain))


def escape(value: str | float) -> Markup:
    """`value` as text of the page; control characters, which no page may hold, become visible signs (␀, ␛, ↵)."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, float):
        return Markup(f"{value:.2f}".rstrip("0").rstrip("."))
    text = str(value).encode("utf-8", "replace").decode()
    shown = "".join(_visible(character) for character in text)
    return Markup(html.escape(shown))


def _visible(character: str) -> str:
    code = ord(character)
    if character == "\n":
        return "↵"
    if code < 32:
        return chr(0x2400 + code)
    return "\ufffd" if 0x7F <= code < 0xA0 or code in (0xFFFE, 0xFFFF) else character
