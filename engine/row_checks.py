"""What callers of ``ModelRunner`` pass, brought to a ``RowBatch`` and checked before anything is launched.

Errors are ``ParamError`` and name the row, and the position, block or limit. Whose blocks they are is the caller's
affair; that no two rows of a call write one is checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ostinato.layers.errors import ParamError
from ostinato.plan import Plan
from ostinato.row_batch import Ints, RowBatch
from ostinato.window import blocks_behind, blocks_for


@dataclass(frozen=True)
class Limits:
    """What a row may ask for. ``num_blocks``: blocks 1 to that; ``window``: see ``Plan.window``."""

    vocab_size: int
    max_model_len: int
    block_size: int
    num_blocks: int
    window: int | None

    @classmethod
    def of(cls, plan: Plan) -> Limits:
        """Of a runner's plan, or of a cache's."""
        blocks = plan.num_blocks - 1
        return cls(plan.spec.vocab_size, plan.max_model_len, plan.block_size, blocks, plan.window)


def rows_of(prompts: Any) -> tuple[Sequence[Any], bool]:
    """One prompt or many as rows, and whether it was one: a flat sequence of ids."""
    if not hasattr(prompts, "__len__") or not hasattr(prompts, "__getitem__"):
        raise ParamError(f"prompts: expected token ids, or a list of them, got {type(prompts).__name__}")
    one = len(prompts) > 0 and np.ndim(prompts[0]) == 0
    return ([prompts] if one else prompts), one


def make_batch(limits: Limits, prompts: Sequence[Any], starts: Any, tables: Any) -> RowBatch:
    """Rows of any number of tokens each. ``ParamError`` names the row, and the position, block or limit."""
    ids, counts = _token_ids(prompts)
    return _checked(limits, ids, integers("start", starts), counts, tables)


def check_prompts(limits: Limits, prompts: Sequence[Any]) -> list[list[int]]:
    """Whole prompts that need no blocks."""
    ids, counts = _token_ids(prompts)
    batch = RowBatch(ids, np.zeros_like(counts), counts, ())
    _check_ids(batch, limits)
    _check_lengths(batch, limits)
    return [row.tolist() for row in np.split(ids, batch.firsts[1:])] if len(counts) else []


def make_decode_batch(limits: Limits, token_ids: Any, positions: Any, tables: Any, most: int) -> RowBatch:
    """Rows of one token each, ``most`` of them at most. ``ParamError`` as above."""
    ids = integers("token_ids", token_ids)
    if len(ids) > most:
        raise ParamError(f"decode: {len(ids):,} rows; max_num_seqs is {most:,}")
    return _checked(limits, ids, integers("positions", positions), np.ones(len(ids), np.int64), tables)


def integers(what: str, values: Any) -> Ints:
    """``values`` (a list, an array, a tensor on the host) as ``[n] int64``; ``ParamError`` says ``what`` they are."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ParamError(f"{what}: expected integers on the host, got {type(values).__name__}: {error}") from error
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        shape = f"{array.dtype} {list(array.shape)}" if array.ndim else type(values).__name__
        raise ParamError(f"{what}: expected a sequence of integers, got {shape}")
    return array.astype(np.int64, copy=False)


def _token_ids(prompts: Sequence[Any]) -> tuple[Ints, Ints]:
    """All ids in turn, and how many each row has."""
    ids = [integers(f"row {row}: token ids", prompt) for row, prompt in enumerate(prompts)]
    for row, prompt in enumerate(ids):
        if not len(prompt):
            raise ParamError(f"row {row}: no token ids")
    return np.concatenate([*ids, np.empty(0, np.int64)]), np.array([len(prompt) for prompt in ids], np.int64)


def _checked(limits: Limits, ids: Ints, starts: Ints, counts: Ints, tables: Any) -> RowBatch:
    rows = len(counts)
    if not rows:
        raise ParamError("no rows: expected at least one")
    if len(starts) != rows:
        raise ParamError(f"{rows} rows of token ids, and {len(starts)} positions to begin at: expected one each")
    if not hasattr(tables, "__len__") or len(tables) != rows:
        given = f"{len(tables)} block tables" if hasattr(tables, "__len__") else f"a {type(tables).__name__}"
        raise ParamError(f"block_tables: {given} for {rows} rows: expected one each")
    batch = RowBatch(ids, starts, counts, ())
    _check_ids(batch, limits)
    _check_lengths(batch, limits)
    batch = RowBatch(ids, starts, counts, _used_cells(batch, tables, limits))
    _check_cells(batch, limits)
    _check_alone(batch, limits)
    return batch


def _check_ids(batch: RowBatch, limits: Limits) -> None:
    ids = batch.token_ids
    if len(ids) and (ids.min() < 0 or ids.max() >= limits.vocab_size):
        index = int(((ids < 0) | (ids >= limits.vocab_size)).argmax())
        at = f"row {batch.row_of[index]}, position {batch.positions[index]:,}"
        raise ParamError(f"{at}: token id {ids[index]:,}; the model's vocabulary is 0 to {limits.vocab_size - 1:,}")


def _check_lengths(batch: RowBatch, limits: Limits) -> None:
    """Positions from 0 on, up to what one sequence may have."""
    if not len(batch.counts) or (batch.starts.min() >= 0 and batch.ends.max() <= limits.max_model_len):
        return
    row = int(((batch.starts < 0) | (batch.ends > limits.max_model_len)).argmax())
    wanted = "0 or more" if batch.starts[row] < 0 else f"below max_model_len = {limits.max_model_len:,}"
    positions = f"positions {batch.starts[row]:,} to {batch.ends[row] - 1:,}"
    raise ParamError(f"row {row}: {positions}; expected positions {wanted}")


def _used_cells(batch: RowBatch, tables: Any, limits: Limits) -> list[Ints]:
    """Per row the cells that its positions need; a table may be longer."""
    used = []
    for row, (table, end) in enumerate(zip(tables, batch.ends.tolist(), strict=True)):
        cells = integers(f"row {row}: block table", table)
        needed = blocks_for(end, limits.block_size)
        if len(cells) < needed:
            need = f"positions up to {end - 1:,} need {needed:,} blocks of {limits.block_size} tokens"
            raise ParamError(f"row {row}: {need}; its block table has {len(cells):,}")
        used.append(cells[:needed])
    return used


def _check_cells(batch: RowBatch, limits: Limits) -> None:
    """Blocks of the cache; the null block (0) only where every layer's window has passed."""
    cells = np.concatenate(batch.tables)
    if int(cells.min()) >= 1 and int(cells.max()) <= limits.num_blocks:
        return
    for row, (table, start) in enumerate(zip(batch.tables, batch.starts.tolist(), strict=True)):
        bad = (table < 1) | (table > limits.num_blocks)
        behind = blocks_behind(start, limits.window, limits.block_size)
        bad[:behind] &= table[:behind] != 0
        if bad.any():
            cell = int(bad.argmax())
            place = f"cell {cell} of its block table (from position {cell * limits.block_size:,} on)"
            raise ParamError(f"row {row}: {place} is block {table[cell]:,}; the cache has 1 to {limits.num_blocks:,}")


def _check_alone(batch: RowBatch, limits: Limits) -> None:
    """A block that a row writes is in the tables of this call once."""
    size = limits.block_size
    written = [table[start // size :] for table, start in zip(batch.tables, batch.starts.tolist(), strict=True)]
    alone = np.zeros(limits.num_blocks + 1, np.bool_)
    alone[np.concatenate(written)] = True
    if int(alone[np.concatenate(batch.tables)].sum()) == int(alone.sum()):
        return
    writer: dict[int, int] = {}
    for row, blocks in enumerate(written):
        writer |= {block: writer.get(block, row) for block in blocks.tolist()}
    seen: set[int] = set()
    for row, table in enumerate(batch.tables):
        for block in (block for block in table.tolist() if block in writer):
            if block in seen or writer[block] != row:
                first = writer[block]
                other = "twice in its block table" if row == first else f"in the block table of row {row} too"
                at = f"position {batch.starts[first]:,}"
                raise ParamError(
                    f"row {first}: block {block} is written from {at} on, and {other}: a row needs blocks of its own "
                    "for what it computes (copy a shared block first)"
                )
            seen.add(block)
