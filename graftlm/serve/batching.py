"""The engine: sequences that wait are written together, by one `model.generate` at a time, in one thread.

A batch is not sealed. When there are sequences that could join, or when most of its own are done, `generate` is left
and entered again with the sequences as they stand, prompt and text so far. That reads them anew, so it is done only
after the batch has written for `PATIENCE` times as long as its last reading took: at most a fifth of the time goes into
it. Nothing of the model is used but `generate`, so any cache and any composed model will do.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from graftlm.runs.console import say
from graftlm.serve.metrics import Metrics
from graftlm.serve.own_settings import set_aside
from graftlm.serve.refusal import Refusal
from graftlm.serve.sampling import SequenceSampler, SequenceStopper
from graftlm.serve.sequence import ServedSequence
from graftlm.serve.settings import ServeSettings

PATIENCE = 4.0
SHUTTING_DOWN = "the server is shutting down"


class Engine:
    """Writes sequences with a model that has `generate`, `device` and `generation_config`, in a thread of its own."""

    def __init__(self, model: Any, pad_token: int, settings: ServeSettings, metrics: Metrics) -> None:
        self.model = model
        self.pad_token = pad_token
        self.settings = settings
        self.metrics = metrics
        self.waiting: deque[ServedSequence] = deque()
        self.active: list[ServedSequence] = []
        self.changed = threading.Condition()
        self.stopping = False
        self.drain_until: float | None = None
        self.thread = threading.Thread(target=self._work, name="graftlm-engine", daemon=True)
        gauges = [
            ("queue_length", "Sequences that wait.", lambda: len(self.waiting)),
            ("active_sequences", "Sequences that are being written.", lambda: self.active_count),
        ]
        if hasattr(model, "drafted"):
            gauges += [
                ("drafted_tokens", "Tokens that heads drafted.", lambda: model.drafted),
                ("accepted_tokens", "Drafted tokens that were kept.", lambda: model.accepted),
            ]
        for name, what, value in gauges:
            metrics.gauge(f"graftlm_{name}", what).set_function(value)

    @property
    def draining(self) -> bool:
        return self.drain_until is not None

    @property
    def active_count(self) -> int:
        return sum(not sequence.done for sequence in self.active)

    def submit(self, sequences: Sequence[ServedSequence]) -> None:
        """Queue the sequences of one request, all or none."""
        with self.changed:
            if self.draining or self.stopping:
                raise Refusal(SHUTTING_DOWN, status=503)
            if len(self.waiting) + len(sequences) > self.settings.max_queue:
                raise Refusal(
                    f"{len(self.waiting)} sequences are waiting, and the queue holds {self.settings.max_queue}; "
                    "try again later",
                    code="queue_full",
                    status=429,
                )
            self.waiting.extend(sequences)
            self.changed.notify()

    def cancel(self, sequences: Sequence[ServedSequence]) -> None:
        """Give up sequences that nobody waits for any more; one that is being written ends at its next token."""
        for sequence in sequences:
            sequence.cancelled = True
        with self.changed:
            self.waiting = deque(sequence for sequence in self.waiting if not sequence.done)

    def drain(self) -> None:
        """Take no more sequences; those that are here have `grace_seconds`. Safe in a signal handler: takes no lock."""
        if self.drain_until is None:
            self.drain_until = time.monotonic() + self.settings.grace_seconds

    def stop(self) -> None:
        """End the thread; what still runs is given up."""
        with self.changed:
            self.stopping = True
            self.changed.notify()
        if self.thread.is_alive():
            self.thread.join()

    def _work(self) -> None:
        sequences: list[ServedSequence] = []
        while not self.stopping:
            sequences = self.active = self._gather(sequences)
            if not sequences:
                continue
            try:
                self.write(sequences)
            except Exception as error:
                traceback.print_exception(error)
                say(f"graftlm: generation failed, the server goes on: {type(error).__name__}: {error}")
                self._fail(sequences, Refusal("generation failed; the server's log says why", status=500))
            sequences = self.active = [sequence for sequence in sequences if not sequence.done]
        self._give_up(sequences)

    def _gather(self, sequences: list[ServedSequence]) -> list[ServedSequence]:
        """The sequences of the next batch: those that are not done, and as many that wait as there is room for."""
        with self.changed:
            if not sequences:
                self.changed.wait_for(lambda: self.waiting or self.stopping)
                company = self.settings.max_batch_size
                self.changed.wait_for(
                    lambda: len(self.waiting) >= company or self.stopping, self.settings.gather_seconds
                )
            room = max(0, self.settings.max_batch_size - len(sequences))
            joining = [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))]
        return [*sequences, *(sequence for sequence in joining if not sequence.done)]

    def write(self, sequences: Sequence[ServedSequence]) -> None:
        """Call `generate` once, until all sequences are done or the batch is to be put together anew."""
        self.metrics.batch_size.observe(len(sequences))
        pace = Pace()
        left = False

        def on_step(live: int) -> None:
            pace.step()
            self.metrics.generated_tokens.inc(live)
            for sequence in sequences:
                if sequence.generated == 0 and not sequence.done:
                    self.metrics.first_token_seconds.observe(time.monotonic() - sequence.arrived)

        def leave() -> bool:
            nonlocal left
            left = left or self._should_leave(sequences, pace)  # asked for each sequence where heads draft
            return left

        config = GenerationConfig(
            max_new_tokens=max(sequence.remaining for sequence in sequences),
            pad_token_id=self.pad_token,
            do_sample=False,
        )
        rows = [torch.tensor(sequence.ids) for sequence in sequences]
        padded = partial(pad_sequence, batch_first=True, padding_side="left")
        with set_aside(self.model.generation_config):
            self.model.generate(
                input_ids=padded(rows, padding_value=self.pad_token).to(self.model.device),
                attention_mask=padded([torch.ones_like(row) for row in rows]).to(self.model.device),
                generation_config=config,
                logits_processor=LogitsProcessorList([SequenceSampler(sequences, on_step)]),
                stopping_criteria=StoppingCriteriaList([SequenceStopper(sequences, leave)]),
            )

    def _should_leave(self, sequences: Sequence[ServedSequence], pace: Pace) -> bool:
        if self.stopping:
            return True
        if self.drain_until is not None and time.monotonic() > self.drain_until:
            self._give_up(sequences)
        live = sum(not sequence.done for sequence in sequences)
        joinable = bool(self.waiting) and live < self.settings.max_batch_size
        return (joinable or 2 * live <= len(sequences)) and pace.has_paid_off()

    def _give_up(self, sequences: Sequence[ServedSequence]) -> None:
        """End these sequences and those that wait; there is no time left for them."""
        with self.changed:
            waiting = list(self.waiting)
        self._fail([*sequences, *waiting], Refusal(SHUTTING_DOWN, status=503))

    def _fail(self, sequences: Sequence[ServedSequence], error: Refusal) -> None:
        for sequence in sequences:
            if not sequence.done:
                sequence.fail(error)


class Pace:
    """Whether a batch has written long enough to be read anew."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.reading: float | None = None

    def step(self) -> None:
        """Note that the model has come to another token; the first one ends the reading."""
        if self.reading is None:
            self.reading = time.monotonic() - self.begun

    def has_paid_off(self) -> bool:
        if self.reading is None:
            return False
        return time.monotonic() - self.begun - self.reading >= PATIENCE * self.reading
