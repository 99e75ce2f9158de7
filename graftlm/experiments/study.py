"""Train every arm with every seed, measure each, and keep what was measured as it comes.

A study that was stopped goes on where it was: a finished training is one result file, which is not made twice.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from graftlm.data.load import load_rows
from graftlm.errors import InputError
from graftlm.experiments.study_config import ARMS, StudyConfig, split_names
from graftlm.experiments.study_rows import UNTRAINED, Measured, read_measured
from graftlm.heads.config import DistillConfig
from graftlm.heads.distill import distill
from graftlm.models.load import load_model
from graftlm.runs.console import prefixed, say
from graftlm.runs.files import dump_json, remove, write_text
from graftlm.runs.run import Run
from graftlm.tasks import Task, get_task
from graftlm.tasks.evaluation import evaluate
from graftlm.tuning.config import TuneConfig
from graftlm.tuning.token_weights import COLUMNS as WEIGHT_COLUMNS
from graftlm.tuning.training import CHECKPOINTS, MODEL
from graftlm.tuning.tune import tune

Report = Callable[[str, int, int], None]
RESULT = "result.json"
IMPORTANCE = "importance-weights"


def study(
    config: StudyConfig, folder: Path, progress: Report, on_result: Callable[[], None] | None = None
) -> list[Measured]:
    """Everything that `config` asks for, in `folder`; the untrained model first, then arm by arm, seed by seed.

    The seeds go round before the arms do, so that a study cut short has whole rounds. `on_result` is called when the
    first result is there. Raises InputError for an unknown task, and whatever distillation and tuning refuse.
    """
    tasks = [get_task(name) for name in split_names(config.tasks) + split_names(config.probes)]
    arms = list(config.chosen_arms)
    if IMPORTANCE in arms and not has_weights(config):
        if config.arms != "all":
            raise InputError(
                f"--arms {IMPORTANCE}: the rows of {config.data} have no column {' or '.join(WEIGHT_COLUMNS)}; "
                "`graftlm prune` measures the weights of tokens"
            )
        arms.remove(IMPORTANCE)
    measured = [kept(folder / "untrained", tasks, lambda: measure(config, config.model, tasks, UNTRAINED, 0, progress))]
    if on_result is not None:
        on_result()
    if any("heads" not in ARMS[arm] and ARMS[arm]["objective"] == "multi-token" for arm in arms):
        distil(config, folder, progress)
    trainings = [(seed, arm) for seed in range(config.seeds) for arm in arms]
    for number, (seed, arm) in enumerate(trainings, start=1):
        say(f"study: {number}/{len(trainings)}  {arm}, seed {seed}")
        place = folder / arm / f"seed-{seed}"
        measured.append(kept(place, tasks, partial(train, config, arm, seed, folder, place, tasks, progress)))
        shutil.rmtree(place / "run" / CHECKPOINTS, ignore_errors=True)
        if ARMS[arm].get("method") == "full":
            remove(place / "run" / MODEL)  # half a gigabyte each; run.yaml repeats it
    return sorted(measured, key=lambda each: [UNTRAINED, *ARMS].index(each.arm))


def has_weights(config: StudyConfig) -> bool:
    """Whether the training rows carry weights of their tokens."""
    return any(column in WEIGHT_COLUMNS for column in load_rows(config.data).column_names)


def kept(place: Path, tasks: Sequence[Task], make: Callable[[], Measured]) -> Measured:
    """The result in `place`, made if it is not there."""
    file = place / RESULT
    if not file.exists():
        write_text(file, dump_json(asdict(make()), indent=2) + "\n")
    return read_measured(json.loads(file.read_text("utf-8")), tasks)


def distil(config: StudyConfig, folder: Path, progress: Report) -> None:
    """Heads on the untrained model, once for all arms and seeds."""
    place = folder / "heads"
    if (place / "agreement.json").exists():
        return
    heads = DistillConfig(
        model=config.model,
        data=config.data,
        output=str(place),
        num_heads=config.num_heads,
        domain_tokens=config.domain_tokens,
        general_tokens=config.general_tokens,
        epochs=config.distillation_epochs,
    )
    with Run.create(place, "distill", heads, {}, resume=True) as run:
        distill(heads, run, prefixed(progress, "heads"))


def train(
    config: StudyConfig, arm: str, seed: int, folder: Path, place: Path, tasks: list[Task], progress: Report
) -> Measured:
    """One training in `place`/run, and its measurement.

    How long it took is not known of one that was interrupted.
    """
    settings = tune_settings(config, arm, folder)
    tuning = TuneConfig(output=str(place / "run"), seed=seed, **settings)
    begun = time.perf_counter()
    with Run.create(place / "run", "tune", tuning, {}, resume=True) as run:
        try:
            tune(tuning, run)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None  # the study is what is to be continued
        losses = [line for line in run.metrics() if "loss" in line]
    seconds = None if run.resumed else time.perf_counter() - begun
    found = measure(config, str(place / "run" / MODEL), tasks, arm, seed, progress)
    last = losses[-1].get("next_token_loss", losses[-1]["loss"]) if losses else None
    return replace(found, training_seconds=seconds, training_loss=last)


def tune_settings(config: StudyConfig, arm: str, folder: Path) -> dict[str, Any]:
    """The fields of TuneConfig in which a training of `arm` departs from the defaults."""
    settings: dict[str, Any] = {
        "model": config.model,
        "data": config.data,
        "max_steps": config.max_steps,
        "batch_size": config.batch_size,
        "learning_rate": config.full_learning_rate if ARMS[arm].get("method") == "full" else config.learning_rate,
        **ARMS[arm],
    }
    if settings["objective"] == "multi-token":
        settings.setdefault("heads", str(folder / "heads"))
        settings |= {
            "num_heads": config.num_heads,
            "coefficient": config.coefficient,
            "heads_learning_rate": config.heads_learning_rate,
        }
    return settings


def measure(config: StudyConfig, model: str, tasks: list[Task], arm: str, seed: int, progress: Report) -> Measured:
    """One model on every task and probe; the same examples for all."""
    loaded, tokenizer = load_model(model)
    results = evaluate(loaded, tokenizer, tasks, limit=config.limit, progress=prefixed(progress, f"{arm}, seed {seed}"))
    return Measured(
        arm=arm,
        seed=seed,
        metrics={task: result.metrics for task, result in results.items()},
        declared={task: result.declared for task, result in results.items()},
        floors={task: result.floors for task, result in results.items()},
        counts={task: result.count for task, result in results.items()},
    )
