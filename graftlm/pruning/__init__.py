"""Shorten chains of reasoning by what their tokens are worth to a model.

Imported when first used: it brings torch and peft with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftlm.lazy import lazy_attributes

if TYPE_CHECKING:
    from graftlm.pruning.config import PruneSettings
    from graftlm.pruning.encoding import ChainToken
    from graftlm.pruning.pruned_chain import PrunedChain
    from graftlm.pruning.pruner import prune_chain

__all__ = ["ChainToken", "PruneSettings", "PrunedChain", "prune_chain"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "PruneSettings": "graftlm.pruning.config",
        "ChainToken": "graftlm.pruning.encoding",
        "PrunedChain": "graftlm.pruning.pruned_chain",
        "prune_chain": "graftlm.pruning.pruner",
    },
)
