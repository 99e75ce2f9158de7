"""Open the models of an audit, each of them once, and hold them comparable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from graftlm.errors import InputError
from graftlm.models.adapters import merged, take_off
from graftlm.models.load import adapter_on, fingerprint, load_model
from graftlm.models.pair import AdapterPair, ModelPair, WholePair


@contextmanager
def opened_pair(base: Any, tokenizer: PreTrainedTokenizerBase, base_name: str, tuned_name: str) -> Iterator[ModelPair]:
    """The pair of `base` (loaded from `base_name`) and the model of `tuned_name`.

    An adapter on this base is put on it and taken off at the end; any other model is loaded whole beside it, merged
    where it is an adapter on another base, or one that leaves something of itself when it is switched off. Raises
    InputError where the two cannot be compared.
    """
    before = _few_logits(base)
    adapted = adapter_on(base, tokenizer, base_name, tuned_name)
    if adapted is not None:
        model, own_tokenizer = adapted
        try:
            check_vocabulary(tokenizer, own_tokenizer, tuned_name)
            pair = AdapterPair(model)
            with pair.base() as switched_off:
                if not torch.allclose(_few_logits(switched_off), before):
                    raise InputError(f"{tuned_name} cannot be switched off to the base model again: merge it first")
            yield pair
        finally:
            take_off(model)
        return
    loaded, own_tokenizer = load_model(tuned_name)
    check_vocabulary(tokenizer, own_tokenizer, tuned_name)
    yield WholePair(base, merged(loaded))


@torch.no_grad()
def _few_logits(model: Any) -> Tensor:
    logits: Tensor = model(input_ids=torch.arange(8, device=model.device)[None], use_cache=False).logits
    return logits


def check_vocabulary(base: PreTrainedTokenizerBase, tuned: PreTrainedTokenizerBase, name: str) -> None:
    """InputError that shows the first token whose id differs."""
    if fingerprint(base) == fingerprint(tuned):
        return
    ours, theirs = base.get_vocab(), tuned.get_vocab()
    odd = min(
        (token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token)),
        key=lambda token: (ours.get(token, theirs.get(token)), token),
    )
    raise InputError(
        f"{name} has another vocabulary than the base model: token {odd!r} is {ours.get(odd, 'absent')} there "
        f"and {theirs.get(odd, 'absent')} here; an audit needs a model tuned from this base"
    )
