"""Reading a JSON file that somebody else wrote, gzipped or not. Knows no schema and no torch."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from ostinato.layers.errors import ConfigError


def read_text(path: str | Path) -> str:
    """The text of a file, unpacked if it is gzipped; ``ConfigError`` names the file and what is wrong with it."""
    try:
        content = Path(path).read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: damaged gzip file: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not text in UTF-8 (byte {error.start})") from error


def read_json(path: str | Path) -> Any:
    """What a JSON file holds; ``ConfigError`` names the file, the line and the column of what is no JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
