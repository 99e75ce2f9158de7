"""Weights of single tokens in the heads' losses, from the rows' column `weights` or `importance` to the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from datasets import Dataset

from graftlm.errors import InputError
from graftlm.heads.loss import IGNORE

COLUMNS = ("weights", "importance")
ALIGNED = "token_weights"


def align_token_weights(rows: Dataset, max_length: int | None) -> Dataset:
    """Add `token_weights`, one number a token of `input_ids`: the completion's as given, 1 for an end-of-sequence
    token after it, 0 for the prompt's. A row that was cut to the maximum length has its first numbers.

    Raises InputError where the column is missing, or has another number of values than the completion has tokens.
    """
    column = next((name for name in COLUMNS if name in rows.column_names), None)
    if column is None:
        raise InputError(
            "weighting is 'importance', but the rows have no column `weights` or `importance` "
            f"(they have {', '.join(rows.column_names)})"
        )

    def align(row: Mapping[str, Any], number: int) -> dict[str, list[float]]:
        supervised = [label != IGNORE for label in row["labels"]]
        given = list(row[column] or [])
        cut = max_length is not None and len(supervised) >= max_length
        if not (cut or sum(supervised) in (len(given), len(given) + 1)) or sum(supervised) > len(given) + 1:
            raise InputError(
                f"row {number + 1}: `{column}` has {len(given)} numbers, but the completion has "
                f"{sum(supervised)} tokens with this tokenizer; compute it anew"
            )
        weights = iter([*given, 1.0])
        return {ALIGNED: [float(next(weights)) if counts else 0.0 for counts in supervised]}

    return rows.map(align, with_indices=True, desc="Aligning token weights")


class TokenWeightsCollator:
    """`collate`, with the rows' `token_weights` padded by 0 to [batch, time] float32 beside its tensors."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collate(rows)
        weights = torch.zeros(batch["input_ids"].shape)
        for number, row in enumerate(rows):  # TRL pads on the right
            weights[number, : len(row[ALIGNED])] = torch.tensor(row[ALIGNED])
        return {**batch, ALIGNED: weights}
