"""Hold tuned models against the model that they came from: gain, retention, where it changed, diversity."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from graftlm.auditing.comparison import changes, compare_results
from graftlm.auditing.divergence import base_written_divergence, write_base_texts
from graftlm.auditing.diversity import Pattern, measure_diversity
from graftlm.auditing.forward_clock import ForwardClock
from graftlm.auditing.representations import layer_drift
from graftlm.auditing.restoration import reference_pairs, restore_each
from graftlm.auditing.result import AuditResult, Diversity, LayerDrift, Restored, TunedAudit, TunedPair
from graftlm.auditing.weights import weight_changes
from graftlm.data.load import general_prompts, general_text
from graftlm.data.written_text import WrittenText
from graftlm.errors import InputError
from graftlm.models.load import load_model
from graftlm.models.pair import ModelPair, SteeredPair
from graftlm.models.pair_loading import opened_pair
from graftlm.reinforce.formats import Format
from graftlm.tasks import FileProbe, Task, TaskResult, get_task
from graftlm.tasks.evaluation import evaluate
from graftlm.tasks.facts import FactProbe

Report = Callable[[str, int, int], None]
Steering = Callable[[Any, PreTrainedTokenizerBase], Any]
DEFAULT_PROBES = ("capitals", "elements", "glosses", "general-text", "code")
WRITTEN_TOKENS = 1500  # of text that the base model writes for the divergence
REFERENCES = 40  # of each task and probe, measured at each restoration
SAMPLED_PROMPTS = 16  # for the diversity


def audit(
    base: str,
    tuned: str | Sequence[str] = (),
    *,
    steered: Mapping[str, Steering] | None = None,
    tasks: Sequence[str | Task] = (),
    probes: Sequence[str | Task] = DEFAULT_PROBES,
    limit: int | None = 100,
    layer_groups: int = 6,
    formats: Mapping[str, Pattern] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Report | None = None,
) -> AuditResult:
    """What tuning gained, what it cost, and in which layers.

    Args:
        base: name of the model that the others were tuned from, as `load_model` takes it.
        tuned: one or several names: folders, adapters, hub ids. Each model is loaded once; an adapter on `base` needs
            no second copy of it.
        steered: further models that leave the base model's weights alone and steer it: name -> function of the loaded
            base model and its tokenizer that gives such a model (ProxyTunedModel). They have no parts by layer.
        tasks: what the models were tuned for.
        probes: what they should still know; names, or files of prompts and completions (docs/tasks.md).
        limit: the first so many test examples of each (None: all).
        layer_groups: runs of neighbouring layers, each restored by itself.
        formats: name -> regular expression or callable, for the share of output formats (None: common ones).
        batch_size: examples at once.
        seed: of what tasks draw, of the sampled text and of the bootstrap.
        progress: gets what is being done, how much of it is done and how much there is.

    Raises InputError for models that cannot be compared (other architecture, size or vocabulary), a weight that is not
    finite, and whatever `load_model` and `evaluate` refuse.
    """
    steered = steered or {}
    names = [*([tuned] if isinstance(tuned, str) else tuned), *steered]
    check_names(base, names)
    if layer_groups < 1:
        raise InputError(f"layer_groups must be at least 1, not {layer_groups}")
    chosen = Chosen(tasks=[_task(each) for each in tasks], probes=[_task(each) for each in probes])
    chosen.check()
    for name, pattern in (formats or {}).items():
        Format(name, pattern)
    options: dict[str, Any] = {"limit": limit, "batch_size": batch_size, "seed": seed}
    stopwatch = Stopwatch()
    with stopwatch.part("loading"):
        model, tokenizer = load_model(base)
    bench = Measurement(tokenizer, chosen, options, layer_groups, formats, stopwatch, progress)
    reference: Reference | None = None
    found = {}
    with stopwatch.clock.watching(model):
        for name in names:
            with (
                nullcontext(SteeredPair(model, steered[name](model, tokenizer)))
                if name in steered
                else opened_pair(model, tokenizer, base, name)
            ) as pair:
                if reference is None:  # not before a pair is open: models that do not compare are refused at once
                    with pair.base() as opened:
                        reference = bench.reference(opened)
                found[name] = bench.compare(pair, reference, name)
    assert reference is not None  # there is at least one name
    return AuditResult(
        base=base,
        tasks=[task.name for task in chosen.tasks],
        probes=[probe.name for probe in chosen.probes],
        base_results=reference.results,
        base_diversity=reference.diversity,
        tuned=found,
        between=[
            TunedPair(first=first, second=second, changes=changes(found[first].results, found[second].results, seed))
            for first, second in itertools.pairwise(found)
        ],
        seconds=stopwatch.seconds,
        forward_share=stopwatch.forward_share,
        settings={**options, "layer_groups": layer_groups},
    )


def check_names(base: str, tuned: Sequence[str]) -> None:
    if not tuned:
        raise InputError("no tuned model is given; name at least one to hold against the base model")
    for name in tuned:
        if tuned.count(name) > 1:
            raise InputError(f"model {name} is given twice; give each one once")


def _task(task: str | Task) -> Task:
    return get_task(task) if isinstance(task, str) else task


@dataclass(frozen=True)
class Chosen:
    """The tasks and probes of an audit."""

    tasks: list[Task]
    probes: list[Task]

    def check(self) -> None:
        """InputError where there is none, or one name stands twice."""
        names = [task.name for task in (*self.tasks, *self.probes)]
        if not names:
            raise InputError("neither a task nor a probe is given; name at least one")
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{name!r} is given twice; name each task or probe once, as one or the other")


@dataclass
class Stopwatch:
    """Wall-clock seconds by part."""

    seconds: dict[str, float] = field(default_factory=dict)
    clock: ForwardClock = field(default_factory=ForwardClock)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun

    @property
    def forward_share(self) -> float:
        """Of the time of all parts but loading."""
        measured = sum(seconds for name, seconds in self.seconds.items() if name != "loading")
        return min(self.clock.seconds / measured, 1.0) if measured else 0.0


@dataclass(frozen=True)
class Reference:
    """What is measured on the base model once, for all tuned ones."""

    results: dict[str, TaskResult]
    diversity: Diversity | None
    texts: list[WrittenText]


@dataclass(frozen=True)
class Measurement:
    """All that is measured, in the order of the report."""

    tokenizer: PreTrainedTokenizerBase
    chosen: Chosen
    options: Mapping[str, Any]
    layer_groups: int
    formats: Mapping[str, Pattern] | None
    stopwatch: Stopwatch
    progress: Report | None

    def reference(self, model: Any) -> Reference:
        results = self.evaluate(model, "base")
        with self.stopwatch.part("divergence"):
            texts = write_base_texts(
                model, self.tokenizer, general_prompts(), tokens=WRITTEN_TOKENS, seed=self.options["seed"],
                progress=self.step("base: writing text"),
            )  # fmt: skip
        return Reference(results=results, diversity=self.diversity(model), texts=texts)

    def compare(self, pair: ModelPair, reference: Reference, name: str) -> TunedAudit:
        with pair.tuned() as model, self.watched(pair):
            results = self.evaluate(model, name)
            diversity = self.diversity(model)
        with self.watched(pair):
            with self.stopwatch.part("weights"):
                weights = weight_changes(pair)
            drift = [] if pair.same_weights else self.drift(pair, name)
            with self.stopwatch.part("divergence"):
                divergence, error = base_written_divergence(
                    pair, self.tokenizer, reference.texts, progress=self.step(f"{name}: divergence")
                )
            restoration = [] if pair.same_weights else self.restoration(pair, name)
        probes = [probe.name for probe in self.chosen.probes]
        return replace(
            compare_results(reference.results, results, probes, self.options["seed"]),
            divergence=divergence,
            divergence_error=error,
            weights=weights,
            drift=drift,
            restoration=restoration,
            diversity=diversity,
        )

    def evaluate(self, model: Any, name: str) -> dict[str, TaskResult]:
        def report(what: str, done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(f"{name}: {what}", done, total)

        with self.stopwatch.part("tasks and probes"):
            return evaluate(
                model, self.tokenizer, [*self.chosen.tasks, *self.chosen.probes], progress=report, **self.options
            )

    def diversity(self, model: Any) -> Diversity | None:
        """On prompts of the first task; without one there is nothing to answer."""
        if not self.chosen.tasks:
            return None
        prompts = [prompt for prompt, _ in reference_pairs(self.chosen.tasks[0], SAMPLED_PROMPTS)]
        seed = self.options["seed"]
        with self.stopwatch.part("diversity"):
            if self.formats is None:
                return measure_diversity(model, self.tokenizer, prompts, seed=seed)
            return measure_diversity(model, self.tokenizer, prompts, formats=self.formats, seed=seed)

    def drift(self, pair: ModelPair, name: str) -> list[LayerDrift]:
        with self.stopwatch.part("drift"):
            return layer_drift(pair, self.tokenizer, general_text(), progress=self.step(f"{name}: drift"))

    def restoration(self, pair: ModelPair, name: str) -> list[Restored]:
        """On the probes that ask facts, where there are any: likelihood of running text costs more and says less."""
        limit = min(self.options["limit"] or REFERENCES, REFERENCES)
        facts = [probe for probe in self.chosen.probes if isinstance(probe, (FactProbe, FileProbe))]
        kinds = (self.chosen.tasks, facts or self.chosen.probes)
        tasks, probes = ({task.name: reference_pairs(task, limit) for task in kind} for kind in kinds)
        with self.stopwatch.part("restoration"):
            return restore_each(
                pair,
                self.tokenizer,
                tasks,
                probes,
                groups=self.layer_groups,
                batch_size=self.options["batch_size"],
                progress=self.step(f"{name}: restoration"),
            )

    def watched(self, pair: ModelPair) -> Any:
        """The clock on a whole tuned model; an adapter shares the base model's modules, which are watched already."""
        return nullcontext() if pair.one_model else self.stopwatch.clock.watching(pair.tuned_model)

    def step(self, what: str) -> Callable[[int, int], None] | None:
        report = self.progress
        return None if report is None else lambda done, total: report(what, done, total)
