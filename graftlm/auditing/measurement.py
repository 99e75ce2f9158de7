"""All measurements of an audit, on the base model and on each model tuned from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from graftlm.auditing.divergence import base_written_divergence
from graftlm.auditing.diversity import FORMATS, Pattern, measure_diversity
from graftlm.auditing.intervals import bootstrap_retention, changes
from graftlm.auditing.representations import layer_drift
from graftlm.auditing.restoration import reference_pairs, restore_each
from graftlm.auditing.result import Diversity, LayerDrift, Restored, TunedAudit, WeightChange
from graftlm.auditing.retention import facts_changed, retention
from graftlm.auditing.weights import weight_changes
from graftlm.data.load import general_prompts, general_text
from graftlm.data.written_text import Progress, WrittenText, write_texts
from graftlm.models.pair import ModelPair
from graftlm.runs.console import Report, prefixed
from graftlm.tasks import FileProbe, Task, TaskResult
from graftlm.tasks.evaluation import evaluate
from graftlm.tasks.facts import FactProbe

Opening = Callable[[], AbstractContextManager[ModelPair]]
WRITTEN_TOKENS = 1500  # of text that the base model writes for the divergence
REFERENCES = 40  # of each task and probe, measured at each restoration
SAMPLED_PROMPTS = 16  # for the diversity


@dataclass(frozen=True)
class Reference:
    """Measurements of the base model, made once for all tuned ones."""

    results: dict[str, TaskResult]
    diversity: Diversity | None
    texts: list[WrittenText]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Measures models; `seconds`: wall-clock time by part, which each measurement adds to. The other fields are the
    arguments of `graftlm.audit`."""

    tokenizer: PreTrainedTokenizerBase
    tasks: Sequence[Task]
    probes: Sequence[Task]
    limit: int | None
    layer_groups: int
    formats: Mapping[str, Pattern] | None
    batch_size: int
    seed: int
    progress: Report | None
    seconds: dict[str, float]

    def measure(self, pairs: Mapping[str, Opening]) -> tuple[Reference, dict[str, TunedAudit]]:
        """Measure the base model, and each tuned model (name -> what opens its pair) against it.

        Raises InputError for a weight that is not finite, and whatever opening a pair and `evaluate` refuse.
        """
        reference: Reference | None = None
        audited = {}
        for name, opened in pairs.items():
            with opened() as pair:
                with self.timed("weights"):  # first: models that do not compare are refused at once
                    weights = weight_changes(pair)
                reference = reference or self.reference(pair)
                audited[name] = self.compare(pair, reference, weights, name)
        assert reference is not None  # there is at least one pair
        return reference, audited

    def reference(self, pair: ModelPair) -> Reference:
        """Measure the base model."""
        with pair.base() as model:
            results = self.evaluate(model, "base")
            with self.timed("divergence"):
                texts = write_texts(
                    model, self.tokenizer, general_prompts(), kind="general", tokens=WRITTEN_TOKENS, temperature=1.0,
                    max_new_tokens=32, seed=self.seed, progress=self.step("base: writing text"),
                )  # fmt: skip
            return Reference(results=results, diversity=self.diversity(model), texts=texts)

    def compare(self, pair: ModelPair, reference: Reference, weights: list[WeightChange], name: str) -> TunedAudit:
        """Measure the tuned model and compare it with the base model."""
        with pair.tuned() as model:
            results, diversity = self.evaluate(model, name), self.diversity(model)
        with self.timed("divergence"):
            step = self.step(f"{name}: divergence")
            divergence, error = base_written_divergence(pair, reference.texts, progress=step)
        drift: list[LayerDrift] = []
        with self.timed("drift"):
            if weights:
                drift = layer_drift(pair, self.tokenizer, general_text(), progress=self.step(f"{name}: drift"))
        probes = {probe.name: (reference.results[probe.name], results[probe.name]) for probe in self.probes}
        shares = {probe: retention(*both) for probe, both in probes.items()}
        return TunedAudit(
            results=results,
            changes=changes(reference.results, results, self.seed),
            facts={probe: facts_changed(*both) for probe, both in probes.items()},
            retention={probe: share for probe, share in shares.items() if share is not None},
            retention_bounds=bootstrap_retention(list(probes.values()), seed=self.seed),
            divergence=divergence,
            divergence_error=error,
            diversity=diversity,
            weights=weights,
            drift=drift,
            restoration=self.restoration(pair, name) if weights else [],
        )

    def evaluate(self, model: Any, name: str) -> dict[str, TaskResult]:
        with self.timed("tasks and probes"):
            return evaluate(
                model, self.tokenizer, [*self.tasks, *self.probes], limit=self.limit, batch_size=self.batch_size,
                seed=self.seed, progress=None if self.progress is None else prefixed(self.progress, name),
            )  # fmt: skip

    def diversity(self, model: Any) -> Diversity | None:
        """Diversity of the answers to prompts of the first task; without one there is nothing to answer."""
        if not self.tasks:
            return None
        prompts = [prompt for prompt, _ in reference_pairs(self.tasks[0], SAMPLED_PROMPTS)]
        formats = FORMATS if self.formats is None else self.formats
        with self.timed("diversity"):
            return measure_diversity(model, self.tokenizer, prompts, formats=formats, seed=self.seed)

    def restoration(self, pair: ModelPair, name: str) -> list[Restored]:
        """Restore layers, measured on the probes that ask facts, where there are any: likelihood of running text costs
        more and says less."""
        limit = min(self.limit or REFERENCES, REFERENCES)
        facts = [probe for probe in self.probes if isinstance(probe, (FactProbe, FileProbe))]
        kinds = (self.tasks, facts or self.probes)
        tasks, probes = ({task.name: reference_pairs(task, limit) for task in kind} for kind in kinds)
        with self.timed("restoration"):
            return restore_each(
                pair, self.tokenizer, tasks, probes, groups=self.layer_groups, batch_size=self.batch_size,
                progress=self.step(f"{name}: restoration"),
            )  # fmt: skip

    def step(self, what: str) -> Progress | None:
        """A callback that reports how much of `what` is done."""
        report = self.progress
        return None if report is None else lambda done, total: report(what, done, total)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the wall-clock time of the block to `seconds[part]`."""
        begun = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - begun
