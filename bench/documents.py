"""The tables of README and docs with figures of the benches: each stands between two marks and is drawn anew.

    .venv/bin/python bench/documents.py

The marks are `<!-- table: NAME -->` and `<!-- end -->`; a name that is not in TABLES is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from summary import RESULTS, first_rows, table

from graftlm.runs.console import say
from graftlm.runs.files import write_text

ROOT = Path(__file__).resolve().parents[1]
DRAWN = re.compile(r"(?<=<!-- table: )(?P<name>[\w-]+) -->\n.*?(?=<!-- end -->)", re.DOTALL)
BATCHES = {"half": "half supervised", "quarter": "a quarter supervised", "varied": "32 to 128 tokens a row"}
ARMS = {
    "trl-next-token": "TRL, next token",
    "graftlm-4": "graftlm, K = 4",
    "graftlm-all-kept-4": "graftlm, K = 4, nothing recomputed",
    "reference-4": "`caft-llm`, K = 4",
}
KINDS = {
    "general": "general",
    "domain": "self-written, names of molecules",
    "molecules": "`molecules`, tuned model, refreshed heads",
}


def steps(results: Path) -> list[str]:
    """One training step of each arm, K = 4."""
    arms = read(results, "multitoken_step.json")["arms"]
    lines = [
        "| batch | step | seconds (fastest of 3) | speed, of `caft-llm` | peak memory above the weights "
        "| of `caft-llm` | time, of the lower bound |",
        "|---|---|---|---|---|---|---|",
    ]
    for batch, words in BATCHES.items():
        reference, bound = arms[f"{batch}/reference-4"], min(arms[f"{batch}/graftlm-4"]["bound_seconds"])
        for name, label in ARMS.items():
            arm = arms[f"{batch}/{name}"]
            seconds, peak, own_bound = min(arm["seconds"]), arm["peak_bytes"], arm.get("bound_seconds")
            ratios = ["", "", ""]
            if name != "trl-next-token":
                ratios = [
                    f"{min(reference['seconds']) / seconds:.2f}×",
                    f"{peak / reference['peak_bytes']:.2f}",
                    f"{seconds / (min(own_bound) if own_bound else bound):.2f}×",
                ]
            cells = [words, label, f"{seconds:.1f}", ratios[0], mebibytes(peak), *ratios[1:]]
            lines.append(f"| {' | '.join(cells)} |")
            words = ""
    return lines


def heads(results: Path) -> list[str]:
    """Time and memory of a step with more and more heads."""
    arms = read(results, "multitoken_step.json")["arms"]
    lines = ["| K | graftlm: time | peak memory | `caft-llm`: time | peak memory |", "|---|---|---|---|---|"]
    for number in (1, 2, 4, 8):
        found = [arms.get(f"half/{name}-{number}") for name in ("graftlm", "reference")]
        cells = [f"{min(arm['seconds']):.1f} s | {mebibytes(arm['peak_bytes'])}" if arm else " | " for arm in found]
        lines.append(f"| {number} | {' | '.join(cells)} |")
    return lines


def drafting(results: Path) -> list[str]:
    found = read(results, "speculative.json")["results"]
    lines = [
        "| text | batch | drafts kept | tokens a pass | `generate`, tokens/s | with heads | × `generate` "
        "| × `generate` with our products | texts that differ |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for kind, words in KINDS.items():
        for batch, each in found[kind].items():
            speed = each["tokens_per_second"]
            made = each["drafted"]
            kept = f"{each['accepted'] / made:.0%} of {made:,}" if made else "none made"
            lines.append(
                f"| {words} | {batch} | {kept} | {each['tokens_per_pass']:.2f} "
                f"| {speed['generate']:.1f} | {speed['heads']:.1f} | {each['times_generate']['heads']:.2f}× "
                f"| {each['times_quick']:.2f}× | {len(each['differing'])} of {each['prompts']} |"
            )
    return lines


def proxy(results: Path) -> list[str]:
    lines = [
        "| batch | three models, tokens/s | quick | proxy | × three models | × quick | of the limit "
        "| of the quick limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in read(results, "proxy/decoding.json")["plain"]:
        tokens = each["batch_size"] * each["new_tokens"]
        loop, quick, ours = (
            f"{tokens / each['seconds'][name]:.1f}" for name in ("three models", "three models, quick", "proxy")
        )
        times, limit = each["times_three_models"], each["times_limit"]
        lines.append(
            f"| {each['batch_size']} | {loop} | {quick} | **{ours}** | {times['plain']:.2f}× "
            f"| {times['plain, quick']:.2f}× | {limit['plain']:.2f} | {limit['plain, quick']:.2f} |"
        )
    return lines


def areas(results: Path) -> list[str]:
    """The first measurement of each area."""
    return table(first_rows(results))


TABLES: dict[str, Callable[[Path], list[str]]] = {
    "areas": areas,
    "drafting": drafting,
    "heads": heads,
    "proxy": proxy,
    "steps": steps,
}


def read(results: Path, name: str) -> dict[str, Any]:
    return json.loads((results / name).read_text("utf-8"))  # type: ignore[no-any-return]


def mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def drawn(text: str, results: Path) -> str:
    """`text` with every table between marks drawn from `results`; KeyError for a table that there is not."""

    def replaced(match: re.Match[str]) -> str:
        return "\n".join([f"{match['name']} -->", *TABLES[match["name"]](results), ""])

    return DRAWN.sub(replaced, text)


def main() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        before = page.read_text("utf-8")
        after = drawn(before, ROOT / RESULTS)
        if after != before:
            write_text(page, after)
            say(f"drawn anew: {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
