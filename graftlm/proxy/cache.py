"""The key-value caches of the models of a proxy-tuned one, as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache


class ProxyCache(Cache):
    """`caches`: the base model's first. What is done to its rows and length is done to all.

    `stacked`: which of them hold each row twice, first all rows of the expert, then all of the anti-expert. Lengths may
    differ where the expert has a prompt of its own; the length that is reported is the base model's.
    """

    def __init__(self, caches: Sequence[Cache], stacked: Sequence[bool]) -> None:
        super().__init__(layers=[])
        self.caches = list(caches)
        self.stacked = list(stacked)
        self.rows = 0
        self.prompt_length = 0
        """Columns of the base model's prompt; what follows was generated, and is the same for all models."""

    def __len__(self) -> int:
        return len(self.caches[0])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.caches[0].get_seq_length(layer_idx)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return min(cache.get_max_length(layer_idx) for cache in self.caches)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.caches[0].get_mask_sizes(query_length, layer_idx)

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_croppable(self) -> bool:
        return all(cache.is_croppable for cache in self.caches)

    @property
    def batch_size(self) -> int:
        return self.rows

    def crop(self, tokens_to_remove: int) -> None:
        for cache in self.caches:
            cache.crop(tokens_to_remove)

    def reset(self) -> None:
        for cache in self.caches:
            cache.reset()
        self.rows = self.prompt_length = 0

    def activate_past_recording(self) -> None:
        for cache in self.caches:
            cache.activate_past_recording()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._each_row("reorder_cache", beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._each_row("batch_select_indices", indices)
        self.rows = int(indices.shape[0])

    def batch_repeat_interleave(self, repeats: int) -> None:
        for cache in self.caches:
            cache.batch_repeat_interleave(repeats)
        self.rows *= repeats

    def _each_row(self, method: str, rows: Tensor) -> None:
        for cache, stacked in zip(self.caches, self.stacked, strict=True):
            chosen: Any = torch.cat([rows, rows + self.rows]) if stacked else rows
            getattr(cache, method)(chosen)
