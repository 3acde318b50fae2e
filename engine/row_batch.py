"""Rows to be computed in one call of ``ModelRunner``, as arrays; and how a long call is cut into steps.

A row computes ``counts[row]`` tokens from position ``starts[row]`` on. Of its block table, over the cells:

    [0, start // B)                 read: computed before, perhaps shared with other rows
    [start // B, ceil(end / B))     written: this row's alone, within the call

B tokens to a block, end = start + count. Knows integers only; ``row_checks`` sees to it that they can be so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RowBatch:
    """``token_ids [tokens]`` of all rows in turn; per row where it starts, how many are its own, and its table."""

    token_ids: Ints
    starts: Ints
    counts: Ints
    tables: Sequence[Ints]
    """Per row: as many cells as its positions need."""

    @cached_property
    def ends(self) -> Ints:
        """Tokens of each row's context, its new ones included."""
        return self.starts + self.counts

    @cached_property
    def firsts(self) -> Ints:
        """Where each row's tokens begin in ``token_ids``."""
        return np.cumsum(self.counts) - self.counts

    @cached_property
    def row_of(self) -> Ints:
        """``[tokens]``: whose each token is."""
        if len(self.token_ids) == len(self.counts):
            return np.arange(len(self.counts))
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def positions(self) -> Ints:
        """``[tokens]``: each token's position in its sequence."""
        if len(self.token_ids) == len(self.counts):
            return self.starts
        return np.arange(len(self.token_ids)) + np.repeat(self.starts - self.firsts, self.counts)


def split(batch: RowBatch, picks: Sequence[Ints], rows: int, tokens: int) -> Iterator[tuple[RowBatch, Ints]]:
    """The batch in pieces of at most so many ``rows`` and ``tokens``, in order; a long row goes through several.

    ``picks``: positions per row, ascending. With each piece come the indices of its tokens that were picked.
    """
    pending: list[tuple[int, int, int]] = []  # row, its tokens done before, its tokens in this piece
    room = tokens
    for row, count in enumerate(batch.counts.tolist()):
        done = 0
        while done < count:
            take = min(count - done, room)
            pending.append((row, done, take))
            done, room = done + take, room - take
            if not room or len(pending) == rows:
                yield _piece(batch, picks, pending)
                pending, room = [], tokens
    if pending:
        yield _piece(batch, picks, pending)


def _piece(batch: RowBatch, picks: Sequence[Ints], parts: Sequence[tuple[int, int, int]]) -> tuple[RowBatch, Ints]:
    firsts, ids, at, begun = batch.firsts, [], [], 0
    starts = np.array([batch.starts[row] + done for row, done, _ in parts], np.int64)
    for (row, done, take), start in zip(parts, starts, strict=True):
        ids.append(batch.token_ids[firsts[row] + done :][:take])
        low, high = np.searchsorted(picks[row], (start, start + take))
        at.append(picks[row][low:high] - start + begun)
        begun += take
    counts = np.array([take for _, _, take in parts], np.int64)
    piece = RowBatch(np.concatenate(ids), starts, counts, [batch.tables[row] for row, _, _ in parts])
    return piece, np.concatenate(at)
