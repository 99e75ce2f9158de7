"""Figures for Prometheus, at /metrics."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """In a registry of its own, so that several servers may live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        counter, self.gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        seconds = partial(Histogram, buckets=SECONDS, registry=registry)
        self.requests = counter("graftlm_requests", "Requests answered.", ["endpoint", "status"])
        self.request_seconds = seconds(
            "graftlm_request_seconds", "From a request's arrival to the end of its answer.", ["endpoint"]
        )
        self.first_token_seconds = seconds(
            "graftlm_first_token_seconds", "From a request's arrival to the first token of each of its sequences."
        )
        self.prompt_tokens = counter("graftlm_prompt_tokens", "Tokens read; a prompt counts once.")
        self.generated_tokens = counter("graftlm_generated_tokens", "Tokens written.")
        self.batch_size = Histogram(
            "graftlm_batch_size", "Sequences in a batch when it starts.", buckets=BATCH_SIZES, registry=registry
        )

    def observe(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self.requests.labels(endpoint, str(status)).inc()
        self.request_seconds.labels(endpoint).observe(seconds)

    def render(self) -> bytes:
        return generate_latest(self.registry)
