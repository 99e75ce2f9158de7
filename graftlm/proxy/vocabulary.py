"""Check that the models of a proxy-tuned one mean the same tokens by the same ids."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from graftlm.errors import InputError


def check_tokens(base: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, name: str) -> None:
    """InputError that shows the first id at which `other` has another token than the base model.

    Further entries at the end of `other` are allowed: their logits are cropped.
    """
    ours = {index: token for token, index in base.get_vocab().items()}
    theirs = {index: token for token, index in other.get_vocab().items()}
    for index in sorted(ours):
        if theirs.get(index) != ours[index]:
            token = "no token" if index not in theirs else repr(theirs[index])
            raise InputError(
                f"{name} has another vocabulary than the base model: id {index} is {ours[index]!r} there and {token} "
                "here; proxy-tuning needs models that share a tokenizer"
            )


def check_widths(base: Any, other: Any, name: str, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """InputError where `other` gives fewer logits than there are tokens: of the tokenizer, or else of the base model.

    Larger models of a family often have more rows in their unembedding, of no token.
    """
    ours, theirs = base.config.get_text_config().vocab_size, other.config.get_text_config().vocab_size
    if tokenizer is not None:
        ours = min(ours, 1 + max(tokenizer.get_vocab().values()))
    if theirs < ours:
        raise InputError(
            f"{name} has another vocabulary than the base model: {theirs} entries, {ours} there, so id {theirs} is the "
            "first without a logit here; proxy-tuning needs models that share a tokenizer"
        )
