"""The frame of every report, its tables and its plots."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from graftlm.report.page import facts_section, page, section, verdict_section
from graftlm.report.plots import Bar, Line, bar_plot, line_plot
from graftlm.report.scatter import Point, scatter_plot
from graftlm.report.tables import table, without_common_parts
from graftlm.runs.console import signed


@pytest.fixture
def html() -> str:
    sections = [
        verdict_section(["<b>no</b> & more"]),
        section("Shares", bar_plot("Shares", "", [("a", [Bar(share=0.3, colour="--model-1")])], top=1.0)),
        None,
        facts_section({"seed": 0, "settings": {"rank": 16}}),
    ]
    return page("<script>alert(1)</script>", sections)


def test_the_page_is_whole_and_asks_for_nothing_else(html: str) -> None:
    root = ElementTree.fromstring(html.partition("\n")[2])
    links = [value for e in root.iter() for name, value in e.attrib.items() if name.endswith(("src", "href"))]
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert "@import" not in html and "url(http" not in html
    [policy] = [e.attrib["content"] for e in root.iter("meta") if "http-equiv" in e.attrib]
    assert policy.startswith("default-src 'none'")
    assert "rank 16" in html and html.count("<svg") == 1


def test_what_is_given_is_shown_as_text_not_as_markup(html: str) -> None:
    assert "<b>no</b>" not in html and "&lt;b&gt;no&lt;/b&gt; &amp;" in html
    assert "<script>" not in html


def test_a_section_without_content_is_left_out() -> None:
    assert verdict_section([]) is None and facts_section({}) is None


def test_a_table_shows_each_cell_below_its_heading() -> None:
    root = ElementTree.fromstring(table("", ["model", "loss", "rows", "note"], [("base", [0.12345, None, "<i>"])]))
    cells = [(cell.attrib["data-label"], cell.text) for cell in root.iter("td")]
    assert cells == [("loss", "0.123"), ("rows", "–"), ("note", "<i>")]
    with pytest.raises(ValueError, match="zip"):
        table("", ["model", "loss"], [("base", [])])


def test_the_axes_of_a_line_plot_hold_all_of_its_points() -> None:
    points = [(0.0, -0.7), (3.0, 0.2), (8.0, 1.3)]
    plot = line_plot("t", [Line(label="a", tag="a", colour="--own", points=points)], x_label="x", y_label="y")
    root = ElementTree.fromstring(plot)
    [curve] = [e.attrib["d"] for e in root.iter() if e.attrib.get("class") == "curve"]
    heights = [float(pair.split()[1]) for pair in curve.removeprefix("M").split(" L")]
    assert min(heights) >= 14 and max(heights) <= 14 + 212
    labels = {e.text for e in root.iter() if e.tag.endswith("text")}
    assert {"-1", "0", "1", "8"} <= labels and "a: -0.7 to 1.3" in plot


def test_labels_of_neighbours_in_a_scatter_plot_do_not_overlap() -> None:
    points = [Point(label=f"model {n}", x=0.9, y=1 + 0.001 * n, low=None, high=None, model=n) for n in range(4)]
    root = ElementTree.fromstring(scatter_plot("t", "d", points, x_label="x", y_label="y"))
    names = [e for e in root.iter() if (e.text or "").startswith("model")]
    places = [(float(e.attrib["x"]), float(e.attrib["y"])) for e in names]
    assert len(places) == 4
    for place, (x, y) in enumerate(places):
        assert all(abs(x - other) >= 49 or abs(y - height) >= 12 for other, height in places[:place])


def test_prompts_are_shown_without_what_all_have_in_common() -> None:
    prompts = ["The capital of Mali is", "The capital of Peru is"]
    assert list(without_common_parts(prompts).values()) == ["Mali", "Peru"]
    assert without_common_parts(["same", "same"]) == {"same": "same"}


def test_a_number_has_its_sign_and_nothing_has_none() -> None:
    assert [signed(v) for v in (0.25, -0.25, -0.0001, 0.0)] == ["+0.250", "−0.250", "0.000", "0.000"]


def test_a_bar_tells_its_value_when_pointed_at() -> None:
    plot = bar_plot("", "", [("a", [Bar(share=0.3, colour="--own", tip="30 %")])], top=1.0)
    [bar] = [e for e in ElementTree.fromstring(plot).iter() if e.tag.endswith("rect")]
    assert [child.text for child in bar] == ["30 %"]
