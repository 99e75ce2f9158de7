"""Verbs of proxy-tuning: sweep."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from graftlm.cli.app import VerbGroup, app
from graftlm.cli.options import (
    Antiexpert,
    AsJson,
    Overwrite,
    Probe,
    number_option,
    opened_folder,
    parse_numbers,
    seed_option,
)
from graftlm.runs.console import print_findings, reported_progress, say
from graftlm.runs.files import dump_json, write_text

proxy = typer.Typer(cls=VerbGroup, no_args_is_help=True, help="Proxy-tuning: measure how strongly to steer.")
app.add_typer(proxy, name="proxy")


@proxy.command()
def sweep(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model to steer.")],
    tuned: Annotated[
        list[str] | None, typer.Argument(metavar="[TUNED]...", help="Models tuned directly, to compare with.")
    ] = None,
    *,
    expert: Annotated[str, typer.Option(help="Small tuned model or adapter that steers the model.")],
    antiexpert: Antiexpert = None,
    task: Annotated[list[str], typer.Option(help="What the expert was tuned for; repeatable.")],
    probe: Probe = None,
    alphas: Annotated[str, typer.Option(help="Comma-separated strengths.")] = "0,0.25,0.5,0.75,1,1.25,1.5,2",
    limit: Annotated[int, number_option("Test examples of each.", at_least=2)] = 100,
    batch_size: Annotated[int, number_option("Examples at once.", at_least=1)] = 32,
    seed: Annotated[int, seed_option("Seed of what is drawn.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for sweep.json and report.html.")] = Path("sweep"),
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Measure a steered model at several strengths.

    Gain on the task against what is left of what the base model knew, beside the expert alone and models tuned
    directly: a table, and one HTML page with the frontier.
    """
    numbers = parse_numbers("--alphas", alphas)
    from graftlm.auditing.audit import DEFAULT_PROBES
    from graftlm.experiments.sweep import sweep as sweep_alphas
    from graftlm.experiments.sweep_page import sweep_verdict, write_sweep_report
    from graftlm.experiments.sweep_summary import sweep_table

    with opened_folder(output, "sweep.json", overwrite=overwrite), reported_progress() as progress:
        result = sweep_alphas(
            base,
            expert,
            antiexpert,
            tuned or [],
            alphas=numbers,
            tasks=task,
            probes=probe or [name for name in DEFAULT_PROBES if name not in task],
            limit=limit,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
        document = dump_json(asdict(result), indent=2)
        write_text(output / "sweep.json", document + "\n")
        write_sweep_report(output / "report.html", result, title=f"{base} steered by {expert}")
    if as_json:
        print(document)
    else:
        print_findings(sweep_table(result), sweep_verdict(result))
    say(f"report: {output / 'report.html'}")
