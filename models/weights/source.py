"""The tensors of a checkpoint folder: one file, or shards and their index; safetensors where there are both formats.

Knows files and names; no parameter and no family. Every defect becomes one line, so that all are reported together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ostinato.layers.errors import ModelLoadError
from ostinato.models.config_json import read_json_object, shown
from ostinato.models.weights.bin_file import BinFiles
from ostinato.models.weights.entry import TensorEntry
from ostinato.models.weights.safetensors_file import read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
BIN_FILE = "pytorch_model.bin"
BIN_INDEX_FILE = "pytorch_model.bin.index.json"

ReadHeader = Callable[[Path], tuple[list[TensorEntry], list[str]]]
"""The tensors of a file in its order, and its defects, one line each."""


@dataclass(frozen=True)
class Source:
    """Tensors by name, the names of the files, and what is wrong with them, one line each."""

    tensors: dict[str, TensorEntry]
    files: tuple[str, ...]
    problems: tuple[str, ...]


def open_source(folder: Path) -> Source:
    """The headers of all weight files of ``folder``; ``ModelLoadError`` only where there is nothing to look at."""
    for single, index, read in (
        (SINGLE_FILE, INDEX_FILE, read_header),
        (BIN_FILE, BIN_INDEX_FILE, BinFiles().read_header),
    ):
        if (folder / single).is_file():
            return _collect([folder / single], {}, [], read)
        if (folder / index).is_file():
            return _open_shards(folder, index, read)
    names = [path.name for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".bin", ".gguf")]
    found = ", ".join(names[:5]) or "no weights"
    raise ModelLoadError(f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE} (or {BIN_FILE}), found {found}")


def _open_shards(folder: Path, index: str, read: ReadHeader) -> Source:
    weight_map = _read_index(folder / index)
    unsafe = {file for file in weight_map.values() if not _is_inside(file)}
    problems = [f"{index}: expected file names in this folder, got {shown(file)}" for file in sorted(unsafe)]
    weight_map = {name: file for name, file in weight_map.items() if file not in unsafe}
    return _collect([folder / file for file in sorted(set(weight_map.values()))], weight_map, problems, read)


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ModelLoadError(f"{path}: weight_map: expected tensor names and file names, got {shown(weight_map)}")
    return weight_map


def _is_inside(file: str) -> bool:
    """Whether a shard's name stays in its folder. Links may leave it: the hub's cache is made of them."""
    return file not in ("", ".", "..") and PurePosixPath(file).name == file and "\0" not in file


def _collect(paths: Sequence[Path], weight_map: dict[str, str], problems: list[str], read: ReadHeader) -> Source:
    """Read every header; compare the names with each other and with the index."""
    tensors: dict[str, TensorEntry] = {}
    broken: set[str] = set()
    for path in paths:
        entries, defects = read(path)
        if defects:
            broken.add(path.name)
            problems += [f"{path.name}: {defect}" for defect in defects]
        for entry in entries:
            first = tensors.setdefault(entry.name, entry)
            if first is not entry:
                problems.append(f"{path.name}: {entry.name}: expected in one file, got it in {first.path.name} too")
    problems += _index_defects(weight_map, tensors, broken)
    return Source(tensors, tuple(path.name for path in paths), tuple(problems))


def _index_defects(weight_map: dict[str, str], tensors: dict[str, TensorEntry], broken: set[str]) -> list[str]:
    """Names that are not where the index says; a broken file has been reported already."""
    defects = []
    for name, file in weight_map.items():
        found = tensors[name].path.name if name in tensors else None
        if found != file and not broken & {file, found}:
            got = f"it in {found}" if found else "no such tensor"
            defects.append(f"{file}: {name}: expected here by the index, got {got}")
    return defects
