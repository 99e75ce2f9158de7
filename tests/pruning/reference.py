"""Greedy pruning written plainly: a full pass for every candidate, all positions unembedded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


@torch.no_grad()
def objective_value(
    model: Any, question: Sequence[int], chain: Sequence[int], answer: Sequence[int], objective: str
) -> float:
    ids = torch.tensor([*question, *chain, *answer])
    log_probs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    first = len(question) if objective == "joint" else len(question) + len(chain)
    return sum(float(log_probs[place - 1, ids[place]]) for place in range(first, len(ids)))


def greedy(
    model: Any,
    question: Sequence[int],
    units: Sequence[Sequence[int]],
    answer: Sequence[int],
    objective: str,
    protected: frozenset[int] = frozenset(),
    tie: float = 1e-4,
) -> tuple[list[int], list[float]]:
    """Units in the order of deletion, and the objective before the first and after each."""

    def value(kept: list[int]) -> float:
        return objective_value(model, question, [token for unit in kept for token in units[unit]], answer, objective)

    left, order = list(range(len(units))), []
    values = [value(left)]
    while left:
        allowed = [unit for unit in left if unit not in protected] or left
        scores = [value([other for other in left if other != unit]) for unit in allowed]
        chosen = next(place for place, score in enumerate(scores) if score >= max(scores) - tie)
        order.append(allowed[chosen])
        left.remove(allowed[chosen])
        values.append(scores[chosen])
    return order, values
