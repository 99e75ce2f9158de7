"""The faster product for few rows is the product of nn.Linear, and the model is as before when it is no longer used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from graftlm.models import few_rows
from graftlm.models.few_rows import FewRowsLinear, suits, transposed_is_faster, use_fast_cpu_products
from tests.conftest import tiny_model
from tests.tuning.plain import PEFT_WARNING


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine is."""
    monkeypatch.setattr(few_rows, "transposed_is_faster", lambda: True)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_same_product_for_every_number_of_rows(shape: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(shape[1], shape[0], bias=bias)
    fast = nn.Sequential(plain)
    use_fast_cpu_products(fast)
    assert type(fast[0]) is FewRowsLinear
    used = 0
    with torch.no_grad():
        for rows in range(70):
            given = torch.randn(rows, shape[1])
            torch.testing.assert_close(fast(given), plain(given))
            used += suits(rows, plain.weight)
        torch.testing.assert_close(fast(torch.randn(0, 3, shape[1])), torch.zeros(0, 3, shape[0]))
        batch = torch.randn(shape[1], 2, 2).permute(1, 2, 0)  # strided
        torch.testing.assert_close(fast(batch), plain(batch))
        assert fast(batch).is_contiguous() and fast(batch[:1, :1]).is_contiguous()
    assert used == (12 if shape[0] > shape[1] else 8)


def test_gradients_and_other_dtypes_go_the_ordinary_way() -> None:
    layers = nn.Sequential(nn.Linear(4, 8))
    weight = layers[0].weight
    use_fast_cpu_products(layers)
    assert layers[0].weight is weight
    layers(torch.ones(2, 4)).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, torch.full((8, 4), 2.0))
    double = nn.Sequential(nn.Linear(4, 8, dtype=torch.float64))
    use_fast_cpu_products(double)
    assert type(double[0]) is nn.Linear
    layers.double()  # while it is used
    with torch.no_grad():
        assert layers(torch.ones(2, 4, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("tied", [False, True])
def test_the_model_is_as_before_afterwards(tied: bool, tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    before = dict(model.named_modules())
    names, weights = list(model.state_dict()), dict(model.named_parameters())
    ids = torch.arange(6)[None]
    expected = model(input_ids=ids).logits
    with use_fast_cpu_products(model), torch.no_grad():
        assert sum(type(module) is FewRowsLinear for module in model.modules()) == 15
        torch.testing.assert_close(model(input_ids=ids).logits, expected)
        assert list(model.state_dict()) == names
        assert all(weights[name] is weight for name, weight in model.named_parameters())
        model.save_pretrained(tmp_path)
        model.train()
    assert all(before[name] is module and module.training for name, module in model.named_modules())
    assert len(before) == len(dict(model.named_modules()))
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(input_ids=ids).logits, expected)


def test_a_use_within_a_use_ends_with_the_outer_one() -> None:
    model = tiny_model()
    with use_fast_cpu_products(model):
        with use_fast_cpu_products(model):
            pass
        assert any(type(module) is FewRowsLinear for module in model.modules())
    assert not any(type(module) is FewRowsLinear for module in model.modules())


@pytest.mark.filterwarnings(PEFT_WARNING)
def test_an_adapter_that_is_put_on_meanwhile_holds_the_models_own_layers_afterwards() -> None:
    model = tiny_model()
    own = model.get_submodule("model.layers.0.mlp.up_proj")
    use = use_fast_cpu_products(model)
    adapted: Any = get_peft_model(model, LoraConfig(target_modules=["up_proj"], init_lora_weights=False))
    use.close()
    assert adapted.base_model.model.model.layers[0].mlp.up_proj.get_base_layer() is own
    assert not any(type(module) is FewRowsLinear for module in adapted.modules())


def test_hooks_act_in_both() -> None:
    layers = nn.Sequential(nn.Linear(4, 4))
    calls: list[str] = []
    layers[0].register_forward_hook(lambda *_: calls.append("before"))
    with use_fast_cpu_products(layers), torch.no_grad():
        layers[0].register_forward_hook(lambda *_: calls.append("meanwhile"))
        layers(torch.ones(1, 4))
    layers(torch.ones(1, 4))
    assert calls == ["before", "meanwhile"] * 2


def test_nothing_is_replaced_where_it_is_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_rows, "transposed_is_faster", lambda: False)
    model = tiny_model()
    use_fast_cpu_products(model)
    assert not any(type(module) is FewRowsLinear for module in model.modules())


def test_the_machine_is_measured_once() -> None:
    assert transposed_is_faster() is transposed_is_faster() and transposed_is_faster.cache_info().misses == 1
