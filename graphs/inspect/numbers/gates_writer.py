"""A gates' file of what is true now, to begin from: every integer of a file that should not move by itself.

Times are written as comments: they differ from run to run, and a limit on them is a decision. Knows no torch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ostinato.graphs.inspect.numbers.line_counts import count_lines
from ostinato.graphs.inspect.numbers.timeline import summary

Data = Mapping[str, Any]


def write_gates(data: Data) -> str:
    """TOML that ``data``, a file of any kind of this tool, passes."""
    writers = {
        "ostinato-graph": _of_capture,
        "ostinato-sizes": _of_sizes,
        "ostinato-startup": _of_startup,
        "ostinato-timeline": _of_timeline,
    }
    blocks = [*_findings(data), *writers.get(data.get("kind", ""), _of_report)(data)]
    return "\n\n".join(["# What was true when this file was written.", *blocks]) + "\n"


def _findings(data: Data) -> Iterator[str]:
    found = data.get("findings")
    if found is not None:
        severities = Counter(finding["severity"] for finding in found)
        codes = Counter(finding["code"] for finding in found)
        limits = {"error": severities["error"], "warning": severities["warning"]} | dict(sorted(codes.items()))
        yield "\n".join(["[findings]", *(f"{name} = {count}" for name, count in limits.items())])


def _of_capture(data: Data) -> Iterator[str]:
    for size, graph in data["graphs"].items():
        for name in ("ops", "nodes"):
            if graph[name]:
                path = f"graphs.{size}.{name}"
                lines = {line: count for line, (count, _) in count_lines(data, path).items()}
                yield _gate(path, "equals", len(graph[name]), lines)
        for name in ("own_bytes", "exec_bytes", "external_bytes"):
            if graph["memory"][name] is not None:
                yield _gate(f"graphs.{size}.memory.{name}", "at_most", graph["memory"][name])
        if graph["replay_seconds"] is not None:
            yield _comment(f"graphs.{size}.replay_seconds", graph["replay_seconds"])


def _of_report(data: Data) -> Iterator[str]:
    yield from _integers(data.get("metrics", {}), "metrics")
    yield _gate("not_checked", "at_most", len(data.get("not_checked", ())))


def _integers(value: Any, path: str) -> Iterator[str]:
    """A gate for every integer, and for the length of every list."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _integers(each, f"{path}.{name}")
    elif isinstance(value, list):
        yield _gate(path, "equals", len(value))
    elif isinstance(value, int) and not isinstance(value, bool):
        yield _gate(path, "equals", value)


def _of_sizes(data: Data) -> Iterator[str]:
    yield _gate("best", "equals", data["best"])


def _of_startup(data: Data) -> Iterator[str]:
    yield _gate("phases", "at_most", len(data["phases"]))
    yield _comment("seconds", data["seconds"])


def _of_timeline(data: Data) -> Iterator[str]:
    found = summary(data)
    for name in ("gap", "prepare", "launch", "sample", "wait"):
        yield _comment(f"summary.{name}.median", found[name]["median"])


def _gate(path: str, kind: str, limit: Any, lines: Mapping[str, int] | None = None) -> str:
    rows = ["[[gate]]", f"path = {_text(path)}", f"{kind} = {json.dumps(limit)}"]
    if lines:
        rows.append("lines = { " + ", ".join(f"{_text(name)} = {count}" for name, count in lines.items()) + " }")
    return "\n".join(rows)


def _comment(path: str, now: float) -> str:
    return "\n".join(f"# {row}" for row in _gate(path, "at_most", now).splitlines())


def _text(text: str) -> str:
    """A basic string of TOML, which takes JSON's escapes."""
    return json.dumps(text, ensure_ascii=False)
