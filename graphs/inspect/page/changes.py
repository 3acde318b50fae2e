"""Two graphs of one batch size side by side: which operators came, went, changed or stayed.

As ``graph_diff`` has it: operators that do any work are matched in order by module, function and name, not by line. A
matched pair changed if its shapes, bytes, operations or kernels (names, grid, block) differ, or its time by more than
noise. Kernels are compared only where both captures have them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from ostinato.graphs.inspect.capturing.graph_diff import beyond_noise
from ostinato.graphs.inspect.page.quantities import bytes_text, count_text, seconds_text, signed
from ostinato.graphs.inspect.page.step_data import launch_text, node_name
from ostinato.graphs.inspect.page.steps import Data, Step, step_of_graph

Launches = dict[int, list[str]]
"""Kernels by operator's index."""


@dataclass(frozen=True)
class Change:
    """One operator, before and after."""

    kind: str
    """came, went, changed or same."""
    old: Data | None
    new: Data | None
    note: str = ""

    @property
    def op(self) -> Data:
        """The operator as it is now; as it was where it is gone."""
        op = self.new if self.new is not None else self.old
        assert op is not None
        return op


@dataclass(frozen=True)
class Group:
    """The same change of the same line in several modules."""

    members: Sequence[Change]

    @property
    def module(self) -> str:
        """Path of the module; numbers that differ among the members are ``*``."""
        return _numberless(self.members[0].op["module"]) if len(self.members) > 1 else self.members[0].op["module"]

    def difference(self, *fields: str) -> float:
        """New minus old of the sum of ``fields`` over the members."""
        return sum(_total(member.new, fields) - _total(member.old, fields) for member in self.members)


def changes_of(old: Data, new: Data) -> list[Change]:
    """Every operator of either graph, in an order that keeps both graphs' orders."""
    before, after = ([op for op in graph["ops"] if _works(op)] for graph in (old, new))
    matcher = SequenceMatcher(None, _keys(before), _keys(after), autojunk=False)
    launches = (_launches(old), _launches(new)) if old["nodes"] and new["nodes"] else ({}, {})
    changes: list[Change] = []
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            changes += [_pair(*pair, *launches) for pair in zip(before[a:b], after[c:d], strict=True)]
        else:
            changes += [Change("went", op, None) for op in before[a:b]]
            changes += [Change("came", None, op) for op in after[c:d]]
    return changes


def step_of_changes(size: int, changes: Sequence[Change], findings: Sequence[Data]) -> Step:
    """Lay the union of both steps out: an operator that is gone is as wide as it was."""
    ops = [{**change.op, "index": number, "nodes": None} for number, change in enumerate(changes)]
    step = step_of_graph(size, {"ops": ops, "nodes": []}, {}, findings)
    kinds = [change.kind for change in changes]
    return Step(
        size, step.ops, step.leaves, step.ranges, step.blocks, step.findings, kinds, [change.note for change in changes]
    )


def groups_of(changes: Sequence[Change]) -> list[Group]:
    """What came, went or changed, each kind of change once; the one that moves most bytes first."""
    groups: dict[tuple[object, ...], list[Change]] = defaultdict(list)
    for change in changes:
        if change.kind != "same":
            op = change.op
            facts = tuple(note for note in change.note.split("; ") if not note.startswith("time "))
            key = (change.kind, op["op"], _numberless(op["module"]), op["file"], op["line"], op["shapes"], facts)
            groups[key].append(change)
    found = [Group(members) for members in groups.values()]
    return sorted(found, key=lambda group: -sum(_total(m.op, ("bytes_read", "bytes_written")) for m in group.members))


def _works(op: Data) -> bool:
    """Whether it moves bytes, computes or launches: no view."""
    return bool(op["bytes_read"] or op["bytes_written"] or op["flops"] or (op["nodes"] and op["nodes"][1]))


def _keys(ops: Sequence[Data]) -> list[tuple[object, ...]]:
    return [(op["module"], op["function"], op["op"]) for op in ops]


def _pair(old: Data, new: Data, before: Launches, after: Launches) -> Change:
    notes = list(_differences(old, new, before.get(old["index"], []), after.get(new["index"], [])))
    return Change("changed" if notes else "same", old, new, "; ".join(notes))


def _differences(old: Data, new: Data, old_launches: Sequence[str], new_launches: Sequence[str]) -> Iterator[str]:
    if old["shapes"] != new["shapes"]:
        yield f"shapes {old['shapes']} → {new['shapes']}"
    if old_launches != new_launches:
        yield f"kernels {', '.join(old_launches) or 'none'} → {', '.join(new_launches) or 'none'}"
    moved = [op["bytes_read"] + op["bytes_written"] for op in (old, new)]
    if moved[0] != moved[1]:
        yield f"bytes {bytes_text(moved[0])} → {bytes_text(moved[1])} ({bytes_change(moved[1] - moved[0])})"
    if old["flops"] != new["flops"]:
        yield f"operations {count_text(old['flops'])} → {count_text(new['flops'])}"
    times = old["seconds"], new["seconds"]
    if times[0] and times[1] and beyond_noise(*times):
        difference = seconds_change(times[1] - times[0])
        yield f"time {seconds_text(times[0])} → {seconds_text(times[1])} ({difference})"


def bytes_change(difference: float) -> str:
    """A difference of bytes, with its sign."""
    return signed(bytes_text(difference), difference)


def seconds_change(difference: float) -> str:
    """A difference of seconds, with its sign."""
    return signed(seconds_text(difference), difference)


def _launches(graph: Data) -> Launches:
    """Kernels of each operator, with grid and block."""
    launches: Launches = defaultdict(list)
    for node in graph["nodes"]:
        launches[node["op"]].append(f"{node_name(node)} {launch_text(node)}".strip())
    return launches


def _numberless(module: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", module)


def _total(op: Data | None, fields: Sequence[str]) -> float:
    return sum(op[field] or 0 for field in fields) if op is not None else 0.0
