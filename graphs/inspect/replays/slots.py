"""Paged caches: which inputs say where rows may write, how a cache is laid out, and which slots belong to the rows.

A slot is one token's place, numbered ``block * block_size + offset``. Roles are told by name (``slot_mapping``,
``block_tables``, ``context_lens`` and their likes); caches are the float tensors from outside that the step writes.
Block 0 is taken for the null block, where padding may write, unless a row owns it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

_SLOTS = (re.compile(r"(^|\W|_)slot_mapping(s|_tensor)?$"), re.compile(r"(^|\W|_)(slots?|slot_ids)$"))
"""The surer name first."""
_TABLE = re.compile(r"(^|\W|_)(block_tables?|page_tables?|block_ids)$")
_LENGTHS = re.compile(r"(^|\W|_)(context_lens|seq_lens|cache_seqlens|lengths|lens|kv_lens|context_lengths|seqlens)$")
_BLOCK_SIZE = re.compile(r"(^|\W|_)(block_size|page_size)$", re.IGNORECASE)
CACHE_NAME = re.compile(r"cache|kv|keys?\b|values?\b|pages?\b|pool|^[kv]\b|\.[kv]\b")


@dataclass(frozen=True)
class Roles:
    """The inputs that say where rows lie."""

    slots: Tensor | None
    """``[tokens]``, negative for padding."""
    table: Tensor | None
    """``[rows, blocks]``, block ids; what is past a row's length means nothing."""
    lengths: Tensor | None
    """``[rows]``, tokens; 0 for padding. Whether the step's own token is counted is left open."""
    block_size: int | None

    @property
    def known(self) -> bool:
        """Whether they say enough to tell the rows' slots."""
        return self.slots is not None or (self.table is not None and self.lengths is not None)

    @property
    def padding(self) -> list[int]:
        """The rows that are marked as padding."""
        marked = [part for part in (self.slots, self.lengths) if part is not None]
        if self.lengths is not None:
            return (self.lengths <= 0).nonzero().flatten().tolist()
        return (marked[0] < 0).nonzero().flatten().tolist() if marked else []


class Layout(NamedTuple):
    """Where blocks and offsets lie among a cache's dimensions; ``block`` is None where slots lie in a row."""

    block: int | None
    slot: int
    block_size: int

    def by_slot(self, cache: Tensor) -> Tensor:
        """``[slots, …]``, a copy or a view."""
        if self.block is None:
            return cache.movedim(self.slot, 0)
        return cache.movedim((self.block, self.slot), (0, 1)).flatten(0, 1)

    def by_block(self, cache: Tensor) -> Tensor:
        """``[blocks, …]``, a view."""
        return (
            cache.movedim(self.block, 0)
            if self.block is not None
            else cache.unflatten(self.slot, (-1, self.block_size))
        )


def roles_of(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Roles:
    """Told by name from what a step can get at; ``tensors`` in the order in which they are to be believed."""
    integers = {name: tensor for name, tensor in tensors.items() if not tensor.is_floating_point()}

    def named(dims: int, *patterns: re.Pattern[str]) -> Tensor | None:
        found = (t for p in patterns for name, t in integers.items() if p.search(name) and t.dim() == dims)
        return next(found, None)

    sizes = [value for name, value in values.items() if _BLOCK_SIZE.search(name) and isinstance(value, int)]
    return Roles(named(1, *_SLOTS), named(2, _TABLE), named(1, _LENGTHS), sizes[0] if sizes else None)


def caches_among(written: Mapping[str, Tensor], roles: Roles, flat: bool = True) -> dict[str, tuple[Tensor, Layout]]:
    """The tensors that are caches, with their layout; ``flat``: as ``[slots, …]`` where that is one of two readings."""
    floats = {name: t for name, t in written.items() if t.is_floating_point() and t.dim() >= 2}
    named = {name: t for name, t in floats.items() if CACHE_NAME.search(name)}
    found = {name: (t, layout_of(t, roles, flat)) for name, t in (named or floats).items()}
    return {name: (t, layout) for name, (t, layout) in found.items() if layout is not None}


def layout_of(cache: Tensor, roles: Roles, flat: bool = True) -> Layout | None:
    """Known layouts: ``[blocks, size, …]``, ``[blocks, 2, size, …]``, ``[2, blocks, size, …]``, ``[slots, …]``."""
    shape, size = cache.shape, roles.block_size
    highest = _highest_block(roles)
    if size is not None and (found := _by_block_size(shape, size, highest)) is not None:
        return found
    fits_flat = (size is not None or roles.table is None) and _highest_slot(roles) < shape[0]
    if cache.dim() <= (3 if flat else 2) and fits_flat:
        return Layout(None, 0, size or 1)
    places = [(0, 1), *([(0, 2)] if cache.dim() >= 5 and shape[1] == 2 else []), *([(1, 2)] if shape[0] == 2 else [])]
    for block, slot in reversed(places):
        fits = slot < cache.dim() and highest < shape[block]
        if fits and _highest_slot(roles) < shape[block] * shape[slot]:
            return Layout(block, slot, shape[slot])
    return None


def _by_block_size(shape: torch.Size, size: int, highest: int) -> Layout | None:
    for slot in range(1, len(shape)):
        if shape[slot] == size:
            before = [dim for dim in range(slot) if shape[dim] > max(highest, 1)]
            if before:
                return Layout(before[0] if slot - before[0] <= 2 else before[-1], slot, size)
    return None


def _highest_block(roles: Roles) -> int:
    return int(roles.table.max()) if roles.table is not None and roles.table.numel() else -1


def _highest_slot(roles: Roles) -> int:
    return int(roles.slots.max()) if roles.slots is not None and roles.slots.numel() else -1


def owned_blocks(roles: Roles, block_size: int) -> dict[int, int]:
    """Block -> a row that has tokens in it."""
    if roles.table is None or roles.lengths is None:
        return {}
    owners: dict[int, int] = {}
    for row, (blocks, length) in enumerate(zip(roles.table.tolist(), roles.lengths.tolist(), strict=False)):
        owners.update({block: row for block in blocks[: -(-length // block_size)] if block >= 0})
    return owners


def held_slots(roles: Roles, block_size: int) -> set[int]:
    """The slots that hold the rows' tokens."""
    held = set(roles.slots[roles.slots >= 0].tolist()) if roles.slots is not None else set()
    if roles.table is not None and roles.lengths is not None:
        for blocks, length in zip(roles.table.tolist(), roles.lengths.tolist(), strict=False):
            held.update(_slots_of(blocks, range(length), block_size))
    return held


def writable_slots(roles: Roles, block_size: int, tokens: int) -> set[int]:
    """The slots that this step may write: each row's own, and the null block's. ``tokens``: new ones per row."""
    owners = owned_blocks(roles, block_size)
    allowed = set() if 0 in owners else set(range(block_size))
    if roles.slots is None:
        assert roles.table is not None and roles.lengths is not None
        for blocks, length in zip(roles.table.tolist(), roles.lengths.tolist(), strict=False):
            if length > 0:
                allowed.update(_slots_of(blocks, range(max(0, length - tokens), length + 1), block_size))
        return allowed
    padding = set(roles.padding) if roles.lengths is not None and len(roles.lengths) == len(roles.slots) else set()
    for row, slot in enumerate(roles.slots.tolist()):
        if slot >= 0 and (row not in padding or slot // block_size not in owners):
            allowed.add(slot)
    return allowed


def _slots_of(blocks: list[int], positions: range, block_size: int) -> set[int]:
    inside = [p for p in positions if p // block_size < len(blocks) and blocks[p // block_size] >= 0]
    return {blocks[p // block_size] * block_size + p % block_size for p in inside}
