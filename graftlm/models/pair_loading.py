"""Load the models of an audit, each of them once, and check that they can be compared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from graftlm.errors import InputError
from graftlm.models.adapters import merged, take_off
from graftlm.models.given import Given
from graftlm.models.load import adapter_on, load_model
from graftlm.models.modes import at_rest
from graftlm.models.pair import AdapterPair, ModelPair, WholePair


@contextmanager
def opened_pair(base: Any, tokenizer: PreTrainedTokenizerBase, base_name: str, tuned: Given) -> Iterator[ModelPair]:
    """The pair of `base`, a loaded model, and `tuned`, a model's name or a loaded model.

    `base_name`: the name that `base` was loaded from ("" where it was not). A named adapter on this base is put on it
    and taken off at the end; any other model is loaded whole beside it, merged where it is an adapter on another base,
    or one that leaves something of itself when it is switched off. A PeftModel around `base` is switched off and on.
    Raises InputError where the two cannot be compared.
    """
    if not isinstance(tuned, (str, os.PathLike)):
        with at_rest(tuned):
            yield _pair_of_loaded(base, tuned)
        return
    before, tuned = _few_logits(base), os.fspath(tuned)
    adapted = adapter_on(base, tokenizer, base_name, tuned)
    if adapted is None:
        model, own_tokenizer = load_model(tuned)
        check_vocabulary(tokenizer, own_tokenizer, tuned)
        yield WholePair(base, merged(model))
        return
    model, own_tokenizer = adapted
    try:
        check_vocabulary(tokenizer, own_tokenizer, tuned)
        pair = AdapterPair(model)
        if not _same_base(pair, before):
            raise InputError(f"{tuned} cannot be switched off to the base model again: merge it first")
        yield pair
    finally:
        take_off(model)


def _pair_of_loaded(base: Any, tuned: Any) -> ModelPair:
    if not isinstance(tuned, PeftModel):
        return WholePair(base, tuned)
    pair = AdapterPair(tuned)
    if tuned.get_base_model() is not base and not _same_base(pair, _few_logits(base)):
        raise InputError("the adapter is on another model than the base model: give the model that it was trained on")
    return pair


def _same_base(pair: ModelPair, logits: Tensor) -> bool:
    """Whether the pair's base model gives the same few logits."""
    with pair.base() as model:
        return torch.allclose(_few_logits(model), logits)


@torch.no_grad()
def _few_logits(model: Any) -> Tensor:
    logits: Tensor = model(input_ids=torch.arange(8, device=model.device)[None], use_cache=False).logits
    return logits.float().cpu()  # two loaded models may differ in dtype and device


def check_base(base: Given, tuned: Given) -> None:
    """Raise InputError where a loaded `base` has an adapter in its layers and `tuned` is not that adapter's model: it
    would run with the adapter switched on."""
    if isinstance(base, (str, os.PathLike)) or not any(isinstance(module, BaseTunerLayer) for module in base.modules()):
        return
    if not isinstance(tuned, PeftModel) or tuned.get_base_model() is not base:
        raise InputError(
            "the base model has an adapter in its layers: audit that adapter alone, or name the base model"
        )


def check_vocabulary(base: PreTrainedTokenizerBase, tuned: PreTrainedTokenizerBase, name: str) -> None:
    """Raise InputError that shows the first token whose id differs."""
    ours, theirs = base.get_vocab(), tuned.get_vocab()
    if ours == theirs:
        return
    odd = min(
        (token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token)),
        key=lambda token: (ours.get(token, theirs.get(token)), token),
    )
    raise InputError(
        f"{name} has another vocabulary than the base model: token {odd!r} is {ours.get(odd, 'absent')} there "
        f"and {theirs.get(odd, 'absent')} here; an audit needs a model tuned from this base"
    )
