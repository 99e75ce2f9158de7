"""Audit tuned models: compare each with the model it was tuned from."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerBase

from graftlm.auditing.condition import check_conditions, parse_condition
from graftlm.auditing.config import DEFAULT_PROBES, AuditConfig
from graftlm.auditing.diversity import Pattern
from graftlm.auditing.intervals import changes
from graftlm.auditing.measurement import Measurement, Opening
from graftlm.auditing.page import write_audit_report
from graftlm.auditing.result import AuditResult, TunedPair
from graftlm.errors import InputError
from graftlm.models.given import Given, given_model, name_of
from graftlm.models.modes import at_rest
from graftlm.models.pair import ModelPair, SteeredPair
from graftlm.models.pair_loading import check_base, opened_pair
from graftlm.proxy.steering import steering
from graftlm.reinforce.formats import Format
from graftlm.runs.console import Report
from graftlm.runs.run import Run
from graftlm.tasks import Task, get_task

Steer = Callable[[Any, PreTrainedTokenizerBase], Any]
Several: TypeAlias = "Given | Sequence[Given] | Mapping[str, Given]"


def run(config: AuditConfig, run: Run, progress: Report | None = None) -> AuditResult:
    """Audit models as `config` says; audit.json and report.html go into the run's folder.

    Raises InputError, before a model is loaded, for a condition on what is not measured.
    """
    tasks = [get_task(name) for name in config.tasks]
    probes = [get_task(name) for name in config.probes if name not in config.tasks]
    check_conditions([parse_condition(text) for text in config.fail_if], tasks, probes)
    result = audit(
        config.base,
        config.tuned,
        steered=steering(config.base, config.expert, config.antiexpert, config.alpha),
        tasks=tasks,
        probes=probes,
        limit=config.limit,
        layer_groups=config.layer_groups,
        formats=config.formats or None,
        batch_size=config.batch_size,
        seed=config.seed,
        progress=progress,
    )
    run.write_json("audit.json", asdict(result))
    write_audit_report(run.folder / "report.html", result, title=f"Audit of models tuned from {config.base}")
    return result


def audit(
    base: Given,
    tuned: Several = (),
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    steered: Mapping[str, Steer] | None = None,
    tasks: Sequence[str | Task] = (),
    probes: Sequence[str | Task] = DEFAULT_PROBES,
    limit: int | None = 100,
    layer_groups: int = 6,
    formats: Mapping[str, Pattern] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Report | None = None,
) -> AuditResult:
    """Measure what tuning gained, what it cost, and in which layers.

    Args:
        base: the model that the others were tuned from, by name or loaded.
        tuned: one or several models, by name (folders, adapters, hub ids) or loaded; a mapping gives them other names.
            An adapter on `base` needs no second copy of it. Loaded models are afterwards as they were.
        tokenizer: that of a loaded `base` (default: the one that is saved where it came from).
        steered: further models that only steer `base`: name -> function of the loaded base model and its tokenizer
            that gives such a model (ProxyTunedModel). They have no parts by layer.
        tasks: what the models were tuned for.
        probes: what they should still know; names, or files of prompts and completions (docs/tasks.md).
        limit: the first so many test examples of each (None: all).
        layer_groups: number of groups of neighbouring layers, each restored by itself.
        formats: name -> regular expression or callable, for the share of output formats (None: common ones).
        batch_size: examples at once.
        seed: of what tasks draw, of the sampled text and of the bootstrap.
        progress: called with what is being done, how much of it is done and how much there is.

    Raises InputError for models that cannot be compared (other architecture, size or vocabulary), a weight that is not
    finite, and whatever `load_model` and `evaluate` refuse.
    """
    steered = steered or {}
    models = named_models(tuned)
    for each in models.values():
        check_base(base, each)
    tasks, probes = ([get_task(each) if isinstance(each, str) else each for each in kind] for kind in (tasks, probes))
    check_settings([*models, *steered], [*tasks, *probes], layer_groups, formats or {})
    begun = time.perf_counter()
    model, tokenizer = given_model(base, tokenizer)
    seconds = {"loading": time.perf_counter() - begun}
    measurement = Measurement(
        tokenizer=tokenizer, tasks=tasks, probes=probes, limit=limit, layer_groups=layer_groups, formats=formats,
        batch_size=batch_size, seed=seed, progress=progress, seconds=seconds,
    )  # fmt: skip
    pairs: dict[str, Opening] = {
        name: partial(opened_pair, model, tokenizer, name_of(base), each) for name, each in models.items()
    }
    for name, steer in steered.items():
        pairs[name] = partial(steered_pair, model, tokenizer, steer)
    with at_rest(model):
        reference, audited = measurement.measure(pairs)
    return AuditResult(
        base=name_of(base) or "base model",
        tasks=[task.name for task in tasks],
        probes=[probe.name for probe in probes],
        base_results=reference.results,
        base_diversity=reference.diversity,
        tuned=audited,
        between=[
            TunedPair(first=one, second=other, changes=changes(audited[one].results, audited[other].results, seed))
            for one, other in itertools.pairwise(audited)
        ],
        seconds=seconds,
        settings={"limit": limit, "batch_size": batch_size, "seed": seed, "layer_groups": layer_groups},
    )


def steered_pair(base: Any, tokenizer: PreTrainedTokenizerBase, steer: Steer) -> AbstractContextManager[ModelPair]:
    """The pair of `base` and the model that steers it."""
    return nullcontext(SteeredPair(base, steer(base, tokenizer)))


def named_models(tuned: Several) -> dict[str, Given]:
    """Name -> model; a loaded model without a name is called "tuned", or "tuned 1", "tuned 2" and so on.

    Raises InputError for a name that is given twice.
    """
    if isinstance(tuned, Mapping):
        return dict(tuned)
    models = list(tuned) if isinstance(tuned, (list, tuple)) else [tuned]
    unnamed = ["tuned"] if len(models) == 1 else [f"tuned {place}" for place in range(1, len(models) + 1)]
    names = [os.fspath(m) if isinstance(m, (str, os.PathLike)) else un for m, un in zip(models, unnamed, strict=True)]
    check_once("model", names)
    return dict(zip(names, models, strict=True))


def check_settings(
    models: Sequence[str], tasks: Sequence[Task], layer_groups: int, formats: Mapping[str, Pattern]
) -> None:
    """Raise InputError for no model, no task or probe, one that stands twice, no group of layers, or a wrong format."""
    if not models:
        raise InputError("no tuned model is given; name at least one to compare with the base model")
    if not tasks:
        raise InputError("neither a task nor a probe is given; name at least one")
    check_once("model", models)
    check_once("task or probe", [task.name for task in tasks])
    if layer_groups < 1:
        raise InputError(f"layer_groups must be at least 1, not {layer_groups}")
    for name, pattern in formats.items():
        Format(name, pattern)


def check_once(kind: str, names: Sequence[str]) -> None:
    """Raise InputError for a name that stands twice."""
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{kind} {name} is given twice; name each once")
