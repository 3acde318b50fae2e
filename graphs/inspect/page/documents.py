"""The files that a page is made of: which kind each is, and whether the page can read it.

A kind is told by the field ``kind``; a report has none. Unknown fields are left alone. Every error names the file and
the field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostinato.graphs.inspect.capturing.ograph import OGraph, SizeGraph
from ostinato.graphs.inspect.json_file import read_json
from ostinato.graphs.inspect.records import read_record
from ostinato.graphs.inspect.report import SCHEMA, validate
from ostinato.layers.errors import ConfigError

Data = Mapping[str, Any]


@dataclass(frozen=True)
class TimelineStep:
    """One step of a run; seconds."""

    start: float
    batch_size: int | None
    """None where a trace does not say it."""
    prepare: float
    launch: float
    sample: float
    wait: float
    gap: float
    rows: int | None = None
    kind: str = "decode"


@dataclass(frozen=True)
class Timeline:
    """Steps of a run in order."""

    target: str
    environment: Mapping[str, Any]
    steps: tuple[TimelineStep, ...]


@dataclass(frozen=True)
class Point:
    """The best that a number of graphs can do; ``wasted`` is a share of the computed rows."""

    graphs: int
    sizes: tuple[int, ...]
    wasted: float
    bytes: float | None = None


@dataclass(frozen=True)
class Sizes:
    """Which batch sizes to capture."""

    histogram: Mapping[str, int]
    max_graphs: int
    best: tuple[int, ...]
    wasted_best: float
    curve: tuple[Point, ...]
    current: tuple[int, ...] | None = None
    wasted_now: float | None = None


@dataclass(frozen=True)
class Phase:
    """A part of the start-up; seconds."""

    name: str
    start: float
    seconds: float
    batch_size: int | None = None
    cache: str | None = None
    why: str = ""


@dataclass(frozen=True)
class Startup:
    """What passed before the first request."""

    target: str
    environment: Mapping[str, Any]
    phases: tuple[Phase, ...]
    seconds: float


_RECORDS: dict[str, type[Timeline | Sizes | Startup]] = {
    "ostinato-timeline": Timeline,
    "ostinato-sizes": Sizes,
    "ostinato-startup": Startup,
}
_CAPTURE = "ostinato-graph"
_REPORT = "ostinato-report"


@dataclass(frozen=True)
class Document:
    """One file's data and what to call it."""

    name: str
    data: Data
    record: Timeline | Sizes | Startup | None = None
    """The data of a kind that is neither a report nor a capture."""

    @property
    def is_capture(self) -> bool:
        """Whether it holds graphs."""
        return "graphs" in self.data

    @property
    def findings(self) -> Sequence[Data]:
        """Findings of a report or a capture."""
        return tuple(self.data.get("findings", ()))

    @property
    def graphs(self) -> dict[int, Data]:
        """Graphs of a capture by batch size, ascending."""
        graphs: dict[int, Data] = self.data["graphs"]
        return graphs


def read_document(path: str | Path) -> Document:
    """Read one JSON file; ``ConfigError`` if it is missing, broken, or of a kind or schema that is not known."""
    return document_of(read_json(path), Path(path).name)


def document_of(data: Any, name: str) -> Document:
    """Check ``data`` and say what it is; ``name`` is what errors and the page call it."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{name}: expected an object, got {type(data).__name__}")
    kind = data.get("kind", _REPORT if "findings" in data else None)
    known = (*_RECORDS, _CAPTURE, _REPORT)
    if kind not in known:
        raise ConfigError(f"{name}.kind is {kind!r}; expected a report (no kind) or one of {', '.join(known[:-1])}")
    _check_schema(data.get("schema"), name)
    if kind in _RECORDS:
        record = read_record(_RECORDS[kind], dict(data), name)
        wrong = [size for size in record.histogram if not size.isdecimal()] if isinstance(record, Sizes) else []
        if wrong:
            raise ConfigError(f"{name}.histogram: {wrong[0]!r} is no batch size")
        return Document(name, data, record)
    if kind == _REPORT:
        return Document(name, _report(data, name))
    capture = OGraph.from_dict(dict(data), name)
    report = {**data, "findings": list(capture.findings), "not_checked": list(capture.not_checked), "metrics": {}}
    _report(report | {"verdict": _verdict(capture.findings)}, name)
    return Document(name, {**data, "graphs": {size: _plain(graph) for size, graph in sorted(capture.graphs.items())}})


def _check_schema(schema: Any, name: str) -> None:
    if type(schema) is not int or schema != SCHEMA:
        newer = "; a newer ostinato wrote it" if isinstance(schema, int) and schema > SCHEMA else ""
        raise ConfigError(f"{name}.schema is {schema!r}; this version reads {SCHEMA}{newer}")


def _report(data: Data, name: str) -> Data:
    try:
        validate(dict(data))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    return data


def _plain(graph: SizeGraph) -> Data:
    """A graph as data again, with every field that its file left out; buffers are not shown."""
    nodes = [{**vars(node), "parameters": [vars(each) for each in node.parameters]} for node in graph.nodes]
    memory = {**vars(graph.memory), "by_line": [vars(line) for line in graph.memory.by_line]}
    return {**vars(graph), "ops": [vars(op) for op in graph.ops], "nodes": nodes, "memory": memory}


def _verdict(findings: Sequence[Any]) -> str:
    serious = any(isinstance(finding, Mapping) and finding.get("severity") != "info" for finding in findings)
    return "findings" if serious else "clean"
