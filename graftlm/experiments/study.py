"""`graftlm study`: the arms of a StudyConfig trained, measured, and written down in a run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftlm.data.load import load_rows
from graftlm.errors import InputError
from graftlm.experiments.arms import UNTRAINED, Arm
from graftlm.experiments.comparison import Results
from graftlm.experiments.config import StudyConfig, split_names
from graftlm.experiments.page import write_experiment_report
from graftlm.experiments.run import HEADS, Experiment, run_experiment
from graftlm.heads.config import DistillConfig
from graftlm.models.given import Given, GivenPair, given_model, name_of
from graftlm.runs.console import Report, plain_lines
from graftlm.runs.files import dump_json, write_text
from graftlm.runs.provenance import versions
from graftlm.runs.run import Run, call_verb
from graftlm.tasks import get_task
from graftlm.tuning.token_weights import COLUMNS as WEIGHT_COLUMNS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def study_model(
    model: Given = "smollm2-135m",
    data: str = "molecules",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Report | None = None,
    **settings: Any,
) -> Results:
    """`graftlm.study`: train arms, compare what each gains and keeps; returns all results.

    Args:
        model: a name as `load_model` takes it, or a loaded model, which is saved in the output folder first, since each
            arm begins with it anew.
        data: training rows: a built-in task, a file or a hub id.
        tokenizer: of a loaded model (None: the one that is saved where it came from).
        resume, overwrite: go on with the run in the folder `output`, or replace it.
        progress: called with what is being done, how much of it is done and how much there is.
        settings: the further fields of StudyConfig, such as output="study"; `arms` may be names, or name -> block.

    Raises InputError as `graftlm study` does.
    """
    given = {"model": name_of(model) or "loaded model", "data": data, **settings}
    more = {"given": (model, tokenizer), "progress": progress or plain_lines()}
    return call_verb("study", StudyConfig, study, given, resume=resume, overwrite=overwrite, **more)


def study(config: StudyConfig, run: Run, *, progress: Report, given: GivenPair | None = None) -> Results:
    """Everything that `config` asks for, in the folder of `run`: trainings, results.json and report.html.

    `given`: a loaded model in the place of `config.model`, and its tokenizer. Raises InputError for an unknown task,
    and whatever distillation and the arms' verbs refuse.
    """
    loaded = None if given is None or isinstance(given[0], (str, os.PathLike)) else given
    if loaded:
        config = replace(config, model=str(run.folder / "model"))
    experiment = experiment_of(config, run.folder)
    if loaded and not run.resumed:
        for part in given_model(*loaded):
            part.save_pretrained(config.model)
    results = run_experiment(experiment, run.folder, progress, run.keep)
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
