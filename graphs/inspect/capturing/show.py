"""``show``: the ops of one captured size as a table, one by one or added up by module, kernel or line.

Views are left out: they move nothing and launch nothing. Modules that differ in a number only (``layers.0.mlp``,
``layers.1.mlp``) are added up under ``layers.*.mlp``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal, get_args

from ostinato.graphs.inspect.capturing.ograph import Node, OGraph, Op, SizeGraph, working
from ostinato.graphs.inspect.tables import bytes_text, seconds_text, share_text, table
from ostinato.layers.errors import ConfigError

By = Literal["op", "module", "kernel", "line"]


@dataclass(frozen=True)
class Group:
    """What several ops come to together."""

    name: str
    count: int
    seconds: float | None
    bytes: int
    nodes: int


def show(ograph: OGraph, batch_size: int | None = None, by: By = "op") -> str:
    """Time, share of the step, bytes, share of the measured bandwidth, nodes; ``ConfigError`` for an unknown ``by``."""
    if by not in get_args(By):
        raise ConfigError(f"by={by!r} is none of {', '.join(get_args(By))}")
    graph = ograph.at(batch_size)
    rate = ograph.environment.get("read_bandwidth")
    head = f"{ograph.target}, batch size {graph.batch_size}: {summary(graph)}"
    body = _op_table(graph) if by == "op" else _group_table(groups(graph, by), graph, by, rate)
    return f"{head}\n\n{body}"


def summary(graph: SizeGraph) -> str:
    """One line on a graph."""
    work = working(graph.ops)
    parts = [f"{len(work)} ops and {len(graph.ops) - len(work)} views"]
    if graph.level == "kernel":
        parts.append(f"{len(graph.nodes)} nodes")
    parts.append(f"{bytes_text(sum(op.bytes for op in graph.ops))} moved")
    if graph.replay_seconds is not None:
        parts.append(f"{'replay' if graph.level == 'kernel' else 'inside ops'} {seconds_text(graph.replay_seconds)}")
    if graph.eager_seconds is not None:
        parts.append(f"eager {seconds_text(graph.eager_seconds)}")
    return ", ".join(parts)


def groups(graph: SizeGraph, by: By) -> list[Group]:
    """Sums by module, kernel or line, the longest first (the largest, where nothing was timed)."""
    if by == "kernel" and graph.level == "kernel":
        found = _kernel_groups(graph)
    else:
        name = {"module": _module_of, "line": place_of}.get(by, lambda op: short_op(op.op))
        found = _op_groups(working(graph.ops), name)
    return sorted(found, key=lambda group: (-(group.seconds or 0.0), -group.bytes, group.name))


def rolled(module: str) -> str:
    """``layers.*.mlp`` of ``layers.3.mlp``."""
    return ".".join("*" if part.isdecimal() else part for part in module.split("."))


def place_of(op: Op) -> str:
    """``step.py:12 decode``."""
    return f"{PurePath(op.file).name}:{op.line} {op.function}" if op.file else "(no line)"


def short_op(name: str) -> str:
    """``mm`` of ``aten.mm.default``; other namespaces and overloads are kept."""
    return name.removeprefix("aten.").removesuffix(".default")


def _module_of(op: Op) -> str:
    return rolled(op.module) or "(outside of modules)"


def _op_groups(ops: Sequence[Op], name: Callable[[Op], str]) -> list[Group]:
    members: dict[str, list[Op]] = {}
    for op in ops:
        members.setdefault(name(op), []).append(op)
    return [
        Group(
            key,
            len(each),
            total(op.seconds for op in each),
            sum(op.bytes for op in each),
            sum(op.nodes[1] if op.nodes else 0 for op in each),
        )
        for key, each in members.items()
    ]


def _kernel_groups(graph: SizeGraph) -> list[Group]:
    """By name and grid. An op's bytes are given to its only kernel, and to none of several."""
    members: dict[str, list[Node]] = {}
    for node in graph.nodes:
        grid = f" {'×'.join(map(str, node.grid))}" if node.grid else ""
        members.setdefault(f"{node.name}{grid}", []).append(node)
    alone = {op.nodes[0]: op.bytes for op in graph.ops if op.nodes and op.nodes[1] == 1}
    return [
        Group(
            name,
            len(nodes),
            total(node.seconds for node in nodes),
            sum(node.bytes or alone.get(node.index, 0) for node in nodes),
            len(nodes),
        )
        for name, nodes in members.items()
    ]


def total(values: Iterable[float | None]) -> float | None:
    """The sum of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _op_table(graph: SizeGraph) -> str:
    ops = working(graph.ops)
    whole = total(op.seconds for op in ops)
    header = ("#", "op", "module", "line", "time", "share", "bytes", "of bw", "nodes")
    rows = [
        (
            str(op.index),
            short_op(op.op),
            op.module or "-",
            place_of(op).partition(" ")[0],
            seconds_text(op.seconds),
            _share_of(op.seconds, whole),
            bytes_text(op.bytes),
            share_text(op.of_bandwidth),
            str(op.nodes[1]) if op.nodes else "-",
        )
        for op in ops
    ]
    return _without_nodes(header, rows, graph, flexible=(1, 2, 3))


def _group_table(found: list[Group], graph: SizeGraph, by: By, rate: float | None) -> str:
    whole = total(group.seconds for group in found)
    rows = [
        (
            group.name,
            str(group.count),
            seconds_text(group.seconds),
            _share_of(group.seconds, whole),
            bytes_text(group.bytes),
            share_text(min(1.0, group.bytes / group.seconds / rate) if group.seconds and rate else None),
            str(group.nodes),
        )
        for group in found
    ]
    name = "operator (no kernels without a GPU)" if by == "kernel" and graph.level == "op" else by
    counted = "times" if by == "kernel" else "ops"
    return _without_nodes((name, counted, "time", "share", "bytes", "of bw", "nodes"), rows, graph, flexible=(0,))


def _without_nodes(
    header: tuple[str, ...], rows: Sequence[tuple[str, ...]], graph: SizeGraph, flexible: tuple[int, ...]
) -> str:
    """A table whose last column, nodes, is left out where no graph was captured."""
    if graph.level == "kernel":
        return table(header, rows, flexible)
    return table(header[:-1], [row[:-1] for row in rows], flexible)


def _share_of(seconds: float | None, whole: float | None) -> str:
    return share_text(seconds / whole if seconds is not None and whole else None)
