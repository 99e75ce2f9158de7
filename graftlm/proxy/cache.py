"""The key-value cache of the base model, which takes those of the experts along."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

from graftlm.errors import InputError
from graftlm.models.caches import new_cache

if TYPE_CHECKING:
    from graftlm.proxy.experts import Experts


class ProxyCache(DynamicCache):
    """The base model's keys and values; what is done to its rows and length is done to the experts' too.

    An empty DynamicCache becomes one, so that who gave it holds what was read with it.
    """

    others: list[Cache]
    """The experts'."""
    stacked: bool
    """Whether they hold each row twice: first all rows of the expert, then all of the anti-expert."""
    rows: int
    prompt_length: int
    """Columns of the base model's prompt; what follows was generated, and is the same for all models."""
    own_length: int | None
    """Columns of the expert's own prompt, where it has one."""
    ahead: list[int]
    """How many columns more than the base model's each of the others holds."""

    @classmethod
    def of(cls, given: Any, base: Any, experts: Experts | None) -> ProxyCache:
        """`given`, or a new one for None.

        InputError for another kind of cache, and for one that other models have read with.
        """
        cache: Any = new_cache(base) if given is None else given
        if type(cache) is DynamicCache and (experts is None or not columns(cache)):
            cls._widen(cache, base, experts)
        if not isinstance(cache, cls):
            fault = "has been read with by another model" if type(cache) is DynamicCache else "holds one model's states"
            raise InputError(f"this {type(cache).__name__} {fault}: give a proxy-tuned model an empty DynamicCache")
        count = 0 if experts is None else len(experts.models())
        if len(cache.others) != count or (columns(cache) and cache._ahead() != cache.ahead):
            raise InputError("this cache is out of step with the models: it was read with by others; give a new one")
        return cache

    @classmethod
    def _widen(cls, cache: Any, base: Any, experts: Experts | None) -> None:
        offloading = {"offloading": cache.offloading}
        if cache.offloading:
            offloading["offload_only_non_sliding"] = cache.only_non_sliding
        if not columns(cache):
            cache.layers, cache.layer_class_to_replicate = new_cache(base).layers, None
        models = [] if experts is None else experts.models()
        cache.others = [new_cache(model, **offloading) for model in models]
        cache.stacked = experts is not None and experts.shared
        cache.rows = cache.prompt_length = 0
        cache.own_length, cache.ahead = None, []
        cache.__class__ = cls

    def _ahead(self) -> list[int]:
        return [columns(cache) - columns(self) for cache in self.others]

    def begin(self, rows: int, time: int, own_length: int | None) -> None:
        """Before a pass over [rows, time]. InputError where the expert's own prompt is another than at first."""
        if not columns(self):
            self.rows, self.prompt_length, self.own_length = rows, time, own_length
        elif self.own_length != own_length:
            raise InputError("the expert's own prompt belongs to the cache's first call: give it there, and each time")

    def end(self) -> None:
        """After a pass."""
        self.ahead = self._ahead()

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_croppable(self) -> bool:
        return super().is_croppable and all(cache.is_croppable for cache in self.others)

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self._each_other("crop", tokens_to_remove)

    def reset(self) -> None:
        super().reset()
        self._each_other("reset")

    def activate_past_recording(self) -> None:
        super().activate_past_recording()
        self._each_other("activate_past_recording")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._each_other("reorder_cache", self._rows_of_others(beam_idx))

    def batch_select_indices(self, indices: Tensor) -> None:
        if indices.dtype == torch.bool:
            indices = indices.nonzero()[:, 0]
        super().batch_select_indices(indices)
        self._each_other("batch_select_indices", self._rows_of_others(indices))
        self.rows = int(indices.shape[0])

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._each_other("batch_repeat_interleave", repeats)
        self.rows *= repeats

    def _each_other(self, method: str, *arguments: Any) -> None:
        for cache in self.others:
            getattr(cache, method)(*arguments)

    def _rows_of_others(self, rows: Tensor) -> Tensor:
        return torch.cat([rows, rows + self.rows]) if self.stacked else rows


def columns(cache: Cache) -> int:
    """Tokens that were read with it; 0 where no layer counts them (layers of linear attention only)."""
    counted = any(isinstance(layer, CacheLayerMixin) for layer in cache.layers)
    return cache.get_seq_length() if counted else 0
