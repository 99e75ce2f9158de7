"""How much of the time goes into the models' forward passes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from graftlm.models.decoder import plain_model


class ForwardClock:
    """Adds up the seconds within the forward passes of the models that it watches, a pass within a pass counted once.

    On a GPU, where a forward pass only queues work, the share is that of queueing.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0
        self._begun = 0.0

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """`model`'s passes, and those of the backbone inside it that are run without the unembedding."""
        plain = plain_model(model)
        handles = []
        for module in dict.fromkeys((plain, plain.base_model)):
            handles.append(module.register_forward_pre_hook(self._enter))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, *_: Any) -> None:
        if self._depth == 0:
            self._begun = time.perf_counter()
        self._depth += 1

    def _leave(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._begun
