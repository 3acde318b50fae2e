"""Does a step write outside of the slots that belong to its rows?

The caches are filled with a pattern, so that a write of what lay there before is seen too; after each operation that
writes one, what changed is compared with the slots that the rows may write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ostinato.graphs.inspect.replays.keeper import Saved, written
from ostinato.graphs.inspect.replays.slots import (
    CACHE_NAME,
    Layout,
    Roles,
    caches_among,
    owned_blocks,
    roles_of,
    writable_slots,
)
from ostinato.graphs.inspect.replays.step_run import Run, StepRunner, own_random_numbers
from ostinato.graphs.inspect.report import Finding
from ostinato.graphs.inspect.target import Target
from ostinato.graphs.inspect.tracing.listening_mode import ListeningMode
from ostinato.graphs.inspect.tracing.reachable import Reachable
from ostinato.graphs.inspect.tracing.residency import storage_key

Caches = Mapping[str, tuple[Tensor, Layout]]


def out_of_slot_writes(
    target: Target,
    batch_size: int,
    variants: Sequence[int] = (0, 1),
    *,
    time_limit: float = 120.0,
    device_type: str = "cuda",
) -> tuple[list[Finding], list[str]]:
    """Findings of code out-of-slot-write, and why something could not be checked. Leaves tensors as they were.

    More than one variant: a slot that no row owns in one may be the right one in another.
    """
    runner = StepRunner(target, batch_size, time_limit, device_type)
    findings: dict[tuple[str | None, int | None], Finding] = {}
    not_checked: list[str] = []
    names: set[str] | None = None
    with own_random_numbers():
        for variant in variants if target.has_variants else variants[:1]:
            inputs = runner.inputs(variant)
            reach, changed = _changed(runner, inputs, names)
            names = set(changed)
            found, not_checked = _checked(runner, inputs, reach, changed)
            for finding in found:
                findings.setdefault((finding.file, finding.line), finding)
            if not findings and (not_checked or not names):
                break
    return list(findings.values()), not_checked


def _changed(
    runner: StepRunner, inputs: tuple[Any, ...], names: set[str] | None
) -> tuple[Reachable, dict[str, Tensor]]:
    """What the step can get at, and what of it is written: told by a run, unless the ``names`` are known from one."""
    reach = runner.reach(inputs)
    if names is not None and names <= reach.tensors.keys():
        return reach, {name: reach.tensors[name] for name in names}
    run = runner.run(inputs)
    run.undo_all()
    return run.reach, run.written


def _checked(
    runner: StepRunner, inputs: tuple[Any, ...], reach: Reachable, changed: Mapping[str, Tensor]
) -> tuple[list[Finding], list[str]]:
    roles = roles_of(reach.tensors, reach.values)
    readings = [caches_among(changed, roles, flat) for flat in (True, False)] if roles.known else [{}]
    tokens = _tokens_per_row(roles, reach, len(inputs))
    if not any(readings):
        return [], _why_not(roles, changed)
    findings: list[Finding] = []
    for caches in readings:  # [blocks, size, dim] looks like [slots, heads, dim]: wrong is what is so in both readings
        if caches:
            findings = _watched(runner, inputs, caches, roles, tokens)
        if not findings:
            break
    return findings, []


def _why_not(roles: Roles, changed: Mapping[str, Tensor]) -> list[str]:
    called = [name for name, t in changed.items() if t.is_floating_point() and CACHE_NAME.search(name)]
    names = "no input is called slot_mapping, or block_tables and context_lens"
    why = "no cache layout fits" if roles.known else names
    return [f"which slots of {', '.join(called[:3])} are written: {why}"] if called else []


def _watched(runner: StepRunner, inputs: tuple[Any, ...], caches: Caches, roles: Roles, tokens: int) -> list[Finding]:
    """One run on caches full of a pattern, write by write."""
    saved = Saved(tensor for tensor, _ in caches.values())
    with torch.inference_mode():
        fill_with_pattern(caches)
    watch = _Writes(caches)
    run = runner.run(inputs, listener=watch)
    run.undo_all()
    with torch.inference_mode():
        saved.restore()
    found = [f for write in watch.seen for f in _judged(write, caches, roles, tokens, run)]
    run.let_go()
    return found


def fill_with_pattern(caches: Caches) -> None:
    """Values between 0.5 and 1, another for each index of the first dimension, and hardly ever what a step writes."""
    for tensor, _ in caches.values():
        values = torch.linspace(0.5, 1, len(tensor), device=tensor.device)
        tensor.copy_(values.to(tensor.dtype).view(-1, *[1] * (tensor.dim() - 1)))


def _tokens_per_row(roles: Roles, reach: Reachable, num_inputs: int) -> int:
    rows = len(roles.lengths) if roles.lengths is not None else 0
    leading = [t.shape[0] for name, t in reach.tensors.items() if t.dim() and t.is_floating_point()]
    inputs = leading[:num_inputs]
    return max([1, *(size // rows for size in inputs if rows and size % rows == 0 and size <= 8 * rows)])


class _Writes(ListeningMode):
    """After each operation that writes a cache: which slots changed."""

    def __init__(self, caches: Caches) -> None:
        super().__init__()
        self.seen: list[tuple[int, str, list[int]]] = []
        """Call index, name of the cache, slots."""
        self._caches = {storage_key(tensor): name for name, (tensor, _) in caches.items()}
        self._all = caches
        self._count = 0

    def called(self, func: Any, args: Any, kwargs: Any) -> Any:
        index, self._count = self._count, self._count + 1
        given = written(func, args, kwargs)
        if not given:
            return func(*args, **kwargs)
        names = [self._caches.get(storage_key(tensor)) for tensor in given]
        keys = {storage_key(self._all[name][0]) for name in names if name is not None}
        touched = [name for name, (tensor, _) in self._all.items() if storage_key(tensor) in keys]
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            before = {name: _ends(*self._all[name]) for name in touched}
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            for name, old in before.items():
                changed = (_ends(*self._all[name]) != old).flatten(1).any(1)
                self.seen.append((index, name, changed.nonzero().flatten().tolist()))
        return result


def _ends(cache: Tensor, layout: Layout) -> Tensor:
    """``[slots, …]``: the first and last element of each vector, bit by bit; a copy. Whole caches are large."""
    return _bits(layout.by_slot(cache[..., :: max(1, cache.shape[-1] - 1)]).clone())


def _bits(tensor: Tensor) -> Tensor:
    """Comparable also where there is no arithmetic, and NaN equal to itself."""
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(sizes[tensor.element_size()])


def _judged(write: tuple[int, str, list[int]], caches: Caches, roles: Roles, tokens: int, run: Run) -> list[Finding]:
    index, name, slots = write
    size = caches[name][1].block_size
    wrong = sorted(set(slots) - writable_slots(roles, size, tokens))
    if not wrong:
        return []
    call = run.trace.calls[index]
    owners = owned_blocks(roles, size)
    said = [_slot(slot, size, owners) for slot in wrong[:4]]
    more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
    message = f"{name} is written outside of the rows' slots: {', '.join(said)}{more}"
    evidence = f"{len(slots)} slots written, {len(wrong)} of them not the rows' own"
    padding = f"; rows {roles.padding[:8]} are padding" if roles.padding else ""
    at = call.place.at if call.place else None
    return [Finding.of("out-of-slot-write", "error", at, message, call.name, evidence + padding)]


def _slot(slot: int, size: int, owners: Mapping[int, int]) -> str:
    where = f" (block {slot // size}, offset {slot % size})" if size > 1 else ""
    owner = owners.get(slot // size)
    return f"slot {slot}{where}" + (f" of row {owner}" if owner is not None else "")
