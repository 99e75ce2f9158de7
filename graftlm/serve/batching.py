"""The engine: rows that wait are written together, by one `model.generate` at a time, in one thread.

A batch is not sealed. When there are rows that could join, or when most of its rows are done, `generate` is left and
entered again with the rows as they stand, prompt and text so far. That reads them anew, so it is done only after the
batch has written for `PATIENCE` times as long as its last reading took: at most a fifth of the time goes into it.
Nothing of the model is used but `generate`, so any cache and any composed model will do.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from graftlm.runs.console import say
from graftlm.serve.metrics import Metrics
from graftlm.serve.own_settings import set_aside
from graftlm.serve.refusal import Refusal
from graftlm.serve.row import Row
from graftlm.serve.sampling import RowSampler, RowStopper
from graftlm.serve.settings import ServeSettings

PATIENCE = 4.0
RETRY_SECONDS = 1
SHUTTING_DOWN = "the server is shutting down"


class Engine:
    """Writes rows with a model that has `generate`, `device` and `generation_config`."""

    def __init__(self, model: Any, pad_token: int, settings: ServeSettings, metrics: Metrics) -> None:
        self.model = model
        self.pad_token = pad_token
        self.settings = settings
        self.metrics = metrics
        self.waiting: deque[Row] = deque()
        self.active: list[Row] = []
        self.changed = threading.Condition()
        self.stopping = False
        self.drain_until: float | None = None
        self.thread = threading.Thread(target=self._work, name="graftlm-engine", daemon=True)
        metrics.watch(lambda: len(self.waiting), lambda: self.active_count)
        if hasattr(model, "drafted"):
            metrics.watch_drafts(lambda: model.drafted, lambda: model.accepted)

    @property
    def draining(self) -> bool:
        return self.drain_until is not None

    @property
    def active_count(self) -> int:
        return sum(not row.done for row in self.active)

    def start(self) -> None:
        self.thread.start()

    def submit(self, rows: Sequence[Row]) -> None:
        """Queue the rows of one request, all or none."""
        with self.changed:
            if self.draining or self.stopping:
                raise Refusal(503, SHUTTING_DOWN, retry_after=RETRY_SECONDS)
            if len(self.waiting) + len(rows) > self.settings.max_queue:
                raise Refusal(
                    429,
                    f"{len(self.waiting)} sequences are waiting, and the queue holds {self.settings.max_queue}; "
                    "try again later",
                    code="queue_full",
                    retry_after=RETRY_SECONDS,
                )
            self.waiting.extend(rows)
            self.changed.notify()

    def cancel(self, rows: Sequence[Row]) -> None:
        """Nobody waits for these rows any more; one that is being written ends at its next token."""
        for row in rows:
            row.cancelled = True
        with self.changed:
            self.waiting = deque(row for row in self.waiting if not row.done)

    def drain(self) -> None:
        """Take no more rows; those that are here have `grace_seconds`. Safe in a signal handler: takes no lock."""
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
        rows: list[Row] = []
        while not self.stopping:
            rows = self.active = self._gather(rows)
            if not rows:
                continue
            try:
                self.write(rows)
            except Exception as error:
                traceback.print_exception(error)
                say(f"graftlm: generation failed, the server goes on: {type(error).__name__}: {error}")
                self._fail(rows, Refusal(500, "generation failed; the server's log says why"))
            rows = self.active = [row for row in rows if not row.done]
        self._give_up(rows)

    def _gather(self, rows: list[Row]) -> list[Row]:
        """The rows of the next batch: those that are not done, and as many that wait as there is room for."""
        with self.changed:
            if not rows:
                self.changed.wait_for(lambda: self.waiting or self.stopping)
                company = self.settings.max_batch_size
                self.changed.wait_for(
                    lambda: len(self.waiting) >= company or self.stopping, self.settings.gather_seconds
                )
            room = max(0, self.settings.max_batch_size - len(rows))
            joining = [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))]
        return [*rows, *(row for row in joining if not row.done)]

    def write(self, rows: Sequence[Row]) -> None:
        """One `generate`, until all rows are done or the batch is to be put together anew."""
        self.metrics.batch_size.observe(len(rows))
        width = max(len(row.ids) for row in rows)
        pace = Pace()
        left = False

        def on_step(live: int) -> None:
            pace.step()
            self.metrics.generated_tokens.inc(live)
            for row in rows:
                if row.generated == 0 and not row.done:
                    self.metrics.first_token_seconds.observe(time.monotonic() - row.arrived)

        def leave() -> bool:
            nonlocal left
            left = left or self._should_leave(rows, pace)  # asked for each row where heads draft
            return left

        config = GenerationConfig(
            max_new_tokens=max(row.remaining for row in rows), pad_token_id=self.pad_token, do_sample=False
        )
        with set_aside(self.model.generation_config):
            self.model.generate(
                input_ids=self._tensor([[self.pad_token] * (width - len(row.ids)) + row.ids for row in rows]),
                attention_mask=self._tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows]),
                generation_config=config,
                logits_processor=LogitsProcessorList([RowSampler(rows, on_step)]),
                stopping_criteria=StoppingCriteriaList([RowStopper(rows, leave)]),
            )

    def _should_leave(self, rows: Sequence[Row], pace: Pace) -> bool:
        if self.stopping:
            return True
        if self.drain_until is not None and time.monotonic() > self.drain_until:
            self._give_up(rows)
        live = sum(not row.done for row in rows)
        joinable = bool(self.waiting) and live < self.settings.max_batch_size
        return (joinable or 2 * live <= len(rows)) and pace.has_paid_off()

    def _give_up(self, rows: Sequence[Row]) -> None:
        """End these rows and those that wait; there is no time left for them."""
        with self.changed:
            waiting = list(self.waiting)
        self._fail([*rows, *waiting], Refusal(503, SHUTTING_DOWN))

    def _fail(self, rows: Sequence[Row], error: Refusal) -> None:
        for row in rows:
            if not row.done:
                row.fail(error)

    def _tensor(self, numbers: list[list[int]]) -> torch.Tensor:
        return torch.tensor(numbers, device=self.model.device)


class Pace:
    """Whether a batch has written long enough to be read anew."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.reading: float | None = None

    def step(self) -> None:
        """The model has come to another token; the first one ends the reading."""
        if self.reading is None:
            self.reading = time.monotonic() - self.begun

    def has_paid_off(self) -> bool:
        if self.reading is None:
            return False
        return time.monotonic() - self.begun - self.reading >= PATIENCE * self.reading
