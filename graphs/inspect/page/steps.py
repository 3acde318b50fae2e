"""One captured step, laid out: what is drawn, in which order, how wide, in which colour. Draws nothing itself.

The step is a row of leaves: a leaf is a graph node (kernel, copy) or, where an operator has none, the operator. An
operator and a module are a half-open range ``[first, last)`` of leaves, so one running sum of widths places everything.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from ostinato.graphs.inspect.page.colours import step_of
from ostinato.graphs.inspect.page.places import same_file

Data = Mapping[str, Any]
Rates = tuple[float | None, float | None]
"""Bytes a second and operations a second, as measured."""

MODULE_LANES = 6
"""Deeper modules are not drawn."""
FAMILIES = {
    "matrix": ("mm", "bmm", "addmm", "linear", "matmul", "baddbmm", "einsum", "gemm", "conv"),
    "attention": ("attention", "attn", "sdpa", "flash"),
    "memory": ("copy", "clone", "index", "embedding", "gather", "scatter", "cat", "contiguous", "fill", "zero", "put"),
    "shape": ("view", "reshape", "expand", "permute", "transpose", "slice", "select", "squeeze", "split", "alias", "t"),
}
"""Kinds of operators by words of their names, looked for in this order of importance; the others are arithmetic."""
_IMPORTANCE = ("attention", "matrix", "memory", "shape")


@dataclass(frozen=True)
class Leaf:
    """The smallest thing drawn."""

    op: int | None
    """Position in ``Step.ops``; None for a node that no operator claims."""
    node: Data | None
    seconds: float
    bytes: float
    share: float | None = None
    """Of the roofline, 0 … 1; None where nothing was measured."""
    family: str = ""
    """Which kind of operator, where the whole step has no measurement; coloured by it instead."""

    @property
    def colour(self) -> str:
        """A class of the style sheet: "r0" … "r9" on the roofline's scale, "r" if not measured, or "f-matrix" …"""
        if self.family:
            return f"f-{self.family}"
        return "r" if self.share is None else f"r{step_of(self.share)}"


@dataclass(frozen=True)
class Block:
    """A module, as a range of leaves."""

    depth: int
    first: int
    last: int
    path: str


@dataclass(frozen=True)
class Step:
    """A step of one batch size."""

    size: int
    ops: Sequence[Data]
    leaves: Sequence[Leaf]
    ranges: Sequence[tuple[int, int]]
    """Leaves [first, last) of each operator."""
    blocks: Sequence[Block]
    findings: Sequence[Sequence[int]]
    """Of each operator, the numbers of the findings at its line."""
    changes: Sequence[str] = ()
    """Of each operator "came", "went", "changed" or "same", where two captures are compared."""
    notes: Sequence[str] = ()
    """Of each operator what changed, in words; "" where nothing did."""

    @cached_property
    def timed(self) -> bool:
        """Whether anything was measured."""
        return any(leaf.seconds for leaf in self.leaves)

    @cached_property
    def by_roofline(self) -> bool:
        """Whether colours say how much of the roofline was reached (else: which kind of operator)."""
        return any(leaf.share is not None for leaf in self.leaves)

    @cached_property
    def nodes(self) -> int:
        """Graph nodes among the leaves."""
        return sum(leaf.node is not None for leaf in self.leaves)

    def weights(self, metric: str) -> list[float]:
        """Widths of the leaves by "time" or "bytes" as parts of 1; what has none is a hairline."""
        sizes = [leaf.seconds if metric == "time" else leaf.bytes for leaf in self.leaves]
        total = sum(sizes)
        thin = total / 20_000 if total else 1.0
        sizes = [max(size, thin) for size in sizes]
        whole = sum(sizes)
        return [size / whole for size in sizes]

    def edges(self, metric: str) -> list[float]:
        """Where each leaf begins, and the last one ends, in percent of the step."""
        return [100.0 * edge for edge in accumulate(self.weights(metric), initial=0.0)]

    def colour_of(self, first: int, last: int) -> str:
        """The colour of leaves [first, last) together: their mean share of the roofline, weighted by time."""
        known = [(leaf.share, leaf.seconds) for leaf in self.leaves[first:last] if leaf.share is not None]
        time = sum(seconds for _, seconds in known)
        return f"r{step_of(sum(share * seconds for share, seconds in known) / time)}" if time else "r"


def step_of_graph(size: int, graph: Data, environment: Data, findings: Sequence[Data]) -> Step:
    """Lay out a GRAPH of a capture; ``findings`` are the page's, in its order."""
    ops = sorted(graph["ops"], key=lambda op: op.get("index", 0))
    order = _leaf_order(ops, graph["nodes"])
    rates = environment.get("read_bandwidth"), environment.get("matrix_rate")
    parts = Counter(op for op, _ in order)
    leaves = [_leaf(ops[op] if op is not None else {}, op, node, parts[op], rates) for op, node in order]
    if all(leaf.share is None for leaf in leaves):
        leaves = [replace(leaf, family=family_of(_leaf_name(ops, leaf))) for leaf in leaves]
    ranges = _ranges(len(ops), leaves)
    return Step(size, ops, leaves, ranges, _blocks(ops, ranges), _findings_of(ops, findings))


def family_of(op: str) -> str:
    """Which kind of operator: matrix, attention, memory, shape, or arithmetic."""
    words = set(re.split(r"[^a-z]+", op.lower())) | set(re.split(r"[^a-z_]+", op.lower()))
    for family in _IMPORTANCE:
        if words & set(FAMILIES[family]):
            return family
    return "arithmetic"


def _leaf_name(ops: Sequence[Data], leaf: Leaf) -> str:
    return str(ops[leaf.op]["op"] if leaf.op is not None else (leaf.node or {}).get("name", ""))


def component_names(path: str) -> list[str]:
    """Lanes of a dotted module path; a number stays with the name before it: "layers.0.mlp" -> layers.0, mlp."""
    names: list[str] = []
    for part in path.split(".") if path else ():
        if part.isdecimal() and names and not names[-1].rpartition(".")[2].isdecimal():
            names[-1] += f".{part}"
        else:
            names.append(part)
    return names[:MODULE_LANES]


def roofline_share(seconds: float | None, moved: float, flops: float, rates: Rates) -> float | None:
    """Time that the roofline allows over time taken."""
    bandwidth, rate = rates
    if not seconds or not bandwidth:
        return None
    return max(moved / bandwidth, flops / rate if rate else 0.0) / seconds


def _leaf_order(ops: Sequence[Data], nodes: Sequence[Data]) -> list[tuple[int | None, Data | None]]:
    """(operator, node) in the order of the graph; nodes that no operator claims lie where they were created."""
    by_op: dict[int, list[Data]] = defaultdict(list)
    free: list[Data] = []
    for node in nodes:
        (free if node["op"] is None else by_op[node["op"]]).append(node)
    order: list[tuple[int | None, Data | None]] = []
    for number in range(len(ops)):
        mine = by_op[number]
        while mine and free and free[0]["index"] < mine[0]["index"]:
            order.append((None, free.pop(0)))
        order += [(number, node) for node in mine] or [(number, None)]
    return order + [(None, node) for node in free]


def _leaf(op: Data, number: int | None, node: Data | None, parts: int, rates: Rates) -> Leaf:
    """One leaf of ``op``, which has ``parts`` of them: what was not measured by node is divided evenly."""
    own = node or {}
    seconds, moved = own.get("seconds"), own.get("bytes")
    if seconds is None:
        seconds = (op.get("seconds") or 0.0) / parts
    if moved is None:
        moved = (op.get("bytes_read", 0) + op.get("bytes_written", 0)) / parts
    return Leaf(number, node, seconds, moved, _share(op, rates) if op else roofline_share(seconds, moved, 0, rates))


def _share(op: Data, rates: Rates) -> float | None:
    moved = op["bytes_read"] + op["bytes_written"]
    known = op.get("of_bandwidth"), roofline_share(op.get("seconds"), moved, op["flops"], rates)
    return max((share for share in known if share is not None), default=None)


def _ranges(count: int, leaves: Sequence[Leaf]) -> list[tuple[int, int]]:
    mine: dict[int, list[int]] = defaultdict(list)
    for position, leaf in enumerate(leaves):
        if leaf.op is not None:
            mine[leaf.op].append(position)
    return [(mine[number][0], mine[number][-1] + 1) for number in range(count)]


def _blocks(ops: Sequence[Data], ranges: Sequence[tuple[int, int]]) -> list[Block]:
    """Runs of operators in one module, for each depth; outer modules first, then from left to right."""
    open_runs: list[tuple[str, int]] = []
    blocks: list[Block] = []

    def close(depth: int, last: int) -> None:
        while len(open_runs) > depth:
            path, first = open_runs.pop()
            blocks.append(Block(len(open_runs), ranges[first][0], ranges[last][1], path))

    for number, op in enumerate(ops):
        names = component_names(op["module"])
        paths = [".".join(names[: depth + 1]) for depth in range(len(names))]
        same = sum(1 for path, run in zip(paths, open_runs, strict=False) if path == run[0])
        close(same, number - 1)
        open_runs += [(path, number) for path in paths[same:]]
    close(0, len(ops) - 1)
    return sorted(blocks, key=lambda block: (block.depth, block.first))


def _findings_of(ops: Sequence[Data], findings: Sequence[Data]) -> list[list[int]]:
    at_line: dict[int, list[int]] = defaultdict(list)
    for number, finding in enumerate(findings):
        if finding.get("file") and finding.get("line"):
            at_line[finding["line"]].append(number)
    return [
        [number for number in at_line.get(op["line"] or 0, ()) if same_file(findings[number]["file"], op["file"] or "")]
        for op in ops
    ]
