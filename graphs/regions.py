"""Memory that graphs hold by address, and that can be given back and taken again where it was.

A ``Region`` is several tensors, each with a storage of its own (compiled code would take parts of one storage for one
another). On a CPU it is anonymous pages, which the operating system hands out when they are first written; on a GPU it
is mapped at reserved addresses. Where the driver cannot do that it is ordinary memory, which stays taken.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ostinato.graphs.device_memory import OUT_OF_MEMORY, DeviceMemory, DriverError
from ostinato.layers.errors import ConfigError

Taken = TypeVar("Taken")
ALIGNMENT = 512
"""Bytes between the beginnings of two tensors: a multiple of this, as torch's own allocator has it."""


class Region(Protocol):
    """Zeroed memory for several tensors."""

    parts: list[Tensor]
    """``[bytes] uint8`` each."""

    def release(self) -> None:
        """Give the memory back: nothing may read or write the tensors until ``restore``. Nothing of it is kept.

        ``ConfigError`` where it has to stay.
        """

    def restore(self) -> None:
        """Take memory again, zeroed, at the same addresses; ``torch.OutOfMemoryError`` if there is none."""


class HostRegion:
    """Pages of this process."""

    def __init__(self, sizes: Sequence[int]) -> None:
        starts, total = _places(sizes, mmap.PAGESIZE)
        self._memory = mmap.mmap(-1, max(1, total), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.parts = [
            torch.frombuffer(self._memory, dtype=torch.uint8, offset=start, count=size)
            for start, size in zip(starts, sizes, strict=True)
        ]

    def release(self) -> None:
        """The pages go; whoever reads them finds zeros."""
        self._memory.madvise(mmap.MADV_DONTNEED)

    def restore(self) -> None:
        """They come back one by one, when they are written."""


class DeviceRegion:
    """Memory of a GPU, mapped at reserved addresses."""

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        """``DriverError`` where the driver cannot do it."""
        starts, total = _places(sizes, ALIGNMENT)
        self._device = device
        with torch.cuda.device(device):
            torch.cuda.current_stream().synchronize()  # there is a context from here on
            self._memory = _taken(lambda: DeviceMemory(total, device.index or 0))
        memory = self._memory
        self.parts = [_tensor_at(memory, *place, device) for place in zip(starts, sizes, strict=True)]
        self._clear()

    def release(self) -> None:
        """Unmap it."""
        with torch.cuda.device(self._device):
            torch.cuda.synchronize()
            self._memory.unmap()

    def restore(self) -> None:
        """Map as much anew."""
        with torch.cuda.device(self._device):
            _taken(self._memory.map)
        self._clear()

    def _clear(self) -> None:
        for part in self.parts:
            part.zero_()


class FixedRegion:
    """Ordinary memory, and why it cannot be given back."""

    def __init__(self, sizes: Sequence[int], device: torch.device, reason: str) -> None:
        self.parts = [torch.zeros(size, dtype=torch.uint8, device=device) for size in sizes]
        self._reason = reason

    def release(self) -> None:
        """Refused."""
        raise ConfigError(f"this device's memory cannot be given back and keep its addresses: {self._reason}")

    def restore(self) -> None:
        """It was never released."""


def region_of(sizes: Sequence[int], device: torch.device) -> Region:
    """A region for tensors of so many bytes; ``torch.OutOfMemoryError`` if the device has less."""
    if device.type == "cpu":
        return HostRegion(sizes)
    try:
        return DeviceRegion(sizes, device)
    except DriverError as error:
        return FixedRegion(sizes, device, str(error))


def _taken(take: Callable[[], Taken]) -> Taken:
    """What ``take`` gives; where memory is short, once more after torch gave back what it keeps in reserve."""
    try:
        return take()
    except DriverError as error:
        if error.status != OUT_OF_MEMORY:
            raise
    torch.cuda.empty_cache()
    try:
        return take()
    except DriverError as error:
        if error.status != OUT_OF_MEMORY:
            raise
        raise torch.OutOfMemoryError(f"CUDA out of memory: {error}") from error


class _Array:
    """What torch makes a tensor of without copying; it keeps the memory alive as long as the tensor lives."""

    def __init__(self, memory: DeviceMemory, start: int, size: int) -> None:
        self.memory = memory
        place = memory.address + start, False
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": place, "version": 3}


def _tensor_at(memory: DeviceMemory, start: int, size: int, device: torch.device) -> Tensor:
    return torch.as_tensor(_Array(memory, start, size), device=device)


def _places(sizes: Sequence[int], unit: int) -> tuple[list[int], int]:
    """Where each begins, at multiples of ``unit`` bytes, and the bytes of all."""
    starts, total = [], 0
    for size in sizes:
        starts.append(total)
        total += -(-size // unit) * unit
    return starts, total
