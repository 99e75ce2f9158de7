"""Which kinds of words greedy pruning keeps longest, and whether that is the order that the paper found.

    .venv/bin/python bench/pruning_categories.py --folder /tmp/students       (after bench/pruning_students.py)

Of the chains that bench/pruning_students.py has ranked in its folder, and of the first --answers of them ranked by the
objective `answer` as well: the share of each category's tokens that is left at each share kept, and at HALF with a 95 %
interval over chains (bootstrap). The categories are those of graftlm's word lists for English.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from line_chart import line_chart
from pruning_students import GREEDY, ranked

from graftlm.pruning.categories import CATEGORIES, categories_of_tokens, survival
from graftlm.pruning.pruned_file import COLUMN
from graftlm.runs.files import dump_json, read_json_lines, write_text

SHARES = [round(1 - 0.05 * step, 2) for step in range(20)]
HALF = 0.5
PAPER = "symbolic maths is kept longest; coreference, grammar and meta-discourse go first"
DRAWS = 1000
Ranked = tuple[list[list[float]], list[list[str]]]
"""Of each chain its tokens' ranks and categories."""


def ranked_rows(path: Path) -> Ranked:
    chains = [row[COLUMN] for row in read_json_lines(path)]
    return [chain["ranks"] for chain in chains], [
        categories_of_tokens(chain["chain"], chain["spans"]) for chain in chains
    ]


def interval(found: Ranked, share: float) -> dict[str, tuple[float, float]]:
    """95 % of each category's share left, over draws of the chains."""
    generator = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {}
    for _ in range(DRAWS):
        some = generator.integers(len(found[0]), size=len(found[0]))
        for name, values in survival(*([each[place] for place in some] for each in found), [share]).items():
            drawn.setdefault(name, []).append(values[0])
    return {name: tuple(np.quantile(values, [0.025, 0.975]).tolist()) for name, values in drawn.items()}


def measure(found: Ranked) -> dict[str, Any]:
    ranks, names = found
    return {
        "chains": len(ranks),
        "tokens": {name: sum(each.count(name) for each in names) for name in CATEGORIES},
        "kept": SHARES,
        "survival": survival(ranks, names, SHARES),
        "interval_at_half": interval(found, HALF),
    }


def table(found: dict[str, Any]) -> list[str]:
    """Markdown, the category of which most is left first."""
    shown = (0.9, 0.7, HALF, 0.3)
    lines = [
        f"| category | tokens | {' | '.join(f'{share:.0%} kept' for share in shown)} |",
        f"|---|---|{'---|' * len(shown)}",
    ]
    survived = found["survival"]
    for name in sorted(survived, key=lambda name: -survived[name][SHARES.index(HALF)]):
        cells = [f"{survived[name][SHARES.index(share)]:.0%}" for share in shown]
        low, high = found["interval_at_half"][name]
        cells[shown.index(HALF)] += f" [{low:.0%}, {high:.0%}]"
        lines.append(f"| {name} | {found['tokens'][name]} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of bench/pruning_students.py")
    parser.add_argument("--output", type=Path, default=Path("bench/results/pruning"))
    parser.add_argument("--kinds", nargs="+", default=list(GREEDY))
    parser.add_argument("--answers", type=int, default=20, help="chains; 0 leaves that objective out")
    arguments = parser.parse_args()
    document, lines = {}, [f"The paper's order: {PAPER}.", ""]
    for kind in arguments.kinds:
        paths = {"joint": ranked(kind, GREEDY[kind], arguments.folder)}
        if arguments.answers:
            paths["answer"] = ranked(kind, GREEDY[kind], arguments.folder, "answer", arguments.answers)
        for objective, path in paths.items():
            found = measure(ranked_rows(path))
            document[f"{kind}, {objective}"] = {"mode": GREEDY[kind], **found}
            name = f"categories-{kind}-{objective}.svg"
            write_text(arguments.output / name, chart(f"{kind}, objective {objective}", found["survival"]))
            lines += [f"**{kind}**, mode {GREEDY[kind]}, objective {objective}, {found['chains']} chains", "",
                      *table(found), "", f"![{kind}, {objective}]({name})", ""]  # fmt: skip
    write_text(arguments.output / "categories.json", dump_json(document) + "\n")
    write_text(arguments.output / "categories.md", "\n".join(lines))
    print("\n".join(lines))


def chart(title: str, survived: dict[str, Sequence[float]]) -> str:
    deleted = [round(100 * (1 - share)) for share in SHARES]
    curves = {name: list(zip(deleted, values, strict=True)) for name, values in survived.items()}
    return line_chart(title, curves, "% of the chain deleted", "share of the category left")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
