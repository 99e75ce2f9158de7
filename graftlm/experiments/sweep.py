"""`graftlm proxy sweep`: an experiment over alpha, how strongly an expert steers.

Beside the steered model stand what it competes with: the expert alone, and models tuned directly.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from graftlm.auditing.config import DEFAULT_PROBES
from graftlm.auditing.result import short_names
from graftlm.experiments.arms import UNTRAINED, Arm, read_arm
from graftlm.experiments.comparison import Results
from graftlm.experiments.config import SweepConfig
from graftlm.experiments.run import Experiment, run_experiment
from graftlm.experiments.study import write_results
from graftlm.runs.console import Report
from graftlm.runs.run import Run
from graftlm.tasks import get_task


def sweep(config: SweepConfig, run: Run, *, progress: Report) -> Results:
    """Measure the model at each alpha, and what it competes with, in the folder of `run`. Each model is loaded once.

    Raises InputError for alphas given twice, and whatever `ProxyTunedModel` and `evaluate` refuse.
    """
    results = run_experiment(experiment_of_sweep(config), run.folder, progress, run.keep)
    write_results(run.folder, "sweep.json", results, f"{config.base} steered by {config.expert}", asdict(config))
    return results


def experiment_of_sweep(config: SweepConfig) -> Experiment:
    """The arms of a sweep. alpha = 0 is the untrained model, which is measured in any case."""
    parts = {"model": config.base, "expert": config.expert, "antiexpert": config.antiexpert}
    alphas = [alpha for alpha in sorted(config.alphas) if alpha]
    blocks: dict[str, Any] = {
        "steered": {"evaluate": parts, "strengths": {"alpha": alphas}},
        "expert alone": {"evaluate": {"model": config.expert}},
    }
    short = {name: short if short not in blocks else name for name, short in short_names(config.tuned).items()}
    blocks |= {short[name]: {"evaluate": {"model": name}} for name in config.tuned}
    return Experiment(
        untrained=Arm(name=UNTRAINED, verb="evaluate", settings={**parts, "alpha": 0.0}),
        arms=[read_arm(name, blocks) for name in blocks],
        tasks=[get_task(name) for name in config.tasks],
        probes=[get_task(name) for name in config.probes or DEFAULT_PROBES if name not in config.tasks],
        limit=config.limit,
        batch_size=config.batch_size,
        measuring_seed=config.seed,
        gap_to=list(short.values()),
    )
