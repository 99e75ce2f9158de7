"""The whole of it on a real model: heads grown by self-distillation, one fine-tune with them and one without.

    python examples/demo.py --output demo        (what `make demo` runs; a quarter of an hour on two cores)

Both fine-tunes are LoRA on the task `molecules`, with the same rows, order, steps and seed. Both are then audited
against the untrained model: what was gained on `molecules`, what was forgotten, and in which layers. The table goes to
stdout; OUTPUT/report.html has it with plots, what each model wrote and the losses of each head. An interrupted
demo goes on where it was when called again.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graftlm import audit
from graftlm.auditing.page import write_audit_report
from graftlm.auditing.summary import audit_table
from graftlm.auditing.verdict import audit_verdict
from graftlm.heads.config import DistillConfig
from graftlm.heads.distill import distill
from graftlm.heads.page import agreement_section, losses_section
from graftlm.runs.console import print_table, reported_progress, say
from graftlm.runs.files import dump_json, write_text
from graftlm.runs.provenance import versions
from graftlm.runs.run import Run
from graftlm.tuning.config import TuneConfig
from graftlm.tuning.tune import tune

MODEL = "smollm2-135m"
SEED = 0
OBJECTIVES = ("next-token", "multi-token")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for everything (default: demo)")
    folder: Path = parser.parse_args().output
    started = time.monotonic()
    report = folder / "report.html"
    if report.exists():  # an earlier demo came to its end
        for name in ("heads", *OBJECTIVES):
            if (folder / name / "run.yaml").is_file():
                shutil.rmtree(folder / name)

    say(f"1/4  {MODEL} writes text and grows 4 heads on it")
    heads = DistillConfig(model=MODEL, data="molecules", output=str(folder / "heads"), seed=SEED, **DISTILLATION)
    with opened(heads, "distill") as run, reported_progress() as progress:
        distill(heads, run, progress)

    for number, objective in enumerate(OBJECTIVES, start=2):
        say(f"{number}/4  LoRA on molecules, {objective}")
        config = TuneConfig(
            model=MODEL,
            data="molecules",
            output=str(folder / objective),
            objective=objective,
            heads=str(folder / "heads"),
            seed=SEED,
            **TRAINING,
        )
        with opened(config, "tune") as run:
            tune(config, run)

    say("4/4  both held against the untrained model")
    tuned = [str(folder / objective / "model") for objective in OBJECTIVES]
    with reported_progress() as progress:
        result = audit(MODEL, tuned, tasks=["molecules"], progress=progress, seed=SEED, **AUDIT)
    write_text(folder / "audit.json", dump_json(asdict(result), indent=2) + "\n")
    print_table(audit_table(result))
    print()
    for line in audit_verdict(result):
        print(line)
    minutes = (time.monotonic() - started) / 60
    agreement = json.loads((folder / "heads" / "agreement.json").read_text("utf-8"))
    write_audit_report(
        report,
        result,
        title="Multi-token and next-token fine-tuning of SmolLM2-135M on molecule names",
        extra=[
            losses_section({objective: losses(folder / objective) for objective in OBJECTIVES}),
            agreement_section(agreement),
        ],
        facts={
            "distillation": DISTILLATION,
            "training of each": TRAINING,
            "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
            "versions": versions(),
            "minutes": round(minutes, 1),
        },
    )
    say(f"{minutes:.1f} minutes; report: {report}")


DISTILLATION: dict[str, Any] = {"domain_tokens": 20_000, "general_tokens": 6_000, "epochs": 2}
TRAINING: dict[str, Any] = {"max_steps": 50, "batch_size": 8, "learning_rate": 6e-4}
AUDIT: dict[str, Any] = {"probes": ["capitals", "general-text"], "limit": 100, "layer_groups": 3}


def opened(config: DistillConfig | TuneConfig, command: str) -> Run:
    return Run.create(config.output, command, config, {}, resume=True)


def losses(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


if __name__ == "__main__":
    main()
