"""What the models wrote, and which facts the tuned ones lost and won."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from graftlm.auditing.result import AuditResult
from graftlm.report.markup import Markup, element, join
from graftlm.report.page import section
from graftlm.report.tables import cell, clipped, common_part_cut, row, table
from graftlm.tasks import Metric
from graftlm.tasks.comparison import same_examples

COUNT = 10
LONGEST_OUTPUT = 160  # characters; an untuned model may write on and on


def examples_sections(result: AuditResult) -> Iterator[Markup]:
    """For each task whose answers were written out: the first examples, and each model's output beside them."""
    for task in result.tasks:
        first = result.base_results[task]
        models = {
            "base": first,
            **{result.short_names[name]: audited.results[task] for name, audited in result.tuned.items()},
        }
        shown = {name: found for name, found in models.items() if same_examples(first, found)}
        if not any(example.get("output") for found in shown.values() for example in found.examples):
            continue
        prompts = [example["prompt"] for example in first.examples]
        shorten = common_part_cut(prompts)
        rows = []
        for place, example in enumerate(first.examples[:COUNT]):
            cells = [cell("reference", element("code", str(example["reference"]).strip()))]
            for name, found in shown.items():
                answer = found.examples[place]
                output = element("code", clipped(answer.get("output", ""), LONGEST_OUTPUT))
                cells.append(cell(name, output, _scores(first.declared, answer)))
            rows.append(row(shorten[example["prompt"]], cells))
        caption = f"The first {len(rows)} test examples, not chosen"
        yield section(
            f"{len(rows)} {task}, as each model writes them",
            element("p", join("Each prompt is ", element("code", _template(prompts[0], shorten))), class_="note"),
            table(caption, ["prompt", "reference", *shown], rows, cells=2),
        )


def _template(prompt: str, shorten: Mapping[str, str]) -> str:
    """What all prompts have in common, which the table leaves out."""
    return prompt.replace(shorten[prompt], "…", 1) if shorten[prompt] != prompt else "…"


def _scores(metrics: Sequence[Metric], example: Mapping[str, Any]) -> Markup | None:
    """The example's own values; in green what nothing beats."""
    scores = [
        element("span", f"{metric.label} {value:.3g}", class_="good" if value == metric.best else None)
        for metric in metrics
        if isinstance(value := example.get(metric.name), (int, float))
    ]
    parted = [part for score in scores for part in (" · ", score)][1:]
    return element("small", parted) if parted else None


def facts_sections(result: AuditResult) -> Iterator[Markup]:
    """For each probe of right-or-wrong answers: how many each model lost and won, and which, folded up."""
    for probe in result.probes:
        base = result.base_results[probe]
        shorten = common_part_cut([example["prompt"] for example in base.examples]) if base.examples else {}
        rows, folded = [], []
        for name, audited in result.tuned.items():
            for metric, changed in audited.facts.get(probe, {}).items():
                label = base.metric(metric).label
                counts = [("kept", changed.kept), ("lost", len(changed.lost)), ("won", len(changed.won))]
                rows.append(
                    row(
                        result.short_names[name],
                        [cell("measure", label), *(cell(k, str(v)) for k, v in counts)],
                    )
                )
                for kind, examples in (("lost", changed.lost), ("won", changed.won)):
                    if examples:
                        items = [_fact(example, shorten) for example in examples]
                        heading = element("summary", f"{result.short_names[name]}, {label}: {len(items)} {kind}")
                        folded.append(element("details", heading, element("ul", items)))
        if rows:
            yield section(
                f"Facts lost and won: {probe}",
                table(
                    f"Of {base.count} questions",
                    ["model", "measure", "kept", "lost", "won"],
                    rows,
                    class_="numbers",
                    cells=4,
                ),
                join(folded),
                note="Lost: right before tuning and wrong after. Won: the other way round.",
            )


def _fact(example: Mapping[str, Any], shorten: Mapping[str, str]) -> Markup:
    prompt = str(example["prompt"])
    now = [" · now ", element("code", clipped(example.get("output") or "", 60))]
    if ranked := example.get("ranked_first"):
        now += [" · likeliest candidate ", element("code", clipped(ranked, 60))]
    reference = f": {str(example['reference']).strip()}"
    return element("li", element("b", shorten.get(prompt, prompt)), reference, element("small", now))
