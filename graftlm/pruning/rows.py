"""Deprecated: `graftlm.pruning.prune.prune`, whose options have the settings of `Ranking` and `Cut`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from graftlm.pruning.config import PruneConfig
from graftlm.pruning.prune import prune
from graftlm.pruning.pruned_file import COLUMN, Pruned
from graftlm.runs.run import call_verb

__all__ = ["COLUMN", "Cut", "Pruned", "Ranking", "prune_rows"]

Ranking = Cut = dict


def prune_rows(data: str, output: Path, ranking: dict[str, Any], cut: dict[str, Any], **options: Any) -> Pruned:
    """Prune as `prune` does, with a DeprecationWarning."""
    warnings.warn("prune_rows is now graftlm.prune; the old name goes in the next release", DeprecationWarning, 2)
    how = {name: options.pop(name, False) for name in ("resume", "overwrite")}
    given = {**ranking, **cut, **options, "data": data, "output": str(output)}
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    return call_verb("prune", PruneConfig, prune, settings, **how)
