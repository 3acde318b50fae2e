"""``pytorch_model.bin`` files: what ``torch.save`` wrote, opened without running anything that a pickle asks for.

A file is mapped, and one at a time: the pages that were read are the kernel's to take back, and go with the map. Files
from before torch 1.6 (2020) are no zip archives and cannot be mapped: one of them at a time is held in memory. Knows no
parameter.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from ostinato.layers.errors import ModelLoadError
from ostinato.models.config_json import shown
from ostinato.models.weights.entry import TensorEntry

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class BinEntry:
    """One value in a file, by its place among the others. What is no plain tensor has a dtype that says so."""

    files: BinFiles
    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int

    def read(self, buffer: memoryview, sizes: Iterable[int]) -> Iterator[int]:
        """As ``TensorEntry`` says."""
        tensor = self.files.tensor(self)
        start = 0
        for size in sizes:
            piece = torch.frombuffer(buffer, dtype=tensor.dtype, count=size // tensor.itemsize)
            for part in _elements(tensor, start, start + len(piece)):
                piece[: len(part)].copy_(part)
                piece = piece[len(part) :]
            start += size // tensor.itemsize
            yield size


class BinFiles:
    """Opens files, and keeps the last one open."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._values: dict[object, object] = {}

    def read_header(self, path: Path) -> tuple[list[TensorEntry], list[str]]:
        """The values of a file in its order, and its defects, one line each. A broken file gives no values."""
        if not path.is_file():
            return [], ["expected a file, got none"]
        try:
            self._open(path)
        except Exception as error:  # torch raises whatever the bytes of a broken file lead it to
            return [], [_defect(error)]
        unnamed = [f"{shown(name)}: expected a tensor's name" for name in self._values if not isinstance(name, str)]
        pairs = enumerate(self._values.items())
        return [self._entry(path, i, name, value) for i, (name, value) in pairs if isinstance(name, str)], unnamed

    def tensor(self, entry: BinEntry) -> Tensor:
        """The values of ``entry``; they must not outlive the next call with another file."""
        try:
            self._open(entry.path)
        except Exception as error:  # as above; the file was readable a moment ago
            raise ModelLoadError(f"{entry.path}: {_defect(error)}") from error
        tensor = self._values.get(entry.name)
        if not isinstance(tensor, Tensor) or self._entry(entry.path, entry.offset, entry.name, tensor) != entry:
            raise ModelLoadError(f"{entry.path}: {entry.name}: expected no change while loading, got other contents")
        return tensor

    def _open(self, path: Path) -> None:
        if path == self._path:
            return
        self._path, self._values = None, {}  # the last file goes before the next comes
        values = _load(path)
        if not isinstance(values, dict):
            raise ModelLoadError(f"expected tensors by name, got {type(values).__name__}")
        self._path, self._values = path, values

    def _entry(self, path: Path, index: int, name: str, value: object) -> BinEntry:
        if not isinstance(value, Tensor):
            return BinEntry(self, name, path, type(value).__name__, (), index, 0)
        dtype = str(value.dtype).removeprefix("torch.")
        if value.layout != torch.strided or value.device.type != "cpu":
            dtype = f"{str(value.layout).removeprefix('torch.')} {dtype} on {value.device.type}"
        dtype = _DTYPES.get(dtype, dtype)
        return BinEntry(self, name, path, dtype, tuple(value.shape), index, value.numel() * value.itemsize)


def _load(path: Path) -> object:
    """What ``torch.load`` makes of a file; ``weights_only`` lets a pickle build tensors and containers alone."""
    with path.open("rb") as file:
        is_zip = file.read(len(_ZIP)) == _ZIP
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles that are refused next
        return torch.load(path, map_location="cpu", mmap=is_zip, weights_only=True)


def _defect(error: Exception) -> str:
    """An error of ``torch.load`` in one line, without its advice to load the file unsafely."""
    text = str(error)
    if isinstance(error, UnpicklingError):
        wanted = re.search(r"GLOBAL (\S+)", text)
        got = f"a pickle that asks for {wanted[1]}" if wanted else "a pickle that is broken or holds something else"
        return f"expected tensors alone, got {got} (refused; nothing in it was executed)"
    if "TorchScript" in text:
        return "expected tensors alone, got a TorchScript archive (refused; nothing in it was executed)"
    if isinstance(error, ModelLoadError):
        return text
    reason = text.partition("\n")[0].partition(". ")[0]
    return f"expected a file of torch.save, got: {type(error).__name__}: {reason} (cut off or broken)"


def _elements(tensor: Tensor, start: int, end: int) -> Iterator[Tensor]:
    """Flat views that together are the elements ``[start, end)`` of a tensor, whatever its strides."""
    if tensor.is_contiguous():
        yield tensor.view(-1)[start:end]
        return
    if tensor.dim() == 1:
        yield tensor[start:end]
        return
    size = tensor[0].numel()
    for row in range(start // size, -(-end // size)):
        yield from _elements(tensor[row], max(start - row * size, 0), min(end - row * size, size))
