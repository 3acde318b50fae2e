"""Where a tensor's bytes go: views of a parameter, one for each piece that fits the buffer.

A piece is whole rows of the file's tensor, or any run of elements where file and parameter agree about their order. It
is cast, and then transposed or reordered, as it is written: nothing larger than a piece is ever held twice. Knows no
file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.models.weights.placements import Placement
from ostinato.models.weights.rules import Order


@dataclass(frozen=True)
class Part:
    """Consecutive ``size`` elements of a tensor and where they go.

    ``view`` is flat if they go as they come, and else ``[rows, cols]``; ``order`` numbers the rows that they go to.
    """

    view: Tensor
    size: int
    transposed: bool = False
    order: Order | None = None

    def write(self, piece: Tensor) -> bool:
        """Copy ``piece [size]``; whether every value of it, in the parameter's dtype, is finite."""
        if self.view.dim() == 1:
            self.view.copy_(piece)
            return _is_finite(self.view)
        values = piece.to(self.view)
        if self.order is None:
            self.view.copy_(self._shaped(values))
        else:
            self.view.index_copy_(0, self.order, self._shaped(values).contiguous())  # contiguous: twice as fast
        return _is_finite(values)

    def holds(self, piece: Tensor) -> bool:
        """Whether ``piece [size]`` is there already."""
        values = self._shaped(piece.to(self.view))
        return torch.equal(values, self.view if self.order is None else self.view.index_select(0, self.order))

    def _shaped(self, values: Tensor) -> Tensor:
        """``values [size]`` as rows of the view."""
        if self.view.dim() == 1:
            return values
        return values.view(-1, self.view.shape[0]).T if self.transposed else values.view(-1, self.view.shape[1])


def _is_finite(values: Tensor) -> bool:
    """One fast sum; the elements are looked at only where it is not finite (in fp16 it may overflow)."""
    return math.isfinite(float(values.sum())) or bool(torch.isfinite(values).all())


def parts(place: Placement, parameter: Tensor, limit: int) -> Iterator[Part]:
    """All of ``place``, in the order of the file; at most ``limit`` elements a part, but one row at least."""
    block = parameter if place.expert is None else parameter[place.expert]
    every = place.stacked and place.expert is None
    if place.rows is not None:
        block = block.narrow(int(every), place.rows[0], place.rows[1] - place.rows[0])
    matrices = block.unbind() if every else (block,)
    if place.order is None and not (place.transposed and matrices[0].dim() == 2):
        for run in (block,) if block.is_contiguous() else matrices:
            yield from _flat(run.view(-1), limit)
        return
    order = None if place.order is None else place.order.to(parameter.device)
    for matrix in matrices:
        if place.transposed and matrix.dim() == 2:
            yield from _transposed(matrix, order, limit)
        elif order is not None:
            yield from _ordered(matrix.view(len(order), -1), order, limit)


def _flat(run: Tensor, limit: int) -> Iterator[Part]:
    for start in range(0, len(run), limit):
        view = run[start : start + limit]
        yield Part(view, len(view))


def _transposed(matrix: Tensor, order: Order | None, limit: int) -> Iterator[Part]:
    """Rows of the file are columns here."""
    rows, columns = matrix.shape
    step = max(limit // rows, 1)
    for start in range(0, columns, step):
        view = matrix[:, start : start + step]
        yield Part(view, view.numel(), transposed=True, order=order)


def _ordered(matrix: Tensor, order: Order, limit: int) -> Iterator[Part]:
    rows, columns = matrix.shape
    step = max(limit // columns, 1)
    for start in range(0, rows, step):
        some = order[start : start + step]
        yield Part(matrix, len(some) * columns, order=some)
