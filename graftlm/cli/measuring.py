"""Verbs that measure, and the repair that an audit points at: evaluate, audit, restore."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from graftlm.cli.app import app
from graftlm.cli.options import (
    Alpha,
    Antiexpert,
    AsJson,
    Expert,
    Overwrite,
    Probe,
    number_option,
    opened_folder,
    seed_option,
)
from graftlm.cli.verb import verb
from graftlm.errors import InputError
from graftlm.runs.console import Report, print_findings, print_table, reported_progress, say
from graftlm.runs.files import dump_json, write_text
from graftlm.runs.run import Run
from graftlm.tasks.config import EvaluateConfig


def evaluate_steered(config: EvaluateConfig, run: Run, progress: Report) -> Any:
    from graftlm.proxy.model import is_composition, load_steered
    from graftlm.tasks.evaluation import run_evaluate

    plain = [name for name in config.models if not is_composition(name)]
    if config.alpha is not None and config.expert is None and plain:
        raise InputError(f"--alpha is given without --expert, and {plain[0]} is no saved composition")
    return run_evaluate(config, run, load=lambda name: load_steered(name, config), progress=progress)


@verb(EvaluateConfig, evaluate_steered)
def evaluate(config: EvaluateConfig, results: Any, *, as_json: bool) -> None:
    """Measure models on tasks, in one table.

    Beside the models stands the floor: what a trivial answer reaches. With --expert, each model is measured steered.
    """
    if as_json:
        from graftlm.tasks.evaluation import results_document

        print(dump_json(results_document(results, config), indent=2))
    else:
        from graftlm.tasks.evaluation import evaluation_table

        print_table(evaluation_table(results))


@app.command()
def audit(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model that the others were tuned from.")],
    tuned: Annotated[list[str] | None, typer.Argument(metavar="[TUNED]...", help="Folders, adapters, hub ids.")] = None,
    expert: Expert = None,
    antiexpert: Antiexpert = None,
    alpha: Alpha = None,
    task: Annotated[list[str] | None, typer.Option(help="What they were tuned for; repeatable.")] = None,
    probe: Probe = None,
    limit: Annotated[int, number_option("Test examples of each.", at_least=2)] = 100,
    layer_groups: Annotated[int, number_option("Groups of layers, each restored by itself.", at_least=1)] = 6,
    output_format: Annotated[
        list[str] | None,
        typer.Option("--format", help="Output format to count, as NAME=REGEX; repeatable.", metavar="NAME=REGEX"),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(help="Exit with 1 if this holds, such as 'retention<0.9'; repeatable.", metavar="CONDITION"),
    ] = None,
    batch_size: Annotated[int, number_option("Examples at once.", at_least=1)] = 32,
    seed: Annotated[int, seed_option("Seed of what is drawn.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for audit.json and report.html.")] = Path("audit"),
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Hold tuned models against their base model.

    What was gained, what was forgotten, and in which layers: a table, and one HTML page. With --expert, the base model
    steered by it is one of the models.
    """
    formats = parse_formats(output_format) if output_format else None
    from graftlm.auditing.audit import DEFAULT_PROBES
    from graftlm.auditing.audit import audit as audit_models
    from graftlm.auditing.condition import check_conditions, failures, parse_condition
    from graftlm.auditing.page import write_audit_report
    from graftlm.auditing.summary import audit_table
    from graftlm.auditing.verdict import audit_verdict
    from graftlm.proxy.model import steering
    from graftlm.tasks import get_task

    probes = [get_task(name) for name in probe or DEFAULT_PROBES if name not in (task or [])]
    tasks = [get_task(name) for name in task or []]
    conditions = [parse_condition(text) for text in fail_if or []]
    check_conditions(conditions, tasks, probes)
    with opened_folder(output, "audit.json", overwrite=overwrite), reported_progress() as progress:
        result = audit_models(
            base,
            tuned or [],
            steered=steering(base, expert, antiexpert, alpha),
            tasks=tasks,
            probes=probes,
            limit=limit,
            layer_groups=layer_groups,
            formats=formats,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
        document = dump_json(asdict(result), indent=2)
        write_text(output / "audit.json", document + "\n")
        write_audit_report(output / "report.html", result, title=f"Audit of models tuned from {base}")
    if as_json:
        print(document)
    else:
        print_findings(audit_table(result), audit_verdict(result))
    say(f"report: {output / 'report.html'}")
    if failed := failures(conditions, result):
        for line in failed:
            say(f"graftlm: failed: {line}")
        raise typer.Exit(1)


@app.command()
def restore(
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="Hub id, folder or adapter folder.")],
    layers: Annotated[str, typer.Option(help="Layers, such as 0-14 or 0-4,9.")],
    output: Annotated[Path, typer.Option(help="Folder for the model.")],
    scale: Annotated[
        float, number_option("Share of the tuning's change that is left there.", at_least=0, at_most=1)
    ] = 0.0,
    base: Annotated[
        str | None, typer.Option(help="The model that a whole TUNED was tuned from; an adapter knows its own.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output folder.")] = False,
) -> None:
    """Undo part of a tuning in some layers.

    Saves an ordinary model. Which layers are worth it, `graftlm audit` shows.
    """
    from graftlm.models.restore import restore as restore_layers

    changed = restore_layers(tuned, output, layers=layers, scale=scale, base=base, overwrite=overwrite)
    say(f"{changed} weights scaled; model: {output}")


def parse_formats(texts: list[str]) -> dict[str, str]:
    """['json=^\\s*\\{'] -> {'json': '^\\s*\\{'}"""
    found: dict[str, str] = {}
    for text in texts:
        name, separator, pattern = text.partition("=")
        if not separator or not name or not pattern:
            raise InputError(f"--format is {text!r}, but NAME=REGEX is expected")
        if name in found:
            raise InputError(f"--format {name!r} is given twice")
        found[name] = pattern
    return found
