"""What a call with drafts asks for is done as without, or refused in one line; models of pictures draft their texts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GenerationConfig,
    Llama4Config,
    Llama4ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    WatermarkingConfig,
)

from graftlm.decoding.heads_decoding import HeadsDecoding
from graftlm.errors import InputError
from graftlm.heads.heads import MultiTokenHeads
from graftlm.models.decoder import Decoder, backbone_of
from tests.conftest import VOCABULARY
from tests.decoding.test_heads_decoding import GREEDY, PROMPTS, both, drafting_model, padded

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 256,
    "eos_token_id": 257, "pad_token_id": 258, "tie_word_embeddings": False, "initializer_range": 0.05,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


def gemma3() -> Any:
    text = {**TEXT, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
    config = Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4, image_token_id=250)
    return Gemma3ForConditionalGeneration(config)


def llava() -> Any:
    text, vision = {**TEXT, "model_type": "llama"}, {**VISION, "model_type": "clip_vision_model"}
    return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=250))


def qwen2_vl() -> Any:
    """Its position ids have planes for text, time, height and width."""
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4}
    config = Qwen2VLConfig(text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, image_token_id=250,
                           video_token_id=251, vision_start_token_id=252, vision_end_token_id=253)  # fmt: skip
    return Qwen2VLForConditionalGeneration(config)


def llama4() -> Any:
    text = {**TEXT, "intermediate_size_mlp": 64, "num_local_experts": 2, "attention_chunk_size": 8}
    vision = {**VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
    return Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision))


PICTURES = {"gemma3": gemma3, "llava": llava, "qwen2_vl": qwen2_vl, "llama4": llama4}


def of_pictures(family: str) -> tuple[Any, MultiTokenHeads]:
    torch.manual_seed(0)
    model = PICTURES[family]().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)
    return model, MultiTokenHeads.from_model(model, 2)


@pytest.mark.slow
@pytest.mark.parametrize("family", PICTURES)
def test_the_heads_of_a_model_of_pictures_draft_its_texts(family: str) -> None:
    """Its vision tower, with as many layers as the text has, is not what the heads are grown from."""
    model, heads = of_pictures(family)
    assert any(Decoder(model).layers is each for each in model.get_decoder().modules())
    assert backbone_of(model).get_output_embeddings() is None
    for rows in (PROMPTS[:1], PROMPTS):
        both(model, heads, padded(rows), 2, **GREEDY)


def test_kinds_of_tokens_that_are_all_text_change_nothing_and_others_are_refused() -> None:
    for family, name in (("gemma3", "token_type_ids"), ("qwen2_vl", "mm_token_type_ids")):
        model, heads = of_pictures(family)
        inputs = padded(PROMPTS[:2])
        kinds = torch.zeros_like(inputs["input_ids"])
        both(model, heads, {**inputs, name: kinds}, 2, **GREEDY)
        with pytest.raises(InputError, match=f"tokens alone: leave out {name}"):
            HeadsDecoding(model, heads).generate(**inputs, **{name: kinds + 1}, **GREEDY)
    planes = torch.stack([torch.arange(5) + plane for plane in range(4)])[:, None].expand(4, 2, 5)
    with pytest.raises(InputError, match="place pictures"):
        HeadsDecoding(model, heads).generate(**inputs, position_ids=planes, **GREEDY)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_beams": 2}, "leave out num_beams"),
    ({"penalty_alpha": 0.6, "top_k": 4}, "leave out penalty_alpha"),
    ({"dola_layers": "low"}, "leave out dola_layers"),
    ({"prompt_lookup_num_tokens": 2}, "leave out prompt_lookup_num_tokens"),
    ({"cache_implementation": "static"}, "leave out cache_implementation"),
    ({"token_healing": True}, "leave out token_healing"),
    ({"prefill_chunk_size": 2}, "leave out prefill_chunk_size"),
    ({"past_key_values": DynamicCache()}, "leave out past_key_values"),
    ({"output_scores": True, "return_dict_in_generate": True}, "leave out output_scores"),
    ({"output_logits": True, "return_dict_in_generate": True}, "leave out output_logits"),
    ({"output_attentions": True}, "leave out output_attentions"),
    ({"guidance_scale": 1.5}, "UnbatchedClassifierFreeGuidance"),
]


@pytest.mark.filterwarnings("ignore:.*dola:UserWarning")
@pytest.mark.parametrize(("settings", "fault"), REFUSED)
def test_what_drafts_do_not_do_is_refused(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        HeadsDecoding(*drafting_model()).generate(**padded(PROMPTS[:1]), **{**GREEDY, **settings})


def test_a_streamer_of_several_rows_is_refused() -> None:
    """Which row a token belongs to would be lost."""

    class Streamer:
        def put(self, value: Any) -> None: ...
        def end(self) -> None: ...

    model, heads = drafting_model()
    with pytest.raises(InputError, match="a streamer takes one text"):
        HeadsDecoding(model, heads).generate(**padded(PROMPTS[:2]), **GREEDY, streamer=Streamer())


def test_arguments_by_place_are_those_by_name() -> None:
    model, heads = drafting_model()
    inputs = torch.tensor(PROMPTS[:1])
    found = HeadsDecoding(model, heads, draft_tokens=2).generate(inputs, GenerationConfig(**GREEDY))
    assert torch.equal(found, model.generate(inputs, **GREEDY))


EVEN = list(range(0, VOCABULARY, 2))
MINDED: dict[str, dict[str, Any]] = {
    "least new tokens": {"eos_token_id": EVEN, "min_new_tokens": 6},
    "length": {"eos_token_id": EVEN, "min_length": 12, "max_new_tokens": None, "max_length": 14},
    "repetition": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    "words": {"bad_words_ids": [[5], [9, 77]], "sequence_bias": {(5,): 3.0, (9, 77): -4.0}},
    "beginning and end": {"begin_suppress_tokens": [5, 9, 8, 31, 77], "forced_eos_token_id": 257},
    "growing wish to end": {"exponential_decay_length_penalty": (4, 1.5), "eos_token_id": [9, 31]},
    "prefix": {"prefix_allowed_tokens_fn": lambda row, ids: [(int(ids[-1]) * 7 + row + 3) % 250, 9]},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=4.0, seeding_scheme="selfhash", context_width=2)},
    "sampling of one": {"do_sample": True, "top_k": 1, "min_p": 0.1, "typical_p": 0.9, "num_return_sequences": 1},
    "time": {"max_time": 1000.0, "use_cache": False},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MINDED)
def test_a_setting_of_generate_means_the_same_with_drafts(name: str) -> None:
    settings = {**GREEDY, "max_new_tokens": 10, **MINDED[name]}
    model, heads = drafting_model()
    for rows in (PROMPTS[:1], PROMPTS):
        both(model, heads, padded(rows), 3, **settings)
