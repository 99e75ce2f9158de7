"""All side-by-side measurements on one page, drawn from what the benches have written; no number is typed by hand.

    .venv/bin/python bench/summary.py                      writes bench/results/summary.md and a plot per area

An area whose bench has not run is named as missing. Each row says how many times the peer's speed ours is, and how many
times the physical limit's time ours takes, both measured in the peer's own run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from graftlm.report.markup import Markup, element, join
from graftlm.runs.console import say
from graftlm.runs.files import write_text

RESULTS = Path("bench/results")
OUR_PRODUCTS = "generate with our products"


class Row(NamedTuple):
    """`times_peer`: of the peer's speed; `times_limit`: of the limit's time; `note`: what else was measured."""

    what: str
    peer: str
    times_peer: float | None
    times_limit: float | None = None
    note: str = ""


class Area(NamedTuple):
    """`limit`: what the physical limit is; `file`: what the bench has written; `command`: what runs it."""

    name: str
    title: str
    limit: str
    file: str
    command: str
    rows: Callable[[dict[str, Any]], Iterator[Row]]


def multitoken(found: dict[str, Any]) -> Iterator[Row]:
    arms = found["arms"]
    for batch, words in (
        ("half", "half supervised"),
        ("quarter", "a quarter supervised"),
        ("varied", "32 to 128 tokens"),
    ):
        ours, theirs, plain = (arms[f"{batch}/{arm}"] for arm in ("graftlm-4", "reference-4", "trl-next-token"))
        seconds = min(ours["seconds"])
        note = f"{ours['peak_bytes'] / theirs['peak_bytes']:.2f} of its memory"
        yield Row(f"step, K = 4, {words}", "caft-llm", min(theirs["seconds"]) / seconds,
                  seconds / min(ours["bound_seconds"]), note)  # fmt: skip
        yield Row(f"the same beside a next-token step, {words}", "TRL", min(plain["seconds"]) / seconds)


def proxy(found: dict[str, Any]) -> Iterator[Row]:
    for each in found["plain"]:
        limit = each["times_limit"]["plain, quick"]
        yield Row(f"batch {each['batch_size']}", "the authors' loop", each["times_three_models"]["plain"], limit,
                  "" if each["same_tokens"] else "not the same tokens")  # fmt: skip
        yield Row(
            f"batch {each['batch_size']}", "that loop with our products", each["times_three_models"]["plain, quick"]
        )


def speculative(found: dict[str, Any]) -> Iterator[Row]:
    best = found["heads"] + 1
    for kind, batches in reversed(found["results"].items()):
        for batch, each in batches.items():
            note = (
                f"{each['times_quick']:.2f} times {OUR_PRODUCTS}; "
                f"{each['tokens_per_pass']:.2f} of at most {best} tokens a pass; {len(each['differing'])} texts differ"
            )
            yield Row(f"{kind}, batch {batch}", "transformers' generate", each["times_generate"]["heads"], None, note)
            yield Row(f"{kind}, batch {batch}", OUR_PRODUCTS, each["times_quick"],
                      each["tokens_per_pass"] / each["times_quick"])  # fmt: skip


def forking(found: dict[str, Any]) -> Iterator[Row]:
    yield Row("GRPO step", "TRL", 1 / found["times_trl"], None,
              f"the mask takes {found['mask_share']:.2%}, the format monitor {found['monitor_share']:.4%}")  # fmt: skip


def pruning(found: dict[str, Any]) -> Iterator[Row]:
    summary = found["summary"]
    for mode, times in summary["times_plain"].items():
        spearman = summary["spearman_mean"].get(mode)
        note = (
            f"{summary['same_choice']} of {summary['steps_compared']} choices the same"
            if spearman is None
            else f"Spearman with exact {spearman:.2f}, least {summary['spearman_least'][mode]:.2f}"
        )
        limit = summary["times_limit"].get(mode)
        yield Row(f"{mode}, {summary['chains']} chains", "the plain algorithm", times, limit, note)


def audit(found: dict[str, Any]) -> Iterator[Row]:
    yield Row(f"ranking {found['pairs']} candidates", "lm-eval", found["times_lm_eval"], found["times_limit"],
              f"values at most {found['largest_difference_nats']:.0e} nats apart")  # fmt: skip


def server(found: dict[str, Any]) -> Iterator[Row]:
    yield Row(f"{found['requests']} requests of {found['clients']} clients", "the same offline, in batches",
              found["server_over_offline"], None, f"{found['replies']['identical']} replies identical")  # fmt: skip


def gpu(found: dict[str, Any]) -> Iterator[Row]:
    for shape, peers in found["loss"].items():
        ours, limit = peers["ours, 1024 rows"], peers["bare products"]["median_ms"]
        for words, start in (("PyTorch with all logits", "all logits"), ("TRL's fused kernel", "TRL")):
            theirs = [each for name, each in peers.items() if name.startswith(start)]
            best = min(theirs, key=lambda each: each["median_ms"])
            note = f"{ours['peak_mib'] / best['peak_mib']:.2g} times its memory"
            yield Row(f"loss, {shape}", words, best["median_ms"] / ours["median_ms"], ours["median_ms"] / limit, note)
    for name, theirs in found["step"].items():
        if name.startswith("TRL next-token"):
            ours = found["step"][name.replace("TRL next-token", "4 heads")]
            note = f"{ours['peak_mib'] / theirs['peak_mib']:.2g} times its memory"
            yield Row(f"step, K = 4, {name.partition(', ')[2]}", "TRL's next-token step",
                      theirs["median_ms"] / ours["median_ms"], None, note)  # fmt: skip


AREAS = (
    Area("multitoken", "Multi-token step", "the step's necessary matrix products", "multitoken_step.json",
         "bench/multitoken_step.py", multitoken),
    Area("proxy", "Proxy-tuned decoding", "one forward of each model, with the same products", "proxy/decoding.json",
         "bench/proxy_decoding.py", proxy),
    Area("speculative", "Drafting heads", "as many passes over one token, and drafts that cost nothing",
         "speculative.json", "bench/speculative.py", speculative),
    Area("forking", "Forking tokens", "", "forking/step.json", "bench/forking_step.py", forking),
    Area("pruning", "Pruning", "the products of the positions that exact pruning has to read", "pruning/speed.json",
         "bench/pruning_speed.py", pruning),
    Area("audit", "Audit", "one forward over the prompts", "audit.json", "bench/audit.py", audit),
    Area("server", "Server", "", "serve_load.json", "bench/serve_load.py", server),
    Area("gpu", "On a GPU", "the two or three products of hidden states and unembedding", "gpu.json",
         "bench/gpu.py", gpu),
)  # fmt: skip


def table(rows: list[Row]) -> list[str]:
    lines = ["| what | beside | times its speed | time, of the limit | |", "|---|---|--:|--:|---|"]
    for row in rows:
        speed, limit = (f"{value:.2f}×" if value is not None else "" for value in (row.times_peer, row.times_limit))
        lines.append(f"| {row.what} | {row.peer} | {speed} | {limit} | {row.note} |")
    return lines


def plot(title: str, rows: list[Row]) -> str:
    """A bar for each ratio to a peer, on a logarithmic scale; those below 1 point to the left, in red."""
    from math import log10

    drawn, left, width, height = [], 330, 300, 24
    ratios = [row for row in rows if row.times_peer is not None] or [Row(title, "nothing", 1.0)]
    reach = max(max(abs(log10(row.times_peer or 1)) for row in ratios), log10(2))
    low = min(0.0, *(log10(row.times_peer or 1) for row in ratios))
    scale = width / (reach - low)

    def x(value: float) -> float:
        return round(left + scale * (log10(value) - low), 1)

    for place, row in enumerate(ratios):
        value, y = row.times_peer or 1.0, 30 + height * place
        start, end = sorted((x(1), x(value)))
        colour = "#0f8a6d" if value >= 1 else "#b3261e"
        drawn += [
            element("text", f"{row.what}, {row.peer}", x=left - 10, y=y + 13, text_anchor="end"),
            element("rect", x=start, y=y, width=max(round(end - start, 1), 1), height=16, fill=colour),
            element("text", f"{value:.2f}×", x=end + 6, y=y + 13),
        ]
    bottom = 30 + height * len(ratios)
    drawn.append(element("line", x1=x(1), x2=x(1), y1=20, y2=bottom, stroke="#777"))
    drawn.append(element("text", "as fast", x=x(1), y=14, text_anchor="middle"))
    style = element("style", Markup("text { font: 12px sans-serif; fill: #555; }"))
    described = "; ".join(f"{row.what}, {row.peer}: {row.times_peer:.2f}" for row in ratios)
    return str(
        element(
            "svg", element("title", title), element("desc", described), style, join(drawn),
            xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {left + width + 70} {bottom + 10}", role="img",
        )
    ) + "\n"  # fmt: skip


def when_measured(results: Path) -> list[str]:
    """Which areas one run of bench/everything.py has measured, and which were measured by themselves."""
    path = results / "runs.json"
    runs = json.loads(path.read_text("utf-8")) if path.exists() else {}
    areas: dict[tuple[str, str], list[str]] = {}
    for area in AREAS:
        found = runs.get(area.name)
        origin = (found["run"], found["commit"]) if found else ("", "")
        areas.setdefault(origin, []).append(area.title + (f" ({found['minutes']:g} minutes)" if found else ""))
    lines = []
    for (run, commit), titles in areas.items():
        version = f"{commit[:10]}{', edited' if commit.endswith('-dirty') else ''}"
        how = f"By the run of {run[:16].replace('T', ' ')} UTC (commit {version})" if run else "By themselves"
        lines += [f"{how}: {', '.join(titles)}.", ""]
    return lines


def measured_rows(results: Path) -> dict[str, list[Row]]:
    """Area -> its rows; an area that has not been measured is left out."""
    files = {area: results / area.file for area in AREAS}
    return {area.name: list(area.rows(json.loads(file.read_text("utf-8")))) for area, file in files.items()
            if file.exists()}  # fmt: skip


def first_rows(results: Path) -> list[Row]:
    """Of each area that has been measured."""
    titles = {area.name: area.title for area in AREAS}
    return [rows[0]._replace(what=f"{titles[name]}: {rows[0].what}") for name, rows in measured_rows(results).items()]


def page(results: Path) -> list[str]:
    """The page's lines."""
    lines, losing, found = [], [], measured_rows(results)
    for area in AREAS:
        lines += [f"## {area.title}", ""]
        if area.name not in found:
            lines += [f"Not measured yet: `{area.command}`.", ""]
            continue
        rows = found[area.name]
        lines += [*table(rows), "", f"![{area.title}](summary-{area.name}.svg)", ""]
        lines += [f"The limit: {area.limit}.", ""] if any(row.times_limit for row in rows) else []
        lines += [f"`{area.command}`, [figures]({area.file})", ""]
        losing += [f"- {area.title}: {row.what} has {row.times_peer:.2f} times the speed of {row.peer}."
                   for row in rows if row.times_peer is not None and row.times_peer < 1]  # fmt: skip
    head = [
        "# Beside others and the limit", "",
        "Each area's peer and limit are measured in turns; but for the last, on two cores without a GPU.", "",
        *when_measured(results),
        "## Where graftlm loses", "",
    ]  # fmt: skip
    return [*head, *(losing or ["Nowhere that was measured."]), "", *lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found = measured_rows(arguments.results)
    for area in AREAS:
        if area.name in found:
            write_text(arguments.results / f"summary-{area.name}.svg", plot(area.title, found[area.name]))
    write_text(arguments.results / "summary.md", "\n".join(page(arguments.results)))
    say(f"written: {arguments.results / 'summary.md'}")


if __name__ == "__main__":
    main()
