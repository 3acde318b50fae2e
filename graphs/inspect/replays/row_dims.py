"""Which dimensions count rows: those that grow when the batch does.

Told from the same tensor at two batch sizes: a dimension of k*B that becomes k*C has k entries for each row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Shape = Sequence[int]
RowDims = dict[int, int]
"""Dimension -> entries per row."""


class Sizes(NamedTuple):
    """The two batch sizes that are compared."""

    own: int
    other: int


def row_dims(shape: Shape, other: Shape, sizes: Sizes) -> RowDims:
    """The row dimensions of a tensor of ``shape``, which has shape ``other`` at the other batch size."""
    if len(shape) != len(other):
        return {}
    found: RowDims = {}
    for dim, (mine, theirs) in enumerate(zip(shape, other, strict=True)):
        per_row, rest = divmod(mine - theirs, sizes.own - sizes.other)
        if per_row > 0 and rest == 0 and mine == per_row * sizes.own:
            found[dim] = per_row
    return found


def all_row_dims(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor], sizes: Sizes) -> dict[str, RowDims]:
    """Row dimensions by name; tensors without any are left out."""
    both = {name: row_dims(t.shape, others[name].shape, sizes) for name, t in tensors.items() if name in others}
    return {name: dims for name, dims in both.items() if dims}


def entries(rows: Sequence[int], per_row: int) -> list[int]:
    """The indices that belong to ``rows``, where each has ``per_row`` in a row."""
    return [row * per_row + part for row in rows for part in range(per_row)]


def only(tensor: Tensor, dims: RowDims, rows: Sequence[int]) -> Tensor:
    """What of ``tensor`` belongs to ``rows`` alone, in every row dimension."""
    for dim, per_row in dims.items():
        tensor = tensor.index_select(dim, torch.tensor(entries(rows, per_row), device=tensor.device))
    return tensor


def put(tensor: Tensor, dims: RowDims, rows: Sequence[int], value: float | int | bool | Tensor) -> None:
    """Write ``value`` into ``rows`` in place: a number, or a tensor of one row's shape."""
    for dim, per_row in dims.items():
        index = torch.tensor(entries(rows, per_row), device=tensor.device)
        if isinstance(value, Tensor):
            tensor.index_copy_(dim, index, torch.cat([value] * len(rows), dim))
        else:
            tensor.index_fill_(dim, index, value)
