"""Memory that a graph reads by address: does it stay where it is, does anybody keep it, who holds its results?"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from ostinato.graphs.inspect.dry_runs.frozen import aligned
from ostinato.graphs.inspect.report import Finding
from ostinato.graphs.inspect.source import Place
from ostinato.graphs.inspect.tracing.trace import Call, StorageSeen, TensorRef, Trace

Names = Mapping[int, str]
"""What the tensor in a storage is called, by the storage's key."""


def moved(capture: Trace, later: Trace, names: Names, reshaped: Collection[str] = ()) -> Iterator[Finding]:
    """Reads that find their tensor in other memory in a ``later`` run than at ``capture``.

    ``reshaped``: names of inputs that have another shape then, which says more.
    """
    said = {key for key, name in names.items() if name in reshaped}
    for call, again in aligned(capture, later):
        for mine, theirs in zip(call.inputs, again.inputs, strict=False):
            if mine.storage < 0 or theirs.storage < 0:
                continue
            a, b = capture.storages[mine.storage], later.storages[theirs.storage]
            if a.produced_by is not None or b.produced_by is not None or a.key == b.key or a.key in said:
                continue
            said.add(a.key)
            if a.key in names or not a.gone:  # else it is freed, which says more
                yield _moved(call, names.get(a.key) or names.get(b.key) or f"a tensor made before, {mine!r},", a)


def _moved(call: Call, name: str, storage: StorageSeen) -> Finding:
    message = f"{name} lies in other memory the next time; a replay reads where it was at capture"
    gone = ", and free by now" if storage.gone else ""
    return Finding.of("address-change", "error", _at(call), message, call.name, f"{storage.num_bytes} bytes{gone}")


def freed(capture: Trace, alive: set[int], names: Names) -> Iterator[Finding]:
    """External memory of the ``capture`` that nobody had a name for, and that is gone by now."""
    numbers = {storage.key: number for number, storage in enumerate(capture.storages)}
    for key, index in capture.externals.items():
        number, call = numbers[key], capture.calls[index]
        storage = capture.storages[number]
        if number not in alive and key not in names:
            ref = next(ref for ref in call.inputs if ref.storage == number)
            message = f"{ref!r} was made before the capture and freed after it; a replay reads what lies there then"
            yield Finding.of("freed-input", "error", _at(call), message, call.name, f"{storage.num_bytes} bytes")


def held(capture: Trace, alive: set[int], names: Names, rounds: int, line_of: Mapping[str, Place]) -> Iterator[Finding]:
    """Results of the ``capture`` that something still holds, ``rounds`` runs later and with its outputs dropped.

    ``line_of`` has the lines that change what holds them.
    """
    for number in sorted(alive):
        storage = capture.storages[number]
        if storage.produced_by is None:
            continue
        call = _last_writer(capture, storage.key) or capture.calls[storage.produced_by]
        name = names.get(storage.key, "something outside of the step")
        holder = next((place for held_by, place in line_of.items() if _holds(held_by, name)), None)
        message = f"{name} keeps a result of the step; in a graph it is memory that each replay writes over"
        at = holder.at if holder else _at(call)
        kept = f"still held after {rounds} more runs" if rounds else "still held after the run"
        yield Finding.of("output-overwritten", "error", at, message, call.name, kept)


def _holds(holder: str, name: str) -> bool:
    """Whether what changes ``holder``, as in ``len(history)`` or ``kept[0]``, is where ``name`` is."""
    return holder == name or (holder.startswith("len(") and name.startswith(f"{holder[4:-1]}["))


def returned(capture: Trace, outputs: Sequence[TensorRef], inputs: set[int], names: Names) -> Iterator[Finding]:
    """Outputs that lie in a buffer of the step's own, which outlives it and is written at each step."""
    written = {number for call in capture.calls for number in call.writes}
    for place, output in enumerate(outputs):
        if output.storage < 0 or output.storage not in written:
            continue
        storage = capture.storages[output.storage]
        if storage.produced_by is None and storage.key not in inputs:
            call = _last_writer(capture, storage.key)
            name = names.get(storage.key, "a buffer")
            message = f"output {place} is {name} itself, a part of it or a view; each step writes over it"
            at = _at(call) if call else None
            yield Finding.of("output-overwritten", "info", at, message, call.name if call else None)


def _last_writer(trace: Trace, key: int) -> Call | None:
    numbers = {n for n, storage in enumerate(trace.storages) if storage.key == key}
    writers = (call for call in reversed(trace.calls) if any(ref.storage in numbers for ref in call.outputs))
    return next(writers, None)


def _at(call: Call) -> tuple[str, int] | None:
    return call.place.at if call.place else None
