"""The longer recipe: how far heads get in an hour of self-distillation on two cores, and what the cache saves.

    .venv/bin/python bench/distillation.py --output /tmp/heads --results bench/results/distillation.json

Resumable: an interrupted call writes no text twice. The results hold each head's agreement with the model's own greedy
tokens on held-out domain and general text, beside that of undistilled copies, and the seconds of each stage. An epoch
without the cache costs an epoch with it and the pass over the text that fills the cache.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from graftlm.heads.config import DistillConfig
from graftlm.heads.distill import distill
from graftlm.runs.console import reported_progress
from graftlm.runs.run import Run

RECIPE: dict[str, Any] = {
    "model": "smollm2-135m",
    "data": "molecules",
    "domain_tokens": 180_000,
    "general_tokens": 30_000,
    "epochs": 5,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Distil heads with the longer recipe and record their agreement.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the heads and their text")
    parser.add_argument("--results", type=Path, required=True, help="JSON file for what was measured")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another value in the recipe")
    arguments = parser.parse_args()
    recipe = {**RECIPE, **{key: json.loads(value) for key, value in (pair.split("=") for pair in arguments.set)}}
    config = DistillConfig(output=str(arguments.output), **recipe)
    started = time.monotonic()
    with Run.create(config.output, "distill", config, {}, resume=True) as run, reported_progress() as progress:
        distill(config, run, progress)
    measured = json.loads((arguments.output / "agreement.json").read_text("utf-8"))
    epoch = sum(measured["epoch_seconds"]) / len(measured["epoch_seconds"])
    results = {
        "recipe": recipe,
        "seconds": time.monotonic() - started,
        **measured,
        "epoch_with_cache_over_without": epoch / (epoch + measured["hidden_states_seconds"]),
    }
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
