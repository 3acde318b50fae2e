"""The static tensors of a step and their packing: plain integers of a ``Step`` in, device tensors out.

Owns ``last_token`` and the arenas; knows which position's token ``last_token`` holds for each slot. Packing writes host
memory only. What has to be copied is handed to the caller as part of the packed step, who launches it and says so
(``launched``); until it has run, the memory it copies from is not written: steps are packed in turns. Rows beyond a
step's last are padding always: spare slot, null block, length 1, temperature 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ostinato.arena import Arena, Copy
from ostinato.block_tables import BlockTables, Span
from ostinato.edit_buffers import EditBuffers, Write
from ostinato.graphs.streams import DeviceStream, Event
from ostinato.layers.logit_edits import EditInputs
from ostinato.layers.sampler import SamplingInputs
from ostinato.models.step_inputs import BY_PASSES, RowInputs, Sampling, StepState, TokenInputs
from ostinato.probe_buffers import ProbeBuffers
from ostinato.request import Request
from ostinato.sampling_buffers import SamplingBuffers
from ostinato.step import Step

CELLS_PER_ROW = 2
"""Block-table cells per row that a decode step writes by itself: one more block, and one that fell behind a window."""


@dataclass(frozen=True)
class PackedStep:
    """What a packed step is, apart from what its static tensors hold: fixed, whenever it runs."""

    tokens: int
    """Of a mixed step, at least 2; 0: a decode step."""
    rows: int
    """Rows that sample: all rows of a decode step."""
    width: int
    """Cells of the block table that it reads."""
    sampling: Sampling
    copies: tuple[Copy, ...]
    turn: int
    writes: tuple[Write, ...]
    """Into the tables of edits."""
    host: Tensor | None = None
    """Of a mixed step where memory is not shared: see ``AttentionMetadata.host``."""

    def upload(self) -> None:
        """Queue the copies, in the order of the device's work."""
        for to, source in self.copies:
            to.copy_(source, non_blocking=True)
        for write in self.writes:
            write()


class StepBuffers:
    """Packs steps of up to ``max_num_seqs`` rows, ``max_num_batched_tokens`` tokens."""

    def __init__(
        self,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        block_size: int,
        table_width: int,
        vocab_size: int,
        stream: DeviceStream,
        *,
        fixed_width: bool,
        kinds: Sequence[Sampling] = BY_PASSES,
    ) -> None:
        """``fixed_width``: steps read the whole block table (captured graphs); else only as far as they need."""
        rows, tokens = max_num_seqs, max(2, max_num_batched_tokens)
        self.max_num_seqs, self.spare_slot, self.block_size = rows, rows, block_size
        self._fixed_width, self._stream = fixed_width, stream
        int64, int32 = np.int64, np.int32
        per_row = dict.fromkeys(("token_ids", "row_slot", "positions", "slot_mapping", "draw"), ((rows,), int64))
        cells = (rows * CELLS_PER_ROW,)
        of_table = {} if stream.shares_memory else {"table_at": (cells, int64), "table_value": (cells, int32)}
        self._rows = Arena({**per_row, "context_lens": ((rows,), int32), **of_table}, stream)
        per_token = dict.fromkeys(("token_ids", "token_slot", "positions", "slot_mapping"), ((tokens,), int64))
        of_rows = {
            "row_slot": ((rows,), int64),
            "sample_at": ((rows,), int64),
            "context_lens": ((rows,), int32),
            "cu_seqlens_q": ((rows + 1,), int32),
        }
        self._tokens = Arena({**per_token, **of_rows}, stream)
        self.tables = BlockTables(rows, table_width, stream)
        self.sampling = SamplingBuffers(rows, stream, kinds)
        self.edits = EditBuffers(rows, vocab_size, stream)
        self.probes = ProbeBuffers(rows, vocab_size, stream)
        self.state = StepState(
            last_token=torch.zeros(rows + 1, dtype=torch.int64, device=stream.device),
            block_table=self.tables.device,
            out=torch.zeros(rows, dtype=torch.int64, device=stream.device),
            probes=self.probes.device,
        )
        self._held_position = [-1] * rows
        self._turns: list[Event | None] = [None] * len(self._rows.host)
        self._turn = 0
        stream.follow()  # the tensors were made on the caller's stream
        self.forget()

    # Views for the step.

    def row_inputs(self, rows: int) -> RowInputs:
        """The decode inputs' first ``rows`` entries."""
        device = self._rows.device
        cells = rows * CELLS_PER_ROW
        counts = {"table_at": cells, "table_value": cells}
        return RowInputs(
            **{name: device[name][: counts.get(name, rows)] for name in RowInputs._fields if name in device}
        )

    def sampling_inputs(self, rows: int) -> SamplingInputs:
        """The sampling inputs' first ``rows`` entries."""
        return self.sampling.inputs(rows, self._rows.device["draw"])

    def edit_inputs(self, rows: int) -> EditInputs:
        """What edits the logits of the first ``rows`` rows."""
        return self.sampling.edits(rows, self._rows.device["row_slot"], self.edits.named_tensors())

    def token_inputs(self, tokens: int, host: Tensor | None = None) -> TokenInputs:
        """The mixed inputs: the first ``tokens`` entries of what is per token, the whole of what is per row."""
        device = self._tokens.device
        return TokenInputs(
            token_ids=device["token_ids"][:tokens],
            token_slot=device["token_slot"][:tokens],
            positions=device["positions"][:tokens],
            slot_mapping=device["slot_mapping"][:tokens],
            row_slot=device["row_slot"],
            context_lens=device["context_lens"],
            cu_seqlens_q=device["cu_seqlens_q"],
            host=host,
        )

    def sample_at(self, rows: int) -> Tensor:
        """Token indices of a mixed step that yield a token."""
        return self._tokens.device["sample_at"][:rows]

    def sample_slot(self, rows: int) -> Tensor:
        """The slots those tokens are fed back to: the sampling rows' own."""
        return self._rows.device["row_slot"][:rows]

    def named_tensors(self) -> dict[str, Tensor]:
        """Everything that steps read and write at fixed addresses."""
        named = {f"rows.{name}": tensor for name, tensor in self._rows.device.items()}
        named |= {f"tokens.{name}": tensor for name, tensor in self._tokens.device.items()}
        named |= {f"sampling.{name}": tensor for name, tensor in self.sampling.named_tensors().items()}
        named |= {f"edits.{name}": tensor for name, tensor in self.edits.named_tensors().items()}
        named |= {f"probes.{name}": tensor for name, tensor in self.probes.device._asdict().items()}
        state = self.state
        return named | {"last_token": state.last_token, "block_table": state.block_table, "out": state.out}

    # Packing.

    def pack(self, step: Step, pad_tokens: int = 0) -> PackedStep:
        """Fill this turn's host memory; waits for the step that used it before, if that has not run yet.

        A mixed step is padded to ``pad_tokens`` tokens, two at least.
        """
        self._turn = (self._turn + 1) % len(self._turns)
        event = self._turns[self._turn]
        if event is not None:
            event.wait()
        spans, changed_hands = self.tables.sync(step.requests)
        for slot in changed_hands:
            self._held_position[slot] = -1
        return self._pack_decode(step, spans) if step.is_decode else self._pack_mixed(step, spans, pad_tokens)

    def launched(self, step: Step, packed: PackedStep, event: Event) -> None:
        """The step is on its way: its memory is in use up to ``event``, rows that sample are fed from the device."""
        self._turns[packed.turn] = event
        for row in step.sample_rows:
            self._held_position[step.requests[row].row_slot] = step.starts[row] + step.counts[row]

    def forget(self) -> None:
        """A step was dropped: trust nothing; the next step brings tables, tokens and parameters anew."""
        self._stream.synchronize()
        self.tables.forget()
        self.sampling.forget()
        self.edits.forget()
        self._held_position = [-1] * self.max_num_seqs
        self._turns = [None] * len(self._turns)
        self._used_rows = [0] * len(self._turns)  # by turn: rows that are not padding,
        self._told = [False] * len(self._turns)  # whether the host told any of them its token,
        self._stale = [True] * len(self._turns)  # and whether they belong to others since
        for turn in range(len(self._turns)):
            self._pad_all(turn)
        copies = [*self._rows.copies(0), *self._tokens.copies(0), *self.sampling.copies(0)]

        def upload() -> None:
            for to, source in copies:
                to.copy_(source)

        self._stream.submit(upload)
        self._stream.synchronize()

    def _pack_decode(self, step: Step, spans: list[Span]) -> PackedStep:
        requests, starts, size = step.requests, step.starts, self.block_size
        copies = self.sampling.pack(requests, self._turn)
        host, rows = self._rows.host[self._turn], len(requests)
        self._pack_tokens(requests, starts)
        host["positions"][:rows] = starts
        host["context_lens"][:rows] = [start + 1 for start in starts]
        host["slot_mapping"][:rows] = [
            request.block_ids[start // size] * size + start % size
            for request, start in zip(requests, starts, strict=True)
        ]
        self._pack_sampling_rows(requests)
        copies += self._write_cells(spans, rows)
        width = self._width(max(starts) + 1)
        copies += self._rows.copies(self._turn)
        return self._packed(0, requests, width, copies)

    def _packed(
        self, tokens: int, sampled: list[Request], width: int, copies: list[Copy], host: Tensor | None = None
    ) -> PackedStep:
        sampling = self.sampling.sampling
        writes = self.edits.sync(sampled) if sampling.edits else []
        return PackedStep(tokens, len(sampled), width, sampling, tuple(copies), self._turn, tuple(writes), host)

    def _pack_tokens(self, requests: list[Request], starts: list[int]) -> None:
        """Tokens that only the host knows; all others are -1, as nearly all are."""
        tokens, held = self._rows.host[self._turn]["token_ids"], self._held_position
        if self._told[self._turn]:
            tokens[:] = -1
        told = [
            (row, request.token_ids[start])
            for row, (request, start) in enumerate(zip(requests, starts, strict=True))
            if held[request.row_slot] != start
        ]
        self._told[self._turn] = bool(told)
        for row, token in told:
            tokens[row] = token

    def _pack_mixed(self, step: Step, spans: list[Span], pad_tokens: int) -> PackedStep:
        sampled = [step.requests[row] for row in step.sample_rows]
        copies = [*self.tables.copies(spans, self._turn), *self.sampling.pack(sampled, self._turn)]
        self._pack_sampling_rows(sampled)
        self._pack_token_rows(step)
        position = 0
        for request, start, count in zip(step.requests, step.starts, step.counts, strict=True):
            self._pack_span(request, start, count, position)
            position += count
        self._pad_tokens(self._turn, position)
        ends = [start + count for start, count in zip(step.starts, step.counts, strict=True)]
        copies += [*self._tokens.copies(self._turn), *self._rows.copies(self._turn)]
        host = None
        if not self._stream.shares_memory:
            host = torch.tensor([max(step.counts), max(ends), any(step.starts)], dtype=torch.int64)
        tokens, width = max(2, position, pad_tokens), self._width(max(ends))
        return self._packed(tokens, sampled, width, copies, host)

    def _pack_sampling_rows(self, requests: list[Request]) -> None:
        """Where each row's token goes and which of its draws it is; rows that this turn had last time are padded."""
        host, rows = self._rows.host[self._turn], len(requests)
        if self.sampling.changed:
            self._stale = [True] * len(self._turns)
        if self._stale[self._turn]:
            self._stale[self._turn] = False
            host["row_slot"][:rows] = [request.row_slot for request in requests]
        if self.sampling.sampling.draws:
            host["draw"][:rows] = [request.num_drawn for request in requests]
        if rows < self._used_rows[self._turn]:
            self._pad_rows(self._turn, rows, self._used_rows[self._turn])
        self._used_rows[self._turn] = rows

    def _pack_token_rows(self, step: Step) -> None:
        host, rows = self._tokens.host[self._turn], len(step.requests)
        ends = np.cumsum(step.counts)
        host["cu_seqlens_q"][1 : rows + 1] = ends
        host["cu_seqlens_q"][rows + 1 :] = ends[-1]
        host["sample_at"][: len(step.sample_rows)] = ends[step.sample_rows] - 1
        host["sample_at"][len(step.sample_rows) :] = 0
        host["row_slot"][:rows] = [request.row_slot for request in step.requests]
        host["row_slot"][rows:] = self.spare_slot
        host["context_lens"][:rows] = [start + count for start, count in zip(step.starts, step.counts, strict=True)]
        host["context_lens"][rows:] = 1

    def _pack_span(self, request: Request, start: int, count: int, position: int) -> None:
        """One row's new tokens, at ``position`` of the step's."""
        host, span, slot = self._tokens.host[self._turn], slice(position, position + count), request.row_slot
        fed = count == 1 and self._held_position[slot] == start
        host["token_slot"][span] = slot if fed else -1
        host["token_ids"][span] = 0 if fed else request.token_ids[start : start + count]
        positions = np.arange(start, start + count)
        host["positions"][span] = positions
        cells = self.tables.cells[slot, positions // self.block_size].astype(np.int64)
        host["slot_mapping"][span] = cells * self.block_size + positions % self.block_size

    def _write_cells(self, spans: list[Span], rows: int) -> list[Copy]:
        """Changed cells into the step's own arrays, or as copies where they are too many."""
        if self._stream.shares_memory:
            return []
        host, copies = self._rows.host[self._turn], list[Copy]()
        if sum(last - first for _, first, last in spans) > rows * CELLS_PER_ROW:
            copies, spans = self.tables.copies(spans, self._turn), []
        at, values = self.tables.flat(spans)
        host["table_at"][: len(at)], host["table_value"][: len(at)] = at, values
        host["table_at"][len(at) :], host["table_value"][len(at) :] = self.spare_slot * self.tables.width, 0
        return copies

    def _width(self, longest: int) -> int:
        return self.tables.width if self._fixed_width else max(2, -(-longest // self.block_size))

    def _pad_rows(self, turn: int, first: int, last: int) -> None:
        host = self._rows.host[turn]
        values = {"token_ids": -1, "row_slot": self.spare_slot, "context_lens": 1}
        for name in ("token_ids", "row_slot", "positions", "slot_mapping", "context_lens", "draw"):
            host[name][first:last] = values.get(name, 0)

    def _pad_tokens(self, turn: int, first: int) -> None:
        """Tokens from ``first`` on belong to no row and write the null block."""
        host = self._tokens.host[turn]
        for name, value in (("token_ids", 0), ("token_slot", -1), ("positions", 0), ("slot_mapping", 0)):
            host[name][first:] = value

    def _pad_all(self, turn: int) -> None:
        self._pad_rows(turn, 0, self.max_num_seqs)
        self._pad_tokens(turn, 0)
        rows, tokens = self._rows.host[turn], self._tokens.host[turn]
        tokens["row_slot"][:], tokens["context_lens"][:] = self.spare_slot, 1
        tokens["sample_at"][:], tokens["cu_seqlens_q"][:] = 0, 0
        if "table_at" in rows:
            rows["table_at"][:], rows["table_value"][:] = self.spare_slot * self.tables.width, 0
