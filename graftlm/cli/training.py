"""Verbs that train: distill, tune, reinforce, study."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from graftlm.cli.app import app
from graftlm.cli.flags import config_command
from graftlm.cli.options import AsJson, DryRun, Overwrite, Resume
from graftlm.experiments.study_config import StudyConfig, split_names
from graftlm.heads.config import DistillConfig
from graftlm.recipes import list_recipes, read_recipe
from graftlm.reinforce.config import ReinforceConfig
from graftlm.runs.console import print_findings, reported_progress, say
from graftlm.runs.files import dump_json
from graftlm.runs.run import Run, check_folder
from graftlm.runs.yaml_text import dump_yaml
from graftlm.tuning.config import TuneConfig


@app.command()
@config_command(DistillConfig, "distill")
def distill(
    config: DistillConfig,
    sources: dict[str, str],
    *,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Grow heads on a model by self-distillation.

    The model writes text; the heads learn what it says further on.
    """
    if dry_run:
        check_folder(Path(config.output), "distill", config, resume=resume, overwrite=overwrite)
        print_config(config, sources)
        return
    from graftlm.heads.distill import distill as distill_heads

    with (
        opened_run(config, "distill", sources, resume=resume, overwrite=overwrite) as run,
        reported_progress() as progress,
    ):
        distill_heads(config, run, progress)


@app.command()
@config_command(TuneConfig, "tune")
def tune(
    config: TuneConfig,
    sources: dict[str, str],
    *,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Fine-tune a model, multi-token or next-token."""
    train("graftlm.tuning.tune", "tune", config, sources, resume=resume, overwrite=overwrite, dry_run=dry_run)


@app.command()
@config_command(ReinforceConfig, "reinforce")
def reinforce(
    config: ReinforceConfig,
    sources: dict[str, str],
    *,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Train with a verifiable reward, on forking tokens, its formats watched.

    CONFIG may also be the name of a recipe; `graftlm recipes` lists them.
    """
    module = "graftlm.reinforce.reinforce"
    train(module, "reinforce", config, sources, resume=resume, overwrite=overwrite, dry_run=dry_run)


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Recipe to print.")] = None) -> None:
    """List the recipes, or print one to copy: settings that a paper or a bench has used."""
    if name is not None:
        print(read_recipe(name), end="")
        return
    for each, line in list_recipes().items():
        print(f"{each:<24}{line}")


@app.command()
@config_command(StudyConfig, "study")
def study(
    config: StudyConfig,
    sources: dict[str, str],
    *,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train the ladder of objectives, and show which ingredient matters.

    Each arm with the same rows and seeds; a study that was stopped goes on with --resume.
    """
    if dry_run:
        check_folder(Path(config.output), "study", config, resume=resume, overwrite=overwrite)
        print_config(config, sources)
        return
    from graftlm.experiments.study import study as train_ladder
    from graftlm.experiments.study_page import write_study_report
    from graftlm.experiments.study_rows import study_table, study_verdict
    from graftlm.runs.provenance import versions
    from graftlm.tasks import get_task

    with (
        opened_run(config, "study", sources, resume=resume, overwrite=overwrite) as run,
        reported_progress() as progress,
    ):
        measured = train_ladder(config, run.folder, progress, run.keep)
        document = [asdict(each) for each in measured]
        run.write_json("results.json", document)
        write_study_report(
            run.folder / "report.html",
            measured,
            title=f"Which ingredient of multi-token fine-tuning matters? {config.model} on {config.data}",
            tasks=[get_task(name).name for name in split_names(config.tasks)],
            probes=[get_task(name).name for name in split_names(config.probes)],
            facts={"settings": asdict(config), "versions": versions()},
        )
    if as_json:
        print(dump_json(document, indent=2))
        return
    print_findings(study_table(measured), study_verdict(measured))
    say(f"report: {run.folder / 'report.html'}")


def train(
    module: str,
    verb: str,
    config: TuneConfig | ReinforceConfig,
    sources: Mapping[str, str],
    *,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Call the function `verb` of `module`, imported only here, on a run in the output folder.

    With --dry-run the settings are printed first, and the run is in a folder that is removed again.
    """
    if dry_run:
        check_folder(Path(config.output), verb, config, resume=resume, overwrite=overwrite)
        print_config(config, sources)
    function = getattr(import_module(module), verb)
    if not dry_run:
        with opened_run(config, verb, sources, resume=resume, overwrite=overwrite) as run:
            function(config, run)
        return
    with tempfile.TemporaryDirectory() as scratch, Run.create(Path(scratch) / "run", verb, config, sources) as run:
        function(config, run, dry_run=True)


@contextmanager
def opened_run(
    config: DistillConfig | TuneConfig | ReinforceConfig | StudyConfig,
    command: str,
    sources: Mapping[str, str],
    *,
    resume: bool,
    overwrite: bool,
) -> Iterator[Run]:
    """The run of a verb while it is open; an interrupt says how to continue it."""
    with Run.create(config.output, command, config, sources, resume, overwrite) as run:
        if resume and not run.resumed:
            say(f"graftlm: {run.folder} holds no run to resume; starting one")
        try:
            yield run
        except KeyboardInterrupt as interrupt:
            if str(interrupt):
                raise
            raise KeyboardInterrupt(f"continue with: {run.resume_command}") from interrupt


def print_config(config: Any, sources: Mapping[str, str]) -> None:
    """The resolved config as YAML that can be used again, the source of each value beside it."""
    for name, value in asdict(config).items():
        print(f"{dump_yaml({name: value}).rstrip()}  # {sources[name]}")
