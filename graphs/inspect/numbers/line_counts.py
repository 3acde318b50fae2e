"""Which line is behind a number of a saved capture: ops, nodes and bytes counted by source line. Knows no torch.

A line is known by its file, function and op, not by its number, which moves when something is written above it; the
numbers it has now are told. Files are compared by their last name, so that captures of two machines compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from ostinato.graphs.inspect.numbers.dotted_path import look_up

Counts = Mapping[str, tuple[int, tuple[str, ...]]]
"""How much by ``"file | function | op"``, and the places, ``file:line``, where it is."""
_SHOWN = 6


def count_lines(data: Mapping[str, Any], path: str) -> Counts:
    """By line what is at ``path``, if it is the ops, nodes or memory of a graph; empty for anything else."""
    parts = path.split(".")
    if data.get("kind") != "ostinato-graph" or len(parts) < 3 or parts[0] != "graphs":
        return {}
    graph = look_up(data, ".".join(parts[:2]))
    counts: dict[str, tuple[int, tuple[str, ...]]] = {}
    for name, place, amount in _amounts(graph, parts[2:]):
        before, places = counts.get(name, (0, ()))
        counts[name] = before + amount, places if place is None or place in places else (*places, place)
    return counts


def moved_lines(old: Counts, new: Counts) -> list[str]:
    """What changed, largest change first: ``step.py:45 in attend: aten.copy_.default 0 -> 2``."""
    names = [name for name in {**old, **new} if _amount(old, name) != _amount(new, name)]
    names.sort(key=lambda name: -abs(_amount(new, name) - _amount(old, name)))
    shown = [_moved(name, old, new) for name in names[:_SHOWN]]
    return [*shown, f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else shown


def _moved(name: str, old: Counts, new: Counts) -> str:
    places = new.get(name, old.get(name, (0, ())))[1]
    file, function, what = name.split(" | ")
    where = ", ".join(places) or file
    gone = " (the line is gone)" if name not in new else ""
    return (
        f"{where}{f' in {function}' if function else ''}: {what} {_amount(old, name):,} -> {_amount(new, name):,}{gone}"
    )


def _amount(counts: Counts, name: str) -> int:
    return counts.get(name, (0, ()))[0]


def _amounts(graph: Mapping[str, Any], parts: list[str]) -> Iterator[tuple[str, str | None, int]]:
    """(name, place, amount) of every op, node or allocation that the value is made of."""
    ops = graph["ops"]
    if parts[0] == "ops" and len(parts) == 1:
        yield from ((*_of_op(op), 1) for op in ops)
    elif parts[0] == "nodes" and len(parts) == 1:
        for node in graph["nodes"]:
            if node["op"] is None:
                yield f"no op |  | {node['name']}", None, 1
            else:
                yield *_of_op(ops[node["op"]]), 1
    elif parts[0] == "memory" and parts[1:2] in (["own_bytes"], ["shared_bytes"], ["by_line"]):
        for line in graph["memory"]["by_line"]:
            file = "no line" if line["file"] is None else PurePath(line["file"]).name
            yield f"{file} |  | bytes of line {line['line']}", f"{file}:{line['line']}", line["bytes"]


def _of_op(op: Mapping[str, Any]) -> tuple[str, str | None]:
    file = None if op["file"] is None else PurePath(op["file"]).name
    place = None if file is None else f"{file}:{op['line']}"
    return f"{file or 'no line'} | {op['function'] or ''} | {op['op']}", place
