"""Ranks as weights of the multi-token loss: a number for each token of a row's completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graftlm.data.encoding import encode_prompt, encode_with_offsets
from graftlm.errors import InputError
from graftlm.pruning.encoding import without_gaps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def importance(
    tokenizer: PreTrainedTokenizerBase,
    row: Mapping[str, Any],
    spans: Sequence[tuple[int, int]],
    ranks: Sequence[int],
) -> list[float]:
    """The column `importance` of a row whose completion begins with the whole chain.

    A token of the chain gets the highest rank of its characters, divided by the highest of all, in (0, 1]; a token of
    the answer, and what a chat template puts after it, 1. The tokens are those that TRL trains on with this tokenizer.

    Args:
        row: `prompt` and `completion`, text or messages.
        spans, ranks: characters and rank of each of the chain's tokens, which cover it.

    InputError where the chat template does not leave the completion as it is.
    """
    highest = max(ranks)
    worth: list[float] = []  # of each character of the chain
    for (start, stop), rank in zip(spans, ranks, strict=True):
        worth += [0.0] * (stop - len(worth))
        for place in range(start, stop):
            worth[place] = max(worth[place], rank / highest)
    return [
        max(worth[start:stop], default=0.0) if start < len(worth) and stop <= len(worth) else 1.0
        for start, stop in _completion_spans(tokenizer, row)
    ]


def _completion_spans(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Characters of the completion of each of its tokens; from its length on where a template adds some."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        prompt_ids, options = encode_prompt(tokenizer, prompt), {}
        whole, begin = prompt + completion, len(prompt)
    else:
        options = {"add_special_tokens": False}
        head = str(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False))
        whole = str(tokenizer.apply_chat_template([*prompt, *completion], tokenize=False))
        prompt_ids, completion = list(tokenizer(head, **options)["input_ids"]), completion[-1]["content"]
        begin = whole.find(completion, len(head) if whole.startswith(head) else 0)
        if begin < 0:
            raise InputError("the chat template changes the completion, so that no rank belongs to its tokens")
    ids, offsets = encode_with_offsets(tokenizer, whole, **options)
    if ids[: len(prompt_ids)] == prompt_ids:
        of_completion = offsets[len(prompt_ids) :]
        return without_gaps([(max(start - begin, 0), max(stop - begin, 0)) for start, stop in of_completion])
    encoded = tokenizer(completion, add_special_tokens=False, return_offsets_mapping=True)
    return without_gaps(encoded["offset_mapping"])
