"""Speculative decoding: which calls it takes, the rule by which a draft is accepted, and its output."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput, GenerationMode, StopStringCriteria

from graftlm.decoding.generation import setting
from graftlm.errors import InputError
from graftlm.models.caches import keeps_only_keys_and_values, layer_kinds, new_cache

OTHER_WAYS = ("num_beams", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp", "penalty_alpha",
              "dola_layers", "constraints", "force_words_ids")  # fmt: skip
"""Settings that ask for another way of decoding than greedy search or sampling."""
NOT_DONE = ("output_scores", "output_logits", "output_attentions", "output_hidden_states", "prefill_chunk_size")
READ = ("attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep")
KINDS_OF_TOKENS = ("token_type_ids", "mm_token_type_ids")
STATEFUL = ("UnbatchedClassifierFreeGuidanceLogitsProcessor", "SynthIDTextWatermarkLogitsProcessor")
"""Logits processors that no draft can be tried on."""


@dataclass
class SpeculativeOutput(GenerateDecoderOnlyOutput):
    """`sequences` [batch, time] int64. `drafted`: tokens that were proposed; `accepted`: how many were accepted;
    `rounds`: passes of the model after the prompt's."""

    drafted: int | None = None
    accepted: int | None = None
    rounds: int | None = None


def check_can_forget(model: Any) -> set[type]:
    """The kinds of the model's caches, which a plain DynamicCache can take the place of, sliding windows being left to
    the mask. InputError where a layer keeps other states than keys and values, or outside of a cache."""
    cache = new_cache(model)
    kinds = layer_kinds(cache)
    if not keeps_only_keys_and_values(cache):
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InputError(f"{type(model).__name__} cannot forget tokens ({names}): decode it without drafts")
    return kinds


def check_call(config: GenerationConfig, processors: Iterable[Any], inputs: Mapping[str, Any]) -> None:
    """InputError where a call of `generate` asks for what is not done with drafts, or gives what they are not made of.

    `inputs`: what `generate` hands to a decoding method, some of it by itself.
    """
    if config.get_generation_mode() not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        name = next(name for name in OTHER_WAYS if getattr(config, name, None) not in (None, False, 1))
        raise InputError(f"drafts are checked one beam at a time, greedily or by sampling: leave out {name}")
    if (kind := config.cache_implementation) not in (None, "dynamic"):
        raise InputError(f"drafts have caches of their own kind: leave out cache_implementation={kind!r}")
    for name in NOT_DONE:
        if getattr(config, name) and (config.return_dict_in_generate or not name.startswith("output")):
            raise InputError(f"decoding with drafts reads a prompt at once and collects tokens alone: leave out {name}")
    for each in processors:
        if (name := type(each).__name__) in STATEFUL:
            raise InputError(f"{name} keeps a state from token to token: decode without drafts")
    if unread := [name for name, value in inputs.items() if name not in READ and _says_something(name, value)]:
        raise InputError(f"drafts are made from tokens alone: leave out {unread[0]}")
    past = inputs.get("past_key_values")
    if isinstance(past, Cache) and past.get_seq_length():
        raise InputError("with drafts the whole prompt is read again: leave out past_key_values")


def _says_something(name: str, value: Any) -> bool:
    """Whether an input holds more than what `generate` adds to a text by itself: no pictures, no kinds but text."""
    if isinstance(value, Mapping):
        return any(_says_something(name, each) for each in value.values())
    if name in KINDS_OF_TOKENS and isinstance(value, Tensor):
        return bool(value.any())
    return value is not None and value is not False


def accepted_or_drawn(token: int, wanted: Tensor, proposed: Tensor) -> int:
    """`token`, drawn from `proposed` [vocabulary], with probability min(1, wanted / proposed), or a draw from what is
    wanted more than it was proposed (Leviathan et al., arXiv 2211.17192, algorithm 1)."""
    if float(torch.rand(())) * float(proposed[token]) < float(wanted[token]):
        return token
    rest = (wanted - proposed).clamp(min=0)
    return int(torch.multinomial(rest if bool(rest.any()) else wanted, 1))


def decoding_arguments(
    decoding: Callable[..., Any], arguments: Mapping[str, Any], own_config: GenerationConfig
) -> dict[str, Any]:
    """The arguments of a call of `generate`, with `decoding` as its `custom_generate`; `own_config` is the model's.

    transformers (5.23) keeps a streamer, and the tokenizer that stop strings need, from a method that is given as a
    function: the one goes along with it, the other two become a stopping criterion. InputError for stop strings
    without a tokenizer, for an assistant, and for a cache, which would stay empty.
    """
    for name in ("assistant_model", "past_key_values"):
        if arguments.get(name) is not None:
            raise InputError(f"there are drafts already, and caches for them: leave out {name}")
    if setting("token_healing", arguments, own_config):
        raise InputError("a method of decoding gets no tokenizer to heal tokens with: leave out token_healing")
    stop = setting("stop_strings", arguments, own_config)
    given = {**arguments, "custom_generate": partial(decoding, streamer=arguments.get("streamer"))}
    given.pop("stop_strings", None)
    tokenizer, config = given.pop("tokenizer", None), given.get("generation_config")
    if own_config.stop_strings:
        given["stop_strings"] = None
    if stop:
        if tokenizer is None:
            raise InputError("stop strings need the model's tokenizer: give generate tokenizer=... as well")
        if config is not None and config.stop_strings:
            given["generation_config"] = copy.deepcopy(config)
            given["generation_config"].stop_strings = None
        criterion = StopStringCriteria(tokenizer, stop)
        given["stopping_criteria"] = StoppingCriteriaList([*(given.get("stopping_criteria") or []), criterion])
    return given
