"""The same results on an accelerator: `make test-gpu`, on a machine that has one.

    GRAFTLM_TEST_DEVICE=cuda python -m pytest tests/test_gpu.py

Without that variable these are skipped, and the other tests do not see an accelerator (tests/conftest.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from graftlm.decoding.candidates import candidate_log_likelihoods
from graftlm.decoding.heads_decoding import HeadsDecoding
from graftlm.heads.config import DistillConfig
from graftlm.heads.distill import distill_heads
from graftlm.heads.heads import MultiTokenHeads
from graftlm.models.linear_cross_entropy import linear_cross_entropy
from graftlm.proxy import ProxyTunedModel
from graftlm.pruning import prune_chain
from tests.conftest import ARCHITECTURES, tiny_model
from tests.decoding.test_heads_decoding import GREEDY, PROMPTS, drafting_model, padded
from tests.heads.test_distill import counting_model, texts
from tests.proxy.models import parts
from tests.reinforce.training import TRL_WARNING
from tests.reinforce.training import trainer as reinforcement_trainer
from tests.tuning import training

DEVICE = os.environ.get("GRAFTLM_TEST_DEVICE", "")
pytestmark = [
    pytest.mark.skipif(not DEVICE, reason="make test-gpu runs these"),
    pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing.:FutureWarning"),
    pytest.mark.filterwarnings(TRL_WARNING),
]
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.exit("GRAFTLM_TEST_DEVICE=cuda, but PyTorch finds no CUDA device here", returncode=2)
ON_CPU = {"use_cpu": True, "bf16": False}
ON_DEVICE = {"use_cpu": DEVICE == "cpu"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_heads_are_distilled(dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase) -> None:
    model = counting_model(1).to(DEVICE, dtype)
    config = DistillConfig(num_heads=2, epochs=6, tokens_per_batch=128, held_out=0.2)
    result = distill_heads(model, tokenizer, texts(model, tokenizer, 2000), config)
    assert {(each.device.type, each.dtype) for each in result.heads.parameters()} == {(DEVICE, dtype)}
    for k in (0, 1):
        assert result.agreement["domain"][k] > 0.8 > 0.5 > result.before["domain"][k]


@pytest.mark.parametrize("dropout", [None, 0.0], ids=["full", "lora"])
def test_training_gives_the_losses_of_a_cpu(
    dropout: float | None, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    losses = []
    for name, where in {
        "cpu": ON_CPU,
        "device": {**ON_DEVICE, "bf16": False},
        "bf16": {**ON_DEVICE, "bf16": True},
    }.items():
        trainer = training.train(
            tokenizer, str(tmp_path / name), lora_dropout=dropout, train_heads=True, anchored=True, anchor_weight=0.1,
            **where,
        )  # fmt: skip
        assert trainer.model.device.type == ("cpu" if name == "cpu" else DEVICE)
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
        MultiTokenHeads.from_pretrained(
            tmp_path / name / "heads", trainer.accelerator.unwrap_model(trainer.model).model
        )
    cpu, device, narrow = losses
    assert device == pytest.approx(cpu, rel=1e-3)
    assert narrow == pytest.approx(cpu, rel=3e-2)


@pytest.mark.parametrize("trained", [False, True])
def test_the_loss_in_bfloat16_is_that_in_float64(trained: bool) -> None:
    states, weight = torch.randn(3000, 64, dtype=torch.float64), torch.randn(5000, 64, dtype=torch.float64) / 4
    targets, weights = torch.randint(5000, (3000,)), torch.rand(3000, dtype=torch.float64) / 3000
    found = []
    for device, dtype in (("cpu", torch.float64), (DEVICE, torch.bfloat16)):
        inputs = [states.to(device, dtype).requires_grad_(), weight.to(device, dtype).requires_grad_(trained)]
        result = linear_cross_entropy(*inputs, targets.to(device), weights.to(device, torch.float32))
        gradients = torch.autograd.grad(result.loss, inputs if trained else inputs[:1])
        found.append([result.loss, result.nll, *gradients])
    for exact, narrow in zip(*found, strict=True):
        assert float((exact - narrow.double().cpu()).detach().norm() / exact.detach().norm()) < 1e-2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_heads_draft_what_generate_writes(architecture: str) -> None:
    model, heads = drafting_model(architecture)
    inputs = {name: each.to(DEVICE) for name, each in padded(PROMPTS).items()}
    model.to(DEVICE)
    decoding = HeadsDecoding(model, heads, draft_tokens=3)
    drafted = decoding.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    assert drafted.accepted > 0
    assert torch.equal(drafted.sequences, model.generate(**inputs, **GREEDY))
    torch.manual_seed(0)
    drawn = decoding.generate(**inputs, **{**GREEDY, "do_sample": True})
    assert drawn.shape == drafted.sequences.shape and not torch.equal(drawn, drafted.sequences)


def test_a_steered_model_writes_what_it_writes_on_a_cpu() -> None:
    inputs = padded(PROMPTS)
    expected = ProxyTunedModel(*parts()).generate(**inputs, **GREEDY)
    model = ProxyTunedModel(*(part.to(DEVICE) for part in parts()))
    found = model.generate(**{name: each.to(DEVICE) for name, each in inputs.items()}, **GREEDY)
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("objective", ["joint", "answer"])
@pytest.mark.parametrize("mode", ["exact", "screened", "surprisal", "attention"])
def test_a_chain_is_pruned_as_on_a_cpu(mode: Any, objective: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model().double()
    solution = ("How many?\n", "Two and three are 5, so it is 5.", "\nThe answer is 5.")
    expected = prune_chain(model, tokenizer, *solution, objective=objective, mode=mode)
    found = prune_chain(model.to(DEVICE), tokenizer, *solution, objective=objective, mode=mode)
    assert found.order == expected.order
    assert found.log_likelihoods == pytest.approx(expected.log_likelihoods, abs=1e-6)


@pytest.mark.parametrize("lora", [False, True])
def test_forking_tokens_are_learnt_from(lora: bool, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    trainer = reinforcement_trainer(tokenizer, tmp_path, lora=lora, **ON_DEVICE, bf16=DEVICE != "cpu", beta=0.01 * lora)
    before = {name: each.detach().clone() for name, each in trainer.model.named_parameters() if each.requires_grad}
    trainer.train()
    assert trainer.model.device.type == DEVICE
    assert any(not torch.equal(each, before[name]) for name, each in trainer.model.named_parameters() if name in before)
    assert len(trainer.chosen()) == pytest.approx(0.2 * sum(map(len, trainer.rollouts[0]["completion_ids"])), abs=4)


def test_candidates_are_scored_as_on_a_cpu(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model()
    prompts, candidates = ["One ", "Two and ", "Six "], [["is", "was not"], ["a", "three", "four"], ["b", "c"]]
    expected = candidate_log_likelihoods(model, tokenizer, prompts, candidates, 2)
    found = candidate_log_likelihoods(model.to(DEVICE), tokenizer, prompts, candidates, 2)
    for ours, theirs in zip(found, expected, strict=True):
        assert [each for pair in ours for each in pair] == pytest.approx([each for pair in theirs for each in pair])
