"""Which storages are alive while a step runs: the peak of what it allocates, and which lines allocated it.

Storages are watched by weak references, so a tensor counts as long as Python holds it, which is as long as the
allocator of a graph's pool keeps its memory. Scratch memory inside a kernel is not seen.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ostinato.graphs.inspect.capturing.ograph import LineBytes

Line = tuple[str | None, int | None]


class LiveMemory:
    """Told of every result, it knows what is alive. ``external`` storages are not the step's own."""

    def __init__(self, external: Iterable[Tensor]) -> None:
        self._known: dict[int, StorageWeakRef] = {}  # also keeps an address from being used again
        self._live: dict[int, tuple[int, Line]] = {}
        self.peak = 0
        self._at_peak: list[tuple[int, Line]] = []
        for tensor in external:
            self.note(tensor)

    def note(self, tensor: Tensor) -> tuple[int, bool]:
        """Number of the tensor's storage, and whether it is new here."""
        storage = tensor.untyped_storage()
        number = storage._cdata
        new = number not in self._known
        if new:
            self._known[number] = StorageWeakRef(storage)
        return number, new

    def allocated(self, tensor: Tensor, line: Line) -> None:
        """``tensor``'s storage is the step's own, and was made by ``line``."""
        self._live[tensor.untyped_storage()._cdata] = (tensor.untyped_storage().nbytes(), line)

    def after_op(self) -> None:
        """Forget what has died, and see whether there is more now than ever before."""
        for number in [number for number in self._live if self._known[number].expired()]:
            del self._live[number]
        now = sum(size for size, _ in self._live.values())
        if now > self.peak:
            self.peak, self._at_peak = now, list(self._live.values())

    def alive_among(self, tensors: Iterable[Tensor]) -> int:
        """Bytes of the step's own storages that hold ``tensors``: its results, which stay."""
        numbers = {tensor.untyped_storage()._cdata for tensor in tensors}
        return sum(self._live[number][0] for number in numbers if number in self._live)

    def by_line(self) -> tuple[LineBytes, ...]:
        """What was alive at the peak, most first; adds up to it."""
        lines: dict[Line, int] = {}
        for size, line in self._at_peak:
            lines[line] = lines.get(line, 0) + size
        ordered = sorted(lines.items(), key=lambda item: (-item[1], str(item[0])))
        return tuple(LineBytes(file, number, size) for (file, number), size in ordered)
