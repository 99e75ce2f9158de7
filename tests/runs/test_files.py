"""A kill at any write leaves the old content or the new, and nothing beside it once the work is done again."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from graftlm.runs import files
from graftlm.runs.files import written_folder, written_together

ROOT = Path(__file__).parents[1]


class Killed(BaseException):
    pass


def replaced(folder: Path, text: str) -> None:
    with written_folder(folder) as scratch:
        scratch.mkdir()
        for name in ("one", "two"):
            (scratch / name).write_text(text)


def content(folder: Path) -> str:
    return "".join((folder / name).read_text() for name in ("one", "two"))


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("at", range(4))
def test_a_folder_is_the_old_one_or_the_new_after_a_kill_at_any_of_its_writes(
    at: int, can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced(tmp_path / "model", "old")
    calls = [0]

    def killing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == at + 1:
                raise Killed
            return function(*given, **named)

        return call

    with monkeypatch.context() as patched:
        exchange = files.exchange if can_exchange else lambda one, other: False
        patched.setattr(files, "exchange", killing(exchange))
        patched.setattr(os, "replace", killing(os.replace))
        with suppress(Killed):
            replaced(tmp_path / "model", "new")
    if can_exchange or (tmp_path / "model").exists():
        assert content(tmp_path / "model") in ("oldold", "newnew")
    replaced(tmp_path / "model", "new")
    assert content(tmp_path / "model") == "newnew"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_kill_left_of_files_written_together_goes_with_the_next_call(tmp_path: Path) -> None:
    (tmp_path / ".writing").mkdir()
    (tmp_path / ".writing" / "weights").write_text("half")
    with written_together(tmp_path, ["a"]) as scratch:
        (scratch / "a").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
