"""``diff``: what came, went and changed between two graphs: two sizes of a file, two commits, two machines.

Ops are aligned in order by module, function and operator (not by line: an edit above moves lines), kernels also by
name. An aligned pair has changed if its shapes, bytes, operations, number of nodes or launch differ, or if its time
does by more than noise (a third, and 20 µs)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, TypeVar

from ostinato.graphs.inspect.capturing.ograph import Node, OGraph, Op, SizeGraph, working
from ostinato.graphs.inspect.capturing.show import place_of
from ostinato.layers.errors import ConfigError

Item = TypeVar("Item")
_NOISE_RATIO = 4 / 3
_NOISE_SECONDS = 20e-6


def load_size(text: str) -> tuple[OGraph, SizeGraph]:
    """``run.ograph@8``: a file and the graph of that batch size; of its largest without ``@``."""
    name, at, size = text.rpartition("@")
    if not at or Path(text).exists():
        ograph = OGraph.load(text)
        return ograph, ograph.at()
    if not size.isdecimal():
        raise ConfigError(f"{text!r}: expected FILE@BATCH_SIZE, got {size!r} for the size")
    ograph = OGraph.load(name)
    return ograph, ograph.at(int(size))


def graph_diff(before: SizeGraph, after: SizeGraph) -> dict[str, Any]:
    """``{"totals": {name: [before, after]}, "ops": CHANGES, "kernels": CHANGES, "lines": [...]}``.

    CHANGES is ``{"added": [...], "removed": [...], "changed": [{..., "before": {...}, "after": {...}}]}``; ``lines``
    are those that account for a different number of ops or nodes, the largest change first.
    """
    ops = _compare(working(before.ops), working(after.ops), _op_key, _op_facts, _describe_op)
    kernels = _compare(_placed(before), _placed(after), _node_key, _node_facts, _describe_node)
    totals = {name: [value(before), value(after)] for name, value in _TOTALS.items()}
    return {"totals": totals, "ops": ops, "kernels": kernels, "lines": _lines(before, after, ops)}


_TOTALS: dict[str, Callable[[SizeGraph], Any]] = {
    "batch size": lambda g: g.batch_size,
    "ops": lambda g: len(working(g.ops)),
    "nodes": lambda g: len(g.nodes),
    "bytes": lambda g: sum(op.bytes for op in g.ops),
    "flops": lambda g: sum(op.flops for op in g.ops),
    "replay_seconds": lambda g: g.replay_seconds,
    "eager_seconds": lambda g: g.eager_seconds,
    "peak_bytes": lambda g: sum(line.bytes for line in g.memory.by_line),
    "exec_bytes": lambda g: g.memory.exec_bytes,
    "external_bytes": lambda g: g.memory.external_bytes,
}


def _op_key(op: Op) -> Hashable:
    return op.module, op.function, op.op


def _op_facts(op: Op) -> dict[str, Any]:
    nodes = op.nodes[1] if op.nodes else None
    return {"shapes": op.shapes, "bytes": op.bytes, "flops": op.flops, "nodes": nodes, "seconds": op.seconds}


def _describe_op(op: Op) -> dict[str, Any]:
    return {"name": op.op, "module": op.module, "file": op.file, "line": op.line, "place": place_of(op)}


Placed = tuple[Node, Op | None]


def _placed(graph: SizeGraph) -> list[Placed]:
    return [(node, None if node.op is None else graph.ops[node.op]) for node in graph.nodes]


def _node_key(placed: Placed) -> Hashable:
    node, op = placed
    return (op.module, op.function, op.op, node.name) if op else ("", None, "", node.name)


def _node_facts(placed: Placed) -> dict[str, Any]:
    """Numbers among the parameters too: a constant that was baked in; not addresses, which differ from run to run."""
    node, _ = placed
    numbers = [p.value for p in node.parameters if p.buffer is None and p.size <= 4]
    launch = {"grid": node.grid, "block": node.block, "shared_bytes": node.shared_bytes}
    return launch | {"bytes": node.bytes, "constants": numbers, "seconds": node.seconds}


def _describe_node(placed: Placed) -> dict[str, Any]:
    node, op = placed
    place = _describe_op(op) if op else {"module": "", "file": None, "line": None, "place": "(no line)"}
    return place | {"name": node.name}


def _compare(
    before: Sequence[Item],
    after: Sequence[Item],
    key: Callable[[Item], Hashable],
    facts: Callable[[Item], dict[str, Any]],
    describe: Callable[[Item], dict[str, Any]],
) -> dict[str, list[dict[str, Any]]]:
    matcher = SequenceMatcher(None, [key(each) for each in before], [key(each) for each in after], autojunk=False)
    added, removed, changed = [], [], []
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag != "equal":
            removed += [describe(each) | facts(each) for each in before[a:b]]
            added += [describe(each) | facts(each) for each in after[c:d]]
            continue
        for old, new in zip(before[a:b], after[c:d], strict=True):
            was, now = _differing(facts(old), facts(new))
            if was != now:
                changed.append(describe(new) | {"before": was, "after": now})
    return {"added": added, "removed": removed, "changed": changed}


def _differing(old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    names = [name for name in old if old[name] != new[name]]
    if "seconds" in names and not beyond_noise(old["seconds"], new["seconds"]):
        names.remove("seconds")
    return {name: old[name] for name in names}, {name: new[name] for name in names}


def beyond_noise(old: float | None, new: float | None) -> bool:
    """Whether two times, in seconds, differ by more than measurements of one thing do."""
    if old is None or new is None:
        return False
    small, large = sorted((old, new))
    return large - small > _NOISE_SECONDS and large > small * _NOISE_RATIO


def _lines(before: SizeGraph, after: SizeGraph, ops: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Only lines with an op that came, went or launches another number of nodes: others merely have other numbers."""
    moved = [*ops["added"], *ops["removed"], *(e for e in ops["changed"] if "nodes" in e["before"])]
    places = {entry["place"] for entry in moved}
    found = []
    for what, count in (("ops", lambda op: 1), ("nodes", lambda op: op.nodes[1] if op.nodes else 0)):
        old, new = (_count_by_place(graph, count) for graph in (before, after))
        found += [
            {"place": place, "what": what, "before": old[place], "after": new[place]}
            for place in sorted(places)
            if old[place] != new[place]
        ]
    return sorted(found, key=lambda entry: -abs(entry["after"] - entry["before"]))


def _count_by_place(graph: SizeGraph, count: Callable[[Op], int]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for op in working(graph.ops):
        counts[place_of(op)] += count(op)
    return counts
