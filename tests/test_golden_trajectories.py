"""Ten steps of each way of training, and one audit, give the numbers that are committed.

A change that is not meant to move a number moves none of these. The weights are in double precision, so that another
machine's order of summation shows only where a library sums in float32, which moved no number by 3e-5. After a change
that moves them on purpose, write them anew and say why in the commit:

    python -m tests.test_golden_trajectories
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerBase

from graftlm.auditing.audit import audit
from graftlm.heads.config import DistillConfig
from graftlm.heads.distill import distill
from graftlm.models import load as models
from graftlm.reinforce.config import ReinforceConfig
from graftlm.reinforce.reinforce import reinforce
from graftlm.runs.run import Run
from graftlm.tuning.config import TuneConfig
from graftlm.tuning.tune import tune
from tests.conftest import byte_tokenizer, tiny_model

COMMITTED = Path(__file__).with_name("golden_trajectories.json")
TOLERANCE = 1e-4
"""Relative; of numbers below 1 absolute."""
STEPS = 10
WORDS = ["alpha", "be", "gamma delta", "epsilon", "zeta eta theta", "iota", "kappa lambda mu nu"]
OF_TIME = ("runtime", "seconds", "per_second", "step_time")


class Place:
    """A folder with a tiny model, heads for it, an adapter on it, and rows."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self.folder = folder
        self.model = str(folder / "model")
        self.data = str(folder / "rows.jsonl")
        self.adapter = str(folder / "adapter")
        tiny_model(layers=3).save_pretrained(self.model)
        tokenizer.save_pretrained(self.model)
        torch.manual_seed(2)
        settings = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        get_peft_model(models.load_model(self.model)[0], settings).save_pretrained(self.adapter)
        rows = [
            {"prompt": f"{i}: {WORDS[i % 7]} ->", "completion": f" {WORDS[(5 * i + 1) % 7]} {i % 5}"} for i in range(48)
        ]
        Path(self.data).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self, name: str, command: str, config: Any, verb: Callable[..., None]) -> list[dict[str, Any]]:
        """What the run logged."""
        with Run.create(config.output, command, config, {}) as opened:
            verb(config, opened)
        return [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]

    def tune(self, name: str, **settings: Any) -> Any:
        trainer = {"logging_steps": 1, "model_init_kwargs": {"dtype": "float64"}, **settings.pop("trainer", {})}
        config = TuneConfig(
            model=self.model, data=self.data, output=str(self.folder / name), batch_size=4, max_steps=STEPS,
            learning_rate=5e-3, max_length=64, trainer=trainer, **settings,
        )  # fmt: skip
        return self.run(name, "tune", config, tune)

    def multi_token(self, name: str, **settings: Any) -> Any:
        return self.tune(name, heads="cold", num_heads=2, mtp_coefficient=0.3, **settings)

    def distill(self, name: str) -> Any:
        config = DistillConfig(
            model=self.model, data=self.data, output=str(self.folder / name), num_heads=2, domain_tokens=300,
            general_tokens=200, max_new_tokens=16, sampling_batch_size=8, tokens_per_batch=64, candidates=64, epochs=4,
        )  # fmt: skip
        steps = self.run(name, "distill", config, distill)
        agreement = json.loads((self.folder / name / "agreement.json").read_text())
        text = [json.loads(line) for line in (self.folder / name / "text.jsonl").read_text().splitlines()]
        return {"steps": steps, "agreement": agreement, "text": text[:4]}

    def reinforce(self, name: str) -> Any:
        config = ReinforceConfig(
            model=self.model, data=self.data, output=str(self.folder / name), reward="regex:[a-m]", max_steps=STEPS,
            learning_rate=1e-2, num_generations=4, prompts_per_step=2, batch_size=4, max_completion_length=6,
            formats={"letter": "^[a-zA-Z]"}, guard="divergence", beta=0.01,
            trainer={"model_init_kwargs": {"dtype": "float64"}},
        )  # fmt: skip
        return self.run(name, "reinforce", config, reinforce)

    def audit(self, name: str) -> Any:
        found = audit(self.model, self.adapter, tasks=[self.data], probes=["capitals", "general-text"], limit=6)
        document = asdict(found)
        tuned = document["tuned"].pop(self.adapter)
        results = {"base": document["base_results"], "tuned": tuned["results"]}
        metrics = {
            who: {Path(task).name: {k: each[k] for k in ("metrics", "floors", "count")} for task, each in them.items()}
            for who, them in results.items()
        }
        kept = ("retention", "retention_bounds", "divergence", "divergence_error", "weights", "drift", "diversity")
        restored = [{k: each[k] for k in ("layers", "task_share", "probe_share")} for each in tuned["restoration"]]
        return {"metrics": metrics, "restoration": restored, **{key: tuned[key] for key in kept}}


TRAJECTORIES: dict[str, Callable[[Place, str], Any]] = {
    "tune-next-token-lora": lambda place, name: place.tune(name, objective="next-token"),
    "tune-next-token-full": lambda place, name: place.tune(name, objective="next-token", method="full"),
    "tune-multi-token-lora": Place.multi_token,
    "tune-multi-token-full": lambda place, name: place.multi_token(name, method="full", train_heads=True),
    "tune-entropy-anchored": lambda place, name: place.multi_token(
        name, mtp_weights="entropy", anchor="kl", protect_layers=0.3, gradient_accumulation=2
    ),
    "tune-packed": lambda place, name: place.multi_token(name, packing=True, trainer={"lr_scheduler_type": "linear"}),
    "distill": Place.distill,
    "reinforce": Place.reinforce,
    "audit": Place.audit,
}


def trajectory(name: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Any:
    """What the run of that name logs, as JSON holds it, without times and the folder's name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = TRAJECTORIES[name](Place(folder, tokenizer), name)
    return without_times(json.loads(json.dumps(found)))


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not any(word in k for word in OF_TIME)}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def differences(found: Any, committed: Any, where: str = "") -> list[str]:
    """The places at which two JSON documents differ, numbers by more than TOLERANCE."""
    if isinstance(found, dict) and isinstance(committed, dict):
        keys = dict.fromkeys([*committed, *found])
        return [d for key in keys for d in differences(found.get(key), committed.get(key), f"{where}/{key}")]
    if isinstance(found, list) and isinstance(committed, list) and len(found) == len(committed):
        pairs = enumerate(zip(found, committed, strict=True))
        return [d for i, pair in pairs for d in differences(*pair, f"{where}/{i}")]
    if isinstance(found, float) and isinstance(committed, (int, float)):
        close = abs(found - committed) <= TOLERANCE * max(1.0, abs(committed))
        return [] if close else [f"{where}: {found!r}, committed {committed!r}"]
    return [] if found == committed else [f"{where}: {found!r}, committed {committed!r}"]


@pytest.fixture
def in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "resolve_dtype", lambda dtype, device: torch.float64)


@pytest.mark.slow
@pytest.mark.usefixtures("in_double_precision")
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_a_run_gives_the_committed_numbers(name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    found = trajectory(name, tmp_path, tokenizer)
    differing = differences(found, json.loads(COMMITTED.read_text())[name])
    assert not differing, "\n".join(differing[:5])


def test_a_moved_number_is_noticed() -> None:
    assert differences({"loss": [1.0, 2.001]}, {"loss": [1.0, 2.0]}) == ["/loss/1: 2.001, committed 2.0"]
    assert differences({"a": 1}, {"a": 1, "b": 2}) == ["/b: None, committed 2"]


if __name__ == "__main__":
    models.resolve_dtype = lambda dtype, device: torch.float64
    document = {}
    for each in TRAJECTORIES:
        with tempfile.TemporaryDirectory() as scratch:
            document[each] = trajectory(each, Path(scratch), byte_tokenizer())
        print(each, file=sys.stderr)
    COMMITTED.write_text(json.dumps(document, indent=1) + "\n")
