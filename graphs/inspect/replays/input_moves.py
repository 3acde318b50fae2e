"""What if the caller hands an input over in new memory instead of copying it? Every tensor that is read, by name."""

from __future__ import annotations

import torch
from torch import Tensor

from ostinato.graphs.inspect.replays import compare
from ostinato.graphs.inspect.replays.rehearsal import Rehearsal, ReplayFailed
from ostinato.graphs.inspect.replays.step_run import tensors_of
from ostinato.graphs.inspect.report import Finding
from ostinato.graphs.inspect.tracing.residency import storage_key


def moved_inputs(rehearsal: Rehearsal) -> list[Finding]:
    """For each input that the graph reads, how far a replay is off that does not get its new values; weights in one."""
    rehearsal.bind(0)
    read = rehearsal.capture.trace.externals
    old = {name: t.clone() for name, t in rehearsal.input_tensors().items() if storage_key(t) in read}
    bound = rehearsal.bind(1 if rehearsal.runner.target.has_variants else 0)
    if bound.shapes:
        return []
    eager = rehearsal.runner.run(bound.args)
    want = {name: tensor.clone() for name, tensor in tensors_of("output", eager.result).items()}
    want |= {name: tensor.clone() for name, tensor in eager.written.items()}
    eager.undo_all()
    inputs = rehearsal.input_tensors()
    findings = [_input(rehearsal, name, inputs[name], value, want) for name, value in old.items()]
    return [*findings, *_attributes(rehearsal, set(old))]


def _input(rehearsal: Rehearsal, name: str, tensor: Tensor, old: Tensor, want: dict[str, Tensor]) -> Finding:
    call = rehearsal.capture.trace.calls[rehearsal.capture.trace.externals[storage_key(tensor) or 0]]
    new = tensor.clone()
    state = rehearsal.written_by_replay()
    try:
        with torch.inference_mode():
            tensor.copy_(old)
        off = _stale(rehearsal, want)
    finally:
        with torch.inference_mode():
            state.restore()
            tensor.copy_(new)
    message = f"{name} is read where it lay at capture: in new memory, a replay does not see it"
    at = call.place.at if call.place else None
    return Finding.of(
        "address-change", "info", at, message, call.name, off, f"{name}_static.copy_({name}) before the replay"
    )


def _stale(rehearsal: Rehearsal, want: dict[str, Tensor]) -> str:
    try:
        rehearsal.replay()
    except ReplayFailed as failure:
        return f"without its new values the replay fails: {failure}"
    now = {**rehearsal.outputs, **rehearsal.capture.written}
    apart = compare.apart({name: tensor for name, tensor in now.items() if name in want}, want)
    if not apart:
        return "with these inputs the results happen to be the same"
    name = max(apart, key=lambda each: apart[each])
    return f"without its new values {name} is off by {compare.describe(apart[name])}"


def _attributes(rehearsal: Rehearsal, inputs: set[str]) -> list[Finding]:
    names, trace = rehearsal.names(), rehearsal.capture.trace
    sizes = {storage.key: storage.num_bytes for storage in trace.storages}
    held = {names[key]: sizes[key] for key in trace.externals if key in names and names[key] not in inputs}
    if not held:
        return []
    largest = sorted(held, key=lambda name: -held[name])[:6]
    message = f"{len(held)} tensors that are no inputs are read where they lay at capture: one in its place is not seen"
    evidence = f"{sum(held.values())} bytes; {', '.join(largest)}{' …' if len(held) > 6 else ''}"
    return [
        Finding.of(
            "address-change", "info", None, message, None, evidence, "load weights with copy_, never by assignment"
        )
    ]
