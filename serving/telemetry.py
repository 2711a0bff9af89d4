"""What the reward server counts, for Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from ..types import Usage

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Telemetry:
    """One registry for each server, so that several can live in a process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("vlrm_requests", "Answered requests", ["route", "status"], registry=registry)
        self.request_seconds = Histogram("vlrm_request_seconds", "Time to answer", ["route"], buckets=SECONDS, registry=registry)
        self.scored = Counter("vlrm_scores", "Solutions that got a score", registry=registry)
        self.unscored = Counter("vlrm_scores_none", "Solutions that got none", ["reason"], registry=registry)
        self.batch_size = Histogram("vlrm_batch_size", "Solutions in a batch", ["kind"], buckets=SIZES, registry=registry)
        self.batch_seconds = Histogram("vlrm_batch_seconds", "Time of a batch", ["kind"], buckets=SECONDS, registry=registry)
        self.queue_seconds = Histogram("vlrm_queue_seconds", "Time that a solution waited", ["kind"], buckets=SECONDS, registry=registry)
        self.left = Counter("vlrm_left", "Places freed by clients that went away or by deadlines", registry=registry)
        self.full = Counter("vlrm_full", "Requests refused because the queue was full", registry=registry)
        self.joined = Counter("vlrm_joined", "Retries that found their request known already", registry=registry)
        self.tokens = Counter("vlrm_scorer_tokens", "Tokens of the scorer", ["kind"], registry=registry)
        self._gauges: list[Gauge] = []

    def gauge(self, name: str, about: str, read: Any) -> None:
        """A figure that is read when it is asked for."""
        gauge = Gauge(name, about, registry=self.registry)
        gauge.set_function(read)
        self._gauges.append(gauge)

    def batch(self, kind: str) -> Any:
        """What a `Batcher` of that kind tells of its batches."""

        def observe(size: int, waited: list[float], seconds: float) -> None:
            self.batch_size.labels(kind).observe(size)
            self.batch_seconds.labels(kind).observe(seconds)
            for each in waited:
                self.queue_seconds.labels(kind).observe(each)

        return observe

    def spent(self, usage: Usage) -> None:
        self.tokens.labels("prompt").inc(usage.prompt_tokens)
        self.tokens.labels("completion").inc(usage.completion_tokens)

    def page(self) -> bytes:
        return generate_latest(self.registry)
