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


@dataclass
class SpeculativeOutput(GenerateDecoderOnlyOutput):
    """`sequences` [batch, time] int64. `drafted`: tokens that were proposed; `accepted`: of them kept; `rounds`: passes
    of the large model after the prompt's."""

    drafted: int | None = None
    accepted: int | None = None
    rounds: int | None = None


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
    function: the one goes along with it, the other two become a stopping criterion.
    """
    given = {**arguments, "custom_generate": partial(decoding, streamer=arguments.get("streamer"))}
    tokenizer, stop = given.pop("tokenizer", None), given.pop("stop_strings", None)
    config = given.get("generation_config") or own_config
    if config.stop_strings and tokenizer is not None:
        stop = stop or config.stop_strings
        given["generation_config"] = copy.deepcopy(config)
        given["generation_config"].stop_strings = None
    if stop:
        criterion = StopStringCriteria(tokenizer, stop)
        given["stopping_criteria"] = StoppingCriteriaList([*(given.get("stopping_criteria") or []), criterion])
    return given
