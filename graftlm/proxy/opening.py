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
            check_vocabulary(model, tokenizer, part, own, role)
    names = {"base": _name(base), "expert": _name(expert), "antiexpert": _name(antiexpert)}
    names |= dict(zip(("base_revision", "expert_revision", "antiexpert_revision"), revisions, strict=True))
    return Parts(base=model, experts=experts, tokenizer=tokenizer, expert_tokenizer=expert_tokenizer, names=names)


def check_vocabulary(
    base: Any, tokenizer: PreTrainedTokenizerBase | None, other: Any, own: PreTrainedTokenizerBase | None, role: str
) -> None:
    """InputError where `other`, with the tokenizer `own`, does not mean the base model's tokens by their ids: the first
    such id is shown.

    Fewer rows than the base model's are refused only where one of its tokens has none (larger models of a family often
    have more, of no token). Further entries of `other` are allowed: their logits are cropped.
    """
    fault = f"{role} has another vocabulary than the base model"
    size, width = base.config.get_text_config().vocab_size, other.config.get_text_config().vocab_size
    ours = {} if tokenizer is None else {index: token for token, index in tokenizer.get_vocab().items()}
    size = min(size, 1 + max(ours, default=size))
    if width < size:
        raise InputError(
            f"{fault}: {width} entries, {size} there, so id {width} is the first without a logit here; proxy-tuning "
            "needs models that share a tokenizer"
        )
    theirs = ours if own is None else {index: token for token, index in own.get_vocab().items()}
    for index in sorted(ours):
        if theirs.get(index) != ours[index]:
            token = "no token" if index not in theirs else repr(theirs[index])
            raise InputError(
                f"{fault}: id {index} is {ours[index]!r} there and {token} here; proxy-tuning needs models that share "
                "a tokenizer"
            )


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
