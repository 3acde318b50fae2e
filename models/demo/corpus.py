"""The text: the Python standard library's own sources, split into training and held-out files.

Knows which files are read, which are left out and which are held out; does not know tokens. A file's side of the split
is a function of its relative path alone, so it is the same on every machine, in every order and for every Python
version: a file held out here was never trained on, whichever interpreter trained.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_PERCENT = 6

# Third-party code, tests (repetitive, and twice as much text as the library itself), and tables of data.
_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings", "pydoc_data"}
)
_SKIPPED_FILES = frozenset({"html/entities.py", "locale.py", "msilib/schema.py", "msilib/sequence.py"})
_SKIPPED_PREFIXES = ("_sysconfigdata", "config-", "lib-dynload")


@dataclass(frozen=True)
class SourceFile:
    """One file of the corpus: `name` is its path relative to the root, with forward slashes."""

    name: str
    text: str

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the text, the unit in which models with different tokens are compared."""
        return len(self.text.encode())


@dataclass(frozen=True)
class Split:
    """Training and held-out files, each sorted by name; no file is in both."""

    train: tuple[SourceFile, ...]
    held_out: tuple[SourceFile, ...]


def stdlib_root() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def is_wanted(name: str) -> bool:
    """Whether the file of this relative path belongs to the corpus (source code, not tests, not tables)."""
    parts = name.split("/")
    if name in _SKIPPED_FILES or parts[0].startswith(_SKIPPED_PREFIXES):
        return False
    return not _SKIPPED_FOLDERS.intersection(parts[:-1])


def is_held_out(name: str) -> bool:
    """Whether the file of this relative path is held out: `HELD_OUT_PERCENT` of all paths, chosen by SHA-256."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < HELD_OUT_PERCENT


def read_files(root: Path) -> Iterable[SourceFile]:
    """The wanted, non-empty UTF-8 files under `root`, sorted by name, with universal newlines."""
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    for name in filter(is_wanted, names):
        try:
            text = (root / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a few old files declare latin-1: not worth a second code path
            continue
        if text:
            yield SourceFile(name, text)


def split(files: Iterable[SourceFile]) -> Split:
    """Sorts files onto their sides."""
    train: list[SourceFile] = []
    held_out: list[SourceFile] = []
    for file in files:
        (held_out if is_held_out(file.name) else train).append(file)
    return Split(tuple(train), tuple(held_out))
