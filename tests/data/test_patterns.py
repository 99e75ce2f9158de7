"""Regular expressions of a user have a time limit wherever they are taken."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import graftlm
from graftlm.auditing.condition import parse_condition
from graftlm.data.patterns import Pattern
from graftlm.errors import InputError
from graftlm.pruning.encoding import ChainToken, protected_tokens
from graftlm.pruning.solutions import find_answer

SLOW = r"(a|aa)+$"
BUSY = "a" * 60 + "b"


@pytest.mark.parametrize(
    ("call", "flag"),
    [
        (lambda: protected_tokens([ChainToken(1, 0, 1, "a")], BUSY, "5", [SLOW]), "protect"),
        (lambda: find_answer(BUSY, SLOW), "--answer-start"),
    ],
)
def test_a_pattern_that_would_run_for_ever_is_named(
    call: Callable[[], object], flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftlm.data.patterns.PRUNING_SECONDS", 0.2)
    begun = time.perf_counter()
    with pytest.raises(InputError, match=rf"^{flag} '\(a\|aa\)\+\$' takes longer than 0.2 s on this text"):
        call()
    assert time.perf_counter() - begun < 5


@pytest.mark.parametrize("malformed", ["(", "a{2", "[z-a]", "a{99999999999}", "(?<=", "(" * 3000 + ")" * 3000])
def test_a_malformed_pattern_is_refused_with_its_owner(malformed: str) -> None:
    if malformed == "a{2":
        assert Pattern("--protect", malformed, 1).found_in("a{2")  # a brace that is none
        return
    with pytest.raises(InputError, match=r"^--protect: '.* is no regular expression"):
        Pattern("--protect", malformed, 1)


def test_spans_are_those_of_all_matches() -> None:
    assert Pattern("--protect", r"\d+", 1).spans("1 and 23") == [(0, 1), (6, 8)]


@pytest.mark.parametrize("text", ["retention" + " " * 100_000 + "x", "<" * 50_000, " " * 100_000, "<0.9"])
def test_a_condition_of_any_length_is_refused_at_once(text: str) -> None:
    begun = time.perf_counter()
    with pytest.raises(InputError, match="--fail-if is"):
        parse_condition(text)
    assert time.perf_counter() - begun < 2


def test_no_other_module_compiles_a_pattern_that_it_was_given() -> None:
    """What `re` and `regex` are called with elsewhere is written in the code, not a variable."""
    package = Path(graftlm.__file__).parent
    found = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            module, name = node.func.value, node.func.attr
            if isinstance(module, ast.Name) and module.id in ("re", "regex") and name != "escape":
                pattern = node.args[0]
                given = isinstance(pattern, ast.Attribute) or (
                    isinstance(pattern, ast.Name) and not pattern.id.isupper()
                )
                if given and path.name != "patterns.py":
                    found.append(f"{path.relative_to(package)}:{node.lineno}")
    assert found == []
