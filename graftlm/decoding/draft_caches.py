"""Key-value caches of a model and its drafting heads, which forget the drafted tokens that were not accepted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

WASTE = 0.25
"""Share of a batch's columns that may be hidden before they are taken out."""


class HeadCache(DynamicCache):
    """Keys and values of a head's layers, which still count as those of the model that they were copied from."""

    def __init__(self, first_layer: int) -> None:
        super().__init__()
        self.first_layer = first_layer

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        return super().update(key_states, value_states, layer_idx - self.first_layer, *args, **kwargs)


class DraftCaches:
    """The caches of the sequences that are not done: `model`, and `heads`, one for each head that drafts.

    `visible` [batch, columns] (bool): the columns that hold tokens of a text; the mask hides the others.
    `counts_columns`: whether the model takes the distance of two tokens to be that of their columns.
    """

    def __init__(self, batch: int, heads: int, first_layer: int, *, counts_columns: bool, device: torch.device) -> None:
        self.model = DynamicCache()
        self.heads = [HeadCache(first_layer) for _ in range(heads)]
        self.visible = torch.ones(batch, 0, dtype=torch.bool, device=device)
        self.counts_columns = counts_columns

    def extend(self, mask: Tensor) -> dict[str, Tensor]:
        """Make room for new columns, visible where `mask` [batch, time] is; returns the attention mask, if needed."""
        self.visible = torch.cat([self.visible, mask], dim=1)
        return {} if bool(self.visible.all()) else {"attention_mask": self.visible.long()}

    def forget(self, last: Tensor, block: int) -> None:
        """Forget what comes after place `last` [batch] of each sequence in the newest `block` columns."""
        spare = block - 1 - int(last.max())
        if spare:
            for cache in (self.model, *self.heads):
                cache.crop(-spare)
            self.visible = self.visible[:, :-spare]
        places = torch.arange(block - spare, device=last.device)
        self.visible[:, self.visible.shape[1] - len(places) :] &= places <= last[:, None]
        hidden = 1 - float(self.visible.sum(1).max()) / self.visible.shape[1]
        uneven = not bool(self.visible[:, -1].all())
        if hidden > WASTE or (uneven and self.counts_columns):
            self._compact()

    def _compact(self) -> None:
        """Move each sequence's visible columns to the right end, and what is hidden to the left or out."""
        width = int(self.visible.sum(1).max())
        # A stable sort by visibility keeps the order of what is visible.
        columns = self.visible.long().argsort(dim=1, stable=True)[:, -width:]
        for cache in (self.model, *self.heads):
            for layer in cache.layers:
                layer.keys, layer.values = (
                    states.gather(2, columns[:, None, :, None].to(states.device).expand(-1, states.shape[1], -1, size))
                    for states, size in ((layer.keys, layer.keys.shape[3]), (layer.values, layer.values.shape[3]))
                )
        self.visible = self.visible.gather(1, columns)

    def keep(self, alive: Sequence[bool]) -> None:
        """Keep only the sequences that are alive."""
        rows = torch.tensor(alive, device=self.visible.device).nonzero()[:, 0]
        for cache in (self.model, *self.heads):
            cache.batch_select_indices(rows)
        self.visible = self.visible[rows]
