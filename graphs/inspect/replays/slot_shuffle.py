"""Blocks of a paged cache in another order, with tables and slots to match: no result may change."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ostinato.graphs.inspect.replays import compare
from ostinato.graphs.inspect.replays.keeper import Saved
from ostinato.graphs.inspect.replays.rehearsal import Rehearsal, ReplayFailed
from ostinato.graphs.inspect.replays.slots import Layout, Roles, caches_among, roles_of
from ostinato.graphs.inspect.replays.step_run import tensors_of
from ostinato.graphs.inspect.report import Finding

Caches = Mapping[str, tuple[Tensor, Layout]]


def shuffled_slots(rehearsal: Rehearsal) -> tuple[list[Finding], list[str]]:
    """Findings if a replay, or the step itself, depends on where blocks lie. Block 0 stays in its place."""
    found = rehearsal.capture.reach
    roles = roles_of(found.tensors, found.values)
    readings = [caches_among(rehearsal.capture.written, roles, flat) for flat in (True, False)] if roles.known else [{}]
    if not any(readings):
        return [], ["the order of blocks: no paged cache was found (slot_mapping, block_tables, context_lens)"]
    findings: list[Finding] = []
    for caches in readings:  # a cache that may be laid out in two ways has to fail in both
        findings = _shuffled(rehearsal, roles, caches) if caches else findings
        if not findings:
            break
    return findings, []


def _shuffled(rehearsal: Rehearsal, roles: Roles, caches: Caches) -> list[Finding]:
    args = rehearsal.bind(0).args
    layout = next(iter(caches.values()))[1]
    places = [t for t in (roles.slots, roles.table) if t is not None]
    saved = Saved([*(tensor for tensor, _ in caches.values()), *places, *rehearsal.capture.written.values()])
    plain = _outputs(rehearsal, caches)
    with torch.inference_mode():
        saved.restore()
        order = _shuffle(caches, roles, layout)
    start = Saved([*(tensor for tensor, _ in caches.values()), *rehearsal.capture.written.values()])
    replayed = _outputs(rehearsal, caches, order)
    with torch.inference_mode():
        start.restore()
    eager = rehearsal.runner.run(args)
    run = compare.apart(plain, {**_tensors(eager.result), **_in_order(caches, order)})
    eager.undo_all()
    with torch.inference_mode():
        saved.restore()
    return _judged(rehearsal, compare.apart(plain, replayed), run)


def _judged(rehearsal: Rehearsal, replayed: dict[str, float], eager: dict[str, float]) -> list[Finding]:
    apart = {name: by for name, by in (eager or replayed).items() if by > 2 * rehearsal.floor}
    if not apart:
        return []
    name = max(apart, key=lambda each: apart[each])
    evidence = f"{name} is off by {compare.describe(apart[name])} when blocks lie in another order"
    if eager:
        message = "the step depends on which blocks its rows have: it reads or writes others than theirs"
        return [Finding.of("out-of-slot-write", "error", None, message, None, evidence)]
    message = "a replay goes to the blocks of the capture: block numbers are kept as Python values"
    return [Finding.of("frozen-value", "error", None, message, None, evidence, "read the block table on the device")]


def _tensors(result: object) -> dict[str, Tensor]:
    return tensors_of("output", result)


def _outputs(rehearsal: Rehearsal, caches: Caches, order: Tensor | None = None) -> dict[str, Tensor]:
    """Of a replay: outputs, and the caches in their first order."""
    try:
        rehearsal.replay()
    except ReplayFailed:
        return {}
    return {**{name: t.clone() for name, t in rehearsal.outputs.items()}, **_in_order(caches, order)}


def _in_order(caches: Caches, order: Tensor | None) -> dict[str, Tensor]:
    """Caches by block; ``order[b]`` is where block ``b`` has gone."""
    blocks = {name: layout.by_block(tensor) for name, (tensor, layout) in caches.items()}
    return {name: (by[order] if order is not None else by.clone()) for name, by in blocks.items()}


def _shuffle(caches: Caches, roles: Roles, layout: Layout) -> Tensor:
    """Permute in place; returns where each block has gone."""
    tensor = next(iter(caches.values()))[0]
    count = layout.by_block(tensor).shape[0]
    generator = torch.Generator().manual_seed(0)
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(count - 1, generator=generator)])
    order = order.to(tensor.device)
    for cache, own in caches.values():
        blocks = own.by_block(cache)
        blocks[order] = blocks.clone()
    if roles.table is not None:
        known = (roles.table >= 0) & (roles.table < count)
        roles.table.copy_(torch.where(known, order[roles.table.long().clamp(0, count - 1)], roles.table.long()))
    if roles.slots is not None:
        size = layout.block_size
        moved = order[(roles.slots.long() // size).clamp(0, count - 1)] * size + roles.slots.long() % size
        roles.slots.copy_(torch.where(roles.slots >= 0, moved, roles.slots.long()))
    return order
