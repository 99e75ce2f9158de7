"""Models with a short name. Loading asks here for the folder of one, and does not know what it is made from."""

from __future__ import annotations

from pathlib import Path

from graftlm.models.bundled import SMOLLM2_135M, bundled_folder

NAMED_MODELS = {each.name: each for each in (SMOLLM2_135M,)}


def named_folder(name: str) -> Path | None:
    """The folder of the model with this short name, made on first use; None where its package is not installed, and for
    every other name."""
    model = NAMED_MODELS.get(name)
    return None if model is None else bundled_folder(model)
