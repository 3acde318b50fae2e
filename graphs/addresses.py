"""The tensors that graphs read and write by address, by name: has one of them moved since the capture?

A captured graph keeps addresses. A weight that is reloaded into new memory, or an input buffer made anew, leaves it
reading the old memory without a word (vllm#48941, pytorch#170646). The check is a dozen microseconds per hundred
tensors: for debugging.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ostinato.layers.errors import CaptureError


class Place(NamedTuple):
    """Where a tensor lies and how it is read."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Place:
        """The place of ``tensor`` now."""
        return cls(tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))


class AddressRegistry:
    """Remembers where named tensors lie, and says which one has moved."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}

    def note(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember: the graphs have just been captured."""
        self._places = {name: Place.of(tensor) for name, tensor in tensors.items()}

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise ``CaptureError`` naming what is gone, or lies elsewhere or otherwise than noted.

        ``tensors`` are looked up anew for each check: an attribute that was reassigned gives the new tensor.
        """
        for name, noted in self._places.items():
            if name not in tensors:
                raise CaptureError(f"{name} is gone; the captured graphs still read its memory")
            place = Place.of(tensors[name])
            if place != noted:
                raise CaptureError(f"{name} has moved since the graphs were captured: {_change(noted, place)}")


def _change(old: Place, new: Place) -> str:
    if old.address != new.address:
        mend = "the graphs read the old memory (copy_ into it, and synchronise)"
        return f"from {old.address:#x} to {new.address:#x}; {mend}"
    return f"shape {old.shape} and strides {old.strides} became {new.shape} and {new.strides}"
