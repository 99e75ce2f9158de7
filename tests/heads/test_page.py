"""The sections of a report on heads."""

from __future__ import annotations

import re

import pytest

from graftlm.heads.page import agreement_section, loss_curves, losses_section
from graftlm.report.page import page

CURVES = {
    name: [{"step": s, "next_token_loss": 3.0 / s, "head_1_loss": 5.0 / s} for s in range(1, 9)]
    for name in ("next-token", "multi-token")
}
AGREEMENT = {"heads": {"domain": [0.3, 0.2]}, "undistilled_copies": {"domain": [0.02, 0.03]}}


@pytest.fixture
def html() -> str:
    return page("Heads", [losses_section(CURVES), agreement_section(AGREEMENT)])


def test_losses_and_agreement_are_drawn(html: str) -> None:
    for part in ("Loss by head", "head 1 (2 tokens ahead)", "30.0%", "2.0%"):
        assert part in html, part
    assert html.count("<svg") == 2 + 1


def test_every_colour_that_is_used_is_defined_for_light_and_dark(html: str) -> None:
    used = set(re.findall(r"var\((--[\w-]+)\)", html))
    assert "--head-1" in used and used <= set(re.findall(r"(--[\w-]+)\s*:", html))
    assert "prefers-color-scheme: dark" in html


def test_a_section_without_content_is_left_out() -> None:
    assert losses_section({}) is None and agreement_section({}) is None


def test_losses_of_tuning_and_of_distillation_are_both_read() -> None:
    tuning = [{"step": 1, "loss": 9.0, "next_token_loss": 3.0, "head_2_loss": 5.0}, {"step": 2, "eval_loss": 1.0}]
    assert loss_curves(tuning) == {0: [(1.0, 3.0)], 2: [(1.0, 5.0)]}
    assert loss_curves([{"step": 10, "loss_1": 4.0}]) == {1: [(10.0, 4.0)]}
    assert loss_curves([{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}]) == {0: [(1.0, 2.0)]}
