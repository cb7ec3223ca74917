"""What the server counts, in Prometheus' text form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)
STUDIES = (1, 2, 4, 8, 16, 32, 64, 128)


class Counters:
    """Counts requests, seconds, tokens and batches.

    Args:
        waiting: gives the number of requests that wait for a batch.
    """

    def __init__(self, waiting: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        named: Any = {"registry": self._registry}
        self.requests = Counter("raddraft_requests", "Requests that were answered", ["status"], **named)
        self.seconds = Histogram("raddraft_request_seconds", "Seconds to the whole answer", buckets=SECONDS, **named)
        self.tokens = Counter("raddraft_tokens", "Tokens of prompts and drafts", ["kind"], **named)
        self.batches = Histogram("raddraft_batch_requests", "Requests in a batch", buckets=STUDIES, **named)
        self.in_flight = Gauge("raddraft_requests_in_flight", "Requests that are being answered", **named)
        Gauge("raddraft_requests_waiting", "Requests that wait for a batch", **named).set_function(waiting)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)
