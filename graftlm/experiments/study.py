"""`graftlm study`: the arms of a StudyConfig trained, measured, and written down in a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graftlm.data.load import load_rows
from graftlm.errors import InputError
from graftlm.experiments.arms import UNTRAINED, Arm
from graftlm.experiments.comparison import Results
from graftlm.experiments.config import StudyConfig, split_names
from graftlm.experiments.page import write_experiment_report
from graftlm.experiments.run import HEADS, Experiment, run_experiment
from graftlm.heads.config import DistillConfig
from graftlm.runs.console import Report
from graftlm.runs.files import dump_json, write_text
from graftlm.runs.provenance import versions
from graftlm.runs.run import Run
from graftlm.tasks import get_task
from graftlm.tuning.token_weights import COLUMNS as WEIGHT_COLUMNS


def study(config: StudyConfig, run: Run, progress: Report) -> Results:
    """Everything that `config` asks for, in the folder of `run`: trainings, results.json and report.html.

    Raises InputError for an unknown task, and whatever distillation and the arms' verbs refuse.
    """
    results = run_experiment(experiment_of(config, run.folder), run.folder, progress, run.keep)
    title = f"Which arm learns most and keeps most? {config.model} on {config.data}"
    write_results(run.folder, "results.json", results, title, asdict(config))
    return results


def experiment_of(config: StudyConfig, folder: Path) -> Experiment:
    """The experiment of a study whose results go to `folder`."""
    heads = str(folder / HEADS)
    arms = [config.filled(arm, heads) for arm in config.chosen_arms.values()]
    weighted = [arm for arm in arms if arm.settings.get("mtp_weights") == "importance"]
    if weighted and not any(column in WEIGHT_COLUMNS for column in load_rows(config.data).column_names):
        if split_names(config.arms) != ["all"] or config.own_arms:
            raise InputError(
                f"arm {weighted[0].name}: the rows of {config.data} have no column {' or '.join(WEIGHT_COLUMNS)}; "
                "`graftlm prune` measures the weights of tokens"
            )
        arms = [arm for arm in arms if arm not in weighted]
    return Experiment(
        untrained=Arm(name=UNTRAINED, verb="evaluate", settings={"model": config.model}),
        arms=arms,
        seeds=config.seeds,
        tasks=[get_task(name) for name in split_names(config.tasks)],
        probes=[get_task(name) for name in split_names(config.probes)],
        limit=config.limit,
        baseline=config.baseline,
        distillation=DistillConfig(
            model=config.model,
            data=config.data,
            output=heads,
            num_heads=config.num_heads,
            domain_tokens=config.domain_tokens,
            general_tokens=config.general_tokens,
            epochs=config.distillation_epochs,
        ),
    )


def write_results(folder: Path, name: str, results: Results, title: str, settings: Mapping[str, Any]) -> None:
    """The results as JSON in the file `name`, and as the page report.html."""
    write_text(folder / name, dump_json([asdict(each) for each in results.every], indent=2) + "\n")
    facts = {"settings": settings, "versions": versions()}
    write_experiment_report(folder / "report.html", results, title=title, facts=facts)
