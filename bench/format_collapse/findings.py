"""The findings of "Echo Chamber" (arXiv 2504.07912), each held against the runs: a verdict and the numbers for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from measurement import mean
from problems import FORMATS

COLLAPSED = 0.9  # share of the largest format from which a run counts as collapsed
ALIVE = 0.01  # a minority share above this counts as alive
PLAIN, STRONG = "grpo beta 0", "grpo beta 0.01"
GUARDED = ("grpo within-format", "grpo format-divergence", "grpo format-divergence-0.1")
Found = dict[str, Any]
Cell = tuple[str, str, str]
"""Scale, mixture and arm."""


def start(found: Found) -> Found:
    return found["measurements"][0]


def epoch(found: Found) -> Found:
    return next(each for each in found["measurements"] if each["epoch"] == 1)


def end(found: Found) -> Found:
    return found["measurements"][-1]


def largest(shares: dict[str, float]) -> str:
    return max(shares, key=lambda form: shares[form])


def minority(measured: Found) -> float:
    """Share of all formats but the largest."""
    return 1 - max(measured["shares"].values())


def entropy(measured: Found) -> float:
    """Of the formats' shares, nats."""
    return -sum(share * math.log(share) for share in measured["shares"].values() if share > 0)


def average(runs: Sequence[Found], key: str) -> float:
    """Mean of a measured number at the end."""
    return mean(end(found)[key] for found in runs) or 0.0


def spread(values: Sequence[float | None], digits: int = 0) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    low, middle, high = (f"{100 * value:.{digits}f}" for value in (min(known), mean(known) or 0.0, max(known)))
    return middle if low == high else f"{middle} ({low}..{high})"


def winner(runs: Sequence[Found]) -> str:
    """The format with the largest mean share at the end."""
    return largest({form: mean(end(found)["shares"][form] for found in runs) or 0.0 for form in FORMATS})


def places(cells: dict[Cell, list[Found]]) -> list[tuple[str, str]]:
    """Scale and mixture of each base model, small before large."""
    found = {(scale, mixture): runs[0]["settings"]["parameters"] for (scale, mixture, _), runs in cells.items()}
    return sorted(found, key=lambda place: (place[1], found[place]))


def verdicts(cells: dict[Cell, list[Found]]) -> list[str]:
    """One for each finding: whether it came back here, and the numbers that say so."""
    return [*collapse(cells), *winners(cells), *divergence(cells), *diversity(cells), *iteration(cells), *guards(cells)]


def judged(finding: str, holds: bool, numbers: str) -> str:
    return f"- **{finding}: {'reproduced' if holds else 'not reproduced'}.** {numbers}"


def collapse(cells: dict[Cell, list[Found]]) -> list[str]:
    runs = [found for (*_, arm), those in cells.items() if arm in (PLAIN, "grpo beta 0.001") for found in those]
    if not runs:
        return []
    shares = [max(epoch(found)["shares"].values()) for found in runs]
    gains = []  # of the first epoch, as a share of the whole
    for found in runs:
        first, middle, last = (at(found)["pass_at_1"] for at in (start, epoch, end))
        gains += [(middle - first) / (last - first)] if last != first else []
    count = sum(share >= COLLAPSED for share in shares)
    holds = count > len(runs) / 2 and (mean(gains) or 0) > 0.5
    return [judged(
        "(a) One format takes over within the first epoch, together with most of the gain in pass@1", holds,
        f"GRPO, beta 0 and 0.001: in {count} of {len(runs)} runs one format has at least {COLLAPSED:.0%} after epoch 1 "
        f"(share of the largest, percent: {spread(shares)}); epoch 1 brings {spread(gains)} % of the whole gain.",
    )]  # fmt: skip


def winners(cells: dict[Cell, list[Found]]) -> list[str]:
    won, frequent, accurate, parts = {}, {}, {}, []
    for scale, mixture in places(cells):
        runs = cells.get((scale, mixture, PLAIN))
        if not runs:
            continue
        base = start(runs[0])
        won[scale, mixture] = winner(runs)
        frequent[scale, mixture] = largest(base["shares"])
        accurate[scale, mixture] = largest({form: base["accuracy"][form] or 0.0 for form in FORMATS})
        each = ", ".join(largest(end(found)["shares"]) for found in runs)
        parts.append(f"{scale} {mixture}: {each} (base most frequent {frequent[scale, mixture]}, "
                     f"most accurate {accurate[scale, mixture]})")  # fmt: skip
    if len({scale for scale, _ in won}) < 2:
        return []  # one scale tells nothing
    mixtures = {mixture for _, mixture in won}
    by_scale = [mixture for mixture in sorted(mixtures) if len({w for (_, m), w in won.items() if m == mixture}) > 1]
    not_frequent = [place for place in won if won[place] != frequent[place]]
    not_accurate = [place for place in won if won[place] != accurate[place]]
    holds = bool(by_scale and not_frequent and not_accurate)
    return [judged(
        "(b) Which format wins depends on scale, and is not always the most frequent or the most accurate", holds,
        f"GRPO, beta 0, winner of each seed: {'; '.join(parts)}. Winners differ between scales in {len(by_scale)} of "
        f"{len(mixtures)} mixtures; {len(not_frequent)} of {len(won)} are not the base's most frequent, "
        f"{len(not_accurate)} not its most accurate format.",
    )]  # fmt: skip


def divergence(cells: dict[Cell, list[Found]]) -> list[str]:
    pairs = [(place, cells[(*place, PLAIN)], cells[(*place, STRONG)]) for place in places(cells)
             if (*place, PLAIN) in cells and (*place, STRONG) in cells]  # fmt: skip
    if not pairs:
        return []
    more = [mean(map(minority, map(end, strong))) > mean(map(minority, map(end, plain))) for _, plain, strong in pairs]
    alive = [mean(map(minority, map(end, strong))) > ALIVE for _, _, strong in pairs]
    parts, changes = [], []
    for place, plain, strong in pairs:
        without, kept = ([minority(end(found)) for found in those] for those in (plain, strong))
        parts.append(f"{' '.join(place)}: {spread(without, 1)} without, {spread(kept, 1)} with")
        changes.append(average(strong, "pass_at_1") - average(plain, "pass_at_1"))
    holds = sum(map(all, zip(more, alive, strict=True))) > len(pairs) / 2
    return [judged(
        "(c) A KL coefficient of 0.01 keeps minority formats alive", holds,
        f"Share of all formats but the largest at the end, percent: {'; '.join(parts)}. Larger with KL in {sum(more)} "
        f"of {len(pairs)}, and above {ALIVE:.0%} in {sum(alive)}; pass@1 differs by "
        f"{spread(changes, 1)} points.",
    )]  # fmt: skip


def diversity(cells: dict[Cell, list[Found]]) -> list[str]:
    runs = [found for (*_, arm), those in cells.items() if arm == PLAIN for found in those]
    if not runs:
        return []
    late = [end(found)["pass_at_k"] - epoch(found)["pass_at_k"] for found in runs]
    whole = [end(found)["pass_at_k"] - start(found)["pass_at_k"] for found in runs]
    votes = [end(found)["majority_at_k"] - start(found)["majority_at_k"] for found in runs]
    holds = (mean(late) or 0) < 0 and sum(change < 0 for change in late) > len(runs) / 2 and (mean(votes) or 0) > 0
    return [judged(
        "(d) pass@64 declines late in training, majority@64 rises", holds,
        f"GRPO, beta 0, points: pass@64 after epoch 1 {spread(late, 1)} (falls in {sum(c < 0 for c in late)} of "
        f"{len(runs)} runs), over all {spread(whole, 1)}; majority@64 over all {spread(votes, 1)}.",
    )]  # fmt: skip


def compared(
    cells: dict[Cell, list[Found]], arm: str, read: Callable[[Found], float], at: Callable[[Found], Found] = end
) -> list[float]:
    """Of each base model: the mean `at` the end of `arm` less that of GRPO without KL."""
    return [ours - theirs for ours, theirs in beside(cells, arm, read, at)]


def beside(
    cells: dict[Cell, list[Found]], arm: str, read: Callable[[Found], float], at: Callable[[Found], Found]
) -> list[tuple[float, float]]:
    """Of each base model: the means over seeds of `arm` and of GRPO without KL."""
    found = []
    for place in places(cells):
        if (*place, arm) in cells and (*place, PLAIN) in cells:
            ours, theirs = (mean(read(at(run)) for run in cells[(*place, each)]) or 0.0 for each in (arm, PLAIN))
            found.append((ours, theirs))
    return found


def iteration(cells: dict[Cell, list[Found]]) -> list[str]:
    """The paper's remark that expert iteration moves the formats less than RL."""
    less = compared(cells, "expert-iteration", lambda m: max(m["shares"].values()))
    if not less:
        return []
    right = compared(cells, "expert-iteration", lambda m: m["pass_at_1"])
    return [judged(
        "(e) Expert iteration concentrates less than GRPO", sum(each < 0 for each in less) > len(less) / 2,
        f"Against GRPO, beta 0, points: share of the largest format {spread(less, 1)}, pass@1 {spread(right, 1)}.",
    )]  # fmt: skip


def guards(cells: dict[Cell, list[Found]]) -> list[str]:
    """Not of the paper: what the guards keep, and what that costs, after the first epoch and at the end.

    What was hoped for: twice the entropy of the shares after the first epoch, pass@1 at most a point lower.
    """
    lines = []
    for arm in GUARDED:
        bases = [place for place in places(cells) if (*place, arm) in cells and (*place, PLAIN) in cells]
        if not bases:
            continue
        parts = []
        for name, at in (("after epoch 1", epoch), ("at the end", end)):
            entropies = beside(cells, arm, entropy, at)
            costs = compared(cells, arm, lambda m: m["pass_at_1"], at)
            good = sum(a >= 2 * b and cost >= -0.01 for (a, b), cost in zip(entropies, costs, strict=True))
            each = "; ".join(
                f"{' '.join(place)} {ours:.2f} to {theirs:.2f}, {100 * cost:+.1f}"
                for place, (ours, theirs), cost in zip(bases, entropies, costs, strict=True)
            )
            parts.append(f"{name} {each} (twice the entropy for at most a point in {good} of {len(bases)})")
        lines.append(
            f"- Guard `{arm.removeprefix('grpo ')}` to none, entropy of the shares in nats, pass@1 in points: "
            f"{'. '.join(parts)}. pass@64 at the end "
            f"{spread(compared(cells, arm, lambda m: m['pass_at_k']), 1)} points."
        )
    return lines
