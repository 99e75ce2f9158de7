"""The report's tables: metrics by model, facts lost and won, and what each model answered."""

from __future__ import annotations

import itertools
import os.path
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graftlm.report.markup import Markup, element, join
from graftlm.report.verdict import describe
from graftlm.tasks.comparison import (
    Results,
    changed_answers,
    difference,
    is_better,
    is_probe,
    label,
    lower_is_better,
    metric_value,
    same_examples,
    standard_error,
    task_metrics,
    tuned_models,
)

if TYPE_CHECKING:
    from graftlm.tasks import TaskResult

LONGEST_OUTPUT = 160  # characters; an untuned model may write on and on


def table(caption: str, headings: Sequence[str], rows: Sequence[Markup], *, class_: str = "", cells: int = 1) -> Markup:
    """On a phone each row becomes a block of `cells` cells abreast; the roles keep it a table for screen readers."""
    head = element("tr", [element("th", h, scope="col", role="columnheader") for h in headings], role="row")
    return element(
        "table",
        element("caption", caption),
        element("thead", head, role="rowgroup"),
        element("tbody", rows, role="rowgroup"),
        role="table",
        class_=f"stacked {class_}".strip(),
        style=f"--cells:{cells}",
    )


def row(name: Markup | str, cells: Sequence[Markup]) -> Markup:
    return element("tr", element("th", name, scope="row", role="rowheader"), cells, role="row")


def cell(heading: str, *content: Markup | str | None, class_: str | None = None) -> Markup:
    """`heading` is what a phone shows above it."""
    return element("td", *content, role="cell", data_label=heading, class_=class_)


def results_table(results: Results) -> Markup:
    """Rows task and metric; columns the trivial floor, each model, and what each pair of tuned models differs by."""
    pairs = _pairs(tuned_models(results))
    headings = ["metric", "floor", *results, *(f"{second} − {first}" for first, second in pairs)]
    rows: list[Markup] = []
    named: set[str] = set()
    for task, metric in task_metrics(results):
        if task not in named:
            named.add(task)
            rows.append(_task_row(results, task, len(headings)))
        better = "↓ lower is better" if lower_is_better(metric) else "↑ higher is better"
        unit = " (nats)" if metric.startswith("nll") else ""
        name = join(capital(label(metric)) + unit, element("small", better))
        cells = [cell("floor", _number(_floor(results, task, metric)))]
        cells += [_value_cell(results, model, task, metric) for model in results]
        cells += [_difference_cell(results, *pair, task, metric) for pair in pairs]
        rows.append(row(name, cells))
    caption = "Mean over the examples ± standard error; the last column is paired by example"
    return table(caption, headings, rows, class_="numbers", cells=3)


def _task_row(results: Results, task: str, columns: int) -> Markup:
    sizes = sorted({by_task[task].count for by_task in results.values() if task in by_task})
    count = " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1])))
    name = join(capital(task), " ", element("small", f"{count} examples"))
    heading = element("th", name, colspan=columns, scope="rowgroup", role="rowheader")
    return element("tr", heading, role="row", class_="group")


def _value_cell(results: Results, model: str, task: str, metric: str) -> Markup:
    value = metric_value(results, model, task, metric)
    if value is None:
        return cell(model, "–")
    error = standard_error(results[model][task], metric)
    return cell(
        model,
        _number(value),
        _against_untrained(results, model, task, metric),
        None if error is None else element("small", f"± {error:.3f}"),
        class_="best" if _is_best(results, model, task, metric) else None,
    )


def _against_untrained(results: Results, model: str, task: str, metric: str) -> Markup | None:
    before = results.get("untrained", {}).get(task)
    if before is None or model not in tuned_models(results):
        return None
    change = difference(before, results[model][task], metric)
    if change is None or not change.shown:
        return None
    better = is_better(metric, change.value)
    words = "better than untrained" if better else "worse than untrained"
    return join(
        " ",
        element("span", "▲" if better else "▼", class_="good" if better else "bad", title=words, aria_hidden="true"),
        element("span", words, class_="unseen"),
    )


def _is_best(results: Results, model: str, task: str, metric: str) -> bool:
    """Better than every other tuned model by a difference that the examples show."""
    others = [name for name in tuned_models(results) if name != model and task in results[name]]
    if not others or model not in tuned_models(results):
        return False
    changes = [difference(results[other][task], results[model][task], metric) for other in others]
    return all(c is not None and c.shown and is_better(metric, c.value) for c in changes)


def _difference_cell(results: Results, first: str, second: str, task: str, metric: str) -> Markup:
    heading = f"{second} − {first}"
    before, after = results[first].get(task), results[second].get(task)
    change = difference(before, after, metric) if before and after else None
    if change is None:
        return cell(heading, "–")
    found = "no difference shown" if not change.shown else "better" if is_better(metric, change.value) else "worse"
    return cell(heading, describe(change), element("small", found))


def changes_table(results: Results, task: str) -> Markup:
    """How many facts of a probe each tuned model lost and won."""
    headings = ["model", "measure", "right untrained", "right after", "lost", "won", "net change"]
    rows = []
    for model, metric, lost, won in _changes(results, task):
        before, after = results["untrained"][task], results[model][task]
        change = difference(before, after, metric)
        right = [str(round(result.metrics[metric] * len(result.examples))) for result in (before, after)]
        cells = [
            cell("measure", label(metric)),
            cell("right untrained", right[0]),
            cell("right after", right[1]),
            cell("lost", element("span", str(len(lost)), class_="bad" if lost else None)),
            cell("won", element("span", str(len(won)), class_="good" if won else None)),
            cell("net change", describe(change) if change else "–", element("small", _shown(change))),
        ]
        rows.append(row(model, cells))
    return table(f"Of {results['untrained'][task].count} questions", headings, rows, class_="numbers", cells=3)


def _shown(change: Any) -> str:
    return "as a share of all" if change and change.shown else "not more than chance"


def changed_facts(results: Results, task: str) -> Markup:
    """Each lost and each won fact by name, folded up."""
    shorten = common_part_cut([example["prompt"] for example in results["untrained"][task].examples])
    folded = []
    for model, metric, lost, won in _changes(results, task):
        for word, examples in (("lost", lost), ("won", won)):
            if examples:
                title = f"{model}, {label(metric)}: {len(examples)} {word}"
                items = [_fact(example, metric, shorten[example["prompt"]]) for example in examples]
                folded.append(element("details", element("summary", title), element("ul", items)))
    return join(folded)


def _fact(example: dict[str, Any], metric: str, name: str) -> Markup:
    given = example.get("ranked_first") if metric.startswith("ranking") else example.get("output")
    answer = join(" · now ", element("code", clipped(given, 60))) if given is not None else None
    return element("li", element("b", name), f": {example['reference']}", element("small", answer) if answer else None)


def has_changes(results: Results, task: str) -> bool:
    return task in results.get("untrained", {}) and any(_changes(results, task))


def _changes(results: Results, task: str) -> list[tuple[str, str, list[dict[str, Any]], list[dict[str, Any]]]]:
    """(model, metric, lost, won) for each tuned model and right-or-wrong metric of a probe."""
    before = results["untrained"][task]
    found = []
    for model in tuned_models(results):
        for metric in before.metrics:
            after = results[model].get(task)
            answers = changed_answers(before, after, metric) if after is not None and is_probe(before) else None
            if answers is not None:
                found.append((model, metric, *answers))
    return found


def examples_table(results: Results, task: str, count: int) -> Markup:
    """The first `count` examples: prompt, reference, and each model's output with what it scored."""
    measured = {model: by_task[task] for model, by_task in results.items() if task in by_task}
    first = next(iter(measured.values()))
    shown = {model: result for model, result in measured.items() if same_examples(first, result)}
    shorten = common_part_cut([example["prompt"] for example in first.examples])
    rows = []
    for place, example in enumerate(first.examples[:count]):
        cells = [cell("reference", element("code", str(example["reference"])))]
        for model, result in shown.items():
            answer = result.examples[place]
            output = element("code", clipped(answer.get("output", ""), LONGEST_OUTPUT))
            cells.append(cell(model, output, _score(answer)))
        rows.append(row(shorten[example["prompt"]], cells))
    return table(f"The first {len(rows)} test examples, not chosen", ["prompt", "reference", *shown], rows, cells=2)


def _score(example: dict[str, Any]) -> Markup | None:
    if example.get("exact") == 1:
        return element("small", element("span", "✓ exact", class_="good"))
    if example.get("valid") == 0:
        return element("small", element("span", "✗ no valid SMILES", class_="bad"))
    similarity = example.get("tanimoto")
    return element("small", f"Tanimoto {similarity:.2f}") if similarity is not None else None


def examples_note(result: TaskResult) -> str:
    """What all prompts have in common, which the table leaves out."""
    prompts = [example["prompt"] for example in result.examples]
    name = common_part_cut(prompts)[prompts[0]]
    return prompts[0].replace(name, "…", 1) if name != prompts[0] else "…"


def common_part_cut(prompts: Sequence[str]) -> dict[str, str]:
    """Prompt -> what is left of it without the beginning and the end that all share ("The capital of … is")."""
    start = len(os.path.commonpath(list(prompts)))
    end = len(os.path.commonpath([prompt[start:][::-1] for prompt in prompts]))
    short = {prompt: prompt[start : len(prompt) - end].strip() for prompt in prompts}
    return short if all(short.values()) else {prompt: prompt for prompt in prompts}


def clipped(text: Any, longest: int) -> str:
    shown = str(text)
    if not shown.strip():
        return "(nothing)"
    return shown if len(shown) <= longest else shown[:longest] + "…"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _pairs(models: Sequence[str]) -> list[tuple[str, str]]:
    """Neighbours in the order given; of many models all pairs would fill the page."""
    return list(itertools.pairwise(models))


def _floor(results: Results, task: str, metric: str) -> float | None:
    return next((r[task].floors[metric] for r in results.values() if task in r and metric in r[task].floors), None)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
