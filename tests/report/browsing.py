"""What a browser makes of a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

SHAPES = "[...document.querySelectorAll('svg')].map(s => [...s.querySelectorAll('rect, path, circle, line')]"


def draw(browser: Any, page: Path, scheme: str, width: int, picture: Path) -> list[list[float]]:
    """The sizes in pixels of the shapes of each plot, and a picture of the page.

    Fails on a request, a complaint, a page wider than the screen, or the other colour scheme.
    """
    view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    requests: list[str] = []
    complaints: list[str] = []
    view.on("request", lambda request: requests.append(request.url))
    view.on("console", lambda message: complaints.append(message.text))
    view.on("pageerror", lambda error: complaints.append(str(error)))
    view.goto(page.as_uri())
    size = "e => { const b = e.getBoundingClientRect(); return b.width + b.height }"
    sizes: list[list[float]] = view.evaluate(f"{SHAPES}.map({size}))")
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    colour = view.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour)[:3])) > 384) == (scheme == "light")
    view.screenshot(path=picture, full_page=True)
    view.close()
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == [] and complaints == []
    return sizes
