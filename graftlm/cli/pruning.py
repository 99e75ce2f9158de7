"""Verbs of pruning: prune, and prune fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftlm.cli.verb import verb
from graftlm.runs.console import print_table, printable, say

if TYPE_CHECKING:
    from rich.table import Table

    from graftlm.pruning.config import PruneConfig, PruneFitConfig
    from graftlm.pruning.pruned_file import Pruned
    from graftlm.pruning.surrogate import Surrogate


@verb("graftlm.pruning.config:PruneConfig", "graftlm.pruning.prune:prune")
def prune(config: PruneConfig, result: Pruned) -> None:
    """Shorten chains of reasoning to what a model needs.

    The rows come out with shorter completions, the rank of each token, and a page that shows which tokens and which
    kinds of words survive. `graftlm tune` reads them.
    """
    from graftlm.pruning.pruned_file import companions

    page, left_out = companions(Path(config.output))
    for line in result.verdict:
        print(printable(line))
    for _, reason in result.failed[:5]:
        say(f"left out: {reason}")
    if result.failed:
        say(f"all {len(result.failed)} that are left out: {left_out}")
    say(f"rows: {config.output}; report: {page}")


@verb("graftlm.pruning.config:PruneFitConfig", "graftlm.pruning.fit:fit", name="prune fit")
def prune_fit(config: PruneFitConfig, result: Surrogate) -> None:
    """Fit a network that ranks a chain's tokens in one pass.

    Some chains are ranked exactly, which takes long; afterwards `graftlm prune --surrogate FOLDER` needs one pass per
    chain.
    """
    print_table(measured_table(result.config.measured))
    say(f"surrogate: {config.output}")


def measured_table(measured: Mapping[str, Any]) -> Table:
    """How well deletions and ranks of held-out chains are predicted, beside what needs no surrogate, for each data."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("held-out chains of", "chains", "likelihood after deletion", "without surrogate", "unchanged",
                    "within a chain", "without", "rank", "least"):  # fmt: skip
        table.add_column(Text(heading), justify="left" if heading == "held-out chains of" else "right")
    for name, figures in measured.items():
        numbers = [*figures["likelihood"].values(), *figures["within"].values(), *figures["rank"].values()]
        table.add_row(Text(name), str(figures["chains"]), *(f"{number:.3f}" for number in numbers))
    table.caption = "Pearson's correlation with the true likelihood; Spearman's with the exact ranks"
    return table
