"""The report: one self-contained file whose sentences claim no more than the examples show."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from graftlm.errors import InputError
from graftlm.report import verdict_lines, write_report
from graftlm.report.charts import head_losses
from graftlm.tasks import TaskResult
from graftlm.tasks.comparison import difference, standard_error


def generation(outputs: list[str], valid: list[int], nll: list[float], tokens: int = 10) -> TaskResult:
    examples = [
        {"prompt": f"p{i}", "reference": f"r{i}", "output": o, "valid": v, "nll": n, "tokens": tokens}
        for i, (o, v, n) in enumerate(zip(outputs, valid, nll, strict=True))
    ]
    metrics = {"valid": sum(valid) / len(valid), "nll_per_token": sum(nll) / (tokens * len(nll))}
    return TaskResult(
        task="molecules", metrics=metrics, floors={"valid": 0.5}, examples=examples, count=len(valid), seconds=1.0
    )


def probe(right: list[int]) -> TaskResult:
    examples = [
        {"prompt": f"capital {i}", "reference": f"city {i}", "output": "x", "greedy_accuracy": r, "ranking_accuracy": r}
        for i, r in enumerate(right)
    ]
    share = sum(right) / len(right)
    return TaskResult(
        task="capitals",
        metrics={"greedy_accuracy": share, "ranking_accuracy": share},
        floors={"greedy_accuracy": 0.01},
        examples=examples,
        count=len(right),
        seconds=1.0,
    )


@pytest.fixture
def results() -> dict[str, dict[str, TaskResult]]:
    count = 20
    return {
        "untrained": {
            "molecules": generation(["<b>no</b> & "] * count, [0] * count, [40.0 + i for i in range(count)]),
            "capitals": probe([1] * 15 + [0] * 5),
        },
        "next-token": {
            "molecules": generation(["CCO"] * count, [1] * 18 + [0] * 2, [20.0 + i for i in range(count)]),
            "capitals": probe([0] * 10 + [1] * 5 + [0] * 5),
        },
        "multi-token": {
            "molecules": generation(["CCN"] * count, [1] * 18 + [0] * 2, [20.0 + i for i in range(count)]),
            "capitals": probe([1] * 15 + [1] + [0] * 4),
        },
    }


def page(results: Any, tmp_path: Path, **given: Any) -> str:
    path = tmp_path / "report.html"
    curves = {
        name: [{"step": s, "next_token_loss": 3.0 / s, "head_1_loss": 5.0 / s} for s in range(1, 9)]
        for name in ("next-token", "multi-token")
    }
    agreement = {"heads": {"domain": [0.3, 0.2]}, "undistilled_copies": {"domain": [0.02, 0.03]}}
    settings: dict[str, Any] = {
        "title": "A title",
        "verdict": verdict_lines(results, 1),
        "results": results,
        "curves": curves,
        "agreement": agreement,
        "facts": {"seed": 0, "settings": {"rank": 16}},
    }
    write_report(path, **{**settings, **given})
    return path.read_text("utf-8")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.policy: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br", "img", "hr", "input"):
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.policy += [value or "" for name, value in attrs if name == "content" and ("http-equiv" in dict(attrs))]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open[-1:] == [tag]:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_for_nothing_else(results: Any, tmp_path: Path) -> None:
    html = page(results, tmp_path)
    tags = Tags()
    tags.feed(html)
    assert not tags.open
    assert all(link.startswith(("data:", "#")) for link in tags.links)
    assert "<script" not in html and "@import" not in html and "url(http" not in html
    assert len(tags.policy) == 1 and tags.policy[0].startswith("default-src 'none'")


def test_it_shows_the_results_losses_agreement_and_facts(results: Any, tmp_path: Path) -> None:
    html = page(results, tmp_path)
    for part in ("0.900", "4.950", "Loss by head", "head 1 (2 tokens ahead)", "30.0%", "A title", "rank 16"):
        assert part in html, part
    assert html.count("<svg") >= 2 + 4


def test_what_a_model_wrote_is_shown_as_text_not_as_markup(results: Any, tmp_path: Path) -> None:
    html = page(results, tmp_path, title="<script>alert(1)</script>")
    assert "<b>no</b>" not in html and "&lt;b&gt;no&lt;/b&gt; &amp;" in html
    assert "<script>" not in html


def test_a_page_needs_results_but_neither_curves_nor_agreement(results: Any, tmp_path: Path) -> None:
    html = page(results, tmp_path, curves={}, agreement={})
    assert "Loss by head" not in html and "Agreement" not in html
    with pytest.raises(InputError, match="no results"):
        page({"untrained": {}}, tmp_path, verdict=[])


def test_a_failed_write_leaves_the_old_report(results: Any, tmp_path: Path) -> None:
    before = page(results, tmp_path)
    (tmp_path / "report.html").chmod(0o644)
    with pytest.raises(InputError):
        page({}, tmp_path, verdict=[])
    assert (tmp_path / "report.html").read_text("utf-8") == before


def test_the_verdict_says_what_was_forgotten_and_by_whom(results: Any) -> None:
    lines = verdict_lines(results, 1)
    forgot = next(line for line in lines if line.startswith("What next-token forgot"))
    assert "15 right untrained, 5 after: 10 lost and 0 won" in forgot and "more lost than won" in forgot
    kept = next(line for line in lines if line.startswith("What multi-token forgot"))
    assert "0 lost and 1 won" in kept and "neither loss nor gain" in kept
    assert "one seed" in lines[-1]
    assert "three seeds" in verdict_lines(results, 3)[-1]


def test_no_difference_is_claimed_where_the_examples_show_none(results: Any) -> None:
    line = next(
        line for line in verdict_lines(results, 1) if line.startswith("Multi-token against next-token on molecules")
    )
    assert line.count("no difference that one seed can show") == 2
    assert "better" not in line and "worse" not in line


def test_a_trivial_answer_that_does_as_well_is_said(results: Any) -> None:
    few = generation(["x"] * 20, [1] * 8 + [0] * 12, [20.0] * 20)
    lines = verdict_lines({**results, "multi-token": {"molecules": few}}, 1)
    assert any("Multi-token does not beat a trivial answer on molecules: valid SMILES 0.400" in line for line in lines)
    assert not any(line.startswith("Next-token does not beat") for line in lines)


def test_standard_errors_are_those_of_the_mean_and_of_the_ratio() -> None:
    values = [3.0, 5.0, 4.0, 8.0]
    result = generation(["x"] * 4, [1, 0, 1, 1], values, tokens=2)
    mean = 0.75
    expected = math.sqrt(sum((v - mean) ** 2 for v in (1, 0, 1, 1)) / 3 / 4)
    assert standard_error(result, "valid") == pytest.approx(expected)
    per_token = [v / 2 for v in values]
    mean = sum(per_token) / 4
    expected = math.sqrt(sum((v - mean) ** 2 for v in per_token) / 3 / 4)
    assert standard_error(result, "nll_per_token") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("lost", "won", "shown"), [(6, 0, True), (5, 0, False), (9, 1, True), (8, 1, True), (7, 2, False)]
)
def test_right_or_wrong_answers_are_held_to_an_exact_sign_test(lost: int, won: int, shown: bool) -> None:
    kept = [1] * 20
    before = probe([1] * lost + [0] * won + kept)
    after = probe([0] * lost + [1] * won + kept)
    found = difference(before, after, "greedy_accuracy")
    assert found is not None
    assert found.value == pytest.approx((won - lost) / (20 + lost + won))
    tail = sum(math.comb(lost + won, k) for k in range(won + 1)) * 2 / 2 ** (lost + won)
    assert (tail < 0.05) == shown == found.shown


def test_losses_of_tuning_and_of_distillation_are_both_read() -> None:
    tuning = [{"step": 1, "loss": 9.0, "next_token_loss": 3.0, "head_2_loss": 5.0}, {"step": 2, "eval_loss": 1.0}]
    assert head_losses(tuning) == {0: [(1.0, 3.0)], 2: [(1.0, 5.0)]}
    assert head_losses([{"step": 10, "loss_1": 4.0}]) == {1: [(10.0, 4.0)]}
    assert head_losses([{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}]) == {0: [(1.0, 2.0)]}


def test_every_colour_that_is_used_is_defined_for_light_and_dark(results: Any, tmp_path: Path) -> None:
    html = page(results, tmp_path)
    used = set(re.findall(r"var\((--[\w-]+)\)", html))
    assert used <= set(re.findall(r"(--[\w-]+)\s*:", html))
    assert "prefers-color-scheme: dark" in html
