"""Which batch sizes get a graph, and which graph serves a batch. Plain integers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from ostinato.layers.errors import ConfigError


def default_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Every size to 16, then steps of 8, always ending at ``max_num_seqs``: each batch has a graph by construction."""
    sizes = {*range(1, min(16, max_num_seqs) + 1), *range(24, max_num_seqs, 8), max_num_seqs}
    return tuple(sorted(sizes))


def check_sizes(sizes: Sequence[int], max_num_seqs: int) -> tuple[int, ...]:
    """The caller's ``capture_sizes``, sorted and completed by ``max_num_seqs``; ``ConfigError`` names a bad one."""
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= max_num_seqs:
            raise ConfigError(f"capture_sizes: {size!r} is not a batch size from 1 to max_num_seqs = {max_num_seqs}")
    return tuple(sorted({*sizes, max_num_seqs}))


def bucket_of(rows: int, sizes: Sequence[int]) -> int:
    """The smallest of the ascending ``sizes`` that holds ``rows`` (1 ... the last size)."""
    return sizes[bisect_left(sizes, rows)]
