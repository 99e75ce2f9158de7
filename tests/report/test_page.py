"""The frame of every report, and the sections on a training."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from graftlm.report.charts import head_losses
from graftlm.report.page import agreement_section, facts_section, losses_section, page, verdict_section
from graftlm.report.tables import common_part_cut
from graftlm.runs.console import signed

CURVES = {
    name: [{"step": s, "next_token_loss": 3.0 / s, "head_1_loss": 5.0 / s} for s in range(1, 9)]
    for name in ("next-token", "multi-token")
}
AGREEMENT = {"heads": {"domain": [0.3, 0.2]}, "undistilled_copies": {"domain": [0.02, 0.03]}}


@pytest.fixture
def html() -> str:
    sections = [
        verdict_section(["<b>no</b> & more"]),
        losses_section(CURVES),
        agreement_section(AGREEMENT),
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


def test_it_shows_losses_agreement_and_facts(html: str) -> None:
    for part in ("Loss by head", "head 1 (2 tokens ahead)", "30.0%", "rank 16"):
        assert part in html, part
    assert html.count("<svg") == 2 + 1


def test_what_is_given_is_shown_as_text_not_as_markup(html: str) -> None:
    assert "<b>no</b>" not in html and "&lt;b&gt;no&lt;/b&gt; &amp;" in html
    assert "<script>" not in html


def test_a_section_without_content_is_left_out() -> None:
    assert losses_section({}) is None and agreement_section({}) is None
    assert verdict_section([]) is None and facts_section({}) is None


def test_losses_of_tuning_and_of_distillation_are_both_read() -> None:
    tuning = [{"step": 1, "loss": 9.0, "next_token_loss": 3.0, "head_2_loss": 5.0}, {"step": 2, "eval_loss": 1.0}]
    assert head_losses(tuning) == {0: [(1.0, 3.0)], 2: [(1.0, 5.0)]}
    assert head_losses([{"step": 10, "loss_1": 4.0}]) == {1: [(10.0, 4.0)]}
    assert head_losses([{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}]) == {0: [(1.0, 2.0)]}


def test_every_colour_that_is_used_is_defined_for_light_and_dark(html: str) -> None:
    used = set(re.findall(r"var\((--[\w-]+)\)", html))
    assert used <= set(re.findall(r"(--[\w-]+)\s*:", html))
    assert "prefers-color-scheme: dark" in html


def test_prompts_are_shown_without_what_all_have_in_common() -> None:
    prompts = ["The capital of Mali is", "The capital of Peru is"]
    assert list(common_part_cut(prompts).values()) == ["Mali", "Peru"]
    assert common_part_cut(["same", "same"]) == {"same": "same"}


def test_a_number_has_its_sign_and_nothing_has_none() -> None:
    assert [signed(v) for v in (0.25, -0.25, -0.0001, 0.0)] == ["+0.250", "−0.250", "0.000", "0.000"]
