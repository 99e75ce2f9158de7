"""What would act on a terminal is shown, wherever it comes from."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from graftlm.cli import main
from graftlm.cli.app import report_error
from graftlm.data.load import load_rows
from graftlm.errors import InputError
from graftlm.runs import console
from graftlm.runs.console import print_findings, print_table, printable, reported_progress, say
from graftlm.runs.yaml_text import YAMLError, parse_yaml
from graftlm.tuning.callbacks import TableCallback
from graftlm.tuning.sample import marked_row

CODES = "\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202eback\x7f"
SHOWN = r"\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202eback\x7f"


def test_only_what_acts_on_a_terminal_is_escaped() -> None:
    assert printable(CODES) == SHOWN
    ordinary = "a\tb\n é 漢 👩‍👩‍👧 [red] \\x1b"
    assert printable(ordinary) == ordinary


def test_codes_in_a_file_s_columns_and_name_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a\x1b[31m.jsonl"
    path.write_text(json.dumps({f"x{CODES}": "a"}) + "\n")
    with pytest.raises(InputError) as error:
        load_rows(path)
    assert report_error(error.value) == 2
    shown = capsys.readouterr().err
    assert printable(shown) == shown and r"x\x1b[2J" in shown and r"a\x1b[31m.jsonl" in shown


def test_codes_and_marks_of_rich_in_names_stay_text_in_tables(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("[bold]name", CODES)
    table.add_row("[/red] :smile:", f"a{CODES}")
    print_table(table)
    print_findings(Table(), [f"verdict {CODES}"])
    say(f"said {CODES}")
    out, err = capsys.readouterr()
    assert printable(out) == out and printable(err) == err == f"said {SHOWN}\n"
    for part in ("[bold]name", "[/red] :smile:", r"a\x1b[2J", f"verdict {SHOWN}"):
        assert part in out


def test_bars_and_the_table_of_steps_take_names_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(
        "rich.console.Console", lambda **_: Console(file=text, force_terminal=True, width=200, color_system=None)
    )
    with reported_progress() as report:
        report("[/red] \x1b[2J", 1, 2)
    steps = TableCallback(lambda line: {f"[/red] {CODES}": "1"}, console=console)
    steps.lines = [{f"[/red] {CODES}": "1"}]
    Console(file=text, width=200, color_system=None).print(steps.table())
    assert text.getvalue().count("[/red]") >= 2 and "\x1b[2J" not in text.getvalue()


def test_codes_in_a_row_are_shown_in_the_plan() -> None:
    trainer: Any = SimpleNamespace(processing_class=SimpleNamespace(decode=lambda ids: "a\x1b[2J" * len(ids)))
    assert marked_row(trainer, [1, 2], [-100, 2]) == r"a\x1b[2J[[a\x1b[2J]]"


def test_an_argument_with_half_a_character_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--prompt", "caf\udcff"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("graftlm: the argument 'caf\\udcff' has half a character")


def test_yaml_reads_two_halves_as_one_character_and_refuses_one() -> None:
    assert parse_yaml(json.dumps({"a": "😀"})) == {"a": "😀"}
    with pytest.raises(YAMLError, match="half a character"):
        parse_yaml('a: "\\ud83d"')
