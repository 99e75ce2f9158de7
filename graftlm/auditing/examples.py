"""Outputs of the models side by side, and the facts that the tuned ones lost and won."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from graftlm.auditing.result import AuditResult
from graftlm.report.markup import Markup, element, join
from graftlm.report.page import folded, section
from graftlm.report.tables import Row, clipped, number_table, table, without_common_parts
from graftlm.tasks import Metric
from graftlm.tasks.comparison import same_examples

COUNT = 10
LONGEST_OUTPUT = 160  # characters; an untuned model may write on and on


def examples_sections(result: AuditResult) -> Iterator[Markup]:
    """For each task whose answers were written out: the first examples, and each model's output beside them."""
    for task in result.tasks:
        base = result.base_results[task]
        every = {"base": base, **{name: audited.results[task] for name, audited in result.named.items()}}
        models = {name: each for name, each in every.items() if same_examples(base, each)}
        if not any(example.get("output") for each in models.values() for example in each.examples):
            continue
        shorten = without_common_parts([example["prompt"] for example in base.examples])
        rows: list[Row] = []
        for place, example in enumerate(base.examples[:COUNT]):
            reference = element("code", str(example["reference"]).strip())
            outputs = [_output(base.declared, each.examples[place]) for each in models.values()]
            rows.append((shorten[example["prompt"]], [reference, *outputs]))
        first = base.examples[0]["prompt"]
        template = first.replace(shorten[first], "…", 1)
        headings = ["prompt", "reference", *models]
        yield section(
            f"{len(rows)} {task}, as each model writes them",
            element("p", "Each prompt is ", element("code", template), class_="note"),
            table(f"The first {len(rows)} test examples, not chosen", headings, rows, cells=2),
        )


def _output(metrics: Sequence[Metric], example: Mapping[str, Any]) -> Markup:
    """A model's output, and below it the example's own values: in green one that nothing beats."""
    scores = [
        element("span", f"{metric.label} {value:.3g}", class_="good" if value == metric.best else None)
        for metric in metrics
        if isinstance(value := example.get(metric.name), (int, float))
    ]
    output = element("code", clipped(example.get("output", ""), LONGEST_OUTPUT))
    return join(output, element("small", Markup(" · ".join(scores))) if scores else None)


def facts_sections(result: AuditResult) -> Iterator[Markup]:
    """For each probe of right-or-wrong answers: how many each model lost and won, and which, folded up."""
    for probe in result.probes:
        base = result.base_results[probe]
        shorten = without_common_parts([example["prompt"] for example in base.examples])
        rows: list[Row] = []
        lists = []
        for model, audited in result.named.items():
            for metric, changed in audited.facts.get(probe, {}).items():
                label = base.metric(metric).label
                counts = map(str, (changed.kept, len(changed.lost), len(changed.won)))
                rows.append((model, [label, *counts]))
                for kind, examples in (("lost", changed.lost), ("won", changed.won)):
                    if examples:
                        items = element("ul", [_fact(example, shorten) for example in examples])
                        lists.append(folded(f"{model}, {label}: {len(examples)} {kind}", items))
        if rows:
            headings = ["model", "measure", "kept", "lost", "won"]
            yield section(
                f"Facts lost and won: {probe}",
                number_table(f"Of {base.count} questions", headings, rows, cells=4),
                join(lists),
                note="Lost: right before tuning and wrong after. Won: the other way round.",
            )


def _fact(example: Mapping[str, Any], shorten: Mapping[str, str]) -> Markup:
    prompt = str(example["prompt"])
    now = [" · now ", element("code", clipped(example.get("output") or "", 60))]
    if ranked := example.get("ranked_first"):
        now += [" · likeliest candidate ", element("code", clipped(ranked, 60))]
    reference = f": {str(example['reference']).strip()}"
    return element("li", element("b", shorten.get(prompt, prompt)), reference, element("small", now))
