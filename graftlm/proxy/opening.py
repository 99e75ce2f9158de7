"""Load base, expert and anti-expert, each once, and compare their vocabularies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from graftlm.errors import InputError
from graftlm.models.few_rows import use_fast_cpu_products
from graftlm.models.given import Given, name_of
from graftlm.models.load import adapter_on, load_model
from graftlm.proxy.experts import Experts, SeparateExperts, SharedExperts
from graftlm.proxy.vocabulary import check_tokens, check_widths


@dataclass(frozen=True, kw_only=True)
class Parts:
    """`names`: the settings of a ProxyTunedConfig that name the models, None where one was given as a model."""

    base: Any
    experts: Experts | None
    tokenizer: PreTrainedTokenizerBase | None
    expert_tokenizer: PreTrainedTokenizerBase | None
    names: dict[str, str | None]


def open_parts(
    base: Given,
    expert: Given | None,
    antiexpert: Given | None,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    wanted: bool,
    revisions: Sequence[str | None],
) -> Parts:
    """Load what is given by name. Experts that are not `wanted` are neither loaded nor held.

    InputError for vocabularies that differ.
    """
    revision, expert_revision, antiexpert_revision = revisions
    if wanted and expert is None:
        raise InputError("no expert is given: proxy-tuning needs one (or alpha = 0)")
    model, own_tokenizer = _part(base, revision)
    tokenizer = tokenizer or own_tokenizer
    experts, expert_tokenizer = None, None
    if wanted and expert is not None:
        experts, tokenizers = _open_experts(expert, antiexpert, expert_revision, antiexpert_revision)
        expert_tokenizer = tokenizers[0]
        for role, part, own in zip(("expert", "anti-expert"), experts.models(), tokenizers, strict=False):
            check_widths(model, part, role, tokenizer)
            if tokenizer is not None and own is not None:
                check_tokens(tokenizer, own, role)
    names = {"base": _name(base), "expert": _name(expert), "antiexpert": _name(antiexpert)}
    names |= dict(zip(("base_revision", "expert_revision", "antiexpert_revision"), revisions, strict=True))
    return Parts(base=model, experts=experts, tokenizer=tokenizer, expert_tokenizer=expert_tokenizer, names=names)


def load_part(name: str | os.PathLike[str], revision: str | None) -> tuple[Any, PreTrainedTokenizerBase]:
    """Model and tokenizer, for decoding only: nobody else holds the model, so its fast products stay."""
    model, tokenizer = load_model(name, revision=revision)
    use_fast_cpu_products(model)
    return model, tokenizer


def _part(given: Given, revision: str | None) -> tuple[Any, PreTrainedTokenizerBase | None]:
    """The model, loaded if it is a name, and its tokenizer where that is known."""
    return load_part(given, revision) if isinstance(given, (str, os.PathLike)) else (given, None)


def _open_experts(
    expert: Given, antiexpert: Given | None, revision: str | None, antiexpert_revision: str | None
) -> tuple[Experts, list[PreTrainedTokenizerBase | None]]:
    """The experts and the tokenizers of expert and anti-expert."""
    if antiexpert is None:
        model, tokenizer = _part(expert, revision)
        if not isinstance(model, PeftModel):
            raise InputError("no anti-expert is given: it is needed unless the expert is an adapter on it")
        return SharedExperts(model), [tokenizer]
    small, small_tokenizer = _part(antiexpert, antiexpert_revision)
    if isinstance(expert, (str, os.PathLike)) and isinstance(antiexpert, (str, os.PathLike)) and revision is None:
        assert small_tokenizer is not None  # it was loaded by name
        adapted = adapter_on(small, small_tokenizer, os.fspath(antiexpert), os.fspath(expert))
        if adapted is not None:
            return SharedExperts(adapted[0]), [adapted[1]]
    model, tokenizer = _part(expert, revision)
    if isinstance(model, PeftModel) and model.get_base_model() is small:
        return SharedExperts(model), [tokenizer]
    return SeparateExperts(model, small), [tokenizer, small_tokenizer]


def _name(given: Given | None) -> str | None:
    if given is None or isinstance(given, PeftModel):  # which calls itself by the name of the model that it is on
        return None
    return name_of(given) or None
