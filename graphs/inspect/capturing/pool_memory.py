"""``memory``: what the graph of each size holds, as a table, and the lines that allocate the most of it."""

from __future__ import annotations

from pathlib import PurePath

from ostinato.graphs.inspect.capturing.ograph import OGraph, SizeGraph
from ostinato.graphs.inspect.tables import bytes_text, table

_LINES = 10


def memory_text(ograph: OGraph) -> str:
    """Own, shared, exec and external bytes by size, then the lines alive at the peak of the largest.

    Own: what the size adds to the pool when sizes are captured largest first. Shared: what it finds there. Exec: what
    the driver takes for the instantiated graph; ``-`` without a GPU. External: inputs, weights and state.
    """
    graphs = [ograph.graphs[size] for size in sorted(ograph.graphs, reverse=True)]
    rows = [_row(graph) for graph in graphs]
    known = [graph.memory.exec_bytes for graph in graphs if graph.memory.exec_bytes is not None]
    own = sum(graph.memory.own_bytes for graph in graphs)
    rows.append(("all", bytes_text(own), "", bytes_text(sum(known)) if known else "-", ""))
    header = ("batch size", "own", "shared", "exec", "external")
    return f"{ograph.target}\n\n{table(header, rows)}\n\n{_lines(graphs[0])}"


def _row(graph: SizeGraph) -> tuple[str, ...]:
    memory = graph.memory
    numbers = (memory.own_bytes, memory.shared_bytes, memory.exec_bytes, memory.external_bytes)
    return str(graph.batch_size), *(bytes_text(number) for number in numbers)


def _lines(graph: SizeGraph) -> str:
    lines = graph.memory.by_line
    rows = [
        (f"{PurePath(line.file).name}:{line.line}" if line.file else "(no line)", bytes_text(line.bytes))
        for line in lines[:_LINES]
    ]
    if len(lines) > _LINES:
        rest = sum(line.bytes for line in lines[_LINES:])
        rows.append((f"{len(lines) - _LINES} more lines", bytes_text(rest)))
    title = f"alive at the peak of batch size {graph.batch_size}, by the line that made it"
    return f"{title}\n{table(('line', 'bytes'), rows)}"
