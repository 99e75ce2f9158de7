"""Both models of a pair out of one set of weights, and each as it was afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from graftlm.errors import InputError
from graftlm.models.pair import AdapterPair, ModelPair, WholePair
from tests.auditing.models import adapted, merged, noisy
from tests.conftest import ARCHITECTURES, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
TOKENS = torch.arange(20)[None]
ADAPTERS: list[dict[str, Any]] = [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def pairs() -> list[ModelPair]:
    base = tiny_model(layers=4)
    return [
        WholePair(base, noisy(base, range(1, 3))),
        *(AdapterPair(adapted(tiny_model(layers=4), **s)) for s in ADAPTERS),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", range(4))
def test_each_side_gives_its_own_logits_and_is_left_as_it_was(kind: int) -> None:
    pair = pairs()[kind]
    before = logits(tiny_model(layers=4))
    with pair.tuned() as model:
        after = logits(model)
    with pair.base() as model:
        torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    assert not torch.equal(before, after)
    with pytest.raises(RuntimeError), pair.tuned({f"layer {index}" for index in range(4)}) as model:
        assert not torch.equal(logits(model), after)
        raise RuntimeError
    for _ in pair.weights():
        pass
    with pair.tuned() as model:
        torch.testing.assert_close(logits(model), after, rtol=0, atol=0)
        assert not any(parameter.requires_grad for parameter in model.parameters()) or kind == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", range(4))
def test_all_groups_restored_are_the_base_model(kind: int) -> None:
    pair = pairs()[kind]
    groups = {"embedding", "final norm", "unembedding", "other", *(f"layer {index}" for index in range(4))}
    with pair.tuned(groups) as model:
        torch.testing.assert_close(logits(model), logits(tiny_model(layers=4)), rtol=0, atol=0)


@pytest.mark.parametrize("settings", ADAPTERS)
def test_an_adapters_weights_are_those_of_the_merged_model(settings: dict[str, Any]) -> None:
    pair = AdapterPair(adapted(tiny_model(layers=4), **settings))
    base, whole = dict(tiny_model(layers=4).named_parameters()), dict(merged(**settings).named_parameters())
    seen = set()
    for weight in pair.weights():
        torch.testing.assert_close(weight.base, base[weight.name], rtol=0, atol=0)
        torch.testing.assert_close(weight.tuned, whole[weight.name], rtol=1e-5, atol=1e-6)
        seen.add(weight.name)
    assert seen == {name for name in base if not torch.equal(base[name], whole[name])}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_has_its_group(architecture: str) -> None:
    model = tiny_model(architecture)
    pair = WholePair(model, tiny_model(architecture, seed=1))
    groups = {name: pair.group(name) for name, _ in model.named_parameters()}
    assert set(groups.values()) >= {"embedding", "layer 0", "layer 1", "final norm"}
    assert groups[next(name for name in groups if "embed" in name or "wte" in name)] == "embedding"
    assert groups.get("lm_head.weight", "unembedding") == "unembedding"
    for name, group in groups.items():
        assert group != "other" or "wpe" in name, name
        assert (group == "layer 1") == (".1." in name)
    with pair.tuned(set(groups.values())) as restored:
        torch.testing.assert_close(logits(restored), logits(model), rtol=0, atol=0)


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", alora_invocation_tokens=[5]),
    ],
)
def test_an_adapter_that_acts_elsewhere_than_in_the_weights_is_refused(config: Any) -> None:
    """Its drift and weights would be those of the base model: layers without it, which nothing changed."""
    with pytest.raises(InputError, match="does not act by changing weights: it cannot be audited"):
        AdapterPair(get_peft_model(tiny_model(), config))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: tiny_model("qwen3"), "different architecture: LlamaForCausalLM and Qwen3ForCausalLM"),
        (lambda: tiny_model(layers=3), "different architecture.*model.layers.2"),
        (
            lambda: tiny_model(intermediate_size=48),
            r"different size: model.layers.0.mlp.gate_proj.weight is \(64",
        ),
    ],
)
def test_models_that_do_not_compare_are_refused(other: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        WholePair(tiny_model(), other())
