"""Named arrays that the host fills and the device reads: one piece of memory, brought over by one copy.

Where the device has memory of its own there are two pieces on the host, used in turns: while the copy of one step may
still be under way, the next step is packed into the other.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from ostinato.graphs.streams import DeviceStream

Copy = tuple[Tensor, Tensor]
"""To and from: what a step brings to the device before it runs."""

Fields = Mapping[str, tuple[tuple[int, ...], DTypeLike]]
"""Shape and dtype by name."""


class Arena:
    """``host[turn][name]`` are numpy arrays, ``device[name]`` the tensors that steps read, at fixed addresses."""

    def __init__(self, fields: Fields, stream: DeviceStream) -> None:
        """Zeroed. On a stream that shares its memory the host's arrays are the device's, and there is one turn."""
        starts, size = _places(fields)
        self._staging = [stream.staging(size) for _ in range(1 if stream.shares_memory else 2)]
        self._device = (
            self._staging[0] if stream.shares_memory else torch.zeros(size, dtype=torch.uint8, device=stream.device)
        )
        self.host = [_arrays(staging.numpy(), fields, starts) for staging in self._staging]
        self.device = {name: _tensor(self._device, starts[name], *field) for name, field in fields.items()}

    def copies(self, turn: int) -> list[Copy]:
        """The one copy that brings ``host[turn]`` to the device; none where it is the device's memory."""
        return [] if self._staging[turn] is self._device else [(self._device, self._staging[turn])]


def _places(fields: Fields) -> tuple[dict[str, int], int]:
    """Where each field begins, at a multiple of 16 bytes, and the bytes of all."""
    starts, size = {}, 0
    for name, (shape, kind) in fields.items():
        starts[name] = size
        size += -(-int(np.prod(shape)) * np.dtype(kind).itemsize // 16) * 16
    return starts, size


def _arrays(memory: NDArray[np.uint8], fields: Fields, starts: Mapping[str, int]) -> dict[str, NDArray[np.generic]]:
    arrays = {}
    for name, (shape, kind) in fields.items():
        count = int(np.prod(shape)) * np.dtype(kind).itemsize
        arrays[name] = memory[starts[name] : starts[name] + count].view(kind).reshape(shape)
    return arrays


def _tensor(memory: Tensor, start: int, shape: tuple[int, ...], kind: DTypeLike) -> Tensor:
    count = int(np.prod(shape)) * np.dtype(kind).itemsize
    dtype = torch.from_numpy(np.zeros(0, kind)).dtype
    return memory[start : start + count].view(dtype).view(shape)
