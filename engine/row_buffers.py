"""The static tensors of ``ModelRunner``'s steps: a checked ``RowBatch`` in, device tensors at fixed addresses out.

Row i of a batch is row i of the block table; nothing outlives a call. Whoever packs waits for the step before packing
the next, so there is one piece of host memory. Rows beyond a batch's last are padding: spare row of the table, null
block, length 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ostinato.arena import Arena, Copy
from ostinato.graphs.streams import DeviceStream
from ostinato.models.step_inputs import RowInputs, StepState, TokenInputs
from ostinato.row_batch import Ints, RowBatch


@dataclass(frozen=True)
class PackedRows:
    """A packed batch, apart from what the static tensors hold. ``tokens``: padded, 0 where every row has one."""

    tokens: int
    width: int
    copies: tuple[Copy, ...]
    host: Tensor | None = None
    """See ``AttentionMetadata.host``."""

    def upload(self) -> None:
        """Queue the copies, in the order of the device's work."""
        for to, source in self.copies:
            to.copy_(source, non_blocking=True)


class RowBuffers:
    """Packs up to ``rows`` rows and ``tokens`` tokens, over block tables of ``width`` cells."""

    def __init__(
        self, rows: int, tokens: int, block_size: int, width: int, stream: DeviceStream, *, fixed_width: bool
    ) -> None:
        """``fixed_width``: steps read whole tables (captured graphs); else only as far as they need."""
        self.rows, self.block_size, self.width = rows, block_size, width
        self._fixed_width, self._stream = fixed_width, stream
        tokens = max(2, tokens)
        per_token = dict.fromkeys(("token_ids", "positions", "slot_mapping"), ((tokens,), np.int64))
        per_row = dict.fromkeys(("token_ids", "row_slot", "positions", "slot_mapping"), ((rows,), np.int64))
        self._rows = Arena({**per_row, "context_lens": ((rows,), np.int32)}, stream)
        of_rows = {"context_lens": ((rows,), np.int32), "cu_seqlens_q": ((rows + 1,), np.int32)}
        picked = {"picked": ((tokens,), np.int64), "token_slot": ((tokens,), np.int64), "row_slot": ((rows,), np.int64)}
        self._tokens = Arena({**per_token, **of_rows, **picked}, stream)
        self._staging = stream.staging((rows + 1) * width * 4).view(torch.int32).view(rows + 1, width)
        self._cells = self._staging.numpy()
        table = self._staging if stream.shares_memory else torch.zeros_like(self._staging, device=stream.device)
        last_token = torch.zeros(rows + 1, dtype=torch.int64, device=stream.device)
        self.state = StepState(last_token, table, torch.zeros(rows, dtype=torch.int64, device=stream.device))
        """``last_token`` and ``out`` are there for the step's sake: no token is fed back."""
        stream.follow()  # the tensors were made on the caller's stream
        self.pad()

    # Views for the step.

    def row_inputs(self, rows: int) -> RowInputs:
        """The decode inputs' first ``rows`` entries."""
        device = self._rows.device
        return RowInputs(**{name: device[name][:rows] for name in RowInputs._fields if name in device})

    def token_inputs(self, tokens: int, host: Tensor | None) -> TokenInputs:
        """The first ``tokens`` entries of what is per token, the whole of what is per row."""
        device = self._tokens.device
        per_token = ("token_ids", "token_slot", "positions", "slot_mapping")
        named = {name: device[name][:tokens] if name in per_token else device[name] for name in device}
        return TokenInputs(**{name: named[name] for name in TokenInputs._fields if name in named}, host=host)

    def picked(self, first: int, last: int) -> Tensor:
        """Indices of the tokens whose logits are wanted."""
        return self._tokens.device["picked"][first:last]

    # Packing.

    def pack_decode(self, batch: RowBatch) -> PackedRows:
        """One token of each row."""
        rows, host = len(batch.counts), self._rows.host[0]
        copies = self._write_tables(batch)
        host["token_ids"][:rows], host["positions"][:rows] = batch.token_ids, batch.starts
        host["row_slot"][:rows], host["context_lens"][:rows] = np.arange(rows), batch.ends
        host["slot_mapping"][:rows] = self._slots(batch)
        self._pad_rows(rows)
        return PackedRows(0, self._width(batch), (*copies, *self._rows.copies(0)))

    def pack_tokens(self, batch: RowBatch, picked: Ints, pad_tokens: int) -> PackedRows:
        """Any number of tokens of each row, of which those at the indices ``picked`` are wanted."""
        rows, tokens, host = len(batch.counts), len(batch.token_ids), self._tokens.host[0]
        copies = self._write_tables(batch)
        host["token_ids"][:tokens], host["positions"][:tokens] = batch.token_ids, batch.positions
        host["slot_mapping"][:tokens] = self._slots(batch)
        host["row_slot"][:rows], host["context_lens"][:rows] = np.arange(rows), batch.ends
        host["cu_seqlens_q"][1 : rows + 1] = np.cumsum(batch.counts)
        host["picked"][: len(picked)] = picked
        self._pad_tokens(rows, tokens, len(picked))
        bounds = None
        if not self._stream.shares_memory:
            most = [int(batch.counts.max()), int(batch.ends.max()), int(batch.starts.any())]
            bounds = torch.tensor(most, dtype=torch.int64)
        copies = [*copies, *self._tokens.copies(0)]
        return PackedRows(max(2, tokens, pad_tokens), self._width(batch), tuple(copies), bounds)

    def pad(self) -> None:
        """Nothing but padding, here and on the device: for steps whose results nobody wants."""
        self._cells[:] = 0
        self._pad_rows(0)
        self._pad_tokens(0, 0, 0)
        self._tokens.host[0]["token_slot"][:] = -1
        copies = [*self._table_copies(self.rows + 1), *self._rows.copies(0), *self._tokens.copies(0)]
        self._stream.submit(PackedRows(0, 0, tuple(copies)).upload).wait()

    def _write_tables(self, batch: RowBatch) -> list[Copy]:
        for row, table in enumerate(batch.tables):
            self._cells[row, : len(table)] = table
        return self._table_copies(len(batch.tables))

    def _table_copies(self, rows: int) -> list[Copy]:
        return [] if self._stream.shares_memory else [(self.state.block_table[:rows], self._staging[:rows])]

    def _slots(self, batch: RowBatch) -> Ints:
        positions, size = batch.positions, self.block_size
        slots: Ints = self._cells[batch.row_of, positions // size].astype(np.int64) * size + positions % size
        return slots

    def _width(self, batch: RowBatch) -> int:
        return self.width if self._fixed_width else max(2, -(-int(batch.ends.max()) // self.block_size))

    def _pad_rows(self, first: int) -> None:
        host = self._rows.host[0]
        for name, value in (("token_ids", 0), ("positions", 0), ("slot_mapping", 0)):
            host[name][first:] = value
        host["row_slot"][first:], host["context_lens"][first:] = self.rows, 1

    def _pad_tokens(self, rows: int, tokens: int, picked: int) -> None:
        """Tokens beyond ``tokens`` belong to no row and write the null block."""
        host = self._tokens.host[0]
        for name in ("token_ids", "positions", "slot_mapping"):
            host[name][tokens:] = 0
        host["row_slot"][rows:], host["context_lens"][rows:] = self.rows, 1
        host["cu_seqlens_q"][rows + 1 :] = tokens
        host["picked"][picked:] = 0
