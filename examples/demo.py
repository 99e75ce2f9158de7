"""The whole of it on a real model: heads grown by self-distillation, one fine-tune with them and one without.

    python examples/demo.py --output demo        (what `make demo` runs; 11 to 15 minutes on two cores)

The experiment is the recipe `demo`: two arms, both LoRA on the task `molecules`, with the same rows, order, steps and
seed. Both are then audited against the untrained model: what was gained on `molecules`, what was forgotten, and in
which layers. The table goes to stdout; OUTPUT/report.html has it with plots, what each model wrote and the losses of
each head. An interrupted demo goes on where it was when called again.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path

from graftlm import audit
from graftlm.auditing.page import write_audit_report
from graftlm.auditing.summary import audit_table
from graftlm.auditing.verdict import audit_verdict
from graftlm.experiments.config import StudyConfig
from graftlm.experiments.run import train_arms
from graftlm.experiments.study import experiment_of
from graftlm.heads.page import agreement_section, losses_section
from graftlm.runs.config import load_config
from graftlm.runs.console import print_findings, reported_progress, say
from graftlm.runs.files import read_json_lines
from graftlm.runs.provenance import versions
from graftlm.runs.run import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for everything (default: demo)")
    folder: Path = parser.parse_args().output
    started = time.monotonic()
    done = (folder / "report.html").exists()
    config, sources = load_config(StudyConfig, Path("demo"), {"output": str(folder)})
    with (
        Run.create(folder, "study", config, sources, resume=not done, overwrite=done) as run,
        reported_progress() as progress,
    ):
        trainings = train_arms(experiment_of(config, folder), folder, progress)
        run.keep()
        say("both compared with the untrained model")
        result = audit(
            config.model,
            {arm: str(training / "model") for arm, training in trainings.items()},
            tasks=config.tasks,
            probes=config.probes,
            limit=config.limit,
            layer_groups=3,
            progress=progress,
        )
        run.write_json("audit.json", asdict(result))
        minutes = (time.monotonic() - started) / 60
        write_audit_report(
            folder / "report.html",
            result,
            title="Multi-token and next-token fine-tuning of SmolLM2-135M on molecule names",
            extra=[
                losses_section({arm: read_json_lines(path / "metrics.jsonl") for arm, path in trainings.items()}),
                agreement_section(json.loads((folder / "heads" / "agreement.json").read_text("utf-8"))),
            ],
            facts={
                "arms": asdict(config),
                "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
                "versions": versions(),
                "minutes": round(minutes, 1),
            },
        )
    print_findings(audit_table(result), audit_verdict(result))
    say(f"{minutes:.1f} minutes; report: {folder / 'report.html'}")


if __name__ == "__main__":
    main()
