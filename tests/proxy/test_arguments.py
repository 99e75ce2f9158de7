"""Whatever a call asks of a proxy-tuned model is done as by any model, or refused in one line."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StaticCache

from graftlm.errors import InputError
from graftlm.proxy import ProxyTunedModel
from tests.conftest import tiny_model
from tests.proxy.models import parts, sharp, with_adapter
from tests.proxy.test_model import PROMPTS, generated, padded

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
TEXT = torch.tensor([[5, 9, 17, 33, 100, 3, 8, 41, 7, 90]])
OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 258}


def models() -> dict[str, ProxyTunedModel]:
    return {"two models": ProxyTunedModel(*parts()), "adapter": with_adapter()[0], "alpha 0": alpha_0()}


def alpha_0() -> ProxyTunedModel:
    return ProxyTunedModel(*parts(), 0.0)


def gemma(layers: int, seed: int) -> Any:
    """With a sliding window of four tokens."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"][:layers]
    return sharp(tiny_model("gemma3_text", layers=layers, seed=seed, sliding_window=4, layer_types=kinds))


@pytest.fixture(scope="module", params=["two models", "adapter", "alpha 0"])
def model(request: pytest.FixtureRequest) -> ProxyTunedModel:
    return models()[request.param]


@pytest.fixture(scope="module")
def plain() -> ProxyTunedModel:
    return ProxyTunedModel(*parts())


def test_a_text_read_in_two_calls_with_a_given_cache_equals_one(model: ProxyTunedModel) -> None:
    cache = DynamicCache()
    first = model(TEXT[:, :6], past_key_values=cache, use_cache=True)
    assert first.past_key_values is cache and cache.get_seq_length() == 6
    second = model(TEXT[:, 6:], past_key_values=cache)
    assert cache.get_seq_length() == 10
    found = torch.cat([first.logits, second.logits], dim=1)
    torch.testing.assert_close(found, model(TEXT, use_cache=False).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_cache_that_was_read_with_and_copied_goes_on_in_generate(model: ProxyTunedModel) -> None:
    """As a long prompt is kept for many questions."""
    cache = DynamicCache()
    model(TEXT[:, :6], past_key_values=cache)
    whole = model.generate(TEXT, **OPTIONS)
    for _ in range(2):
        own = copy.deepcopy(cache)
        assert torch.equal(model.generate(TEXT, past_key_values=own, **OPTIONS), whole)
        assert own.get_seq_length() == 15 and cache.get_seq_length() == 6
    written = model.generate(TEXT, **OPTIONS, return_dict_in_generate=True)
    longer = model.generate(written.sequences, past_key_values=written.past_key_values, **OPTIONS)
    assert torch.equal(longer, model.generate(TEXT, **OPTIONS | {"max_new_tokens": 12}))


def test_rows_and_length_of_a_given_cache_may_be_changed_by_hand(model: ProxyTunedModel) -> None:
    rows = torch.cat([TEXT, TEXT.flip(1), TEXT.roll(3)])
    cache = DynamicCache()
    model(rows, past_key_values=cache)
    cache.crop(-4)
    cache.reorder_cache(torch.tensor([2, 1, 1]))
    cache.batch_select_indices(torch.tensor([True, False, True]))
    cache.batch_repeat_interleave(2)
    kept = rows[[2, 2, 1, 1]]
    kept[:, 6:] = torch.arange(16).view(4, 4)
    found = model(kept[:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(found, model(kept).logits[:, 6:], atol=1e-5, rtol=1e-5)
    cache.reset()
    torch.testing.assert_close(model(TEXT, past_key_values=cache).logits, model(TEXT).logits)


def test_the_cache_is_returned_by_default_and_use_cache_says_otherwise(plain: ProxyTunedModel) -> None:
    cache = plain(TEXT[:, :6]).past_key_values
    torch.testing.assert_close(plain(TEXT[:, 6:], past_key_values=cache).logits, plain(TEXT).logits[:, 6:])
    assert plain(TEXT, use_cache=False).past_key_values is None


def test_a_cache_that_cannot_be_honoured_is_refused(plain: ProxyTunedModel) -> None:
    cache = DynamicCache()
    plain.base(TEXT[:, :6], past_key_values=cache)
    foreign: list[tuple[Any, str]] = [
        (cache, "DynamicCache has been read with by another model"),
        (StaticCache(plain.base.config, max_cache_len=20), "StaticCache holds one model's states"),
        (((torch.zeros(1), torch.zeros(1)),), "tuple holds one model's states"),
        (alpha_0()(TEXT).past_key_values, "out of step"),
    ]
    for given, fault in foreign:
        with pytest.raises(InputError, match=fault):
            plain(TEXT[:, 6:], past_key_values=given)
        with pytest.raises(InputError, match=fault):
            plain.generate(TEXT, past_key_values=given)
    own = plain(TEXT[:, :6]).past_key_values
    plain.base(TEXT[:, 6:8], past_key_values=own)
    with pytest.raises(InputError, match="out of step"):
        plain(TEXT[:, 8:], past_key_values=own)
    without = alpha_0()
    torch.testing.assert_close(without(TEXT[:, 6:], past_key_values=cache).logits, without(TEXT).logits[:, 6:])


@pytest.mark.parametrize("kind", ["static", "offloaded_static", "quantized", "paged"])
def test_a_kind_of_cache_for_one_model_is_refused_before_anything_is_read(plain: ProxyTunedModel, kind: str) -> None:
    in_config = {"generation_config": GenerationConfig(cache_implementation=kind)}
    for settings in ({"cache_implementation": kind}, in_config):
        with pytest.raises(InputError, match=f"cache_implementation='{kind}'"):
            plain.generate(TEXT, **settings)
    assert torch.equal(plain.generate(TEXT, cache_implementation="dynamic", **OPTIONS), plain.generate(TEXT, **OPTIONS))


def test_hidden_states_and_attentions_are_the_base_models() -> None:
    base, *small = (sharp(tiny_model(seed=seed)) for seed in range(3))
    base.set_attn_implementation("eager")
    model = ProxyTunedModel(base, *small)
    expected = base(TEXT, output_hidden_states=True, output_attentions=True)
    found = model(TEXT, output_hidden_states=True, output_attentions=True)
    for ours, theirs in ((found.hidden_states, expected.hidden_states), (found.attentions, expected.attentions)):
        assert len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))
    assert model(TEXT).hidden_states is None
    model.config.output_hidden_states = True
    assert len(model(TEXT).hidden_states) == 3
    written = model.generate(TEXT, **OPTIONS, output_attentions=True, output_hidden_states=True, output_logits=True,
                             return_dict_in_generate=True)  # fmt: skip
    assert len(written.attentions) == len(written.hidden_states) == len(written.logits) == 6


def test_outputs_may_be_a_tuple(plain: ProxyTunedModel) -> None:
    found = plain(TEXT, labels=TEXT, use_cache=False, return_dict=False)
    expected = plain(TEXT, labels=TEXT)
    assert isinstance(found, tuple)
    assert torch.equal(found[0], expected.loss) and torch.equal(found[1], expected.logits)


def test_the_loss_is_divided_by_the_items_that_are_given(plain: ProxyTunedModel) -> None:
    mean = plain(TEXT, labels=TEXT).loss
    torch.testing.assert_close(plain(TEXT, labels=TEXT, num_items_in_batch=18).loss, mean / 2)
    shifted = torch.cat([TEXT[:, 1:], torch.tensor([[-100]])], dim=1)
    torch.testing.assert_close(plain(TEXT, labels=TEXT, shift_labels=shifted).loss, mean)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 4, 9])])
def test_logits_of_some_positions_are_those_of_all(model: ProxyTunedModel, keep: int | Tensor) -> None:
    places = slice(-keep, None) if isinstance(keep, int) else keep
    torch.testing.assert_close(model(TEXT, logits_to_keep=keep).logits, model(TEXT).logits[:, places])


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"inputs_embeds": torch.zeros(1, 3, 32)}, "inputs_embeds"),
        ({"cache_position": torch.arange(10)}, "cache_position"),
        ({"token_type_ids": torch.zeros_like(TEXT)}, "token_type_ids"),
        ({"output_router_logits": True}, "output_router_logits"),
        ({"input_ids": None}, "give input_ids"),
    ],
)
def test_an_argument_that_cannot_be_honoured_is_named(plain: ProxyTunedModel, given: Any, name: str) -> None:
    with pytest.raises(InputError, match=name):
        plain(**{"input_ids": TEXT} | given)
    assert plain(TEXT, output_router_logits=False, cache_position=None).logits.shape == (1, 10, 259)


def test_packed_rows_and_masks_of_four_dimensions_reach_all_models(model: ProxyTunedModel) -> None:
    packed = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])
    alone = torch.cat([model(part).logits for part in TEXT.split([4, 6], dim=1)], dim=1)
    torch.testing.assert_close(model(TEXT, position_ids=packed, use_cache=False).logits, alone, atol=1e-5, rtol=1e-5)
    document = packed.eq(0).cumsum(1)
    seen = (document[:, :, None] == document[:, None]) & torch.ones(10, 10, dtype=torch.bool).tril()
    found = model(TEXT, position_ids=packed, attention_mask=seen[:, None]).logits
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)


def prompt_of_its_own() -> dict[str, Any]:
    own = padded([[60, 61, *PROMPTS[0], 62]])
    return {"expert_input_ids": own["input_ids"], "expert_attention_mask": own["attention_mask"]}


def test_the_experts_own_prompt_goes_with_its_cache_only(plain: ProxyTunedModel) -> None:
    own = prompt_of_its_own()
    ids = torch.tensor(PROMPTS[:1])
    cache = plain(ids, **own).past_key_values
    step = plain(TEXT[:, :1], past_key_values=cache, **own).logits
    expected = plain.base(torch.cat([ids, TEXT[:, :1]], 1)).logits
    expert = plain.experts.expert_model(torch.cat([own["expert_input_ids"], TEXT[:, :1]], 1)).logits  # type: ignore[union-attr]
    anti = plain.experts.antiexpert_model(torch.cat([ids, TEXT[:, :1]], 1)).logits  # type: ignore[union-attr]
    torch.testing.assert_close(step, (expected + expert[:, -5:] - anti)[:, -1:], atol=1e-5, rtol=1e-5)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"past_key_values": cache}, "belongs to the cache's first call"),
        ({"past_key_values": plain(ids).past_key_values, **own}, "belongs to the cache's first call"),
        ({"use_cache": False, **own}, "leave out use_cache=False"),
        ({"logits_to_keep": 2, **own}, "logits_to_keep=1"),
        ({"labels": ids, **own}, "leave out expert_input_ids"),
    ]
    for given, fault in refused:
        with pytest.raises(InputError, match=fault):
            plain(ids, **given)
    with pytest.raises(InputError, match="leave out prefill_chunk_size"):
        plain.generate(ids, prefill_chunk_size=2, **own)
    with pytest.raises(InputError, match="logits_to_keep=1"):
        plain.generate(torch.tensor([[5, 9, 5, 9]]), prompt_lookup_num_tokens=2, **own, **OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("windows", [False, True])
def test_other_ways_of_writing_give_the_same_text(windows: bool) -> None:
    """Lookup in the prompt, an assistant, the prompt in pieces: also where layers forget what their window has left."""
    model = ProxyTunedModel(gemma(3, 0), gemma(2, 1), gemma(2, 2)) if windows else with_adapter()[0]
    assistant = ProxyTunedModel(gemma(3, 3), gemma(2, 1), gemma(2, 2)) if windows else ProxyTunedModel(*parts())
    ids = torch.tensor([[5, 9, 17, 33, 5, 9, 17, 33, 5, 9]])
    options = OPTIONS | {"max_new_tokens": 12}
    expected = model.generate(ids, use_cache=False, **options)
    assert torch.equal(model.generate(ids, **options), expected)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **options), expected)
    assert torch.equal(model.generate(ids, assistant_model=assistant, **options), expected)
    assert torch.equal(model.generate(ids, assistant_model=tiny_model(), **options), expected)
    assert torch.equal(model.generate(ids, prefill_chunk_size=3, **options), expected)
    assert torch.equal(model.base.generate(ids, assistant_model=model, **options), model.base.generate(ids, **options))


def test_classifier_free_guidance_keeps_a_cache_of_its_own(plain: ProxyTunedModel) -> None:
    found = plain.generate(TEXT, guidance_scale=1.5, negative_prompt_ids=TEXT[:, :3], **OPTIONS)
    row, negative = TEXT, TEXT[:, :3]
    for _ in range(6):
        with_prompt, without = (plain(each).logits[:, -1].log_softmax(-1) for each in (row, negative))
        token = (without + 1.5 * (with_prompt - without)).argmax(-1, keepdim=True)
        row, negative = torch.cat([row, token], 1), torch.cat([negative, token], 1)
    assert torch.equal(found, row)


def test_arguments_by_place_are_those_by_name(plain: ProxyTunedModel) -> None:
    config = GenerationConfig(**OPTIONS)
    assert torch.equal(plain.generate(TEXT, config), plain.generate(TEXT, **OPTIONS))
    with pytest.warns(FutureWarning, match="speculative is ignored"):
        assert torch.equal(plain.generate(TEXT, config, speculative=True), plain.generate(TEXT, config))
    assert generated(plain, PROMPTS) == generated(plain, PROMPTS, generation_config=GenerationConfig())
