"""The block table on the device, and what the host knows of it: whose row each slot is, and which cells are written.

A row is known by its owner's admission number; of an unchanged owner only new cells at the end and null cells in front
change. Where the device has memory of its own, the cells that changed go with the step (a few, written by the step
itself) or as a copy of the row's changed part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ostinato.arena import Copy
from ostinato.graphs.streams import DeviceStream
from ostinato.request import Request


class Span(NamedTuple):
    """Cells ``[first, last)`` of a slot's row, all to be brought to the device."""

    slot: int
    first: int
    last: int


class BlockTables:
    """``cells [slots + 1, width] int32`` as the host wants them, ``device`` as the steps read them; last row: spare."""

    def __init__(self, slots: int, width: int, stream: DeviceStream) -> None:
        shape, size = (slots + 1, width), (slots + 1) * width * 4
        self.width = width
        self._staging: list[Tensor] = []
        if stream.shares_memory:
            self.device = stream.staging(size).view(torch.int32).view(shape)
            self.cells: NDArray[np.int32] = self.device.numpy()
        else:
            self.device = torch.zeros(shape, dtype=torch.int32, device=stream.device)
            self.cells = np.zeros(shape, np.int32)
            self._staging = [stream.staging(size).view(torch.int32).view(shape) for _ in range(2)]
        self._owner = [-1] * slots
        self._filled = [0] * slots
        self._nulled = [0] * slots

    def forget(self) -> None:
        """Trust nothing: every row is written anew when it is next seen."""
        self._owner = [-1] * len(self._owner)

    def sync(self, requests: Iterable[Request]) -> tuple[list[Span], list[int]]:
        """Write the cells that changed since each slot was last seen; returns them, and slots with a new owner."""
        spans: list[Span] = []
        changed_hands: list[int] = []
        filled, nulled, cells = self._filled, self._nulled, self.cells
        for request in requests:
            slot, blocks = request.row_slot, request.block_ids
            if self._owner[slot] != request.admission:
                self._owner[slot] = request.admission
                changed_hands.append(slot)
                cells[slot] = 0
                filled[slot] = nulled[slot] = 0
                spans.append(Span(slot, 0, self.width))
                cells[slot, : len(blocks)] = blocks
                filled[slot] = len(blocks)
            elif filled[slot] < len(blocks):
                spans.append(Span(slot, filled[slot], len(blocks)))
                cells[slot, filled[slot] : len(blocks)] = blocks[filled[slot] :]
                filled[slot] = len(blocks)
            if not blocks[0] and not blocks[nulled[slot]]:
                first = nulled[slot]
                nulled[slot] = next(cell for cell in range(first, len(blocks)) if blocks[cell])
                cells[slot, first : nulled[slot]] = 0
                spans.append(Span(slot, first, nulled[slot]))
        return spans, changed_hands

    def flat(self, spans: Sequence[Span]) -> tuple[list[int], list[int]]:
        """Positions in the flattened table and their values, for a step that writes them itself."""
        at = [slot * self.width + cell for slot, first, last in spans for cell in range(first, last)]
        return at, self.cells.reshape(-1)[at].tolist()

    def copies(self, spans: Sequence[Span], turn: int) -> list[Copy]:
        """Copies of the changed parts, from memory that this turn owns."""
        copies: list[Copy] = []
        for slot, first, last in spans if self._staging else ():
            part = self._staging[turn][slot, first:last]
            part.numpy()[:] = self.cells[slot, first:last]
            copies.append((self.device[slot, first:last], part))
        return copies
