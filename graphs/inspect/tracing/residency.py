"""Which tensors count as lying on the device, where there may be none.

On a machine without a GPU every tensor lies in host memory, so what a step would do across the bus cannot be read off
the tensors. It is kept here, by storage: what the step was given, holds or asked for with ``device="cuda"`` counts as
on the device; what it makes without naming a device is on the CPU. Tensors that really lie on a device need no mark.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class Where(Enum):
    """Where a tensor counts as lying."""

    DEVICE = "device"
    HOST = "host"
    PINNED = "pinned host"


class Residency:
    """Marks on storages; they die with them."""

    def __init__(self) -> None:
        self._marks: dict[int, tuple[StorageWeakRef, Where]] = {}

    def mark(self, tensor: Tensor, where: Where) -> None:
        """From now on everything in the storage of ``tensor`` is there."""
        key = storage_key(tensor)
        if key is not None:
            self._marks[key] = (StorageWeakRef(tensor.untyped_storage()), where)

    def marked(self, tensor: Tensor) -> bool:
        """Whether its place was said, or is real."""
        return tensor.device.type == "cuda" or storage_key(tensor) in self._marks

    def of(self, tensor: Tensor) -> Where:
        """Where it lies; what nobody made before our eyes was given to the step, and is on the device."""
        if tensor.device.type not in ("cpu", "meta"):
            return Where.DEVICE
        return self.of_key(storage_key(tensor))

    def of_key(self, key: int | None) -> Where:
        """The same for a tensor on the CPU, by its storage."""
        known = self._marks.get(key) if key is not None else None
        return known[1] if known is not None else Where.DEVICE

    def forget(self, key: int, where: Where) -> None:
        """Drop the mark on the storage ``key`` if it says ``where``."""
        if key in self._marks and self._marks[key][1] is where:
            del self._marks[key]

    def forget_the_dead(self) -> None:
        """Drop marks of storages that are gone."""
        for key in [key for key, (reference, _) in self._marks.items() if reference.expired()]:
            del self._marks[key]


def storage_key(tensor: Tensor) -> int | None:
    """What tells one storage from another while a weak reference to it is held; None where there is no storage."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return None
    try:
        key: int = tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # wrappers without a storage of their own
        return None
    return key
