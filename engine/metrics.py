"""What an engine did for its requests, in numbers: counters, gauges and histograms, by names that monitoring knows.

The engine thread writes into ``RequestMetrics``; ``Metrics`` is a copy at one moment. Times are seconds of the
monotonic clock, except the arrival. Knows no exporter (``prometheus``) and no request's text.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ostinato.histogram import Histogram, HistogramSeen

if TYPE_CHECKING:
    from ostinato.stats import Stats

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Seconds, for what a request waits for."""
TOKEN_LATENCIES = (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.5)
"""Seconds, between two tokens."""
COUNTS = tuple(float(1 << power) for power in range(18))
"""Tokens and rows."""


@dataclass(frozen=True, slots=True)
class RequestTimings:
    """Where one request's time went; None for what it did not come to."""

    arrival_time: float
    """Seconds since 1970."""
    queued_seconds: float | None
    """From submission until a step first took it."""
    time_to_first_token: float | None
    """From submission; the queue is part of it."""
    decode_seconds: float | None
    """From the first token to the last one."""
    total_seconds: float | None
    """From submission to its end."""


@dataclass(slots=True)
class RequestClock:
    """When things happened to one request; the engine thread sets them as they do."""

    arrival_time: float = field(default_factory=time.time)
    submitted: float = field(default_factory=time.monotonic)
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    finished: float | None = None

    def timings(self) -> RequestTimings:
        """The same as durations."""
        return RequestTimings(
            arrival_time=self.arrival_time,
            queued_seconds=_between(self.submitted, self.scheduled),
            time_to_first_token=_between(self.submitted, self.first_token),
            decode_seconds=_between(self.first_token, self.last_token),
            total_seconds=_between(self.submitted, self.finished),
        )


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start


@dataclass(frozen=True)
class Metrics:
    """An engine's numbers at one moment."""

    counters: Mapping[str, int]
    """Never fall: ``prompt_tokens``, ``generation_tokens``, ``preemptions``, ``prefix_cache_queries`` and so on."""
    gauges: Mapping[str, float]
    """Now: ``requests_running``, ``requests_waiting``, ``kv_cache_usage`` (0 to 1)."""
    finished: Mapping[str, int]
    """Requests that ended, by ``finish_reason``."""
    histograms: Mapping[str, HistogramSeen]

    @classmethod
    def of(cls, stats: Stats, recorded: RequestMetrics) -> Metrics:
        """The engine's ``stats`` and what was ``recorded`` of its requests."""
        blocks = stats.blocks_used + stats.blocks_cached + stats.blocks_free
        return cls(
            counters={
                "steps": stats.steps,
                "prompt_tokens": recorded.prompt_tokens,
                "generation_tokens": stats.tokens_generated,
                "preemptions": stats.preemptions,
                "prefix_cache_queries": stats.prefix_queries,
                "prefix_cache_hits": stats.prefix_hits,
            },
            gauges={
                "requests_running": stats.requests_running,
                "requests_waiting": stats.requests_waiting,
                "kv_cache_usage": stats.blocks_used / blocks if blocks else 0.0,
            },
            finished=dict(recorded.finished),
            histograms={name: histogram.seen() for name, histogram in recorded.histograms.items()},
        )

    def as_prometheus(self, labels: Mapping[str, str] | None = None) -> str:
        """In Prometheus's text format 0.0.4; ``labels`` are put on every sample, as in ``{"model_name": "demo"}``."""
        from ostinato.prometheus import as_prometheus

        return as_prometheus(self, labels)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for a JSON file."""
        return {
            "counters": dict(self.counters),
            "gauges": dict(self.gauges),
            "finished": dict(self.finished),
            "histograms": {name: histogram.as_dict() for name, histogram in self.histograms.items()},
        }


@dataclass
class RequestMetrics:
    """What is counted as it happens; one thread writes."""

    finished: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    """Of requests that a step took, cached ones included."""
    histograms: dict[str, Histogram] = field(
        default_factory=lambda: {
            "time_to_first_token_seconds": Histogram(LATENCIES),
            "inter_token_latency_seconds": Histogram(TOKEN_LATENCIES),
            "request_queue_seconds": Histogram(LATENCIES),
            "request_decode_seconds": Histogram(LATENCIES),
            "request_seconds": Histogram(LATENCIES),
            "request_prompt_tokens": Histogram(COUNTS),
            "request_generation_tokens": Histogram(COUNTS),
            "step_rows": Histogram(COUNTS),
        }
    )

    def scheduled(self, clock: RequestClock, now: float, num_prompt: int) -> None:
        """A step took a request; again after a preemption: no effect."""
        if clock.scheduled is None:
            clock.scheduled = now
            self.prompt_tokens += num_prompt
            self._observe("request_queue_seconds", now - clock.submitted)

    def token(self, clock: RequestClock, now: float, count: int = 1) -> None:
        """``count`` tokens of a request came in at once: the first of all has another meaning than the others."""
        if clock.first_token is None:
            clock.first_token = clock.last_token = now
            self._observe("time_to_first_token_seconds", now - clock.submitted)
            count -= 1
        if count and clock.last_token is not None:
            self.histograms["inter_token_latency_seconds"].observe((now - clock.last_token) / count, count)
            clock.last_token = now

    def ended(self, clock: RequestClock, now: float, reason: str, num_prompt: int, num_generated: int) -> None:
        """A request is over."""
        clock.finished = now
        self.finished[reason] += 1
        self._observe("request_seconds", now - clock.submitted)
        if clock.first_token is not None and clock.last_token is not None:
            self._observe("request_decode_seconds", clock.last_token - clock.first_token)
        self._observe("request_prompt_tokens", num_prompt)
        self._observe("request_generation_tokens", num_generated)

    def step(self, rows: int) -> None:
        """A step ran with so many requests."""
        self._observe("step_rows", rows)

    def _observe(self, name: str, value: float) -> None:
        self.histograms[name].observe(value)
