"""Figures for Prometheus, at /metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """In a registry of its own, so that several servers may live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("graftlm_requests", "Requests answered.", ["endpoint", "status"], registry=registry)
        self.request_seconds = Histogram(
            "graftlm_request_seconds",
            "From a request's arrival to the end of its answer.",
            ["endpoint"],
            buckets=SECONDS,
            registry=registry,
        )
        self.first_token_seconds = Histogram(
            "graftlm_first_token_seconds",
            "From a request's arrival to the first token of each of its sequences.",
            buckets=SECONDS,
            registry=registry,
        )
        self.prompt_tokens = Counter("graftlm_prompt_tokens", "Tokens read; a prompt counts once.", registry=registry)
        self.generated_tokens = Counter("graftlm_generated_tokens", "Tokens written.", registry=registry)
        self.batch_size = Histogram(
            "graftlm_batch_size",
            "Sequences in a batch when it starts.",
            buckets=BATCH_SIZES,
            registry=registry,
        )
        self.queue_length = Gauge("graftlm_queue_length", "Sequences that wait.", registry=registry)
        self.active = Gauge("graftlm_active_sequences", "Sequences that are being written.", registry=registry)

    def watch_drafts(self, drafted: Callable[[], float], accepted: Callable[[], float]) -> None:
        """Add the counts of a model whose heads draft, read whenever they are asked for."""
        for name, what, count in (
            ("drafted", "Tokens that heads drafted.", drafted), ("accepted", "Drafted tokens that were kept.", accepted)
        ):  # fmt: skip
            Gauge(f"graftlm_{name}_tokens", what, registry=self.registry).set_function(count)

    def watch(self, waiting: Callable[[], float], active: Callable[[], float]) -> None:
        """Read both gauges off the engine whenever they are asked for."""
        self.queue_length.set_function(waiting)
        self.active.set_function(active)

    def observe(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self.requests.labels(endpoint, str(status)).inc()
        self.request_seconds.labels(endpoint).observe(seconds)

    def render(self) -> bytes:
        return generate_latest(self.registry)
