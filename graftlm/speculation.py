"""What all speculative decoding has in common: the rule by which a draft is kept, and what the output tells of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput, StopStringCriteria

from graftlm.caches import keeps_only_keys_and_values, layer_kinds, new_cache
from graftlm.errors import InputError


@dataclass
class SpeculativeOutput(GenerateDecoderOnlyOutput):
    """`sequences` [batch, time] int64. `drafted`: tokens that were proposed; `accepted`: of them kept; `rounds`: passes
    of the large model after the prompt's."""

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


def kept_or_drawn(token: int, wanted: Tensor, proposed: Tensor) -> int:
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
    without a tokenizer, and for an assistant.
    """
    if arguments.get("assistant_model") is not None:
        raise InputError("there are drafts already: leave out assistant_model")
    given = {**arguments, "custom_generate": partial(decoding, streamer=arguments.get("streamer"))}
    tokenizer, config = given.pop("tokenizer", None), given.get("generation_config")
    stop = given.pop("stop_strings", None)
    if "stop_strings" not in arguments:
        stop = (config and config.stop_strings) or own_config.stop_strings
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
