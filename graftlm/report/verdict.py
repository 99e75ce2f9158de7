"""The results in plain sentences that claim no more than the examples show."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING

from graftlm.tasks.comparison import (
    Difference,
    Results,
    changed_answers,
    difference,
    is_better,
    is_probe,
    label,
    metric_value,
    task_metrics,
    tuned_models,
)

if TYPE_CHECKING:
    from graftlm.tasks import TaskResult

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def verdict_lines(results: Results, seeds: int) -> list[str]:
    """Sentences on what was gained, what was forgotten and how the tuned models compare; `seeds`: trainings of each.

    `results`: model -> task -> result. A difference counts as one only where the examples show it (`Difference.shown`).
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, not {seeds}")
    lines: list[str] = []
    for task in dict.fromkeys(task for task, _ in task_metrics(results)):
        measured = next(by_task[task] for by_task in results.values() if task in by_task)
        lines += _kept_or_forgotten(results, task, seeds) if is_probe(measured) else _gained(results, task, seeds)
        lines += _tuned_against_tuned(results, task, seeds)
    if not lines:
        return lines
    rest = "others would change." if seeds > 1 else "another one would change."
    lines.append(
        f"All of this is {seed_count(seeds)} of each training. ± is the standard error over the examples, of a "
        f"difference paired by example; it holds nothing of what {rest}"
    )
    return lines


def seed_count(seeds: int) -> str:
    number = NUMBERS[seeds] if seeds < len(NUMBERS) else str(seeds)
    return f"{number} seed" if seeds == 1 else f"{number} seeds"


def signed(value: float) -> str:
    """With sign, three decimals; a minus as long as a plus."""
    return f"{value:+.3f}".replace("-", "−").replace("−0.000", "0.000").replace("+0.000", "0.000")


def describe(change: Difference) -> str:
    """Such as "−0.002 ± 0.010"."""
    error = "" if change.standard_error is None else f" ± {change.standard_error:.3f}"
    return signed(change.value) + error


def _gained(results: Results, task: str, seeds: int) -> Iterator[str]:
    """One sentence: each metric of the untrained model, then of the tuned ones; one more where no floor is beaten."""
    tuned = [model for model in tuned_models(results) if task in results[model]]
    before = results.get("untrained", {}).get(task)
    if before is None or not tuned:
        return
    changes = {
        metric: [(model, difference(before, results[model][task], metric)) for model in tuned]
        for metric in before.metrics
    }
    every = all(c and c.shown and is_better(m, c.value) for m, pairs in changes.items() for _, c in pairs)
    parts = []
    for metric, pairs in changes.items():
        after = [
            f"{results[model][task].metrics[metric]:.3f} {model}{'' if every else f' ({_outcome(metric, change)})'}"
            for model, change in pairs
            if change
        ]
        if after:
            parts.append(f"{label(metric)} {before.metrics[metric]:.3f} untrained, {', '.join(after)}")
    if parts:
        start = "Tuning improved every measure of" if every else "Untrained against tuned on"
        yield f"{start} {task} ({_size(before, seeds)}): {'; '.join(parts)}."
    yield from _below_floor(results, task, tuned)


def _below_floor(results: Results, task: str, tuned: list[str]) -> Iterator[str]:
    for model in tuned:
        for metric, floor in results[model][task].floors.items():
            value = metric_value(results, model, task, metric)
            # A floor of 1 is also the ceiling: there the metric shows only that a trivial answer does as well.
            if value is not None and floor != 1 and not is_better(metric, value - floor):
                found = f"{label(metric)} {value:.3f}, floor {floor:.3f}"
                yield f"{_capital(model)} does not beat a trivial answer on {task}: {found}."


def _kept_or_forgotten(results: Results, task: str, seeds: int) -> Iterator[str]:
    before = results.get("untrained", {}).get(task)
    for model in tuned_models(results):
        after = results[model].get(task)
        if before is None or after is None:
            continue
        parts = [_lost_and_won(before, after, metric) for metric in before.metrics]
        found = "; ".join(part for part in parts if part)
        if found:
            yield f"What {model} forgot on {task} ({_size(after, seeds)}): {found}."


def _lost_and_won(before: TaskResult, after: TaskResult, metric: str) -> str:
    change, answers = difference(before, after, metric), changed_answers(before, after, metric)
    if change is None:
        return ""
    if answers is None:
        return (
            f"{label(metric)} {before.metrics[metric]:.3f} untrained, {after.metrics[metric]:.3f} after "
            f"({describe(change)}: {_outcome(metric, change)})"
        )
    lost, won = (len(part) for part in answers)
    right = [round(result.metrics[metric] * len(result.examples)) for result in (before, after)]
    if change.shown:
        outcome = "more lost than won" if lost > won else "more won than lost"
    else:
        outcome = f"neither loss nor gain that {after.count} examples can show"
    return (
        f"{label(metric)} {right[0]} right untrained, {right[1]} after: {lost} lost and {won} won "
        f"({describe(change)}: {outcome})"
    )


def _tuned_against_tuned(results: Results, task: str, seeds: int) -> Iterator[str]:
    tuned = [model for model in tuned_models(results) if task in results[model]]
    for first, second in combinations(tuned, 2):
        before, after = results[first][task], results[second][task]
        parts = []
        for metric in before.metrics:
            change = difference(before, after, metric)
            if change is not None:
                outcome = _outcome(metric, change, f"no difference that {seed_count(seeds)} can show")
                parts.append(
                    f"{label(metric)} {after.metrics[metric]:.3f} against {before.metrics[metric]:.3f} "
                    f"(difference {describe(change)}: {outcome})"
                )
        if parts:
            yield f"{_capital(second)} against {first} on {task} ({_size(after, seeds)}): {'; '.join(parts)}."


def _outcome(metric: str, change: Difference, none: str = "no difference shown") -> str:
    if not change.shown:
        return none
    return "better" if is_better(metric, change.value) else "worse"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _size(result: TaskResult, seeds: int) -> str:
    return f"{result.count} {'example' if result.count == 1 else 'examples'}, {seed_count(seeds)}"
