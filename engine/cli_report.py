"""Where a report goes: text to stdout, JSON to a file or to stdout in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ostinato.cli_stream import put
from ostinato.layers.errors import ParamError

STDOUT = "-"


def check_writable(json_file: str | None) -> None:
    """Raise ParamError where ``put_report`` could not write, before the work is done."""
    if json_file is None or json_file == STDOUT:
        return
    path = Path(json_file)
    if not json_file or path.is_dir() or not path.parent.is_dir():
        raise ParamError(f"--json: cannot write {json_file!r}: expected a file in a folder that exists")


def put_report(text: Callable[[], str], as_json: Callable[[], str], json_file: str | None) -> None:
    """Show ``text()``, unless ``as_json()`` takes its place; write the latter where it is wanted."""
    if json_file == STDOUT:
        put(as_json() + "\n")
        return
    if json_file is not None:
        try:
            Path(json_file).write_text(as_json() + "\n", encoding="utf-8")
        except OSError as error:
            raise ParamError(f"--json: cannot write {json_file!r}: {error.strerror}") from error
    put(text() + "\n")
