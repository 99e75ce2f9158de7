"""A proxy-tuned model is a model, and its logits are the formula."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
)

from graftlm.errors import InputError
from graftlm.models.load import load_model
from graftlm.proxy import ProxyTunedModel, disagreement_above
from graftlm.proxy.steering import steered
from tests.auditing.models import adapted
from tests.conftest import tiny_model
from tests.proxy.models import parts, sharp, with_adapter

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
PROMPTS = [[5, 9, 17, 33], [100, 3], [8, 8, 41, 7, 90, 12]]


def padded(rows: list[list[int]]) -> dict[str, Tensor]:
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[258] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


def generated(model: Any, rows: list[list[int]], **settings: Any) -> list[list[int]]:
    """What is written after each prompt, without what follows the end of a row."""
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 258, **settings}
    inputs = padded(rows)
    written = model.generate(**inputs, **options)
    return written[:, inputs["input_ids"].shape[1] :].tolist()


def formula(models: tuple[Any, Any, Any], ids: Tensor, alpha: float) -> Tensor:
    with torch.no_grad():
        base, expert, antiexpert = (model.double()(ids).logits for model in models)
    for model in models:
        model.float()
    return base + alpha * (expert - antiexpert)


@pytest.mark.parametrize("alpha", [1.0, 0.4, -2.0])
def test_the_logits_are_the_formula(alpha: float) -> None:
    models = parts()
    ids = torch.tensor(PROMPTS[:1])
    found = ProxyTunedModel(*models, alpha=alpha)(ids).logits
    torch.testing.assert_close(found.double(), formula(models, ids, alpha), atol=2e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text", "gpt_neox", "gpt2"])
def test_alpha_0_and_an_expert_like_the_antiexpert_are_the_base_model(architecture: str) -> None:
    base, expert, antiexpert = parts(architecture)
    plain = generated(base, PROMPTS)
    nothing, same = ProxyTunedModel(base, expert, antiexpert, 0.0), ProxyTunedModel(base, expert, expert)
    ids = torch.tensor(PROMPTS[:1])
    assert nothing.experts is None and torch.equal(nothing(ids).logits, base(ids).logits)
    torch.testing.assert_close(same(ids).logits, base(ids).logits)
    assert generated(nothing, PROMPTS) == generated(same, PROMPTS) == plain
    assert generated(ProxyTunedModel(base, expert, antiexpert), PROMPTS) != plain


def test_a_batch_gives_what_its_rows_give_alone_and_the_cache_changes_nothing() -> None:
    model = ProxyTunedModel(*parts())
    together = generated(model, PROMPTS)
    assert together == [generated(model, [row])[0] for row in PROMPTS]
    assert together == generated(model, PROMPTS, use_cache=False)


def test_a_model_whose_state_is_in_no_cache_is_decoded_without_one() -> None:
    """Mamba takes its state as cache_params, and would read each new token as if it were the first."""
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=259, hidden_size=32, num_hidden_layers=2, state_size=8, initializer_range=0.3)
    three = [MambaForCausalLM(config).eval() for _ in range(3)]
    mamba, ids = ProxyTunedModel(*three), torch.arange(40, 50)[None]
    options: Any = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    with pytest.raises(InputError, match="MambaForCausalLM takes no past_key_values"):
        mamba.generate(input_ids=ids, **options)
    expected = ids
    for _ in range(4):
        base, expert, antiexpert = (part(expected).logits[:, -1] for part in three)
        expected = torch.cat([expected, (base + expert - antiexpert).argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(mamba.generate(input_ids=ids, use_cache=False, **options), expected)


def test_an_adapter_and_its_base_share_weights_and_one_pass_and_equal_two_models() -> None:
    shared, base, (merged, small) = with_adapter()
    two = ProxyTunedModel(base, merged, small)
    ids = torch.tensor(PROMPTS[2:])
    torch.testing.assert_close(shared(ids).logits, two(ids).logits, atol=1e-4, rtol=1e-4)
    assert generated(shared, PROMPTS) == generated(two, PROMPTS)
    calls: list[int] = []
    [small_model] = shared.experts.models()  # type: ignore[union-attr]
    one_pass = shared.experts.paired.model.base_model  # type: ignore[union-attr]
    one_pass.register_forward_pre_hook(lambda module, args, kwargs: calls.append(len(kwargs["input_ids"])),
                                          with_kwargs=True)  # fmt: skip
    generated(shared, PROMPTS, max_new_tokens=3)
    assert calls == [6, 6, 6]  # each row with the adapter and without
    weights = {id(p) for p in shared.parameters()}
    adapter = sum(p.numel() for name, p in small_model.named_parameters() if "lora_" in name)
    assert (
        sum(p.numel() for p in shared.parameters())
        == sum(p.numel() for p in (*base.parameters(), *small.parameters())) + adapter
    )
    assert len(weights) == len(list(shared.parameters()))


def reference_beams(score: Any, prompt: list[int], beams: int, steps: int) -> list[int]:
    """A plain beam search of fixed length: the best continuation by its sum of log-probabilities."""
    found = [(0.0, prompt)]
    for _ in range(steps):
        grown = []
        for total, row in found:
            logs = torch.log_softmax(score(row), -1)
            grown += [(total + float(value), [*row, token]) for token, value in enumerate(logs)]
        found = sorted(grown, key=lambda pair: -pair[0])[:beams]
    return found[0][1][len(prompt) :]


def test_beams_are_a_plain_beam_search() -> None:
    models = parts()
    model = ProxyTunedModel(*models)

    def score(row: list[int]) -> Tensor:
        return formula(models, torch.tensor([row]), 1.0)[0, -1]

    found = generated(model, PROMPTS[:2], num_beams=3, max_new_tokens=4, length_penalty=0.0)
    assert found == [reference_beams(score, row, 3, 4) for row in PROMPTS[:2]]
    shared, base, (merged, small) = with_adapter()
    expected = generated(ProxyTunedModel(base, merged, small), PROMPTS, num_beams=3, max_new_tokens=5)
    assert generated(shared, PROMPTS, num_beams=3, max_new_tokens=5) == expected


def test_sampling_streaming_and_several_sequences_work_as_of_any_model(tokenizer: PreTrainedTokenizerFast) -> None:
    model = ProxyTunedModel(*parts())
    torch.manual_seed(0)
    inputs = padded(PROMPTS[:2])
    several = model.generate(**inputs, do_sample=True, num_return_sequences=3, max_new_tokens=4, pad_token_id=258)
    assert several.shape[0] == 6
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    model.generate(**padded(PROMPTS[:1]), max_new_tokens=6, do_sample=False, eos_token_id=None, streamer=streamer)
    assert "".join(streamer) == tokenizer.decode(generated(model, PROMPTS[:1], max_new_tokens=6)[0])


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_the_expert_may_have_a_prompt_of_its_own(shared: bool) -> None:
    """Each step, the formula with the expert's logits after its own prompt."""
    if shared:
        model, base, (expert, antiexpert) = with_adapter()
    else:
        base, expert, antiexpert = parts()
        model = ProxyTunedModel(base, expert, antiexpert)
    own = [[60, 61, 5, 9, 17, 33, 62], [60, 61, 100, 3, 62], [60, 61, 8, 8, 41, 7, 90, 12, 62]]
    inputs = padded(own)
    extra = {"expert_input_ids": inputs["input_ids"], "expert_attention_mask": inputs["attention_mask"]}
    found = generated(model, PROMPTS, **extra)
    for prompt, own_prompt, written in zip(PROMPTS, own, found, strict=True):
        for step, token in enumerate(written):
            tail = written[:step]
            with torch.no_grad():
                plain = [m(torch.tensor([[*prompt, *tail]])).logits[0, -1] for m in (base, antiexpert)]
                steered = expert(torch.tensor([[*own_prompt, *tail]])).logits[0, -1]
            assert int((plain[0] + steered - plain[1]).argmax()) == token


def test_the_experts_prompt_is_its_own_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    model = ProxyTunedModel(*parts())
    with pytest.raises(InputError, match="no chat template"):
        model.expert_prompts(["x"])
    model.expert_tokenizer = tokenizer
    found = model.expert_prompts(["hi", "hello"])
    assert tokenizer.decode(found["expert_input_ids"][1]) == "[user]hello<eos>[assistant]"
    assert found["expert_attention_mask"][0].tolist() == [0, 0, 0] + [1] * (found["expert_input_ids"].shape[1] - 3)


def test_alpha_may_depend_on_the_logits() -> None:
    models = parts()
    ids = torch.tensor(PROMPTS[:1])
    always, never = (ProxyTunedModel(*models, alpha=disagreement_above(t))(ids).logits for t in (0.0, 1.0))
    torch.testing.assert_close(always, ProxyTunedModel(*models)(ids).logits)
    torch.testing.assert_close(never, models[0](ids).logits)
    with torch.no_grad():
        expert, antiexpert = (torch.softmax(m(ids).logits, -1) for m in models[1:])
    distances = 0.5 * (expert - antiexpert).abs().sum(-1)
    threshold = float(distances.mean())
    far = distances > threshold
    some = ProxyTunedModel(*models, alpha=disagreement_above(threshold))(ids).logits
    assert far.any() and not far.all()
    torch.testing.assert_close(some[far], always[far])
    torch.testing.assert_close(some[~far], never[~far])


def test_labels_give_the_loss_and_a_gradient_is_never_asked_for() -> None:
    model = ProxyTunedModel(*parts())
    ids = torch.tensor(PROMPTS[:1])
    found = model(ids, labels=ids)
    logs = torch.log_softmax(found.logits[0, :-1], -1)
    assert float(found.loss) == pytest.approx(-float(logs[torch.arange(3), ids[0, 1:]].mean()), rel=1e-5)
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


@pytest.mark.parametrize("alpha", [math.nan, math.inf, "much", None])
def test_an_alpha_that_is_not_finite_is_named(alpha: Any) -> None:
    with pytest.raises(InputError, match=r"alpha is .*finite number"):
        ProxyTunedModel(*parts(), alpha=alpha)


def test_further_entries_of_the_experts_are_cropped_and_missing_ones_refused() -> None:
    base = parts()[0]
    wide = [tiny_model(seed=seed, vocab_size=264) for seed in (1, 2)]
    ids = torch.tensor(PROMPTS[:1])
    with torch.no_grad():
        expected = base(ids).logits + wide[0](ids).logits[..., :259] - wide[1](ids).logits[..., :259]
    torch.testing.assert_close(ProxyTunedModel(base, *wide)(ids).logits, expected)
    with pytest.raises(InputError, match="expert has another vocabulary than the base model: 250 entries, 259 there"):
        ProxyTunedModel(base, tiny_model(vocab_size=250, pad_token_id=0), wide[1])


@pytest.mark.parametrize("alpha", [0.7, disagreement_above(0.1)])
def test_rows_of_the_base_models_unembedding_that_are_no_token_get_no_chance(
    alpha: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    base, small = sharp(tiny_model(vocab_size=270)), [sharp(tiny_model(seed=seed)) for seed in (1, 2)]
    ids = torch.tensor(PROMPTS[:1])
    model = ProxyTunedModel(base, *small, alpha, tokenizer=tokenizer)
    with torch.no_grad():
        logits, own = model(ids).logits, base(ids).logits
        plus, minus = (part(ids).logits for part in small)
    strength = alpha(own[..., :259], plus, minus) if callable(alpha) else alpha
    torch.testing.assert_close(logits[..., :259], own[..., :259] + strength * (plus - minus))
    assert float(logits[..., 259:].max()) < -1e20
    for sample in (False, True):
        settings = {"max_new_tokens": 12, "do_sample": sample, "eos_token_id": None, "pad_token_id": 258}
        torch.manual_seed(0)
        assert int(model.generate(ids, **settings).max()) < 259
    with pytest.raises(InputError, match="another vocabulary"):
        ProxyTunedModel(base, *small, alpha)  # without a tokenizer nobody knows which are tokens


def test_the_end_of_a_chat_experts_turn_ends_the_text(
    folders: dict[str, str], tokenizer: PreTrainedTokenizerFast
) -> None:
    base, expert, antiexpert = parts()
    base.generation_config.eos_token_id, expert.generation_config.eos_token_id = 256, 257
    assert ProxyTunedModel(base, expert, antiexpert).generation_config.eos_token_id == [256, 257]
    chat = copy.deepcopy(tokenizer)
    chat.eos_token = "<pad>"
    chat.save_pretrained(folders["adapter"])
    by_name = ProxyTunedModel(folders["base"], folders["adapter"], folders["antiexpert"])
    assert by_name.generation_config.eos_token_id == [tokenizer.eos_token_id, tokenizer.pad_token_id]
    expert.generation_config.eos_token_id = [256]
    assert ProxyTunedModel(base, expert, antiexpert).generation_config.eos_token_id == 256


def test_a_text_is_no_longer_than_any_of_the_models_can_read() -> None:
    small = [tiny_model(seed=seed, max_position_embeddings=64) for seed in (2, 3)]
    assert ProxyTunedModel(tiny_model(), *small).config.max_position_embeddings == 64
    assert ProxyTunedModel(small[0], tiny_model(), small[1]).config.max_position_embeddings == 64


@pytest.fixture
def folders(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    for name, model in zip(("base", "expert", "antiexpert"), parts(), strict=True):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    small = tiny_model(seed=2)
    small.config._name_or_path = small.name_or_path = str(tmp_path / "antiexpert")
    adapted(small).save_pretrained(tmp_path / "adapter")
    return {name: str(tmp_path / name) for name in ("base", "expert", "antiexpert", "adapter")}


@pytest.mark.slow
@pytest.mark.parametrize("load", [ProxyTunedModel.from_pretrained, AutoModelForCausalLM.from_pretrained])
def test_it_is_saved_by_name_and_loaded_again(load: Any, folders: dict[str, str], tmp_path: Path) -> None:
    model = ProxyTunedModel(folders["base"], folders["expert"], folders["antiexpert"], alpha=0.5)
    model.save_pretrained(tmp_path / "proxy")
    assert not list((tmp_path / "proxy").glob("*.safetensors"))
    again = load(tmp_path / "proxy")
    ids = torch.tensor(PROMPTS[:1])
    assert type(again) is ProxyTunedModel and again.alpha == 0.5
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert load(tmp_path / "proxy", alpha=0.25).alpha == 0.25
    with pytest.raises(InputError, match="takes no device_map"):
        load(tmp_path / "proxy", device_map="cpu")
    assert steered(str(tmp_path / "proxy"), None, None, None)[0].alpha == 0.5
    assert steered(str(tmp_path / "proxy"), None, None, 0.25)[0].alpha == 0.25
    with pytest.raises(InputError, match="--alpha is given without --expert"):
        steered(folders["base"], None, None, 1.0)
    with pytest.raises(InputError, match="without a name"):
        ProxyTunedModel(*parts()).save_pretrained(tmp_path / "other")
    loaded = [load_model(folders[name])[0] for name in ("expert", "adapter", "antiexpert")]
    for unnamed in ((folders["base"], loaded[1]), (folders["base"], loaded[1], loaded[2])):
        with pytest.raises(InputError, match="without a name"):
            ProxyTunedModel(*unnamed).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="alpha is a function"):
        ProxyTunedModel(*parts(), alpha=disagreement_above(0.1)).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"config\.json is missing"):
        ProxyTunedModel.from_pretrained(tmp_path)


def test_an_adapter_on_the_antiexpert_shares_its_weights_where_both_are_named(folders: dict[str, str]) -> None:
    model = ProxyTunedModel(folders["base"], folders["adapter"], folders["antiexpert"])
    assert model.experts.models() == [model.experts.expert_model]  # type: ignore[union-attr]
    assert ProxyTunedModel(folders["base"], folders["adapter"], folders["antiexpert"], 0).experts is None
    with pytest.raises(InputError, match="no anti-expert is given"):
        ProxyTunedModel(folders["base"], folders["expert"])


def test_the_first_token_that_differs_is_shown(folders: dict[str, str]) -> None:
    path = Path(folders["expert"]) / "tokenizer.json"
    text = path.read_text("utf-8")
    swapped = text.replace('"A":', '"@@":').replace('"B":', '"A":').replace('"@@":', '"B":')
    path.write_text(swapped, "utf-8")
    with pytest.raises(
        InputError, match=r"expert has another vocabulary than the base model: id \d+ is 'A' there and 'B' here"
    ):
        ProxyTunedModel(folders["base"], folders["expert"], folders["antiexpert"])


def test_every_pair_of_options_keeps_the_cache_of_all_models_in_step() -> None:
    shared, *_ = with_adapter()
    for model, rows in itertools.product((ProxyTunedModel(*parts()), shared), (1, 3)):
        inputs = padded(PROMPTS[:rows])
        found = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=258,
                               return_dict_in_generate=True)  # fmt: skip
        lengths = {cache.get_seq_length() for cache in (found.past_key_values, *found.past_key_values.others)}
        assert lengths == {inputs["input_ids"].shape[1] + 4}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_that_peft_cannot_switch_off_row_by_row_is_refused_before_any_text() -> None:
    base, small = sharp(tiny_model(layers=3)), tiny_model(seed=1)
    with pytest.raises(InputError, match="cannot be switched off row by row: Mixed batching is only supported"):
        ProxyTunedModel(base, adapted(small, modules_to_save=["norm"]))
