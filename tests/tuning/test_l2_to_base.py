"""The L2 term: how far the trained weights are from the base model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import PreTrainedTokenizerBase

from graftlm.errors import InputError
from graftlm.tuning.config import TuneConfig
from graftlm.tuning.model import TermsModel
from graftlm.tuning.terms.base import Step
from graftlm.tuning.terms.l2_to_base import L2ToBase, L2ToBaseSettings
from graftlm.tuning.terms.next_token import NextToken
from tests.conftest import tiny_model
from tests.tuning.plain import PEFT_WARNING, assert_same, gradients
from tests.tuning.test_trainer import losses, run
from tests.tuning.training import lora

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)


@pytest.mark.parametrize("adapted", [False, True])
def test_it_is_the_squared_distance_of_the_weights(adapted: bool, tokenizer: PreTrainedTokenizerBase) -> None:
    base = dict(tiny_model().double().state_dict())
    model: Any = tiny_model().double()
    if adapted:
        model = get_peft_model(model, lora(), autocast_adapter_dtype=False)
    term = L2ToBase(L2ToBaseSettings(weight=0.5))
    term.prepare(model, tokenizer)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    whole = TermsModel(model, [NextToken(), term])
    ids = torch.arange(8)[None]
    output = whole(input_ids=ids, labels=torch.full_like(ids, -100), step=Step(share=0.5))
    output.loss.backward()
    found = gradients(model)
    if adapted:
        layers = [layer for layer in model.modules() if hasattr(layer, "get_delta_weight")]
        distance = sum(
            (2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight).square().sum() for layer in layers
        )
    else:
        distance = sum((weight - base[name]).square().sum() for name, weight in model.named_parameters())
    assert output.log["l2_to_base"].tolist() == pytest.approx([distance.item(), 1.0])
    (0.25 * distance).backward()
    assert_same(found, gradients(model), 1e-6)


def test_it_holds_the_weights_to_the_base(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    distance = {}
    for weight in (1e-6, 1.0):
        terms = [L2ToBase(L2ToBaseSettings(weight=weight))]
        trainer, _ = run(tokenizer, tmp_path, with_heads=False, terms=terms, peft_config=lora(), learning_rate=1e-2)
        distance[weight] = losses(trainer, "l2_to_base")
        assert distance[weight][0] == 0
    assert distance[1.0][-1] < 0.8 * distance[1e-6][-1]


def test_its_settings_are_a_block_of_terms() -> None:
    config = TuneConfig(terms={"l2_to_base": {"weight": 1, "schedule": "linear"}})
    assert config.term_settings() == {"l2_to_base": L2ToBaseSettings(weight=1.0, schedule="linear")}
    assert TuneConfig(terms={"l2_to_base": None}).term_settings() == {"l2_to_base": L2ToBaseSettings()}
    with pytest.raises(InputError, match=r"l2_to_base: weight is -1\.0, but it must be at least 0"):
        TuneConfig(terms={"l2_to_base": {"weight": -1.0}})
