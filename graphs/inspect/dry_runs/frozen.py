"""Two runs of one batch size, call by call: what differs is Python's doing, and a graph freezes it.

A call counts as a cause if its tensors have the same shapes in both runs and its other arguments do not; what follows
from a difference further up is not named again.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, NamedTuple

from ostinato.graphs.inspect.dry_runs.control_flow import parting
from ostinato.graphs.inspect.source import Place
from ostinato.graphs.inspect.tracing.trace import Call, TensorRef, Trace


class Difference(NamedTuple):
    """Where two runs part."""

    place: Place | None
    op: str
    what: str
    """As in ``end 5 -> 7``."""
    another_path: bool
    """Whether other calls were made, not the same with other arguments."""


def differences(first: Trace, second: Trace) -> Iterator[Difference]:
    """What ``second`` did otherwise than ``first``, causes only."""
    ours, theirs = first.calls, second.calls
    keys = [[(call.op, call.place) for call in calls] for calls in (ours, theirs)]
    if keys[0] == keys[1]:
        for a, b in zip(ours, theirs, strict=True):
            yield from _arguments(a, b)
        return
    matcher = difflib.SequenceMatcher(None, keys[0], keys[1], autojunk=False)
    for tag, a0, a1, b0, b1 in matcher.get_opcodes():
        if tag == "equal":
            for a, b in zip(ours[a0:a1], theirs[b0:b1], strict=True):
                yield from _arguments(a, b)
        else:
            yield _another_path(ours, theirs, (a0, a1), (b0, b1))


def aligned(first: Trace, second: Trace) -> Iterator[tuple[Call, Call]]:
    """Pairs of calls that correspond."""
    keys = [[(call.op, call.place) for call in trace.calls] for trace in (first, second)]
    if keys[0] == keys[1]:
        yield from zip(first.calls, second.calls, strict=True)
        return
    for block in difflib.SequenceMatcher(None, keys[0], keys[1], autojunk=False).get_matching_blocks():
        yield from zip(
            first.calls[block.a : block.a + block.size], second.calls[block.b : block.b + block.size], strict=True
        )


def _arguments(a: Call, b: Call) -> Iterator[Difference]:
    if a.args == b.args and a.kwargs == b.kwargs:
        return
    if [ref.shape for ref in a.inputs] != [ref.shape for ref in b.inputs]:
        return  # follows from something further up
    changed = ", ".join(differing_arguments(a, b))
    if changed:
        yield Difference(a.place, a.name, changed, another_path=False)


def differing_arguments(a: Call, b: Call) -> Iterator[str]:
    """Arguments other than tensors that differ, as in ``end 5 -> 7``."""
    return (f"{name} {_text(x)} -> {_text(y)}" for name, x, y in _pairs(a, b) if _plain(x) != _plain(y))


def _pairs(a: Call, b: Call) -> Iterator[tuple[str, Any, Any]]:
    names = [argument.name for argument in a.op._schema.arguments]
    for number in range(max(len(a.args), len(b.args))):
        x, y = (call.args[number] if number < len(call.args) else None for call in (a, b))
        yield names[number] if number < len(names) else f"argument {number}", x, y
    for name in {**a.kwargs, **b.kwargs}:
        yield name, a.kwargs.get(name), b.kwargs.get(name)


def _plain(value: Any) -> Any:
    """Comparable, tensors left out; NaN equals NaN."""
    if isinstance(value, TensorRef):
        return "tensor"
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return repr(value)


def _another_path(ours: list[Call], theirs: list[Call], mine: tuple[int, int], other: tuple[int, int]) -> Difference:
    a, b = ours[slice(*mine)], theirs[slice(*other)]
    here, there = (calls[at].stack if at < len(calls) else () for calls, at in ((ours, mine[0]), (theirs, other[0])))
    before = ours[mine[0] - 1].stack if mine[0] else ()
    # the run that does more shows where: the other only goes on
    place = parting(here, there, before) if len(a) >= len(b) else parting(there, here, before)
    what = f"{_calls(a)} in one run, {_calls(b)} in the other"
    return Difference(place, (a or b)[0].name, what, another_path=True)


def _calls(calls: list[Call]) -> str:
    if not calls:
        return "nothing"
    names = list(dict.fromkeys(call.name.removesuffix(".default") for call in calls))
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{more} ({len(calls)} calls)"


def _text(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
