"""Output on the console: results go to stdout, everything else to stderr.

Names and texts out of a user's files or a model may hold codes that act on a terminal; they are shown as escapes.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

Report = Callable[[str, int, int], None]
"""Called with (what is being done, how much of it is done, how much there is)."""

SECONDS_BETWEEN_LINES = 10.0
PIPE_WIDTH = 240
# Control codes but tab and line feed, marks that turn the direction of writing, and halves of characters.
ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with what would act on a terminal as an escape, such as \\x1b."""
    return ACTING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


@contextmanager
def reported_progress() -> Iterator[Report]:
    """A bar for each thing done, with the time left, on stderr; plain lines where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    console = Console(stderr=True)
    if not console.is_terminal:
        yield plain_lines()
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    bars = Progress(*columns, TimeElapsedColumn(), Remaining(), console=console)
    tasks: dict[str, Any] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            bars.start()  # not before: loading a model draws its own bar
            tasks[what] = bars.add_task(printable(what))
        bars.update(tasks[what], completed=done, total=total)

    try:
        yield report
    finally:
        bars.stop()


def plain_lines() -> Report:
    """`what: done/total` at the first and the last step of each thing and every ten seconds between."""
    shown: dict[str, float] = {}

    def report(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what not in shown or done >= total or now - shown[what] >= SECONDS_BETWEEN_LINES:
            shown[what] = now
            say(f"{what}: {done}/{total}")

    return report


def prefixed(report: Report, prefix: str) -> Report:
    """The same report, its things named `prefix: ...`."""
    return lambda what, done, total: report(f"{prefix}: {what}", done, total)


def say(line: str) -> None:
    """One line on stderr."""
    print(printable(line), file=sys.stderr, flush=True)


def print_table(table: Table) -> None:
    """On stdout; in a pipe as wide as it needs to be."""
    from rich.console import Console
    from rich.segment import Segment, Segments

    width = None if sys.stdout.isatty() else PIPE_WIDTH
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    cells = [Segment(printable(each.text), each.style) for each in console.render(table)]
    console.print(Segments(cells), end="")


def print_findings(table: Table, verdict: Iterable[str]) -> None:
    """A table on stdout, and below it what it says in sentences."""
    print_table(table)
    print()
    for line in verdict:
        print(printable(line))


def environment_table(facts: Mapping[str, Any]) -> Table:
    """Two columns; a mapping becomes a group of rows."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        rows = value.items() if isinstance(value, Mapping) else [("", value)]
        for index, (key, item) in enumerate(rows):
            table.add_row(Text(name.replace("_", " ") if index == 0 else ""), Text(key), Text(words(item)))
    return table


def words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(words(item) for item in value) or "none"
    return "-" if value is None else str(value)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def signed(value: float) -> str:
    """With sign, three decimals; a minus as long as a plus."""
    return f"{value:+.3f}".replace("-", "−").replace("−0.000", "0.000").replace("+0.000", "0.000")
