"""The page: verdict on top, then results, facts, losses, agreement, examples, and how it was made at the foot.

One file that asks for nothing else: style and plots lie in it, and its content security policy forbids every request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from graftlm.console import words
from graftlm.errors import InputError
from graftlm.files import write_text
from graftlm.report.charts import agreement_plots, loss_plots, metric_panels
from graftlm.report.markup import Markup, element, join
from graftlm.report.tables import (
    changed_facts,
    changes_table,
    examples_note,
    examples_table,
    has_changes,
    results_table,
)
from graftlm.tasks.comparison import Results, is_probe, task_metrics

EXAMPLES = 10
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_report(
    path: Path,
    *,
    title: str,
    verdict: list[str],
    results: Results,
    curves: Mapping[str, list[dict[str, Any]]],
    agreement: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> None:
    """Write the report to `path`, whole or not at all (OSError names the file).

    `verdict`: sentences, see `verdict_lines`. `results`: model -> task -> result; "untrained" is what the others are
    held against. `curves`: run -> lines of its metrics.jsonl. `agreement`: content of agreement.json, or {}.
    `facts`: name -> value, or a group of them -> mapping. InputError without any result.
    """
    if not task_metrics(results):
        raise InputError("no results to report: evaluate at least one model on one task")
    sections = [
        verdict_section(verdict),
        _results(results),
        *_changed(results),
        losses_section(curves),
        agreement_section(agreement),
        *_examples(results),
        facts_section(facts),
    ]
    write_text(path, page(title, sections))


def page(title: str, sections: Sequence[Markup | None]) -> str:
    style = files("graftlm.report").joinpath("style.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Markup(style)),
    )
    body = element("body", element("main", element("h1", title), sections))
    return f'<!DOCTYPE html>\n<html lang="en">{head}\n{body}</html>\n'


def section(heading: str, *content: Markup | None, note: str | None = None, class_: str | None = None) -> Markup:
    introduction = None if note is None else element("p", note, class_="note")
    return element("section", element("h2", heading), introduction, content, Markup("\n"), class_=class_)


def verdict_section(lines: Sequence[str]) -> Markup | None:
    if not lines:
        return None
    return section("Verdict", element("ul", [element("li", line) for line in lines]), class_="verdict")


def _results(results: Results) -> Markup:
    legend = join(
        element("span", "▲", class_="good"),
        " better and ",
        element("span", "▼", class_="bad"),
        " worse than untrained; shaded: the best tuned model. Both only where the examples show it: zero lies outside "
        "the 95 % interval of the paired difference, or, for right-or-wrong metrics, an exact sign test says so at 5%.",
    )
    return section(
        "What was gained, what was kept",
        metric_panels(results),
        results_table(results),
        element("p", legend, class_="note"),
        note="Whiskers: 95 % interval over the examples. Dashed: the floor that a trivial answer reaches.",
    )


def _changed(results: Results) -> Iterator[Markup]:
    for task in results.get("untrained", {}):
        if has_changes(results, task):
            yield section(
                f"Facts lost and won: {task}",
                changes_table(results, task),
                changed_facts(results, task),
                note="Lost: right before tuning and wrong after. Won: the other way round.",
            )


def losses_section(curves: Mapping[str, list[dict[str, Any]]]) -> Markup | None:
    plots = loss_plots(curves)
    if not plots:
        return None
    return section(
        "Loss by head",
        plots,
        note="Head k predicts k tokens further than the model's own head. The vertical axis is the same in all plots; "
        "a line of many points is their moving average, with the points faint behind it.",
    )


def agreement_section(agreement: Mapping[str, Any]) -> Markup | None:
    if not agreement.get("heads"):
        return None
    return section(
        "Agreement of the distilled heads",
        agreement_plots(agreement),
        note="Share of held-out positions where a head's likeliest token is the model's own greedy one, as many tokens "
        "ahead. The line across each bar: the same head before distillation, a bare copy of the last layer.",
    )


def _examples(results: Results) -> Iterator[Markup]:
    measured = {task: result for by_task in results.values() for task, result in by_task.items()}
    for task, result in measured.items():
        if not is_probe(result) and result.examples:
            template = join("Each prompt is ", element("code", examples_note(result)))
            count = min(EXAMPLES, len(result.examples))
            yield section(
                f"{count} {task}, as each model writes them",
                element("p", template, class_="note"),
                examples_table(results, task, EXAMPLES),
            )


def facts_section(facts: Mapping[str, Any]) -> Markup | None:
    rows = []
    for name, value in facts.items():
        shown = ", ".join(f"{k} {words(v)}" for k, v in value.items()) if isinstance(value, Mapping) else words(value)
        rows.append(element("tr", element("th", name.replace("_", " "), scope="row"), element("td", shown)))
    if not rows:
        return None
    return section("How this was made", element("table", element("tbody", rows), class_="facts"))
