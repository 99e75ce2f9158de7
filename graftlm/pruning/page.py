"""The page of a pruned file: which kinds of words survive, and chains whose tokens are shaded by rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from graftlm.pruning.categories import CATEGORIES, categories_of_tokens, survival
from graftlm.pruning.pruned_chain import kept_groups
from graftlm.pruning.pruned_file import COLUMN, Pruned
from graftlm.report.markup import Markup, element, join
from graftlm.report.page import data_section, facts_section, panels, section, verdict_section, write_page
from graftlm.report.plots import Line, line_plot
from graftlm.report.tables import Row, number_table
from graftlm.runs.provenance import versions

COLOURS = ("--model-1", "--model-2", "--model-3", "--model-4", "--model-5", "--model-0")
SHARES = [round(0.05 * step, 2) for step in range(20, 1, -1)]  # of a chain that is kept, 1 to 0.1
SHOWN_SHARES = (0.9, 0.8, 0.7, 0.5, 0.3)
CHAINS = 12
Chains = Sequence[Mapping[str, Any]]
"""The column `pruning` of each row."""


def write_prune_report(path: Path, pruned: Pruned, *, title: str) -> list[str]:
    """Write the page to `path`, whole or not at all (OSError names the file); returns its verdict."""
    chains = [each[COLUMN] for each in pruned.rows]
    names = [
        categories_of_tokens(chain["chain"], [(start, stop) for start, stop in chain["spans"]]) for chain in chains
    ]
    survived = survival([chain["ranks"] for chain in chains], names, SHARES)
    verdict = prune_verdict(pruned, survived)
    sections = [
        verdict_section(verdict),
        _survival(names, survived),
        _likelihood(chains),
        _shaded(chains, names),
        facts_section({"settings": chains[0]["ranking"], "versions": versions()}),
        data_section("survival", {"kept": SHARES, "survival": survived}),
    ]
    write_page(path, title, sections)
    return verdict


def prune_verdict(pruned: Pruned, survived: Mapping[str, Sequence[float]]) -> list[str]:
    """Say what was cut, what survives, and how far the ranks can be trusted; `survived`: each category at SHARES."""
    chains = [each[COLUMN] for each in pruned.rows]
    tokens = [len(chain["ranks"]) for chain in chains]
    kept = [len(_kept(chain)) for chain in chains]
    shares = sorted({chain["keep"] for chain in chains})
    lines = [
        f"{len(chains)} of {len(chains) + len(pruned.failed)} rows: their chains have {fmean(tokens):.0f} tokens on "
        f"average, of which {fmean(kept):.0f} are kept (share {', '.join(f'{share:g}' for share in shares)})."
    ]
    wanted = 0.7 if max(shares) == 1 else shares[0]
    at = min(SHARES, key=lambda share: abs(share - wanted))
    left = sorted(((values[SHARES.index(at)], name) for name, values in survived.items()), reverse=True)
    if len(left) > 1:
        lines.append(
            f"With {at:.0%} of each chain kept, most is left of {left[0][1]} ({left[0][0]:.0%}) and least of "
            f"{left[-1][1]} ({left[-1][0]:.0%}); the categories are those of word lists for English."
        )
    if pruned.agreement:
        lines.append(
            f"The mode {chains[0]['ranking']['mode']} agrees with exact ranks by Spearman "
            f"{fmean(pruned.agreement):.2f} ({min(pruned.agreement):.2f} to {max(pruned.agreement):.2f}, "
            f"{len(pruned.agreement)} chains)."
        )
    return lines


def _survival(names: Sequence[Sequence[str]], survived: Mapping[str, Sequence[float]]) -> Markup:
    deleted = [round(100 * (1 - share)) for share in SHARES]
    colours = dict(zip(CATEGORIES, COLOURS, strict=True))
    lines = [
        Line(label=name, tag=name, colour=colours[name], points=list(zip(deleted, values, strict=True)))
        for name, values in survived.items()
    ]
    shown = "; ".join(f"{name}: {values[SHARES.index(0.7)]:.2f} where 0.7 of the chain is kept"
                      for name, values in survived.items())  # fmt: skip
    plot = line_plot(
        "Survival of each category", lines, description=shown, y_top=1.0, x_label="% of the chain deleted",
        y_label="share of the category kept",
    )  # fmt: skip
    counts = Counter(name for each in names for name in each)
    rows: list[Row] = [
        (name, [str(counts[name]), *(f"{values[SHARES.index(share)]:.0%}" for share in SHOWN_SHARES)])
        for name, values in survived.items()
    ]
    headings = ["category", "tokens", *(f"{share:.0%}" for share in SHOWN_SHARES)]
    return section(
        "Which words survive",
        panels([element("figure", plot)]),
        number_table("Share of each category's tokens that is left", headings, rows, cells=3),
        note="Columns are the share of a chain that is kept: a category with a higher share than that is kept longer "
        "than others. A token belongs to the word in which most of its characters lie.",
    )


def _likelihood(chains: Chains) -> Markup | None:
    """Mean over chains of the objective along the deletions, in nats above that of the whole chain."""
    curves = [chain["log_likelihoods"] for chain in chains if chain["log_likelihoods"]]
    if not curves:
        return None
    steps = range(0, 101, 5)
    means = [fmean([curve[round(step / 100 * (len(curve) - 1))] - curve[0] for curve in curves]) for step in steps]
    if max(map(abs, means)) == 0:
        return None
    line = Line(label="objective", tag="", colour="--model-1", points=list(zip(steps, means, strict=True)))
    shown = f"{means[10]:.1f} nats above the whole chain after half of the steps"
    y_label = "nats above the whole chain"
    plot = line_plot("Log-likelihood", [line], description=shown, x_label="% of the steps taken", y_label=y_label)
    objective = chains[0]["ranking"]["objective"]
    words = "what is left of the chain, and the answer" if objective == "joint" else "the answer, given what is left"
    return section(
        "Likelihood along the way",
        panels([element("figure", plot)]),
        note=f"The objective is the log-likelihood of {words}; the mean of {len(curves)} chains.",
    )


def _shaded(chains: Chains, names: Sequence[Sequence[str]]) -> Markup:
    shown = []
    for chain, categories in zip(chains[:CHAINS], names, strict=False):
        question = chain["question"]
        text = question if isinstance(question, str) else question[-1]["content"]
        answer = element("span", chain["answer"], class_="answer")
        solution = element("p", _tokens(chain, categories), answer, class_="chain")
        shown.append(element("article", element("p", text.strip(), class_="note"), solution))
    return section(
        f"{len(shown)} chains, token by token" if len(shown) > 1 else "The chain, token by token",
        *shown,
        note="The first rows, not chosen. The darker a token, the later it was deleted; what is struck through is not "
        "kept in the file. Point at a token for its rank and its category.",
    )


def _tokens(chain: Mapping[str, Any], names: Sequence[str]) -> Markup:
    ranks = chain["ranks"]
    highest = max(ranks)
    kept = _kept(chain)
    parts, reached = [], 0
    for place, (start, stop) in enumerate(chain["spans"]):
        text = chain["chain"][max(start, reached) : stop]
        reached = max(reached, stop)
        if text:
            title = f"rank {ranks[place]} of {highest}, {names[place]}"
            style = f"--worth:{ranks[place] / highest:.2f}"
            parts.append(element("span", text, title=title, style=style, class_=None if place in kept else "gone"))
    return join(parts)


def _kept(chain: Mapping[str, Any]) -> set[int]:
    """Positions of the tokens that are in the file."""
    groups = kept_groups(chain["spans"], chain["ranks"], chain["keep"])
    return {place for group in groups for place in group}
