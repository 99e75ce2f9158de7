"""Measures of the formats in a rollout batch with n completions, n_f of them of format f:

    share_f = n_f / n,   entropy = −Σ_f share_f · ln share_f,   distance = Σ_f share_f · ln (share_f / start_f),

the accuracy within each format, pass@1 and pass@k within each prompt's completions, and how many distinct answers a
prompt gets. start_f is the share of the model that the run started from. The distance takes shares with half a
completion added to each format, so that a format that was never seen at the start does not make it infinite.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import regex


class Rollout(NamedTuple):
    """A completion as the measures see it; `prompt` is a key, `answer` tells which completions answer alike."""

    format: str
    reward: float | None
    prompt: str
    answer: str


def measured(
    rows: Sequence[Rollout], names: Sequence[str], start: Mapping[str, float], correct_above: float
) -> dict[str, Any]:
    """The measures of one rollout batch.

    names: all formats; start: the start model's share of each; correct_above: a higher reward counts as correct.
    """
    counts = Counter(row.format for row in rows)
    correct: Counter[str] = Counter()
    by_prompt: dict[str, list[tuple[bool, str]]] = {}
    for row in rows:
        right = row.reward is not None and row.reward > correct_above
        correct[row.format] += right
        by_prompt.setdefault(row.prompt, []).append((right, row.answer))
    shares = {name: counts[name] / max(len(rows), 1) for name in names}
    groups = list(by_prompt.values())
    return {
        "counts": {name: counts[name] for name in names},
        "shares": shares,
        "accuracy": {name: correct[name] / counts[name] if counts[name] else None for name in names},
        "entropy": entropy(shares.values()),
        "distance": divergence([counts[name] for name in names], [start[name] for name in names]),
        "pass_at_1": sum(correct.values()) / max(len(rows), 1),
        "pass_at_k": sum(any(right for right, _ in group) for group in groups) / max(len(groups), 1),
        "k": max(map(len, groups), default=0),
        "distinct_answers": sum(len({answer for _, answer in group}) for group in groups) / max(len(groups), 1),
    }


def metrics(line: Mapping[str, Any]) -> dict[str, float]:
    """A line of the history as the trainer's metrics."""
    return {
        "formats/entropy": line["entropy"],
        "formats/distance": line["distance"],
        **{f"formats/{name}/share": share for name, share in line["shares"].items()},
        **{f"formats/{name}/accuracy": value for name, value in line["accuracy"].items() if value is not None},
        **{name: line[name] for name in ("pass_at_1", "pass_at_k", "distinct_answers")},
    }


def entropy(shares: Iterable[float]) -> float:
    """−Σ p ln p in nats."""
    return -sum(share * math.log(share) for share in shares if share > 0)


def divergence(counts: Sequence[int], start: Sequence[float]) -> float:
    """KL in nats of the counted shares from the start's, half a completion added to each format in both."""
    total = sum(counts)
    own = [(count + 0.5) / (total + 0.5 * len(counts)) for count in counts]
    first = [(share * total + 0.5) / (total + 0.5 * len(counts)) for share in start]
    return sum(p * math.log(p / q) for p, q in zip(own, first, strict=True))


def final_answer(text: str) -> str:
    """The last number in a text, or else its last line: enough to tell whether two completions answer alike."""
    if numbers := regex.findall(r"-?\d+(?:\.\d+)?", text.replace(",", "")):
        return str(numbers[-1])
    return text.strip().rpartition("\n")[2]
