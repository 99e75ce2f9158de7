"""Repairs of a tuned model that need no training, side by side: what each brings back, and what it costs.

    graftlm tune --objective next-token --method full --learning-rate 2e-4 --max-steps 100 --output /tmp/full
    .venv/bin/python bench/repair.py /tmp/full/model LORA/model --results bench/results/repair.json

Undone in chosen layers as `graftlm restore` does; interpolated everywhere (WiSE-FT, arXiv 2109.01903); and DG-Hard of
Spectral Unforgetting (arXiv 2605.20296): of each matrix of the change W_tuned - W_base only the singular values above

    omega(beta) * median of the singular values,   omega(beta) = 0.56 beta^3 - 0.95 beta^2 + 1.82 beta + 1.43

are kept, beta being its shorter side over its longer one (Gavish and Donoho, arXiv 1305.5870, the case of unknown
noise); embeddings included, vectors left alone. No method was chosen on what it is measured on. An adapter is merged
first.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from graftlm import load_model
from graftlm.auditing.restoration import nll_per_token, reference_pairs
from graftlm.models.pair import WholePair
from graftlm.runs.console import say
from graftlm.tasks import get_task

BASE = "smollm2-135m"
TASK, FACTS, TEXT = "molecules", ("capitals", "elements", "glosses"), "general-text"
Repair = Callable[[str, Tensor, Tensor], Tensor]
"""(group, base weight, tuned weight) -> repaired weight."""


def undone(first: int, last: int, scale: float = 0.0) -> Repair:
    groups = {f"layer {index}" for index in range(first, last + 1)}
    return lambda group, base, tuned: torch.lerp(base, tuned, scale) if group in groups else tuned


def interpolated(scale: float) -> Repair:
    return lambda group, base, tuned: torch.lerp(base, tuned, scale)


def dg_hard(group: str, base: Tensor, tuned: Tensor) -> Tensor:
    change = tuned - base
    if change.dim() != 2 or not bool(change.any()):
        return tuned
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    beta = min(change.shape) / max(change.shape)
    omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    kept = values * (values > omega * values.median())
    return base + (left * kept) @ right


REPAIRS: dict[str, Repair] = {
    "nothing": lambda group, base, tuned: tuned,
    "layers 0-14 undone": undone(0, 14),
    "layers 15-29 undone": undone(15, 29),
    "layers 0-14 at half": undone(0, 14, 0.5),
    "all interpolated to 3/4": interpolated(0.75),
    "all interpolated to 1/2": interpolated(0.5),
    "all interpolated to 1/4": interpolated(0.25),
    "DG-Hard": dg_hard,
}


@torch.no_grad()
def measure(model: Any, tokenizer: Any, references: int) -> dict[str, float]:
    """Nats per token of the references of the task, of the facts (mean over the probes) and of general text."""
    found = {
        name: nll_per_token(model, tokenizer, reference_pairs(get_task(name), references), 32)
        for name in (TASK, *FACTS, TEXT)
    }
    return {"task": found[TASK], "facts": sum(found[name] for name in FACTS) / len(FACTS), "text": found[TEXT]}


@torch.no_grad()
def compare(name: str, references: int) -> dict[str, Any]:
    """Each repair of one tuned model: likelihoods, the share of the task's gain kept and of each loss undone."""
    base, tokenizer = load_model(BASE)
    loaded, _ = load_model(name)
    tuned: Any = loaded.merge_and_unload() if isinstance(loaded, PeftModel) else loaded
    pair = WholePair(base, tuned)
    before = measure(base, tokenizer, references)
    original = {weight.name: weight.tuned.clone() for weight in pair.weights()}
    rows = {}
    for label, repair in REPAIRS.items():
        begun = time.perf_counter()
        for weight in pair.weights():
            weight.tuned.copy_(repair(pair.group(weight.name), weight.base, original[weight.name]))
        seconds = time.perf_counter() - begun
        now = measure(tuned, tokenizer, references)
        after = rows["nothing"]["nll"] if rows else now
        moved = sum(float((w.tuned - original[w.name]).norm() ** 2) for w in pair.weights())
        whole = sum(float((w.base - original[w.name]).norm() ** 2) for w in pair.weights())
        rows[label] = {
            "nll": now,
            "gain_kept": (before["task"] - now["task"]) / (before["task"] - after["task"]),
            "facts_back": (after["facts"] - now["facts"]) / (after["facts"] - before["facts"]),
            "text_back": (after["text"] - now["text"]) / (after["text"] - before["text"]),
            "share_of_change_removed": moved / whole,
            "repair_seconds": seconds,
        }
        shown = rows[label]
        say(f"{name}: {label}: gain kept {shown['gain_kept']:.0%}, facts back {shown['facts_back']:.0%}, "
            f"text back {shown['text_back']:.0%}")  # fmt: skip
    return {"base": before, "repairs": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tuned", nargs="+", help="folders of models or adapters tuned from the bundled model")
    parser.add_argument("--references", type=int, default=100, help="of each task and probe (default: 100)")
    parser.add_argument("--results", type=Path, required=True, help="JSON file for what was measured")
    arguments = parser.parse_args()
    found = {name: compare(name, arguments.references) for name in arguments.tuned}
    arguments.results.write_text(json.dumps({"references": arguments.references, "models": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
