"""Where the output of ``ostinato graph`` goes: the report to stdout, what the user's own code prints to stderr.

Knows no command, no step and no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ostinato.layers.errors import ConfigError

STDOUT = "-"


def check_writable(option: str, path: str | None) -> None:
    """Raise ``ConfigError`` where a file could not be written, before the work is done. None and ``-`` are fine."""
    if path is None or path == STDOUT:
        return
    file = Path(path)
    if not path or file.is_dir() or not file.parent.is_dir():
        raise ConfigError(f"{option}: cannot write {path!r}: expected a file in a folder that exists")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ConfigError(f"{option}: cannot write {path!r}: no permission")


def write_file(option: str, path: str, text: str) -> None:
    """Write ``text`` to a file, or to stdout for ``-``."""
    if path == STDOUT:
        put(text)
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{option}: cannot write {path!r}: {error.strerror or error}") from error


def put_result(text: Callable[[], str], data: Mapping[str, Any], json_file: str | None) -> None:
    """Show ``text()``, unless the JSON takes its place (``-``); write ``data`` as JSON where it is wanted."""
    if json_file is not None:
        write_file("--json", json_file, json.dumps(data, indent=1, allow_nan=False) + "\n")
    if json_file != STDOUT:
        put(text().rstrip("\n") + "\n")


def put(text: str) -> None:
    """Write to stdout now. Nothing happens where nobody reads it any more (``| head -1``): exit codes stay true."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError):  # or the interpreter flushes into the closed pipe when it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def users_code(name: str) -> Iterator[None]:
    """Code of the user's runs inside: what it prints goes to stderr, and that it ends the process is an error."""
    with _stdout_to_stderr():
        try:
            yield
        except SystemExit as error:
            raise ConfigError(f"{name}: it ended the process itself: sys.exit({error.code!r})") from error


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """What Python prints, and what C code and child processes print to file 1."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # C code has a buffer of its own
        os.dup2(kept, 1)
        os.close(kept)
