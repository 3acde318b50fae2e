"""An engine's numbers in Prometheus's text format, version 0.0.4. Needs no library."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ostinato.histogram import HistogramSeen
from ostinato.layers.errors import ParamError
from ostinato.metrics import Metrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "ostinato"

_LABEL = re.compile("[a-zA-Z_][a-zA-Z0-9_]*")

_HELP = {
    "time_to_first_token_seconds": "From submission to a request's first token.",
    "inter_token_latency_seconds": "Between two tokens of a request.",
    "request_queue_seconds": "From submission until a step first took the request.",
    "request_decode_seconds": "From a request's first token to its last one.",
    "request_seconds": "From submission to the end of a request.",
    "request_prompt_tokens": "Tokens of a request's prompt.",
    "request_generation_tokens": "Tokens that a request generated.",
    "step_rows": "Requests in a step.",
    "requests_running": "Requests in the current steps.",
    "requests_waiting": "Requests that wait for their turn.",
    "kv_cache_usage": "Share of the KV cache's blocks that requests hold.",
    "prompt_tokens": "Prompt tokens of requests that were taken.",
    "generation_tokens": "Tokens generated.",
    "preemptions": "Requests that gave their blocks away and began again.",
    "prefix_cache_queries": "Prompt tokens looked up in the prefix index.",
    "prefix_cache_hits": "Prompt tokens found there.",
    "steps": "Steps run.",
}


def as_prometheus(metrics: Metrics, labels: Mapping[str, str] | None = None) -> str:
    """One page for a scraper; ``labels`` are put on every sample, as in ``{"model_name": "demo"}``."""
    common = {name: str(value) for name, value in (labels or {}).items()}
    for name in common:
        if not _LABEL.fullmatch(name):
            raise ParamError(f"labels: {name!r} is no label name of Prometheus: letters, digits and _, no digit first")
    lines: list[str] = []
    for name, count in metrics.counters.items():
        lines += _described(f"{name}_total", "counter", name)
        lines.append(_sample(f"{name}_total", common, count))
    lines += _described("requests_finished_total", "counter", "requests_finished")
    lines += [
        _sample("requests_finished_total", common | {"finished_reason": reason}, count)
        for reason, count in metrics.finished.items()
    ]
    for name, value in metrics.gauges.items():
        lines += _described(name, "gauge", name)
        lines.append(_sample(name, common, value))
    for name, histogram in metrics.histograms.items():
        lines += _described(name, "histogram", name)
        lines += _of_histogram(name, common, histogram)
    return "\n".join(lines) + "\n"


def _of_histogram(name: str, labels: Mapping[str, str], histogram: HistogramSeen) -> Iterator[str]:
    reached = 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        reached += count
        yield _sample(f"{name}_bucket", {**labels, "le": _number(bound)}, reached)
    yield _sample(f"{name}_sum", labels, histogram.sum)
    yield _sample(f"{name}_count", labels, reached)


def _described(name: str, kind: str, key: str) -> list[str]:
    text = _HELP.get(key, key.replace("_", " ").capitalize() + ".")
    return [f"# HELP {PREFIX}_{name} {text}", f"# TYPE {PREFIX}_{name} {kind}"]


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{PREFIX}_{name}{{{inside}}} {_number(value)}" if inside else f"{PREFIX}_{name} {_number(value)}"


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
