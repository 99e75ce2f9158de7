"""Whatever a model computes outside its decoder's layers is trained as TRL trains it, or refused when the trainer is
built."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    CPTConfig,
    LoraConfig,
    MultitaskPromptTuningConfig,
    PeftConfig,
    PolyConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    ShadowConfig,
    get_peft_model,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from graftlm.errors import InputError
from graftlm.heads.heads import MultiTokenHeads
from graftlm.tuning.trainer import MultiTokenConfig, MultiTokenTrainer
from tests.conftest import tiny_model
from tests.tuning.plain import PEFT_WARNING, assert_same
from tests.tuning.training import ANCHOR_TEXTS, rows, weights

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)
BY_FORWARD: dict[str, Callable[[], PeftConfig]] = {
    "prompt tuning": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "p-tuning": lambda: PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
    "prefix tuning": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "activated LoRA": lambda: LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], alora_invocation_tokens=[1]),
    "shadow": lambda: ShadowConfig(task_type="CAUSAL_LM", shadow_dropout=0.0),
}
INSIDE: dict[str, Callable[[], PeftConfig]] = {
    "LoRA": lambda: LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
    "saved unembedding": lambda: LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"]
    ),
}
OF_THEIR_OWN: dict[str, Callable[[], PeftConfig]] = {
    "CPT": lambda: CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[1, 2], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 2]),
    "poly": lambda: PolyConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], n_tasks=2),
    "multitask": lambda: MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, num_tasks=2),
}


def build(
    kind: type[SFTTrainer],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    peft_config: PeftConfig | None = None,
    given: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A trainer of `kind`; `given` are further arguments of its own."""
    arguments: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
    arguments |= {"gradient_checkpointing": False} | settings
    config = (SFTConfig if kind is SFTTrainer else MultiTokenConfig)(
        str(folder), max_steps=3, logging_steps=1, learning_rate=1e-2, **arguments
    )
    torch.manual_seed(1)
    return kind(
        model, config, train_dataset=rows(8), eval_dataset=rows(3), processing_class=copy.deepcopy(tokenizer),
        peft_config=peft_config, **(given or {}),
    )  # fmt: skip


def assert_alike(ours: Any, theirs: Any) -> None:
    """Both train to the same losses and weights, which move."""
    before = weights(theirs.model)
    for trainer in (ours, theirs):
        trainer.train()
    for name in ("loss", "entropy", "num_tokens", "aux_loss"):
        found, expected = ([x[name] for x in t.state.log_history if name in x] for t in (ours, theirs))
        assert found == pytest.approx(expected, rel=1e-4), name
    after = weights(theirs.model)
    assert any(not torch.equal(after[name], before[name]) for name in after)
    assert_same(weights(ours.model.model), after, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [*BY_FORWARD, *INSIDE])
def test_every_kind_of_adapter_trains_as_trl_trains_it(
    adapter: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    made = {**BY_FORWARD, **INSIDE}[adapter]
    if adapter == "activated LoRA":
        arrow = tokenizer(" ->", add_special_tokens=False)["input_ids"]
        made = lambda: LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], alora_invocation_tokens=arrow)  # noqa: E731
    ours, theirs = (
        build(kind, tiny_model(), tokenizer, tmp_path, peft_config=made()) for kind in (MultiTokenTrainer, SFTTrainer)
    )
    assert ours.model.own_forward == (adapter in BY_FORWARD)
    assert_alike(ours, theirs)
    if adapter != "activated LoRA":  # PEFT does not evaluate it after training
        found, expected = (trainer.evaluate() for trainer in (ours, theirs))
        for name in ("eval_loss", "eval_entropy", "eval_mean_token_accuracy"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("adapter", BY_FORWARD)
def test_what_only_the_forward_pass_of_peft_makes_act_has_neither_heads_nor_an_anchor(
    adapter: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    heads = MultiTokenHeads.from_model(tiny_model(), 2)
    kind = BY_FORWARD[adapter]().peft_type.value
    for given, settings in (({"heads": heads}, {}), ({"anchor_texts": ANCHOR_TEXTS}, {"anchor_weight": 0.1})):
        with pytest.raises(InputError, match=kind):
            build(
                MultiTokenTrainer, tiny_model(), tokenizer, tmp_path, peft_config=BY_FORWARD[adapter](), given=given,
                **settings,
            )  # fmt: skip
    with pytest.raises(InputError, match=kind):
        MultiTokenHeads.from_model(get_peft_model(tiny_model(), BY_FORWARD[adapter]()), 2)


@pytest.mark.parametrize("adapter", OF_THEIR_OWN)
def test_an_adapter_that_rows_alone_cannot_train_is_refused(
    adapter: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="cannot be trained"):
        build(MultiTokenTrainer, tiny_model(), tokenizer, tmp_path, peft_config=OF_THEIR_OWN[adapter]())


def test_prefix_tuning_is_refused_with_gradient_checkpointing(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="PREFIX_TUNING puts its tokens into the cache"):
        build(
            MultiTokenTrainer, tiny_model(), tokenizer, tmp_path, peft_config=BY_FORWARD["prefix tuning"](),
            gradient_checkpointing=True,
        )  # fmt: skip


OPT: dict[str, Any] = {"ffn_dim": 64, "word_embed_proj_dim": 32}


def test_a_model_without_a_final_norm_trains_as_trl_trains_it(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    settings = {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False, "dropout": 0.0}
    ours, theirs = (
        build(kind, tiny_model("opt", **settings), tokenizer, tmp_path) for kind in (MultiTokenTrainer, SFTTrainer)
    )
    assert_alike(ours, theirs)
    with pytest.raises(InputError, match="no normalisation"):
        MultiTokenHeads.from_model(tiny_model("opt", **settings), 2)


def test_heads_grow_on_a_model_whose_final_norm_is_defined_before_its_layers() -> None:
    model = tiny_model("opt", **OPT)
    ids = torch.arange(6)[None]
    for logits in MultiTokenHeads.from_model(model, 2)(model, ids):
        torch.testing.assert_close(logits, model(ids).logits)


@pytest.mark.slow
@pytest.mark.parametrize("with_heads", [False, True])
def test_the_balancing_loss_of_a_mixture_of_experts_is_added_as_in_trl(
    with_heads: bool, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    def mixture() -> PreTrainedModel:
        return tiny_model("mixtral", num_local_experts=4, router_aux_loss_coef=0.5)

    settings = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    given = {"heads": MultiTokenHeads.from_model(mixture(), 2)} if with_heads else {}
    off = {"mtp_coefficient": 0.0} if with_heads else {}
    ours = build(MultiTokenTrainer, mixture(), tokenizer, tmp_path, given=given, **off, **settings)
    assert_alike(ours, build(SFTTrainer, mixture(), tokenizer, tmp_path, **settings))
    assert ours.state.log_history[0]["aux_loss"] > 1


SEES_OTHER_ROWS: dict[str, dict[str, Any]] = {
    "bloom": {"n_layer": 2, "n_head": 4, "attention": "eager"},
    "mamba": {"state_size": 4, "attention": "eager"},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "attention": "eager"},
    "opt": OPT,
    "lfm2": {"full_attn_idxs": [1]},
}


@pytest.mark.slow
@pytest.mark.parametrize("with_heads", [False, True])
@pytest.mark.parametrize("architecture", SEES_OTHER_ROWS)
def test_a_model_whose_rows_see_each_other_is_not_packed(
    architecture: str, with_heads: bool, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    def model() -> PreTrainedModel:
        return tiny_model(architecture, **SEES_OTHER_ROWS[architecture])

    given = {"heads": MultiTokenHeads.from_model(model(), 1)} if with_heads else {}
    for settings in ({"packing": True, "max_length": 64}, {"padding_free": True, "max_length": None}):
        with pytest.raises(InputError, match="in one line"):
            build(MultiTokenTrainer, model(), tokenizer, tmp_path, given=given, **settings)
    build(MultiTokenTrainer, model(), tokenizer, tmp_path, given=given)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_a_model_whose_rows_do_not_see_each_other_learns_packed_what_it_learns_unpacked(
    architecture: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    packed, unpacked = (
        build(MultiTokenTrainer, tiny_model(architecture), tokenizer, tmp_path, packing=packing, max_length=1024)
        for packing in (True, False)
    )
    for trainer in (packed, unpacked):
        trainer.train()
    found, expected = ([line["next_token_loss"] for line in t.state.log_history[:3]] for t in (packed, unpacked))
    assert found == pytest.approx(expected, rel=1e-4 if architecture != "mixtral" else 1e-2)  # its routers' loss


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
def test_virtual_tokens_are_not_packed(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    for adapter in ("prompt tuning", "prefix tuning"):
        with pytest.raises(InputError, match="in one line"):
            build(
                MultiTokenTrainer, tiny_model(), tokenizer, tmp_path, peft_config=BY_FORWARD[adapter](), packing=True
            )  # fmt: skip


def test_evaluated_rows_are_packed_only_where_the_bounds_of_rows_are_marked(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="eval_packing"):
        build(MultiTokenTrainer, tiny_model(), tokenizer, tmp_path, eval_packing=True)
    packed, unpacked = (
        build(MultiTokenTrainer, tiny_model(), tokenizer, tmp_path, packing=True, eval_packing=packing)
        for packing in (True, False)
    )
    assert packed.evaluate()["eval_loss"] == pytest.approx(unpacked.evaluate()["eval_loss"], rel=1e-5)
