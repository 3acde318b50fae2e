"""The first call at which two runs of one step have different values, found by comparing the results of each call.

Results are kept a window at a time, so that no more than a bounded number of bytes is held; each further window costs
one more run of both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from ostinato.graphs.inspect.dry_runs.frozen import aligned
from ostinato.graphs.inspect.replays.compare import difference
from ostinato.graphs.inspect.replays.rehearsal import Rehearsal
from ostinato.graphs.inspect.replays.step_run import SEED, Run
from ostinato.graphs.inspect.tracing.trace import Call, Trace

WINDOW_BYTES = 256 << 20

Results = dict[int, tuple[Tensor, ...]]
"""Call index -> clones of what it gave."""


class Divergence(NamedTuple):
    """Where two runs are first apart."""

    call: Call
    by: float


def of_replay(rehearsal: Rehearsal, variant: int) -> Divergence | None:
    """Where a replay on ``variant`` first differs from eager; None if no aligned call does. The state is put back."""
    bound = rehearsal.bind(variant)
    eager = rehearsal.runner.run(bound.args)
    eager.undo_all()

    def replayed(window: range) -> Results:
        kept: Results = {}
        before = rehearsal.written_by_replay()

        def keep(index: int, number: int) -> None:
            if index in window:
                kept[index] = tuple(tensor.clone() for tensor in rehearsal.results(number))

        rehearsal.replay(keep)
        before.restore()
        return kept

    def run(window: range) -> Results:
        again = rehearsal.runner.run(bound.args, window)
        again.undo_all()
        return again.keeper.results

    return _first(rehearsal.capture.trace, eager.trace, replayed, run, rehearsal.floor)


def of_seed(rehearsal: Rehearsal, variant: int) -> Divergence | None:
    """Where two eager runs with different seeds first differ. The state is put back."""
    bound = rehearsal.bind(variant)

    def run(window: range, seed: int) -> Run:
        again = rehearsal.runner.run(bound.args, window, seed=seed)
        again.undo_all()
        return again

    one, other = run(range(0), SEED), run(range(0), SEED + 1)
    return _first(
        one.trace,
        other.trace,
        lambda window: run(window, SEED).keeper.results,
        lambda window: run(window, SEED + 1).keeper.results,
        rehearsal.floor,
    )


def _first(
    one: Trace, other: Trace, ours: Callable[[range], Results], theirs: Callable[[range], Results], floor: float
) -> Divergence | None:
    pairs = list(aligned(one, other))
    for window in windows([a for a, _ in pairs]):
        counterpart = {a.number: b.number for a, b in pairs if a.number in window and not _is_uninitialised(a)}
        if not counterpart:
            continue
        mine = ours(window)
        other_window = range(min(counterpart.values()), max(counterpart.values()) + 1)
        yours = theirs(other_window)
        for a, b in counterpart.items():
            by = _apart(mine.get(a), yours.get(b))
            if by > 2 * floor:
                return Divergence(one.calls[a], by)
    return None


def _is_uninitialised(call: Call) -> bool:
    """What lies in fresh memory means nothing."""
    return "empty" in call.op.name() or call.op.name() == "aten::resize_"


def _apart(ours: tuple[Tensor, ...] | None, theirs: tuple[Tensor, ...] | None) -> float:
    if ours is None or theirs is None:
        return 0.0
    if len(ours) != len(theirs):
        return math.inf
    return max((difference(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def windows(calls: Sequence[Call]) -> Iterator[range]:
    """Runs of call indices whose results fit into ``WINDOW_BYTES``."""
    start, held = 0, 0
    for call in calls:
        size = sum(math.prod(ref.shape) * ref.dtype.itemsize for ref in call.outputs)
        if held and held + size > WINDOW_BYTES:
            yield range(start, call.number)
            start, held = call.number, 0
        held += size
    if calls:
        yield range(start, calls[-1].number + 1)
