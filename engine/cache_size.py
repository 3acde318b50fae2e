"""How large a KV cache is to be, in the caller's unit: bytes, tokens or blocks; and how many blocks that is.

Bytes are all that is taken, null block included. Tokens and blocks are what requests can use: the null block is added.
Knows no checkpoint and no torch.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ostinato.layers.errors import ConfigError

LARGEST = 1 << 40
"""Tokens or blocks that may be asked for."""


class Amount(NamedTuple):
    """A number of tokens or of blocks."""

    number: int
    unit: str
    """Which: "tokens" or "blocks"."""

    def __str__(self) -> str:
        """As it is read back: "4,096 tokens"."""
        return f"{self.number:,} {self.unit}"


CacheSize = int | Amount
"""Bytes, or an amount of tokens or blocks."""


def parse_amount(name: str, text: str) -> Amount | None:
    """``"4096 tokens"`` or ``"256 blocks"``; None where it names neither unit. ``ConfigError`` out of range."""
    match = re.fullmatch(r"\s*(\d[\d,_]*)\s*(tokens?|blocks?)\s*", text, re.IGNORECASE)
    if match is None:
        return None
    digits, unit = re.sub(r"[,_]", "", match[1]), match[2].lower().rstrip("s") + "s"
    if len(digits) > 15 or not 1 <= int(digits) <= LARGEST:
        raise ConfigError(f"{name}: expected 1 to {LARGEST:,} {unit}, got {text.strip()[:40]!r}")
    return Amount(int(digits), unit)


def blocks_of(size: CacheSize, block_size: int, block_bytes: int) -> int:
    """Blocks of ``block_size`` tokens and ``block_bytes`` bytes, null block included, that ``size`` comes to."""
    if isinstance(size, int):
        return size // block_bytes
    return 1 + (size.number if size.unit == "blocks" else -(-size.number // block_size))
