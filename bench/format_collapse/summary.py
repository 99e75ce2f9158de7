"""What the runs say: a table, plots, and a verdict on each finding of the paper, all computed from the runs' JSON.

    .venv/bin/python bench/format_collapse/summary.py --results R --output bench/results/format_collapse

Writes summary.md and the plots beside it. Every number is a mean over seeds with (min..max); shares, accuracies and
pass@k are in percent, of held-out problems.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from curves import write_plots
from findings import Cell, Found, end, epoch, places, spread, start, verdicts
from problems import FORMATS

from graftlm.runs.console import say
from graftlm.runs.files import write_text


def load_runs(results: Path) -> dict[Cell, list[Found]]:
    """Complete runs by cell, each cell's by seed."""
    cells: dict[Cell, list[Found]] = {}
    for path in sorted(results.glob("*.json")):
        found = json.loads(path.read_text())
        if found.get("complete"):
            run = found["run"]
            cells.setdefault((run["scale"], run["mixture"], run["arm"]), []).append(found)
    return cells


COLUMNS: list[tuple[str, Callable[[Found], float | None]]] = [
    *((f"{form}, share", lambda m, form=form: m["shares"][form]) for form in FORMATS),
    *((f"{form}, accuracy", lambda m, form=form: m["accuracy"][form]) for form in FORMATS),
    ("pass@1", lambda m: m["pass_at_1"]),
    ("pass@64", lambda m: m["pass_at_k"]),
    ("majority@64", lambda m: m["majority_at_k"]),
]


def table(cells: dict[Cell, list[Found]]) -> list[str]:
    """A row a cell with what it ends at, under the base model's row."""
    lines = [f"| scale, mixture | run | seeds | {' | '.join(name for name, _ in COLUMNS)} | largest after epoch 1 |",
             f"|---|---|{'--:|' * (len(COLUMNS) + 2)}"]  # fmt: skip
    for scale, mixture in places(cells):
        arms = {arm: runs for (s, m, arm), runs in cells.items() if (s, m) == (scale, mixture)}
        base = start(next(iter(arms.values()))[0])
        values = [spread([read(base)], 1 if "@" in name else 0) for name, read in COLUMNS]
        lines.append(f"| **{scale}, {mixture}** | base | – | {' | '.join(values)} | – |")
        for arm, runs in sorted(arms.items()):
            values = [spread([read(end(f)) for f in runs], 1 if "@" in name else 0) for name, read in COLUMNS]
            first = spread([max(epoch(found)["shares"].values()) for found in runs])
            lines.append(f"| | {arm} | {len(runs)} | {' | '.join(values)} | {first} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for summary.md and the plots")
    arguments = parser.parse_args()
    cells = load_runs(arguments.results)
    plots = write_plots(cells, places(cells), arguments.output)
    runs = sum(map(len, cells.values()))
    lines = [
        f"# Format collapse: {runs} runs", "",
        "Mean over seeds (min..max), percent, held-out problems; runs as they end.", "",
        *table(cells), "", "## Findings of arXiv 2504.07912", "", *verdicts(cells), "", "## Curves", "",
        *(f"![{title}]({path})" for title, path in plots), "",
    ]  # fmt: skip
    write_text(arguments.output / "summary.md", "\n".join(lines))
    say(f"{arguments.output / 'summary.md'}: {runs} runs, {len(plots)} plots")
    for line in verdicts(cells):
        say(line)


if __name__ == "__main__":
    main()
