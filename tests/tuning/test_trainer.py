"""MultiTokenTrainer: SFTTrainer with the multi-token loss, and all else as it was."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    EarlyStoppingCallback,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from graftlm.errors import InputError
from graftlm.heads.heads import MultiTokenHeads
from graftlm.heads.loss import head_losses
from graftlm.tuning.terms.kl_anchor import KLAnchor
from graftlm.tuning.trainer import MultiTokenConfig, MultiTokenTrainer
from tests.conftest import tiny_model
from tests.tuning.plain import PEFT_WARNING, assert_same
from tests.tuning.training import ANCHOR_TEXTS, config, lora, model_and_heads, rows, weights

pytestmark = [
    pytest.mark.filterwarnings(PEFT_WARNING),
]
ROOT = Path(__file__).parents[2]


class Trajectory(TrainerCallback):
    """The weights after each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.steps.append(weights(model))


def run(tokenizer: PreTrainedTokenizerBase, folder: Path, **settings: Any) -> tuple[MultiTokenTrainer, Trajectory]:
    """Train a tiny model with heads; `settings` are of MultiTokenConfig, and those named here."""
    trajectory = Trajectory()
    dtype = settings.pop("dtype", torch.float32)
    peft_config = settings.pop("peft_config", None)
    model_settings = settings.pop("model_settings", {})
    given: dict[str, Any] = {
        "train_dataset": settings.pop("train_dataset", rows()),
        "eval_dataset": settings.pop("eval_dataset", None),
        "anchor_texts": settings.pop("anchor_texts", None),
        "terms": settings.pop("terms", ()),
    }
    callbacks = settings.pop("callbacks", [])
    model, heads = model_and_heads(dtype=dtype, **model_settings)
    if not settings.pop("with_heads", True):
        heads = None
        settings.setdefault("mtp_coefficient", 0.01)
    torch.manual_seed(1)
    trainer = MultiTokenTrainer(
        model,
        config(folder, **settings),
        heads=heads,
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=[trajectory, *callbacks],
        **given,
    )
    trainer.train()
    return trainer, trajectory


def losses(trainer: Any, name: str = "loss") -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]


@pytest.mark.slow
def test_eight_rows_at_once_are_eight_accumulated_ones(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    found = [
        run(
            tokenizer,
            tmp_path,
            dtype=torch.float64,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            train_heads=True,
        )
        for size in (8, 1)
    ]
    (at_once, together), (accumulated, apart) = found
    assert len(together.steps) == len(apart.steps) == 4
    for expected, step in zip(together.steps, apart.steps, strict=True):
        assert_same(step, expected, 1e-6)
    assert losses(accumulated) == pytest.approx(losses(at_once), abs=1e-6)
    for name in ("next_token_loss", "head_1_loss", "head_2_loss", "mean_token_accuracy"):
        assert losses(accumulated, name) == pytest.approx(losses(at_once, name), abs=1e-6)


@pytest.mark.slow
def test_a_model_that_takes_no_number_of_items_is_accumulated_alike(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "accepts_loss_kwargs", False, raising=False)
    given = {"dtype": torch.float64, "anchor_weight": 0.5, "anchor_texts": ["The cat sat on the mat."]}
    (_, together), (_, apart) = (
        run(tokenizer, tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size, **given)
        for size in (8, 1)
    )
    for expected, step in zip(together.steps, apart.steps, strict=True):
        assert_same(step, expected, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("with_heads", [True, False])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_coefficient_zero_is_the_trajectory_of_trl(
    method: str, with_heads: bool, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    peft_config = lora(dropout=0.1) if method == "lora" else None
    trainer, trajectory = run(
        tokenizer,
        tmp_path,
        mtp_coefficient=0.0 if with_heads else 0.01,
        gradient_accumulation_steps=2,
        peft_config=peft_config,
        with_heads=with_heads,
        max_steps=5,
    )
    arguments = vars(config(tmp_path, max_steps=5, gradient_accumulation_steps=2))
    known = {name for name in SFTConfig.__dataclass_fields__ if SFTConfig.__dataclass_fields__[name].init}
    reference_trajectory = Trajectory()
    torch.manual_seed(1)
    reference = SFTTrainer(
        tiny_model(),
        SFTConfig(**{name: value for name, value in arguments.items() if name in known}),
        train_dataset=rows(),
        processing_class=tokenizer,
        peft_config=lora(dropout=0.1) if method == "lora" else None,
        callbacks=[reference_trajectory],
    )
    reference.train()
    assert losses(trainer) == pytest.approx(losses(reference), abs=2e-6)
    assert losses(trainer, "grad_norm") == pytest.approx(losses(reference, "grad_norm"), rel=1e-4)
    for step, expected in zip(trajectory.steps, reference_trajectory.steps, strict=True):
        own = {name.removeprefix("model."): w for name, w in step.items() if name.startswith("model.")}
        assert_same(own, expected, 2e-5)


def test_the_heads_losses_are_logged_as_head_losses_says(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    trainer, _ = run(
        tokenizer, tmp_path, max_steps=1, per_device_train_batch_size=16, eval_dataset=rows(), learning_rate=0.0
    )
    batch = next(iter(trainer.get_train_dataloader()))
    whole = trainer.model
    expected = head_losses(whole.model, whole.heads, batch["input_ids"], batch["attention_mask"], batch["labels"])
    logged = trainer.state.log_history[0]
    found = [logged["next_token_loss"], logged["head_1_loss"], logged["head_2_loss"]]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)
    evaluated = trainer.evaluate()
    assert evaluated["eval_loss"] == pytest.approx(logged["next_token_loss"], abs=1e-2)
    last = trainer.state.log_history[-1]
    assert {"eval_head_1_loss", "eval_head_2_loss", "eval_next_token_loss", "eval_mean_token_accuracy"} <= set(last)
    assert last["eval_head_1_loss"] == pytest.approx(found[1], abs=1e-5)


def test_a_log_over_steps_with_and_without_heads_counts_all_of_them(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    settings = {"learning_rate": 0.0, "mtp_schedule": "linear"}  # which leaves the heads out of the first step
    once, _ = run(tokenizer, tmp_path, max_steps=1, per_device_train_batch_size=16, **settings)
    twice, _ = run(tokenizer, tmp_path, max_steps=2, per_device_train_batch_size=8, logging_steps=2, **settings)
    for name in ("next_token_loss", "mean_token_accuracy"):
        assert losses(twice, name) == pytest.approx(losses(once, name))
    assert len(losses(twice, "head_1_loss")) == 1 and not losses(once, "head_1_loss")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_gradient_checkpointing_changes_no_step(
    method: str, architecture: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    found = [
        run(
            tokenizer,
            tmp_path,
            gradient_checkpointing=on,
            train_heads=True,
            peft_config=lora() if method == "lora" else None,
            model_settings={"architecture": architecture},
            max_steps=3,
        )
        for on in (False, True)
    ]
    assert losses(found[1][0]) == pytest.approx(losses(found[0][0]), abs=1e-5)
    for off, on in zip(found[0][1].steps, found[1][1].steps, strict=True):
        assert_same(on, off, 1e-4)


def test_reentrant_checkpointing_is_taken_where_there_are_no_heads(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    (_, found), (_, expected) = (
        run(tokenizer, tmp_path, with_heads=False, peft_config=lora(), max_steps=2, **settings)
        for settings in (reentrant, {})
    )
    assert_same(found.steps[-1], expected.steps[-1], 1e-5)


def untrained(tokenizer: PreTrainedTokenizerBase, folder: Path, kind: Any = MultiTokenTrainer, **settings: Any) -> Any:
    """A trainer of `kind` on the tiny model that evaluates on rows of several lengths."""
    arguments = {"output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True, **settings}
    made = (SFTConfig if kind is SFTTrainer else MultiTokenConfig)(**arguments, bf16=False, logging_steps=1)
    return kind(
        tiny_model(), made, train_dataset=rows(8), eval_dataset=rows(7), processing_class=tokenizer
    )  # fmt: skip


@pytest.mark.slow
def test_eval_loss_is_the_mean_over_tokens_whatever_the_batch(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    trainers = [untrained(tokenizer, tmp_path, per_device_eval_batch_size=size) for size in (1, 2, 3)]
    total, count = 0.0, 0
    for row in trainers[0].eval_dataset:
        labels = torch.tensor(row["labels"])[1:]
        logits = tiny_model()(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].detach().double()
        total += float(
            torch.nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="sum")
        )
        count += int((labels != -100).sum())
    for trainer in trainers:
        assert trainer.evaluate()["eval_loss"] == pytest.approx(total / count, abs=1e-5)
        assert trainer.evaluate({"long": rows(5)})["eval_long_loss"] > 0
        assert trainer.predict(trainer.eval_dataset).metrics["test_loss"] == pytest.approx(total / count, abs=1e-5)


def test_the_log_has_all_names_of_trl_with_its_values(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    settings = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 7}
    ours, theirs = (untrained(tokenizer, tmp_path, kind, **settings) for kind in (MultiTokenTrainer, SFTTrainer))
    for trainer in (ours, theirs):
        trainer.train()
    for found, expected in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        assert found.keys() >= expected.keys()
        for name in expected:
            if not any(word in name for word in ("runtime", "per_second")):
                assert found[name] == pytest.approx(expected[name], rel=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SFTConfig, TrainingArguments])
def test_arguments_of_trl_and_transformers_train_as_trl_does_with_them(
    kind: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    further = {"eos_token": "[", "packing": False} if kind is SFTConfig else {}

    def trained(trainer: Any) -> Any:
        args = kind(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, max_steps=2,
            logging_steps=1, lr_scheduler_type="cosine", optim="sgd", accelerator_config={"split_batches": True},
            gradient_checkpointing_kwargs={"use_reentrant": False}, **further,
        )  # fmt: skip
        made = trainer(tiny_model(), args, train_dataset=rows(8), processing_class=copy.deepcopy(tokenizer))
        made.train()
        return made

    ours, theirs = trained(MultiTokenTrainer), trained(SFTTrainer)
    assert isinstance(ours.args, MultiTokenConfig) and ours.args.mtp_coefficient == 0.01
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-6)
    for name in (field.name for field in fields(theirs.args) if field.init and "ddp" not in field.name):
        assert getattr(ours.args, name) == getattr(theirs.args, name), name


def test_the_best_model_may_go_by_any_name_of_trl(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = untrained(
        tokenizer, tmp_path, max_steps=2, load_best_model_at_end=True, metric_for_best_model="eval_entropy", **settings
    )
    trainer.train()
    assert trainer.state.best_metric == min(losses(trainer, "eval_entropy"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_protected_layers_stay_as_they_were_bit_for_bit(
    method: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    trainer, trajectory = run(
        tokenizer,
        tmp_path,
        protect_layers=0.5,
        train_heads=True,
        anchor_weight=0.1,
        anchor_texts=ANCHOR_TEXTS,
        peft_config=lora() if method == "lora" else None,
        model_settings={"layers": 4},
    )
    first, last = trajectory.steps[0], trajectory.steps[-1]
    changed = {name for name in last if not torch.equal(first[name], last[name])}
    protected = ("layers.0.", "layers.1.", "embed_tokens")
    assert not [n for n in changed if n.startswith("model.") and any(part in n for part in protected)]
    for layer in (2, 3):
        assert any(f"model.layers.{layer}." in name for name in changed)
    assert any(name.startswith("heads.") for name in changed)
    base = tiny_model(layers=4).state_dict()
    for name, value in trainer.model.model.state_dict().items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if plain in base and (method == "lora" or any(part in plain for part in protected)):
            assert torch.equal(base[plain], value), name


def test_a_frozen_unembedding_stays_as_it_was(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    for tied in (False, True):
        trainer, trajectory = run(
            tokenizer, tmp_path, freeze_unembedding=True, model_settings={"tie_word_embeddings": tied}
        )
        first, last = trajectory.steps[0], trajectory.steps[-1]
        unchanged = {name for name in last if name.startswith("model.") and torch.equal(first[name], last[name])}
        assert unchanged == {"model.model.embed_tokens.weight" if tied else "model.lm_head.weight"}
        assert torch.equal(trainer.model.lm_head.weight, tiny_model(tie_word_embeddings=tied).lm_head.weight)


def test_frozen_heads_stay_as_they_were(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    trainer, _ = run(tokenizer, tmp_path)
    _, heads = model_and_heads()
    assert_same(weights(trainer.model.heads), weights(heads), 0.0)


@pytest.mark.slow
def test_the_anchor_holds_the_model_to_its_base(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    divergence = {}
    for weight in (1e-6, 100.0):
        trainer, _ = run(
            tokenizer,
            tmp_path,
            anchor_weight=weight,
            anchor_texts=ANCHOR_TEXTS,
            max_steps=12,
            peft_config=lora(),
            learning_rate=2e-2,
        )
        divergence[weight] = losses(trainer, "anchor_divergence")
        assert divergence[weight][0] == pytest.approx(0.0, abs=1e-6)
    assert max(divergence[100.0][-3:]) < 0.5 * min(divergence[1e-6][-3:])


@pytest.mark.slow
def test_the_heads_have_a_learning_rate_of_their_own(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    trainer, trajectory = run(tokenizer, tmp_path, train_heads=True, heads_learning_rate=0.0, weight_decay=0.1)
    first, last = trajectory.steps[0], trajectory.steps[-1]
    changed = {name for name in last if not torch.equal(first[name], last[name])}
    assert changed and not any(name.startswith("heads.") for name in changed)
    trainer, _ = run(tokenizer, tmp_path, train_heads=True, heads_learning_rate=1e-4, weight_decay=0.1)
    rates = {
        id(parameter): (group["initial_lr"], group["weight_decay"])
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(rates) == len(list(trainer.model.parameters()))
    for name, parameter in trainer.model.named_parameters():
        decays = 0.0 if "norm" in name else 0.1
        assert rates[id(parameter)] == (1e-4 if name.startswith("heads.") else 5e-3, decays), name


@pytest.mark.slow
def test_the_best_model_is_restored_with_its_heads(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    # "Best" is the highest loss, so that it comes early.
    for method in ("full", "lora"):
        folder = tmp_path / method
        trainer, trajectory = run(
            tokenizer,
            folder,
            eval_dataset=rows(8),
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            greater_is_better=True,
            max_steps=12,
            train_heads=True,
            callbacks=[EarlyStoppingCallback(3)],
            peft_config=lora() if method == "lora" else None,
        )
        evaluated = losses(trainer, "eval_loss")
        best = evaluated.index(max(evaluated))
        assert trainer.state.global_step == min(best + 4, 12) < 12
        assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best + 1}")
        assert_same(weights(trainer.model), trajectory.steps[best], 0.0)
        trainer.save_model(str(folder / "best"))
        saved = MultiTokenHeads.from_pretrained(folder / "best" / "heads", trainer.model.model)
        assert_same(
            weights(saved), {n[6:]: w for n, w in trajectory.steps[best].items() if n.startswith("heads.")}, 0.0
        )


@pytest.mark.slow
def test_a_run_killed_in_the_middle_ends_as_an_uninterrupted_one(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    settings = {
        "tokenizer": str(tmp_path / "tokenizer"),
        "lora_dropout": 0.2,
        "anchored": True,
        "anchor_weight": 0.3,
        "train_heads": True,
        "heads_learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,  # five batches an epoch: its last step has one only
        "count": 10,
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 2,
        "model_settings": {"attention_dropout": 0.1},
    }
    whole = {**settings, "output_dir": str(tmp_path / "whole"), "save_strategy": "no"}
    killed = {**settings, "output_dir": str(tmp_path / "killed"), "kill_at": 5}
    first = training(whole, killed)
    assert first.returncode == -signal.SIGKILL, first.stderr[-3000:]
    assert not (tmp_path / "killed" / "adapter_model.safetensors").exists()
    assert (tmp_path / "killed" / "checkpoint-4").is_dir()
    second = training({**settings, "output_dir": str(tmp_path / "killed"), "resume": True})
    assert second.returncode == 0, second.stderr[-3000:]
    for file in ("adapter_model.safetensors", "heads/model.safetensors"):
        assert_same(load_file(tmp_path / "killed" / file), load_file(tmp_path / "whole" / file), 0.0)
    logs = [json.loads((tmp_path / name / "log.json").read_text()) for name in ("whole", "killed")]
    for name in ("loss", "head_1_loss", "anchor_divergence", "learning_rate"):
        expected, found = ([line[name] for line in log if name in line] for log in logs)
        assert found == expected


def training(*runs: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.tuning.training", *(json.dumps(run) for run in runs)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


LOAD_WITHOUT_GRAFTLM = """
import sys
sys.modules["graftlm"] = None  # any import of it fails
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
full, base, adapter, expected = sys.argv[1:]
expected = torch.load(expected, weights_only=True)
ids = expected["ids"]
with torch.no_grad():
    found = AutoModelForCausalLM.from_pretrained(full)(input_ids=ids).logits
    assert torch.equal(found, expected["full"]), (found - expected["full"]).abs().max()
    model = AutoModelForCausalLM.from_pretrained(base)
    found = PeftModel.from_pretrained(model, adapter)(input_ids=ids).logits
    assert torch.equal(found, expected["lora"]), (found - expected["lora"]).abs().max()
"""


@pytest.mark.slow
def test_a_saved_model_loads_without_graftlm_and_gives_the_same_logits(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    ids = torch.arange(40, 60)[None]
    expected = {"ids": ids}
    for method in ("full", "lora"):
        trainer, _ = run(
            tokenizer, tmp_path / method, peft_config=lora() if method == "lora" else None, train_heads=True
        )
        trainer.save_model()
        model = trainer.model.model.eval()
        with torch.no_grad():
            expected[method] = model(input_ids=ids).logits
        plain = model.get_base_model() if method == "lora" else model
        heads = MultiTokenHeads.from_pretrained(tmp_path / method / "heads", plain)
        assert_same(weights(heads), weights(trainer.model.heads), 0.0)
    torch.save(expected, tmp_path / "expected.pt")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            LOAD_WITHOUT_GRAFTLM,
            *(str(tmp_path / name) for name in ("full", "base", "lora", "expected.pt")),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_heads_may_be_given_as_a_folder(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model, heads = model_and_heads()
    heads.save_pretrained(tmp_path / "heads")
    trainer = MultiTokenTrainer(
        model, config(tmp_path), heads=tmp_path / "heads", train_dataset=rows(), processing_class=tokenizer
    )
    assert_same(weights(trainer.model.heads), weights(heads), 0.0)


def test_logits_reach_compute_metrics(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    shapes = []

    def metrics(prediction: Any) -> dict[str, float]:
        shapes.append((prediction.predictions.shape, prediction.label_ids.shape))
        return {"seen": 1.0}

    model, heads = model_and_heads()
    trainer = MultiTokenTrainer(
        model,
        config(tmp_path),
        heads=heads,
        train_dataset=rows(),
        eval_dataset=rows(4),
        processing_class=tokenizer,
        compute_metrics=metrics,
    )
    assert trainer.evaluate()["eval_seen"] == 1.0
    assert shapes[0][0][:2] == shapes[0][1]


def test_a_loss_that_is_not_finite_stops_training(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model, heads = model_and_heads()
    model.model.norm.weight.data.fill_(float("nan"))
    trainer = MultiTokenTrainer(model, config(tmp_path), heads=heads, train_dataset=rows(), processing_class=tokenizer)
    with pytest.raises(FloatingPointError, match="loss is nan at step 1"):
        trainer.train()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mtp_schedule": "cosine"}, "cosine"),
        ({"mtp_weights": "importances"}, "importances"),
        ({"protect_layers": 1.0}, "protect_layers"),
        ({"mtp_coefficient": -1.0}, "mtp_coefficient"),
        ({"loss_type": "dft"}, "loss_type"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        config(tmp_path, **settings)


def test_contradictions_are_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model, heads = model_and_heads()
    given: dict[str, Any] = {"train_dataset": rows(), "processing_class": tokenizer, "heads": heads}
    with pytest.raises(InputError, match="anchor_texts"):
        MultiTokenTrainer(model, config(tmp_path, anchor_weight=0.1), **given)
    with pytest.warns(FutureWarning), pytest.raises(InputError, match="compute_loss_func"):
        MultiTokenTrainer(model, config(tmp_path), compute_loss_func=lambda *_: None, **given)
    with pytest.raises(InputError, match="anchor_texts are given, but anchor_weight is 0"):
        MultiTokenTrainer(model, config(tmp_path), anchor_texts=ANCHOR_TEXTS, **given)
    for settings in ({"mtp_coefficient": 5.0}, {"mtp_schedule": "sine"}, {"train_heads": True}):
        with pytest.raises(InputError, match=f"{next(iter(settings))} is .*, but there are no heads"):
            MultiTokenTrainer(
                model, config(tmp_path, **{"mtp_coefficient": 0.01, **settings}), **{**given, "heads": None}
            )
    with pytest.raises(InputError, match="kl_anchor is added twice"):
        anchored = {"anchor_texts": ANCHOR_TEXTS, "terms": [KLAnchor(texts=ANCHOR_TEXTS)]}
        MultiTokenTrainer(model, config(tmp_path, anchor_weight=0.1), **anchored, **given)
    reentrant = config(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(InputError, match="use_reentrant"):
        MultiTokenTrainer(model, reentrant, **given)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["entropy", "surprisal"])
def test_every_weighting_trains(weighting: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    trainer, _ = run(tokenizer, tmp_path, mtp_weights=weighting, train_heads=True, max_steps=10, learning_rate=1e-2)
    for name in ("next_token_loss", "head_1_loss"):
        assert losses(trainer, name)[-1] < losses(trainer, name)[0]


def test_a_run_of_rows_without_targets_for_the_heads_trains(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    from datasets import Dataset

    short = Dataset.from_dict({"input_ids": [[65, 66]] * 8, "labels": [[-100, 66]] * 8})
    trainer, _ = run(tokenizer, tmp_path, train_dataset=short, train_heads=True)
    assert losses(trainer, "head_1_loss") == [0.0] * 4
    assert losses(trainer)[-1] < losses(trainer)[0]


@pytest.mark.slow
def test_importance_weights_reach_the_heads(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    plain = rows()
    # A token is a byte; one weight for each byte of the completion, the end-of-sequence token counts 1.
    found = {}
    for name, weight in (("none", 0.0), ("all", 1.0), ("half", 0.5)):
        weighted = plain.add_column("importance", [[weight] * len(c) for c in plain["completion"]])
        trainer, _ = run(
            tokenizer, tmp_path, mtp_weights="importance", train_dataset=weighted, max_steps=1, mtp_schedule="constant"
        )
        logged = trainer.state.log_history[0]
        found[name] = logged["loss"] - logged["next_token_loss"]
    uniform, _ = run(tokenizer, tmp_path, max_steps=1, mtp_schedule="constant")
    logged = uniform.state.log_history[0]
    assert found["all"] == pytest.approx(logged["loss"] - logged["next_token_loss"], abs=1e-5)
    assert found["half"] == pytest.approx((found["none"] + found["all"]) / 2, abs=1e-5)
    assert 0 < found["none"] < 0.5 * found["all"]


@pytest.mark.parametrize(("given", "says"), [(None, "no column"), ([1.0], "row 1: `importance` has 1 numbers")])
def test_missing_importance_weights_are_refused(
    given: list[float] | None, says: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    data = rows() if given is None else rows().add_column("importance", [given] * 16)
    with pytest.raises(InputError, match=says):
        run(tokenizer, tmp_path, mtp_weights="importance", train_dataset=data)


def test_earlier_names_of_settings_are_taken_for_one_release(tmp_path: Path) -> None:
    earlier = {"coefficient": 0.5, "decay": 0.7, "schedule": "sine", "weights": "entropy"}
    with pytest.warns(FutureWarning, match="is now mtp_"):
        made = MultiTokenConfig(str(tmp_path), **earlier)
    assert (made.mtp_coefficient, made.mtp_decay, made.mtp_schedule, made.mtp_weights) == tuple(earlier.values())
    with pytest.warns(FutureWarning, match="decay is now mtp_decay"):
        assert made.decay == 0.7
    with pytest.raises(InputError, match="one setting"):
        MultiTokenConfig(str(tmp_path), coefficient=0.5, mtp_coefficient=0.5)
