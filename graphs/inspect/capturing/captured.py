"""The nodes of a captured CUDA graph, as data: kernels by name, and which buffers their parameters point into.

    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        step()
    for node in CapturedGraph.from_torch(graph, {"x": x, "weight": weight}).nodes:
        print(node.type, node.name, node.grid, [p.buffer for p in node.parameters if p.buffer])

A word of 8 bytes that lies within a buffer counts as a pointer into it; a number may look like one by chance. Child
graphs and conditional nodes are one node each, with a name that says what is inside. Kernels that write through a
pointer stored in device memory show no pointer.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ostinato.graphs.inspect.capturing.libcuda import Argument, Driver
from ostinato.graphs.inspect.capturing.ograph import Node, Parameter
from ostinato.layers.errors import ConfigError

_WORD = 8


class Span(NamedTuple):
    """Memory: ``bytes`` from ``address``."""

    address: int
    bytes: int

    @classmethod
    def of(cls, tensor: Tensor) -> Span:
        """The whole storage of ``tensor``: a kernel may be given any address within."""
        storage = tensor.untyped_storage()
        return cls(storage.data_ptr(), storage.nbytes())


class KnownBuffers:
    """Which named buffer an address lies in. Buffers do not overlap; of those that begin together one is known."""

    def __init__(self, buffers: Mapping[str, Tensor | Span]) -> None:
        spans = ((Span.of(b) if isinstance(b, Tensor) else Span(*b), name) for name, b in buffers.items())
        self._spans = sorted((span, name) for span, name in spans if span.bytes and span.address)
        self._starts = [span.address for span, _ in self._spans]

    def at(self, address: int) -> str | None:
        """Its name; None outside of all."""
        before = bisect_right(self._starts, address) - 1
        if before < 0:
            return None
        span, name = self._spans[before]
        return name if address < span.address + span.bytes else None


@dataclass(frozen=True)
class CapturedGraph:
    """What a graph consists of. ``handles`` are the driver's; ``nodes`` and ``edges`` count from 0 in their order."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]
    handles: tuple[int, ...]
    notes: tuple[str, ...]
    """What could not be read, one sentence each."""

    @classmethod
    def from_torch(
        cls, graph: Any, buffers: Mapping[str, Tensor | Span] | None = None, driver: Driver | None = None
    ) -> CapturedGraph:
        """Of a ``torch.cuda.CUDAGraph(keep_graph=True)`` that was captured; ``ConfigError`` of any other."""
        if not hasattr(graph, "raw_cuda_graph"):
            raise ConfigError(f"expected a torch.cuda.CUDAGraph, got {type(graph).__name__}")
        try:
            handle = graph.raw_cuda_graph()
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"the graph was not kept; capture into CUDAGraph(keep_graph=True): {reason}") from error
        return cls.from_handle(int(handle), buffers, driver)

    @classmethod
    def from_handle(
        cls, handle: int, buffers: Mapping[str, Tensor | Span] | None = None, driver: Driver | None = None
    ) -> CapturedGraph:
        """Of a ``cudaGraph_t``; buffers are tensors or (address, bytes), by name."""
        driver = driver or Driver()
        handles = driver.nodes(handle)
        known = KnownBuffers(buffers or {})
        position = {node: index for index, node in enumerate(handles)}
        nodes = tuple(_describe(driver, node, index, known) for index, node in enumerate(handles))
        edges = tuple(sorted((position[a], position[b]) for a, b in driver.edges(handle)))
        return cls(nodes, edges, handles, _notes(nodes))

    @property
    def kernels(self) -> tuple[Node, ...]:
        """The nodes that launch a kernel."""
        return tuple(node for node in self.nodes if node.type == "kernel")


def _describe(driver: Driver, handle: int, index: int, known: KnownBuffers) -> Node:
    kind = driver.node_type(handle)
    if kind == "kernel":
        kernel = driver.kernel(handle)
        parameters = tuple(p for argument in kernel.arguments or () for p in _parameters(argument, known))
        name = demangled(kernel.name) or "kernel without a name"
        return Node(index, kind, name, kernel.grid, kernel.block, kernel.shared_bytes, parameters)
    if kind == "memcpy":
        copy = driver.copy(handle)
        way = f"memcpy {'host' if copy.from_host else 'device'} to {'host' if copy.to_host else 'device'}"
        ends = tuple(_pointer(i * _WORD, address, known) for i, address in enumerate((copy.source, copy.target)))
        return Node(index, kind, way, parameters=ends, bytes=copy.bytes)
    if kind == "memset":
        fill = driver.memset(handle)
        return Node(index, kind, "memset", parameters=(_pointer(0, fill.address, known),), bytes=fill.bytes)
    return Node(index, kind, _inside(driver, handle) if kind == "graph" else kind)


def _inside(driver: Driver, handle: int) -> str:
    nodes = driver.nodes(driver.child(handle))
    kinds = Counter(driver.node_type(node) for node in nodes)
    return f"graph of {len(nodes)} nodes: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _pointer(offset: int, address: int, known: KnownBuffers) -> Parameter:
    return Parameter(offset, _WORD, f"{address:#x}", known.at(address))


def _parameters(argument: Argument, known: KnownBuffers) -> list[Parameter]:
    """The parameter itself, and of one larger than a word each word in it that points into a buffer."""
    offset, value = argument
    if len(value) <= _WORD:
        number = int.from_bytes(value, "little")
        return [Parameter(offset, len(value), f"{number:#x}", known.at(number) if len(value) == _WORD else None)]
    found = [Parameter(offset, len(value), value.hex())]
    for at in range(-offset % _WORD, len(value) - _WORD + 1, _WORD):
        word = _pointer(offset + at, int.from_bytes(value[at : at + _WORD], "little"), known)
        if word.buffer is not None:
            found.append(word)
    return found


def _notes(nodes: tuple[Node, ...]) -> tuple[str, ...]:
    kernels = [node for node in nodes if node.type == "kernel"]
    notes = []
    opaque = [node.type for node in nodes if node.type in ("graph", "conditional")]
    if opaque:
        notes.append(f"the inside of {len(opaque)} child graphs and conditional nodes is not listed")
    nameless = sum(node.name == "kernel without a name" for node in kernels)
    if nameless:
        notes.append(f"{nameless} of {len(kernels)} kernels have no name (the driver does not tell)")
    if kernels and not any(node.parameters for node in kernels):
        notes.append("no kernel's parameters could be read (drivers before 12.4 do not tell their layout)")
    return tuple(notes)


def demangled(name: str) -> str:
    """A C++ name as it was written, where torch can tell; else as it is."""
    undo = getattr(torch._C, "_demangle", None)
    return str(undo(name)) if undo is not None and name.startswith("_Z") else name
