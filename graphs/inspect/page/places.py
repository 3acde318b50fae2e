"""Lines of code as the page names them: the shortest name that tells two files apart, the full one as a title.

The text of a line is read from the file where it can be (Python files only, and as they are when the page is made).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from ostinato.graphs.inspect.page.markup import Child, Markup, element

_LARGEST_FILE = 4 << 20
_LONGEST_LINE = 160

Place = tuple[str, int]
"""(file as the JSON names it, line from 1)."""


class Places:
    """Names and text of every line that a page mentions."""

    def __init__(self, files: Iterable[str]) -> None:
        self._short = shortest_names(set(files))
        self._lines: dict[str, list[str]] = {}

    def name(self, file: str | None, line: int | None) -> str:
        """Return "step.py:45", or "" where there is no file."""
        if not file:
            return ""
        short = self._short.get(file, PurePosixPath(file).name or file)
        return f"{short}:{line}" if line is not None else short

    def link(self, file: str | None, line: int | None) -> Markup:
        """Return the name with the whole path in its title; "no line" where there is none."""
        if not file:
            return element("span", "no line", class_="quiet")
        return element("span", self.name(file, line), class_="place", title=f"{file}:{line}" if line else file)

    def source(self, file: str | None, line: int | None) -> str:
        """Return the text of the line without its indent, "" where it cannot be read."""
        if not file or not line:
            return ""
        if file not in self._lines:
            self._lines[file] = _read(Path(file))
        lines = self._lines[file]
        text = lines[line - 1].strip() if 0 < line <= len(lines) else ""
        return text if len(text) <= _LONGEST_LINE else text[: _LONGEST_LINE - 1] + "…"

    def code(self, file: str | None, line: int | None) -> Child:
        """Return the text of the line as code, None where there is none."""
        text = self.source(file, line)
        return element("code", text, class_="source") if text else None


def shortest_names(files: set[str]) -> dict[str, str]:
    """Map each file to as many of its last path components as no other file shares."""
    names: dict[str, str] = {}
    waiting = set(files)
    for length in range(1, 1 + max((len(_parts(file)) for file in files), default=0)):
        groups: dict[str, list[str]] = defaultdict(list)
        for file in waiting:
            groups["/".join(_parts(file)[-length:]).replace("//", "/")].append(file)
        for name, members in groups.items():
            names |= {file: name for file in members if len(members) == 1 or length == len(_parts(file))}
        waiting -= names.keys()
    return names


def same_file(one: str, other: str) -> bool:
    """Whether two names may be one file: equal, or the parts of one are the end of the other's."""
    if one == other:
        return True
    short, long = sorted((_parts(one), _parts(other)), key=len)
    return len(short) < len(long) and long[-len(short) :] == short


def _parts(file: str) -> tuple[str, ...]:
    return PurePosixPath(file.replace("\\", "/")).parts or (file,)


def _read(path: Path) -> list[str]:
    try:
        if path.suffix != ".py" or not path.is_file() or path.stat().st_size > _LARGEST_FILE:
            return []
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ValueError):  # unreadable, or a name that no system takes: the page does without its text
        return []
