"""One safetensors file: its header, checked, and the bytes of its tensors, piece by piece.

The file is eight bytes of header length, a JSON header, and the tensors' bytes without gaps. It is read, not mapped:
each touched page of a map counts as resident memory, which doubles the peak of a load. Knows no torch and no
parameter.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostinato.layers.errors import ModelLoadError
from ostinato.models.config_json import MAX_JSON_BYTES, is_integer, shown
from ostinato.models.weights.entry import ITEM_SIZES, TensorEntry


@dataclass(frozen=True)
class SafetensorsEntry:
    """One tensor on disk: ``num_bytes`` bytes from ``offset`` on (bytes from the start of ``path``)."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int

    def read(self, buffer: memoryview, sizes: Iterable[int]) -> Iterator[int]:
        """As ``TensorEntry`` says."""
        left = self.num_bytes
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset)
                for size in sizes:
                    if (got := _fill(file, buffer[:size])) < size:
                        raise ModelLoadError(f"{self.path}: {self.name}: expected {left:,} more bytes, got {got:,}")
                    left -= size
                    yield size
        except OSError as error:
            raise ModelLoadError(f"{self.path}: {self.name}: {error}") from error


def _fill(file: io.FileIO, piece: memoryview) -> int:
    """Read until ``piece`` is full or the file ends; how many bytes were read."""
    got = 0
    while got < len(piece) and (count := file.readinto(piece[got:])):
        got += count
    return got


def read_header(path: Path) -> tuple[list[TensorEntry], list[str]]:
    """The tensors of a file in its order, and its defects, one line each. A broken file may give no tensors."""
    if not path.is_file():
        return [], ["expected a file, got none"]
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size - 8, MAX_JSON_BYTES):
                return [], [f"header: expected {length:,} bytes, got a file of {size:,} (cut off, or no safetensors)"]
            header = json.loads(file.read(length), object_pairs_hook=_unique)
    except (OSError, ValueError, RecursionError) as error:
        return [], [f"header: expected safetensors JSON, got: {error}"]
    if not isinstance(header, dict):
        return [], [f"header: expected an object, got {shown(header)}"]
    header.pop("__metadata__", None)
    if unsound := [name for name, value in header.items() if not _sound(value)]:
        return [], [f"{name}: expected dtype, shape and data_offsets, got {shown(header[name])}" for name in unsound]
    start = 8 + length
    entries: list[TensorEntry] = [_entry(path, start, name, value) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.num_bytes))
    return entries, _layout_defects(entries, start, size)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object, refusing a name that comes twice."""
    values: dict[str, object] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name} twice")
        values[name] = value
    return values


def _sound(value: object) -> bool:
    """Whether a header value says dtype, shape and offsets, in numbers that can be meant."""
    if not isinstance(value, dict) or not isinstance(value.get("dtype"), str):
        return False
    shape, offsets = value.get("shape"), value.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    return all(is_integer(number, 0, 1 << 60) for number in [*shape, *offsets]) and offsets[0] <= offsets[1]


def _entry(path: Path, start: int, name: str, value: dict[str, Any]) -> SafetensorsEntry:
    begin, end = value["data_offsets"]
    return SafetensorsEntry(name, path, value["dtype"], tuple(value["shape"]), start + begin, end - begin)


def _layout_defects(entries: Sequence[TensorEntry], start: int, size: int) -> list[str]:
    """Tensors must fill the bytes ``[start, size)`` without gap or overlap, each with what its shape needs."""
    defects = []
    end = start
    for entry in entries:
        if entry.offset != end:
            return [f"{entry.name}: expected its bytes to begin at {end:,}, got {entry.offset:,}"]
        end += entry.num_bytes
        needed = math.prod(entry.shape) * ITEM_SIZES.get(entry.dtype, 0)
        if needed != entry.num_bytes and entry.dtype in ITEM_SIZES:
            what = f"{needed:,} bytes for {entry.dtype} {list(entry.shape)}"
            defects.append(f"{entry.name}: expected {what}, got {entry.num_bytes:,}")
        if end > size:
            return [*defects, f"{entry.name}: expected its bytes to end at {end:,}, got a file of {size:,} (truncated)"]
    return defects if end == size else [*defects, f"expected {end:,} bytes, got {size:,}"]
