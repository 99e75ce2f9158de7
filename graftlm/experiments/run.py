"""Run an experiment: make the model of each arm, strength and seed, measure it, and keep the result.

    untrained/seed-0/result.json
    heads/                                    distilled once, where an arm takes them
    ARM/seed-0/run/                           a training; ARM/scale-0.5/seed-0/ where the arm has strengths
    ARM/seed-0/result.json

An experiment that was stopped goes on where it was: what has its result file is not made again, and a training
continues from its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from graftlm.experiments.arms import VERBS, Arm, MeasuredModel, Point
from graftlm.experiments.comparison import Results
from graftlm.experiments.results import Result, read_result
from graftlm.heads.config import DistillConfig
from graftlm.heads.distill import distill
from graftlm.models.load import load_model
from graftlm.models.pair_loading import check_vocabulary
from graftlm.models.restore import restore
from graftlm.proxy.steering import steered
from graftlm.reinforce.reinforce import reinforce
from graftlm.runs.config import RUN_FILE
from graftlm.runs.console import Report, prefixed, say
from graftlm.runs.files import dump_json, remove, write_text
from graftlm.runs.output import read_document
from graftlm.runs.run import Run
from graftlm.tasks import Task
from graftlm.tasks.evaluation import evaluate
from graftlm.tuning.training import CHECKPOINTS, MODEL
from graftlm.tuning.tune import tune

TRAINERS: dict[str, Callable[[Any, Run], Any]] = {"tune": tune, "reinforce": reinforce}
RESULT = "result.json"
HEADS = "heads"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Arms × seeds × measures.

    `untrained`: the arm that the others start from. `tasks` show the gain, `probes` the retention; `limit`,
    `batch_size` and `measuring_seed` are of their evaluation. `distillation`: of the heads that arms take from
    FOLDER/heads. `baseline`: an arm that later ones are compared with besides. `gap_to`: arms tuned from the untrained
    model, whose gain the others' is a share of.
    """

    untrained: Arm
    arms: Sequence[Arm]
    seeds: int = 1
    tasks: Sequence[Task]
    probes: Sequence[Task] = ()
    limit: int | None = 100
    batch_size: int = 32
    measuring_seed: int = 0
    distillation: DistillConfig | None = None
    baseline: str | None = None
    gap_to: Sequence[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for point in self.points:
            point.check()

    @property
    def points(self) -> list[Point]:
        """All that is to be made. Models that are only measured come first, so that a name that does not exist is found
        at once; then the seeds go round before the arms do, so that an experiment cut short has whole rounds."""
        trained = [arm for arm in self.arms if arm.verb in TRAINERS]
        measured = [arm for arm in (self.untrained, *self.arms) if arm not in trained]
        measured.sort(key=lambda arm: (arm.settings.get("expert") is not None, arm.name not in self.gap_to))
        rounds = [(arm, seed) for seed in range(self.seeds) for arm in trained]
        return [point for arm, seed in [*((arm, 0) for arm in measured), *rounds] for point in arm.points(seed)]


def run_experiment(
    experiment: Experiment, folder: Path, progress: Report, on_result: Callable[[], None] | None = None
) -> Results:
    """All results, the untrained model's first. `on_result` is called after each.

    Raises InputError for settings, models and data that the arms' verbs refuse.
    """
    maker = Maker(experiment, folder, progress)
    results = []
    for number, point in enumerate(experiment.points, start=1):
        say(f"{number}/{len(experiment.points)}  {point.label}, seed {point.seed}")
        results.append(maker.load_or_make(point))
        if on_result is not None:
            on_result()
    order = [arm.name for arm in (experiment.untrained, *experiment.arms)]
    return Results(
        every=sorted(results, key=lambda result: order.index(result.arm)),
        arms={arm.name: arm for arm in experiment.arms},
        tasks=[task.name for task in experiment.tasks],
        probes=[probe.name for probe in experiment.probes],
        baseline=experiment.baseline,
        gap_to=experiment.gap_to,
    )


def train_arms(experiment: Experiment, folder: Path, progress: Report) -> dict[str, Path]:
    """Label -> run folder of each trained arm with the first seed, for whoever measures them otherwise."""
    maker = Maker(experiment, folder, progress)
    points = [point for point in experiment.points if point.arm.verb in TRAINERS and point.seed == 0]
    return {point.label: maker.train(point) for point in points}


class Maker:
    """Makes the models of an experiment in its folder, and measures them."""

    def __init__(self, experiment: Experiment, folder: Path, progress: Report) -> None:
        self.experiment, self.folder, self.progress = experiment, folder, progress
        self.steered: tuple[Any, Any, Any] | None = None  # names, model and tokenizer: another alpha needs no other

    def load_or_make(self, point: Point) -> Result:
        """The result in the point's folder, made if it is not there."""
        file = self.folder / point.folder / RESULT
        if not file.exists():
            training = self.train(point) if point.arm.verb in TRAINERS else None
            write_text(file, dump_json(asdict(self.measure(point, training)), indent=2) + "\n")
            if point.settings.get("method") == "full":
                self.tidy(point)
        return read_result(file)

    def train(self, point: Point) -> Path:
        """The folder of the point's training, which is done if its model is not there."""
        if point.settings.get(HEADS) == str(self.folder / HEADS):
            self.distil()
        place = self.training_folder(point)
        if (place / MODEL).exists():
            return place
        config = VERBS[point.arm.verb](output=str(place), seed=point.seed, **point.settings)
        begun = time.perf_counter()
        with Run.create(place, point.arm.verb, config, {}, resume=True) as run:
            try:
                TRAINERS[point.arm.verb](config, run)
            except KeyboardInterrupt:
                raise KeyboardInterrupt from None  # the experiment is what is to be continued
            losses = [line.get("next_token_loss", line["loss"]) for line in run.metrics() if "loss" in line]
            seconds = None if run.resumed else time.perf_counter() - begun
            run.record(training_seconds=seconds, training_loss=losses[-1] if losses else None)
        remove(place / CHECKPOINTS)
        return place

    def distil(self) -> None:
        """Heads on the untrained model, once for all arms and seeds."""
        config, place = self.experiment.distillation, self.folder / HEADS
        if config is not None and not (place / "agreement.json").exists():
            with Run.create(place, "distill", config, {}, resume=True) as run:
                distill(config, run, prefixed(self.progress, HEADS))

    def trained_alike(self, point: Point) -> list[Point]:
        """The points that differ from this one in nothing but what comes after; they share the first one's training."""
        key = (point.arm.verb, point.settings, point.seed)
        return [each for each in self.experiment.points if (each.arm.verb, each.settings, each.seed) == key]

    def training_folder(self, point: Point) -> Path:
        return self.folder / self.trained_alike(point)[0].folder / "run"

    def tidy(self, point: Point) -> None:
        """Remove a fully tuned model, half a gigabyte or more, once nothing needs it; its run.yaml repeats it."""
        if all((self.folder / each.folder / RESULT).exists() for each in self.trained_alike(point)):
            remove(self.training_folder(point) / MODEL)

    def measure(self, point: Point, training: Path | None) -> Result:
        """The point's model on every task and probe."""
        experiment = self.experiment
        model, tokenizer = self.model(point, training)
        scores = evaluate(
            model,
            tokenizer,
            [*experiment.tasks, *experiment.probes],
            limit=experiment.limit,
            batch_size=experiment.batch_size,
            seed=experiment.measuring_seed,
            progress=prefixed(self.progress, f"{point.label}, seed {point.seed}" if training else point.label),
        )
        facts = read_document(training / RUN_FILE)["facts"] if training else {}
        known = {name: facts.get(name) for name in ("training_seconds", "training_loss")}
        return Result(arm=point.arm.name, strength=point.strength, seed=point.seed, scores=scores, **known)

    def model(self, point: Point, training: Path | None) -> tuple[Any, Any]:
        """The point's model and tokenizer, to be measured."""
        if training is None:
            return self.evaluated(point)
        model, tokenizer = load_model(str(training / MODEL))
        if point.restore:
            restore(model, base=point.settings["model"], tokenizer=tokenizer, **point.restore)
        return model, tokenizer

    def evaluated(self, point: Point) -> tuple[Any, Any]:
        """The model of the verb `evaluate`: the steered one opened before, where only alpha differs."""
        settings = MeasuredModel(**point.settings)
        names = settings.model, settings.expert, settings.antiexpert
        if settings.expert is None:
            model, tokenizer = steered(*names, settings.alpha)
            if point.arm.name in self.experiment.gap_to:
                check_vocabulary(self.evaluated(self.experiment.untrained.points(0)[0])[1], tokenizer, settings.model)
            return model, tokenizer
        if self.steered is None or self.steered[0] != names:
            self.steered = names, *steered(*names, 1.0)
        _, model, tokenizer = self.steered
        model.alpha = 1.0 if settings.alpha is None else settings.alpha
        return model, tokenizer
