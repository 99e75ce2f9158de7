"""A LoRA adapter on the first rows only: what PEFT's own mixed batches give, without a second copy of a weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PromptTuningConfig, get_peft_model

from graftlm.errors import InputError
from graftlm.proxy import ProxyTunedModel
from graftlm.proxy.experts import Inputs, SharedExperts
from graftlm.proxy.paired_adapter import PairedAdapter
from tests.auditing.models import adapted
from tests.conftest import tiny_model
from tests.proxy.models import sharp

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`lora_bias=True`"),
]
LINEAR = ["q_proj", "v_proj", "up_proj"]


def inputs(rows: int = 2) -> Inputs:
    ids = torch.arange(5, 5 + 4 * rows).view(rows, 4)
    return Inputs(input_ids=ids, attention_mask=None, position_ids=None)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "qwen3"])
def test_it_gives_what_peft_gives(architecture: str) -> None:
    experts = SharedExperts(adapted(sharp(tiny_model(architecture))))
    assert experts.paired is not None
    with torch.no_grad():
        ours = torch.stack(experts.logits(inputs(), inputs(), None, 0))
        alone = experts.expert_model(**vars(inputs())).logits
        experts.paired = None
        theirs = torch.stack(experts.logits(inputs(), inputs(), None, 0))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours[0], alone)
    assert not torch.allclose(ours[0], ours[1], atol=1e-2)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma3_text"])
def test_the_offset_needs_one_unembedding_where_logits_are_linear(architecture: str) -> None:
    experts = SharedExperts(adapted(sharp(tiny_model(architecture))))
    assert experts.paired is not None and experts.paired.is_linear
    seen: list[int] = []
    experts.paired.model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: seen.append(len(args[0]))
    )
    with torch.no_grad():
        for kept in (0, 2, torch.tensor([1, 3])):
            expert, antiexpert = experts.logits(inputs(), inputs(), None, kept)
            seen.clear()
            torch.testing.assert_close(
                experts.offset(inputs(), inputs(), None, kept), expert - antiexpert, atol=1e-3, rtol=1e-3
            )
            assert seen == [2]


@pytest.mark.parametrize("settings", [{"final_logit_softcapping": 5.0}, {"target_modules": [*LINEAR, "lm_head"]}])
def test_capped_logits_and_an_adapted_unembedding_are_subtracted_as_they_are(settings: dict[str, Any]) -> None:
    if "target_modules" in settings:
        experts = SharedExperts(with_adapter(**settings))
    else:
        experts = SharedExperts(adapted(sharp(tiny_model("gemma3_text", **settings))))
    assert experts.paired is not None and not experts.paired.is_linear
    with torch.no_grad():
        expert, antiexpert = experts.logits(inputs(), inputs(), None, 0)
        torch.testing.assert_close(experts.offset(inputs(), inputs(), None, 0), expert - antiexpert)


def test_no_weight_is_copied_and_the_users_model_is_left_alone() -> None:
    model = adapted(tiny_model())
    with torch.no_grad():
        before = model(**vars(inputs())).logits
    paired = PairedAdapter(model)
    ours = {parameter.data_ptr() for parameter in paired.model.parameters()}
    theirs = {parameter.data_ptr() for name, parameter in model.named_parameters() if "lora_" not in name}
    assert ours == theirs
    with torch.no_grad():
        assert torch.equal(model(**vars(inputs())).logits, before)


def with_adapter(**settings: Any) -> Any:
    torch.manual_seed(0)
    model: Any = get_peft_model(
        tiny_model(), LoraConfig(**{"r": 4, "target_modules": LINEAR, "init_lora_weights": False, **settings})
    )
    return model.eval()


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": [*LINEAR, "embed_tokens"]},
        {"use_rslora": True},
        {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"q_proj": 7}},
    ],
)
def test_adapters_of_other_kinds_go_through_peft(settings: dict[str, Any]) -> None:
    """And those that only scale or size it otherwise do not."""
    model = with_adapter(**settings)
    experts = SharedExperts(model)
    assert (experts.paired is None) == (not {"use_rslora", "rank_pattern"} & settings.keys())
    with torch.no_grad():
        expert, antiexpert = experts.logits(inputs(), inputs(), None, 0)
        torch.testing.assert_close(expert, model(**vars(inputs())).logits)
        with model.disable_adapter():
            torch.testing.assert_close(antiexpert, model(**vars(inputs())).logits)


@pytest.mark.parametrize(
    ("architecture", "settings", "targets"),
    [
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}, ["fc1", "fc2"]),
        ("qwen2_moe", {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16,
                       "shared_expert_intermediate_size": 32}, ["gate_proj", "down_proj"]),
    ],
)  # fmt: skip
def test_layers_that_are_given_all_tokens_in_a_row(
    architecture: str, settings: dict[str, Any], targets: list[str]
) -> None:
    small = sharp(tiny_model(architecture, **settings))
    model = get_peft_model(small, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)).eval()
    experts = SharedExperts(model)
    with torch.no_grad():
        expert, antiexpert = experts.logits(inputs(), inputs(), None, 0)
        torch.testing.assert_close(expert, model(**vars(inputs())).logits)
        with model.disable_adapter():
            torch.testing.assert_close(antiexpert, model(**vars(inputs())).logits)
    assert experts.paired is not None and not torch.allclose(expert, antiexpert, atol=1e-2)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (IA3Config(task_type="CAUSAL_LM"), r"other weights than LoRA's \(IA3\)"),
        (LoHaConfig(target_modules=["q_proj"]), r"other weights than LoRA's \(LOHA\)"),
        (LoraConfig(target_modules=["q_proj"], bias="all"), "trained biases"),
    ],
)
def test_adapters_that_peft_would_leave_on_are_refused(adapter: Any, message: str) -> None:
    """Its mixed batches would have them on in every row, so that the offset would be nothing."""
    with pytest.raises(InputError, match=f"an adapter with {message} cannot be switched off"):
        SharedExperts(get_peft_model(tiny_model(), adapter))


def test_prompt_tuned_experts_are_refused_as_a_model_of_their_own_too() -> None:
    tuned = get_peft_model(tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(InputError, match="tokens of their own before the prompt"):
        ProxyTunedModel(tiny_model(layers=3), tuned, tiny_model())


def test_dora_is_refused_with_the_way_out() -> None:
    with pytest.raises(InputError, match=r"DoRA .* merge it, and give expert and anti-expert as two models"):
        SharedExperts(with_adapter(use_dora=True))


def test_a_merged_adapter_is_refused_by_name() -> None:
    model = with_adapter()
    model.merge_adapter()
    assert not PairedAdapter.fits(model)
    with pytest.raises(ValueError, match="no plain LoRA"):
        PairedAdapter(model)


def test_the_composition_uses_it() -> None:
    model = ProxyTunedModel(sharp(tiny_model(layers=3)), adapted(sharp(tiny_model(seed=1))))
    assert isinstance(model.experts, SharedExperts) and model.experts.paired is not None
    assert len({p.data_ptr() for p in model.parameters()}) == len(list(model.parameters()))
