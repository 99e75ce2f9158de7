"""Verbs that train: distill, tune, reinforce, study; and the recipes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from graftlm.cli.app import app
from graftlm.cli.verb import verb
from graftlm.experiments.study_config import StudyConfig, split_names
from graftlm.heads.config import DistillConfig
from graftlm.recipes import list_recipes, read_recipe
from graftlm.reinforce.config import ReinforceConfig
from graftlm.runs.console import print_findings, say
from graftlm.runs.files import dump_json
from graftlm.runs.run import Run
from graftlm.tuning.config import TuneConfig


@verb(DistillConfig, "graftlm.heads.distill:distill")
def distill(config: DistillConfig, result: Any) -> None:
    """Grow heads on a model by self-distillation.

    The model writes text; the heads learn what it says further on.
    """


@verb(TuneConfig, "graftlm.tuning.tune:tune", plans=True)
def tune(config: TuneConfig, result: Any) -> None:
    """Fine-tune a model, multi-token or next-token."""


@verb(ReinforceConfig, "graftlm.reinforce.reinforce:reinforce", plans=True)
def reinforce(config: ReinforceConfig, result: Any) -> None:
    """Train with a verifiable reward, on forking tokens, its formats watched.

    CONFIG may also be the name of a recipe; `graftlm recipes` lists them.
    """


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Recipe to print.")] = None) -> None:
    """List the recipes, or print one to copy: settings that a paper or a bench has used."""
    if name is not None:
        print(read_recipe(name), end="")
        return
    for each, line in list_recipes().items():
        print(f"{each:<24}{line}")


def run_study(config: StudyConfig, run: Run, progress: Any) -> Any:
    from dataclasses import asdict

    from graftlm.experiments.study import study as train_ladder
    from graftlm.experiments.study_page import write_study_report
    from graftlm.runs.provenance import versions
    from graftlm.tasks import get_task

    measured = train_ladder(config, run.folder, progress, run.keep)
    run.write_json("results.json", [asdict(each) for each in measured])
    write_study_report(
        run.folder / "report.html",
        measured,
        title=f"Which ingredient of multi-token fine-tuning matters? {config.model} on {config.data}",
        tasks=[get_task(name).name for name in split_names(config.tasks)],
        probes=[get_task(name).name for name in split_names(config.probes)],
        facts={"settings": asdict(config), "versions": versions()},
    )
    return measured


@verb(StudyConfig, run_study)
def study(config: StudyConfig, result: Any, *, as_json: bool) -> None:
    """Train the ladder of objectives, and show which ingredient matters.

    Each arm with the same rows and seeds; a study that was stopped goes on with --resume.
    """
    if as_json:
        from dataclasses import asdict

        print(dump_json([asdict(each) for each in result], indent=2))
        return
    from graftlm.experiments.study_rows import study_table, study_verdict

    print_findings(study_table(result), study_verdict(result))
    say(f"report: {config.output}/report.html")
