"""Passes over several sequences: which of them share one, and the states of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from transformers import DynamicCache


def groups_of(lengths: Sequence[int], batch_tokens: int, most_rows: int, pass_cost: int) -> list[slice]:
    """Runs of sequences whose `lengths` fall, each for one pass.

    All rows of a pass are as long as its first, so a run ends where the tokens that this wastes cost more than a pass
    of its own, `pass_cost` tokens. A run of more than one has at most `batch_tokens`, and `most_rows`.
    """
    assert all(one >= other for one, other in pairwise(lengths)), "lengths rise"
    groups, begin = [], 0
    for end in range(1, len(lengths) + 1):
        tokens, rows = sum(lengths[begin : end + 1]), end + 1 - begin
        padded = rows * lengths[begin]
        if end == len(lengths) or padded > batch_tokens or rows > most_rows or padded - tokens > pass_cost:
            groups.append(slice(begin, end))
            begin = end
    return groups


def moved(state: Tensor, places: Sequence[int]) -> Tensor:
    """[rows, ..., time, size], each row moved so many places to the right; what is moved in is of no account."""
    if not any(places):
        return state
    count = state.shape[-2]
    columns = torch.arange(count) - torch.tensor(places)[:, None]
    index = columns.clamp(0, count - 1).to(state.device).view(len(places), *[1] * (state.dim() - 3), count, 1)
    return state.gather(-2, index.expand_as(state))


def states_of(cache: DynamicCache | None, hidden: Tensor) -> list[Tensor]:
    """Keys and values of each layer [rows, heads, time, size], and the final hidden states [rows, time, hidden]."""
    layers = [] if cache is None else cache.layers
    return [*(part for layer in layers for part in (layer.keys, layer.values)), hidden]


def cache_of(states: Sequence[Tensor]) -> DynamicCache:
    """A cache with these keys and values of each layer, not copies of them."""
    cache = DynamicCache()
    for index, (keys, values) in enumerate(zip(states[::2], states[1::2], strict=True)):
        cache.update(keys[..., :0, :], values[..., :0, :], index)
        cache.layers[index].keys, cache.layers[index].values = keys, values
    return cache
