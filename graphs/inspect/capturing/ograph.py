"""A saved capture, ``run.ograph``: what is in the graph of each batch size, as data. Knows no torch.

Plain JSON, gzipped if the name ends in ``.gz``. ``level`` is ``"op"`` where there was no GPU (the ATen calls of one
run, no nodes), ``"kernel"`` where a real graph was captured. Seconds are medians of measurements; None where nothing
was measured: a number is never made up. Every index refers to a position in the list of the same graph."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ostinato.graphs.inspect.json_file import read_json
from ostinato.graphs.inspect.records import read_record
from ostinato.layers.errors import ConfigError

SCHEMA = 1
KIND = "ostinato-graph"


@dataclass(frozen=True)
class Op:
    """One ATen call of the step, and the line and module it came from."""

    index: int
    op: str
    api: str | None
    """The function of torch that the user called, as in ``torch.nn.functional.linear``."""
    module: str
    """Path of the innermost module, ``""`` outside of all."""
    file: str | None
    line: int | None
    function: str | None
    inputs: tuple[str, ...]
    """Names of buffers that it reads."""
    outputs: tuple[str, ...]
    shapes: str
    bytes_read: int
    bytes_written: int
    flops: int
    seconds: float | None = None
    of_bandwidth: float | None = None
    """Share of the measured bandwidth, 0 to 1; 1 also for what a cache served faster."""
    nodes: tuple[int, int] | None = None
    """First node and number of nodes; None at op level, or where its nodes do not lie together."""

    @property
    def bytes(self) -> int:
        """Read and written."""
        return self.bytes_read + self.bytes_written


def working(ops: Iterable[Op]) -> list[Op]:
    """The ops that move bytes, compute or launch: no views."""
    return [op for op in ops if op.bytes or op.flops or (op.nodes and op.nodes[1])]


@dataclass(frozen=True)
class Parameter:
    """What a kernel was given, at ``offset`` bytes into its parameters."""

    offset: int
    size: int
    value: str
    """Up to 8 bytes: the number in hexadecimal, ``0x…``. More: the bytes as they lie in memory."""
    buffer: str | None = None
    """The buffer into which it points."""


@dataclass(frozen=True)
class Node:
    """One node of a captured graph."""

    index: int
    type: str
    name: str
    grid: tuple[int, int, int] | None = None
    block: tuple[int, int, int] | None = None
    shared_bytes: int | None = None
    """Dynamic shared memory per block."""
    parameters: tuple[Parameter, ...] = ()
    op: int | None = None
    seconds: float | None = None
    bytes: int | None = None
    """Bytes that a copy or a memset moves; None for kernels, whose traffic is known by op."""


@dataclass(frozen=True)
class Buffer:
    """Memory that the step reads or writes."""

    kind: Literal["input", "weight", "state", "pool", "output"]
    bytes: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class LineBytes:
    """Bytes alive at the peak that one line allocated."""

    file: str | None
    line: int | None
    bytes: int


@dataclass(frozen=True)
class Memory:
    """What the graph of one size holds, when the sizes are captured largest first into one pool.

    ``own_bytes``: what it adds to the pool. ``shared_bytes``: what it needs at its peak and finds in the pool.
    ``exec_bytes``: what the instantiated graph takes beside it. ``external_bytes``: inputs, weights and state.
    ``by_line`` adds up to the peak of live intermediate tensors.
    """

    own_bytes: int
    shared_bytes: int
    exec_bytes: int | None
    external_bytes: int
    by_line: tuple[LineBytes, ...] = ()


@dataclass(frozen=True)
class SizeGraph:
    """The graph of one batch size."""

    batch_size: int
    level: Literal["op", "kernel"]
    ops: tuple[Op, ...]
    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]
    buffers: Mapping[str, Buffer]
    memory: Memory
    replay_seconds: float | None = None
    """One replay; at op level the time inside ops that are no views: a step without the Python between them."""
    eager_seconds: float | None = None
    rows_wasted: float | None = None

    def check(self, where: str) -> None:
        """Raise ``ConfigError`` naming the first index that points nowhere."""
        for number, op in enumerate(self.ops):
            first, count = op.nodes or (0, 0)
            if op.index != number or not 0 <= first <= first + count <= len(self.nodes):
                raise ConfigError(f"{where}.ops[{number}]: index {op.index}, nodes {op.nodes} of {len(self.nodes)}")
        for number, node in enumerate(self.nodes):
            if node.index != number or (node.op is not None and not 0 <= node.op < len(self.ops)):
                raise ConfigError(f"{where}.nodes[{number}]: index {node.index}, op {node.op} of {len(self.ops)}")
        for number, edge in enumerate(self.edges):
            if not all(0 <= end < len(self.nodes) for end in edge):
                raise ConfigError(f"{where}.edges[{number}]: {list(edge)}, but there are {len(self.nodes)} nodes")


@dataclass(frozen=True)
class OGraph:
    """A capture of one target at several batch sizes."""

    target: str
    environment: Mapping[str, Any]
    graphs: Mapping[int, SizeGraph]
    findings: tuple[Mapping[str, Any], ...] = ()
    not_checked: tuple[str, ...] = ()

    def at(self, batch_size: int | None = None) -> SizeGraph:
        """The graph of that size, by default the largest; ``ConfigError`` names the sizes there are."""
        wanted = max(self.graphs) if batch_size is None else batch_size
        if wanted not in self.graphs:
            sizes = ", ".join(str(size) for size in sorted(self.graphs))
            raise ConfigError(f"{self.target}: no graph of batch size {wanted}; there are {sizes}")
        return self.graphs[wanted]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as it is saved."""
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "target": self.target,
            "environment": dict(self.environment),
            "graphs": {str(size): asdict(self.graphs[size]) for size in sorted(self.graphs)},
            "findings": [dict(finding) for finding in self.findings],
            "not_checked": list(self.not_checked),
        }

    @classmethod
    def from_dict(cls, data: Any, where: str = "ograph") -> OGraph:
        """Read what ``as_dict`` gave; ``ConfigError`` names what is wrong with it."""
        _check_kind(data, where)
        file = read_record(_File, data, where)
        graphs = {_size(text, f"{where}.graphs"): graph for text, graph in file.graphs.items()}
        if not graphs:
            raise ConfigError(f"{where}.graphs is empty")
        for size, graph in graphs.items():
            at = f"{where}.graphs['{size}']"
            if graph.batch_size != size:
                raise ConfigError(f"{at}.batch_size is {graph.batch_size}")
            graph.check(at)
        return cls(file.target, file.environment, graphs, file.findings, file.not_checked)

    def save(self, path: str | Path) -> None:
        """Write it; gzipped if the name ends in ``.gz``. ``OSError`` as ``open`` raises it."""
        text = json.dumps(self.as_dict(), allow_nan=False).encode()
        packed = gzip.compress(text, mtime=0) if str(path).endswith(".gz") else text
        Path(path).write_bytes(packed)

    @classmethod
    def load(cls, path: str | Path) -> OGraph:
        """Read a saved capture; ``ConfigError`` if there is none, or it is damaged, or of another kind or schema."""
        return cls.from_dict(read_json(path), str(path))


@dataclass(frozen=True)
class _File:
    target: str
    environment: Mapping[str, Any]
    graphs: Mapping[str, SizeGraph]
    findings: tuple[Mapping[str, Any], ...]
    not_checked: tuple[str, ...]


def _check_kind(data: Any, where: str) -> None:
    if not isinstance(data, dict) or data.get("kind") != KIND:
        got = data.get("kind") if isinstance(data, dict) else type(data).__name__
        raise ConfigError(
            f"{where}: not a saved capture: kind is {got!r}; expected {KIND!r} (`ostinato graph capture`)"
        )
    schema = data.get("schema")
    if schema != SCHEMA:
        hint = "; a newer ostinato wrote it" if isinstance(schema, int) and schema > SCHEMA else ""
        raise ConfigError(f"{where}.schema is {schema!r}; this version reads {SCHEMA}{hint}")


def _size(text: str, where: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{where}: {text!r} is not a batch size")
    return int(text)
