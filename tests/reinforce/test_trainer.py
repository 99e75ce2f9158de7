"""ForkingTokenGRPOTrainer beside TRL's own trainer, the paper's equation, and a plain reference."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from graftlm.errors import InputError
from graftlm.models.forking import token_entropy
from graftlm.reinforce.trainer import (
    MASK,
    ForkingTokenGRPOConfig,
    ForkingTokenGRPOTrainer,
    loss_mask,
)
from graftlm.tuning.terms.kl_anchor import KLAnchor
from graftlm.tuning.terms.next_token import NextToken
from graftlm.tuning.terms.settings import KLAnchorSettings
from tests.conftest import VOCABULARY, tiny_model
from tests.models.test_forking import plain_mask
from tests.reinforce.training import TRL_WARNING, config, rows, small_bytes, trainer
from tests.tuning.test_distributed import ROOT, torchrun
from tests.tuning.test_proofs import BY_FORWARD
from tests.tuning.training import ANCHOR_TEXTS

pytestmark = pytest.mark.filterwarnings(TRL_WARNING)


def losses(made: Any) -> list[float]:
    return [line["loss"] for line in made.state.log_history if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"lora": True}, {"beta": 0.1, "lora": True}, {"gradient_accumulation_steps": 2}]
)
def test_with_all_tokens_the_run_is_trls_own_bit_for_bit(
    settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    theirs = trainer(tokenizer, tmp_path / "trl", kind=GRPOTrainer, longest=60, **settings)
    theirs.train()
    ours = trainer(tokenizer, tmp_path / "ours", forking_fraction=1.0, longest=60, **settings)
    ours.train()
    assert losses(ours) == losses(theirs) and len(losses(ours)) == 3
    for (name, own), other in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(own, other), name


def test_the_policy_loss_is_equation_6(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Mean over the kept tokens of -min(r A, clip(r) A), in float64 from the plain logits."""
    made = trainer(tokenizer, tmp_path, epsilon=0.2, epsilon_high=0.28, max_steps=1, num_iterations=2)
    made.train()
    output = made.rollouts[0]
    model, mask, kept = tiny_model().double(), loss_mask(output), output[MASK] > 0
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    attention = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    width = output["completion_ids"].shape[1]

    def scored(of: Any) -> tuple[torch.Tensor, torch.Tensor]:
        logits = of(input_ids=ids, attention_mask=attention, position_ids=positions).logits[:, -width - 1 : -1]
        own = logits.log_softmax(-1).gather(-1, output["completion_ids"][..., None]).squeeze(-1)
        return own, token_entropy(logits)

    with torch.no_grad():
        old, entropy = scored(model)
        assert kept.tolist() == plain_mask(entropy, mask, 0.2)
        made.model.double()
        new, _ = scored(made.model)
        made.model.float()
    ratio, advantage = (new - old).exp(), output["advantages"].double()[:, None]
    expected = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)[kept].mean()
    assert abs(float(expected)) > 1e-3 and (ratio[kept] - 1).abs().max() > 1e-3
    inputs = {**output, "old_per_token_logps": old.float()}
    made.current_gradient_accumulation_steps = 1
    with torch.no_grad():
        loss = made.compute_loss(made.model, inputs)
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_the_mask_is_the_top_of_the_entropies_that_were_sampled_from(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    made = trainer(tokenizer, tmp_path, temperature=0.7)
    made.train()
    assert len(made.entropies) == len(made.rollouts) == 3
    for (recorded, scored), output in zip(made.entropies, made.rollouts, strict=True):
        mask = loss_mask(output)
        torch.testing.assert_close(recorded[mask], scored[mask], rtol=1e-4, atol=1e-5)
        assert (output[MASK] > 0).tolist() == plain_mask(recorded, mask, 0.2)
        assert float(output[MASK].sum()) == pytest.approx(float(mask.sum()))  # n/k on each of k tokens


def test_the_entropies_of_an_old_policy_are_those_of_the_pass_that_trl_makes_anyway(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    made = trainer(tokenizer, tmp_path, num_iterations=2, max_steps=2)
    made.train()
    [(used, scored)] = made.entropies
    assert "old_per_token_logps" in made.rollouts[0]
    assert torch.equal(used, scored)


def test_accumulation_does_not_change_which_tokens_are_kept(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    whole = trainer(tokenizer, tmp_path / "1", max_steps=1, per_device_train_batch_size=8)
    whole.train()
    split = trainer(
        tokenizer, tmp_path / "2", max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    split.train()
    assert whole.chosen() == split.chosen() and whole.chosen()
    assert losses(split) == pytest.approx(losses(whole), abs=1e-6)
    for own, other in zip(split.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scope", ["micro-batch", "response"])
def test_the_other_scopes_take_the_share_within_them(
    scope: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    made = trainer(tokenizer, tmp_path, forking_scope=scope, forking_fraction=0.5)
    entropy = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6) < torch.tensor([6, 1, 3])[:, None]
    weights = made.get_high_entropy_mask(entropy, mask.int(), 0.5)
    if scope == "micro-batch":
        assert (weights > 0).tolist() == plain_mask(entropy, mask, 0.5)
        assert weights[weights > 0].tolist() == pytest.approx([10 / 5] * 5)
    else:
        for row in range(3):
            assert (weights[row : row + 1] > 0).tolist() == plain_mask(entropy[row : row + 1], mask[row : row + 1], 0.5)
        assert [float(row.max()) for row in weights] == pytest.approx([2, 1, 3 / 2])
    made.train()
    assert all(math.isfinite(loss) for loss in losses(made))


@pytest.mark.parametrize(("tokens", "normaliser"), [("rest", "kept"), ("random", "kept"), ("top", "all")])
def test_controls_keep_the_complement_or_random_tokens(
    tokens: str, normaliser: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    made = trainer(tokenizer, tmp_path, forking_tokens=tokens, forking_normaliser=normaliser, max_steps=2)
    made.train()
    for (entropy, _), output in zip(made.entropies, made.rollouts, strict=True):
        mask, kept = loss_mask(output), output[MASK] > 0
        top = torch.tensor(plain_mask(entropy, mask, 0.2))
        count = int(mask.sum())
        if tokens == "rest":
            assert torch.equal(kept, mask & ~top)
        else:
            assert int(kept.sum()) == math.ceil(0.2 * count)
        assert torch.equal(kept, top) == (tokens == "top")
        assert float(output[MASK].max()) == (1 if normaliser == "all" else pytest.approx(count / int(kept.sum())))


def test_masked_rows_and_one_token_responses_are_no_trouble(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    made = trainer(tokenizer, tmp_path, max_completion_length=1, mask_truncated_completions=True, max_steps=2)
    made.train()
    assert all(math.isfinite(loss) for loss in losses(made))


class VocabularyRows(TorchDispatchMode):
    """The shapes of all tensors as wide as the vocabulary that a computation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for each in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(each, torch.Tensor) and each.dim() > 1 and each.shape[-1] == VOCABULARY:
                self.shapes.append(tuple(each.shape))
        return output


def test_no_prompt_token_is_unembedded(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    made = trainer(tokenizer, tmp_path, max_steps=1)
    with VocabularyRows() as seen:
        made.train()
    completions = 8 * 6
    rows = {math.prod(shape[:-1]) for shape in seen.shapes if shape != (32, VOCABULARY)}  # not the weight itself
    assert max(rows) <= completions
    assert max(shape[1] for shape in seen.shapes if len(shape) == 3) == 1
    # So that this can fail: without the cut TRL makes rows of the prompts as well.
    plain = trainer(tokenizer, tmp_path, kind=GRPOTrainer, max_steps=1)
    with VocabularyRows() as seen:
        plain.train()
    assert max(math.prod(shape[:-1]) for shape in seen.shapes) > completions


def test_the_mask_and_its_agreement_with_the_start_model_are_logged(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    made = trainer(tokenizer, tmp_path, lora=True, start_agreement_steps=2, learning_rate=0.5, max_steps=3)
    made.train()
    log = [line for line in made.state.log_history if "forking/kept" in line]
    assert [line["forking/kept"] for line in log] == pytest.approx([0.2] * 3, abs=0.03)
    assert all(line["forking/threshold"] > 0 for line in log)
    agreement = [line.get("forking/start_agreement") for line in log]
    assert agreement[0] == 1 and agreement[1] is None and agreement[2] is not None and agreement[2] < 1


@pytest.mark.slow
def test_an_anchor_holds_the_model_to_its_base_and_one_of_weight_zero_changes_nothing(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    found = {}
    for weight in (None, 0.0, 1e-6, 30.0):
        terms = [] if weight is None else [KLAnchor(KLAnchorSettings(weight=weight), ANCHOR_TEXTS)]
        made = trainer(tokenizer, tmp_path, terms=terms, lora=True, max_steps=8, learning_rate=2e-2)
        made.train()
        found[weight] = made
    assert losses(found[0.0]) == losses(found[None])
    divergence = {weight: [line["anchor_divergence"] for line in found[weight].state.log_history if "loss" in line]
                  for weight in (1e-6, 30.0)}  # fmt: skip
    assert divergence[30.0][0] == pytest.approx(0.0, abs=1e-6)
    assert max(divergence[30.0][-3:]) < 0.5 * min(divergence[1e-6][-3:])


def test_a_term_of_labels_is_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="next_token reads supervised labels"):
        trainer(tokenizer, tmp_path, terms=[NextToken()])


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        ({"forking_fraction": 0.0}, "forking_fraction is 0.0"),
        ({"forking_fraction": 1.5}, "forking_fraction is 1.5"),
        ({"forking_scope": "batch"}, "forking_scope is 'batch'"),
        ({"forking_normaliser": "mean"}, "forking_normaliser is 'mean'"),
        ({"forking_tokens": "bottom"}, "forking_tokens is 'bottom'"),
        ({"forking_tokens": "rest", "forking_fraction": 1.0}, "no token is left"),
        ({"top_entropy_quantile": 0.2}, "top_entropy_quantile"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], culprit: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=culprit):
        config(tmp_path, ForkingTokenGRPOConfig, **settings)


def test_a_config_of_trl_is_completed_with_our_defaults(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    theirs = config(tmp_path, GRPOConfig, steps_per_generation=2, epsilon=0.3)
    made = ForkingTokenGRPOTrainer(
        tiny_model(), small_bytes, theirs, train_dataset=rows(), processing_class=tokenizer
    ).args  # fmt: skip
    assert isinstance(made, ForkingTokenGRPOConfig) and made.forking_fraction == 0.2
    for name in (field.name for field in fields(theirs) if field.init and field.name != "top_entropy_quantile"):
        assert getattr(made, name) == getattr(theirs, name), name
    with pytest.raises(InputError, match="args is a dict"):
        ForkingTokenGRPOTrainer(tiny_model(), small_bytes, {}, train_dataset=rows(), processing_class=tokenizer)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
@pytest.mark.parametrize("adapter", ["prompt tuning", "prefix tuning", "shadow"])
def test_an_adapter_that_acts_in_the_forward_pass_of_peft_is_trained_on_forking_tokens(
    adapter: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    made = trainer(
        tokenizer, tmp_path, kind=ForkingTokenGRPOTrainer, model=get_peft_model(tiny_model(), BY_FORWARD[adapter]())
    )
    before = {name: parameter.clone() for name, parameter in made.model.named_parameters() if parameter.requires_grad}
    made.train()
    assert any(not torch.equal(made.model.get_parameter(name), each) for name, each in before.items())
    assert all(0.2 <= line["forking/kept"] < 0.3 for line in made.state.log_history if "loss" in line)


@pytest.mark.slow
def test_two_processes_keep_the_tokens_of_one(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Greedy rollouts, so that both write the same; the entropies' top is over the tokens of both, and a guard shapes
    the rewards by the formats of both."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    kept, logs = [], []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        settings = {"tokenizer": str(tmp_path / "tokenizer"), "output_dir": str(folder), "max_steps": 1, "top_k": 1,
                    "guarded": True, "per_device_train_batch_size": 8 // processes, "ddp_backend": "gloo"}  # fmt: skip
        torchrun(processes, settings, module="tests.reinforce.training")
        kept.append(json.loads((folder / "chosen.json").read_text()))
        logs.append(json.loads((folder / "log.json").read_text())[0])
    assert kept[0] == kept[1] and kept[0][0]
    names = ["reward", "reward_std", "guard/shift", "formats/ascii/share", "formats/entropy", "pass_at_1"]
    assert [logs[0][name] for name in names] == pytest.approx([logs[1][name] for name in names], abs=1e-6)


def test_a_resumed_run_draws_the_same_random_tokens(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    settings = {"forking_tokens": "random", "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tokenizer, tmp_path, **settings)
    whole.train()
    resumed = trainer(tokenizer, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    kept = [[output[MASK] > 0 for output in made.rollouts] for made in (whole, resumed)]
    assert len(kept[0]) == 4 and len(kept[1]) == 2
    assert all(torch.equal(one, other) for one, other in zip(kept[0][2:], kept[1], strict=True))
    assert not torch.equal(kept[0][0], kept[0][1])


@pytest.mark.slow
def test_a_run_killed_in_the_middle_goes_on_as_if_it_had_not_been(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    settings = {"tokenizer": str(tmp_path / "tokenizer"), "max_steps": 6, "save_strategy": "steps", "save_steps": 2,
                "gradient_accumulation_steps": 2}  # fmt: skip
    for name, rest, code in (("whole", {}, 0), ("killed", {"kill_at": 5}, -9), ("killed", {"resume": True}, 0)):
        arguments = json.dumps({**settings, "output_dir": str(tmp_path / name), **rest})
        command = [sys.executable, "-m", "tests.reinforce.training", arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr[-3000:]
    whole, killed = (json.loads((tmp_path / name / "chosen.json").read_text()) for name in ("whole", "killed"))
    assert killed == whole[4:]  # the same completions, the same tokens of them
    logs = [json.loads((tmp_path / name / "log.json").read_text()) for name in ("whole", "killed")]
    assert [line["loss"] for line in logs[0] if "loss" in line] == [line["loss"] for line in logs[1] if "loss" in line]
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "killed/model.safetensors").read_bytes()
