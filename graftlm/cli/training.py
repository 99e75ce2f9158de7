"""Verbs that train: distill, tune, reinforce, study; and the recipes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlm.cli.app import app
from graftlm.cli.verb import verb
from graftlm.recipes import list_recipes, read_recipe
from graftlm.runs.console import print_findings, say
from graftlm.runs.files import dump_json

if TYPE_CHECKING:
    from graftlm.experiments.config import StudyConfig
    from graftlm.heads.config import DistillConfig
    from graftlm.reinforce.config import ReinforceConfig
    from graftlm.tuning.config import TuneConfig


@verb("graftlm.heads.config:DistillConfig", "graftlm.heads.distill:distill")
def distill(config: DistillConfig, result: Any) -> None:
    """Grow heads on a model by self-distillation.

    The model writes text, and the heads learn to predict its tokens further ahead.
    """


@verb("graftlm.tuning.config:TuneConfig", "graftlm.tuning.tune:tune", plans=True)
def tune(config: TuneConfig, result: Any) -> None:
    """Fine-tune a model, multi-token or next-token."""


@verb("graftlm.reinforce.config:ReinforceConfig", "graftlm.reinforce.reinforce:reinforce", plans=True)
def reinforce(config: ReinforceConfig, result: Any) -> None:
    """Train a model with a verifiable reward on forking tokens, and watch its output formats.

    CONFIG may also be the name of a recipe; `graftlm recipes` lists them.
    """


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Recipe to print.")] = None) -> None:
    """List the recipes, or print one to copy: settings that a paper or a benchmark used."""
    if name is not None:
        print(read_recipe(name), end="")
        return
    for each, line in list_recipes().items():
        print(f"{each:<24}{line}")


@verb("graftlm.experiments.config:StudyConfig", "graftlm.experiments.study:study")
def study(config: StudyConfig, result: Any, *, as_json: bool) -> None:
    """Train arms and compare what each gains and keeps.

    By default it trains the ladder of objectives, which shows the ingredient that matters; a file may give arms of your
    own. All arms have the same rows and seeds. --resume continues a study that was stopped.
    """
    show_results(config.output, result, as_json=as_json)


def show_results(output: str, results: Any, *, as_json: bool) -> None:
    """The table and the verdict of an experiment, or its results as JSON."""
    from graftlm.experiments.table import experiment_table
    from graftlm.experiments.verdict import experiment_verdict

    if as_json:
        print(dump_json([asdict(each) for each in results.every], indent=2))
    else:
        print_findings(experiment_table(results), experiment_verdict(results))
    say(f"report: {output}/report.html")
