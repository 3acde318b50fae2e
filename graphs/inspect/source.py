"""Which line of the user's code is running: frames of torch, the standard library and this tool are passed over."""

from __future__ import annotations

import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import NamedTuple

import torch

_TOOL = str(Path(__file__).parents[1])
_TORCH = str(Path(torch.__file__).parent)
_STANDARD = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_SITE = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


class Place(NamedTuple):
    """A line of code."""

    file: str
    line: int
    function: str

    @property
    def at(self) -> tuple[str, int]:
        """What ``Finding.of`` takes."""
        return self.file, self.line

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@lru_cache(maxsize=4096)
def is_users(file: str) -> bool:
    """Whether ``file`` is code to report about: not torch, not the standard library, not this tool."""
    if file.startswith("<") or file.startswith((_TOOL, _TORCH)) or "/ostinato/graphs/" in file:
        return False
    return file.startswith(_SITE) or not file.startswith(_STANDARD)


@lru_cache(maxsize=65536)
def _place(code: CodeType, line: int) -> Place:
    return Place(code.co_filename, line, code.co_qualname)


def users_stack(frame: FrameType | None = None, limit: int = 12) -> tuple[Place, ...]:
    """The user's lines that lead here, innermost first; at most ``limit``."""
    places: list[Place] = []
    current: FrameType | None = frame or sys._getframe(1)
    while current is not None:
        code = current.f_code
        if is_users(code.co_filename):
            places.append(_place(code, current.f_lineno))
            if len(places) == limit:
                break
        current = current.f_back
    return tuple(places)


_COMPILED = f"{_TORCH}/_dynamo/eval_frame.py"


def compiled_region(frame: FrameType | None = None) -> tuple[str, Place | None] | None:
    """The outermost compiled function that runs, as it was written: its name, and the user's line that called it."""
    current: FrameType | None = frame or sys._getframe(1)
    found: tuple[str, Place | None] | None = None
    inner: FrameType | None = None
    while current is not None:
        if current.f_code.co_filename == _COMPILED and inner is not None and is_users(inner.f_code.co_filename):
            stack = users_stack(current, limit=1)
            found = (inner.f_code.co_qualname, stack[0] if stack else None)
        inner, current = current, current.f_back
    return found
