"""Which op a node of a captured graph belongs to: what was new in the graph when the op returned.

A node belongs to the op during whose call it appeared, whatever order the driver lists nodes in. That list is
expected in the order of creation, which makes an op's nodes a range (first, count); where it is not, ``Owners.notes``
says so and the ranges are left out. Work launched beside torch's operators (a Triton kernel called by hand, compiled
code) appears between two ops and is kept apart under the module that ran."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ostinato.graphs.inspect.capturing.libcuda import Driver


class NodeWatch:
    """Asked after each op, it tells what came into the graph that a stream is captured into."""

    def __init__(self, nodes: Callable[[], Sequence[int]]) -> None:
        """``nodes`` lists the graph's handles now."""
        self._nodes = nodes
        self._before: Sequence[int] = ()
        self._known: set[int] = set()
        self.out_of_order = 0
        """How often what had been there did not stay in its place."""

    @classmethod
    def of_capture(cls, driver: Driver, stream: int) -> NodeWatch:
        """Of the capture under way on ``stream``, a ``cudaStream_t``; before and after it there are no nodes."""

        def nodes() -> Sequence[int]:
            graph = driver.graph_being_captured(stream)
            return driver.nodes(graph) if graph else ()

        return cls(nodes)

    def new(self) -> tuple[int, ...]:
        """Handles that were not there when this was last asked."""
        now = self._nodes()
        if tuple(now[: len(self._before)]) != tuple(self._before):
            self.out_of_order += 1
        fresh = tuple(handle for handle in now if handle not in self._known)
        self._before = now
        self._known.update(fresh)
        return fresh


class Owners(NamedTuple):
    """Node to op, and op to its nodes."""

    op_of: tuple[int | None, ...]
    """By node index."""
    nodes_of: tuple[tuple[int, int] | None, ...]
    """(first, count) by op index; (0, 0)-long ranges of ops that launch nothing begin where the next op's do."""
    notes: tuple[str, ...]


def owners(handles: Sequence[int], created: Sequence[tuple[int, ...]], out_of_order: int = 0) -> Owners:
    """``handles``: the finished graph's nodes; ``created``: those that appeared during each op, in turn."""
    owner = {handle: op for op, handles_of_op in enumerate(created) for handle in handles_of_op}
    op_of = tuple(owner.get(handle) for handle in handles)
    position = {handle: index for index, handle in enumerate(handles)}
    notes = []
    unowned = [index for index, op in enumerate(op_of) if op is None]
    if unowned:
        notes.append(f"{len(unowned)} of {len(handles)} nodes belong to no op: {', '.join(map(str, unowned[:20]))}")
    known = [op for op in op_of if op is not None]
    if out_of_order or known != sorted(known):
        notes.append("the driver did not list nodes in the order of creation: ops have no ranges of nodes")
        return Owners(op_of, (None,) * len(created), tuple(notes))
    return Owners(op_of, tuple(_ranges(created, position)), tuple(notes))


def _ranges(created: Sequence[tuple[int, ...]], position: dict[int, int]) -> list[tuple[int, int]]:
    ranges, following = [], 0
    for handles in created:
        there = [position[handle] for handle in handles if handle in position]
        first = min(there, default=following)
        ranges.append((first, len(there)))
        following = first + len(there)
    return ranges
