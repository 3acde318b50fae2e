"""What is put into padding, one at a time: values that a real row must never see.

Floats become NaN, 1e4 and zero; integers zero and those of the first row; what lies in a cache beyond the rows' lengths
becomes 1e4 and NaN. Inputs that say where rows write are left as they are: another slot would be another step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ostinato.graphs.inspect.replays.row_dims import RowDims, only, put
from ostinato.graphs.inspect.replays.slots import Layout, Roles, held_slots
from ostinato.graphs.inspect.tracing.residency import storage_key

_PLACES = re.compile(
    r"slot|block|table|page|(row|req|request|seq|sequence|batch|lora|adapter)_?(ids?|index|indices|idx)$", re.IGNORECASE
)
PACKED = re.compile(r"packed|ragged|cu_?seq|indptr|seq_?starts|query_start", re.IGNORECASE)
"""An argument with this name says that rows of several tokens lie one after another."""
_COUNT = re.compile(r"(^|\W)(num|n)_(rows|tokens|real|valid|seqs|reqs|requests)$|(^|\W|_)(real|valid)_rows$")


@dataclass(frozen=True)
class Padding:
    """Where the padding is."""

    real: list[int]
    rows: list[int]
    """Row numbers."""
    dims: Mapping[str, RowDims]
    """Row dimensions of the inputs, by name."""


@dataclass(frozen=True)
class Poison:
    """One way to fill it."""

    what: str
    """For people: ``NaN in padding rows of x``."""
    finite: bool
    in_cache: bool
    values: dict[str, Any]
    """Tensor by name -> what its padding rows get."""


def find_padding(batch_size: int, inputs: Mapping[str, Tensor], dims: Mapping[str, RowDims], roles: Roles) -> Padding:
    """Rows marked as padding by slot -1, length 0, a false mask or a count; else the last half of them."""
    marked = set(roles.padding)
    for name, tensor in inputs.items():
        if tensor.dtype is torch.bool and tensor.dim() == 1 and dims.get(name) == {0: 1}:
            marked |= set((~tensor).nonzero().flatten().tolist())
        if _is_count(name, tensor) and 0 < int(tensor) < batch_size:
            marked |= set(range(int(tensor), batch_size))
    padding = sorted(row for row in marked if row < batch_size)
    if not padding or len(padding) == batch_size:
        padding = list(range((batch_size + 1) // 2, batch_size))
    real = [row for row in range(batch_size) if row not in padding]
    return Padding(real, padding, dims)


def mark(inputs: Mapping[str, Tensor], padding: Padding) -> None:
    """Tell the step which rows are padding, in the inputs that say so: masks and counts."""
    for name, tensor in inputs.items():
        if tensor.dtype is torch.bool and tensor.dim() == 1 and name in padding.dims:
            put(tensor, padding.dims[name], padding.rows, False)
        if _is_count(name, tensor):
            tensor.fill_(len(padding.real))


def _is_count(name: str, tensor: Tensor) -> bool:
    return tensor.numel() == 1 and not tensor.is_floating_point() and _COUNT.search(name) is not None


def poisons(inputs: Mapping[str, Tensor], padding: Padding, roles: Roles) -> Iterator[Poison]:
    """Each way to fill the padding rows."""
    floats = {name: t for name, t in inputs.items() if name in padding.dims and t.is_floating_point()}
    leave = {storage_key(t) for t in (roles.slots, roles.table) if t is not None}
    integers = {
        name: t
        for name, t in inputs.items()
        if name in padding.dims and not t.is_floating_point() and not t.is_complex() and t.dtype is not torch.bool
        if storage_key(t) not in leave and not _PLACES.search(name)
    }
    for value, called in ((1e4, "1e4"), (0.0, "zeros"), (float("nan"), "NaN")):
        if floats:
            filled = dict.fromkeys(floats, value)
            yield Poison(f"{called} in the padding rows of {_list(floats)}", value == value, False, filled)
    if integers:
        yield Poison(f"zeros in the padding rows of {_list(integers)}", True, False, dict.fromkeys(integers, 0))
        copies = {name: only(t, padding.dims[name], [padding.real[0]]).clone() for name, t in integers.items()}
        yield Poison(f"row {padding.real[0]}'s values in the padding rows of {_list(integers)}", True, False, copies)


def fill_rows(inputs: Mapping[str, Tensor], padding: Padding, poison: Poison) -> None:
    """Write ``poison`` in place."""
    for name, value in poison.values.items():
        put(inputs[name], padding.dims[name], padding.rows, value)


CACHE_POISONS = (
    Poison("1e4 in the cache beyond the rows' lengths", True, True, {}),
    Poison("NaN in the cache beyond the rows' lengths", False, True, {}),
)


def fill_cache(caches: Mapping[str, tuple[Tensor, Layout]], roles: Roles, finite: bool) -> None:
    """Fill every slot that holds no token of a row, in place."""
    for tensor, layout in caches.values():
        by_slot = layout.by_slot(tensor)
        held = held_slots(roles, layout.block_size)
        free = torch.tensor([slot for slot in range(by_slot.shape[0]) if slot not in held], device=tensor.device)
        value = 1e4 if finite else float("nan")
        if layout.block is None:
            by_slot.index_fill_(0, free, value)
        else:
            tensor.movedim((layout.block, layout.slot), (0, 1))[free // layout.block_size, free % layout.block_size] = (
                value
            )


def _list(names: Mapping[str, Any] | Sequence[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")
