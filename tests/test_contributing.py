"""CONTRIBUTING.md shows what is so: the rooms in their order, and diffs whose lines are in the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_rooms import ROOMS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DIFFS = ["\n".join(re.findall(r"^\+(.*)$", diff, re.M)) for diff in re.findall(r"```diff\n(.*?)```", PAGE, re.S)]


def added(start: str) -> str:
    """The lines that the diff beginning with `start` adds."""
    return next(diff for diff in DIFFS if diff.lstrip('"').startswith(start))


def test_the_table_has_every_room_in_the_order_of_the_arrows() -> None:
    rooms = [room for room in ROOMS if room not in ("recipes", "lazy", "errors")]
    assert re.findall(r"^\| `(\w+)/` \|", PAGE, re.M) == rooms


@pytest.mark.parametrize(
    ("start", "file", "most"),
    [
        ("The L2 term", "graftlm/tuning/terms/l2_to_base.py", 60),
        ('    "l2_to_base"', "graftlm/tuning/terms/__init__.py", 1),
        ("class NextLetter", "tests/tasks/test_base.py", 40),
        ("_DIVISORS", "graftlm/models/decoder.py", 1),
        ("@reward", "graftlm/reinforce/built_in_rewards.py", 3),
        ("data: molecules", "docs/auditing.md", 3),
    ],
)
def test_a_diff_is_as_short_as_it_says_and_its_lines_are_there(start: str, file: str, most: int) -> None:
    lines = added(start).splitlines()
    there = (ROOT / file).read_text(encoding="utf-8")
    assert len(lines) <= most
    assert [line for line in lines if line.strip() not in there] == []
