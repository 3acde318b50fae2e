"""The static tensors of a step and their packing: plain integers of a ``Step`` in, device tensors out.

Everything a step reads lies in one arena of bytes, filled through numpy and brought to the device in one copy (on a CPU
the arena is the device's). Owns ``last_token``, the block table and what is known of both: which admission each slot's
row belongs to, how many of its cells are written and how many of those are null since, and which position's token
``last_token`` holds. Rows beyond a step's last are padding always: spare slot, null block, length 1, temperature 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from ostinato.layers.sampler import SamplingInputs
from ostinato.models.decode_step import RowInputs, Sampling, StepState, TokenInputs
from ostinato.request import Request
from ostinato.step import Step

MAX_BLOCKED_IDS = 64
"""Tokens per row that ``min_tokens`` can hold back: the model's and the request's stop ids together."""


class Arena:
    """Named arrays in one piece of host memory, mirrored on the device by one copy."""

    def __init__(self, fields: dict[str, tuple[tuple[int, ...], DTypeLike]], device: torch.device) -> None:
        sizes = {
            name: -(-int(np.prod(shape)) * np.dtype(kind).itemsize // 8) * 8 for name, (shape, kind) in fields.items()
        }
        self._host_tensor = torch.zeros(sum(sizes.values()), dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device_tensor = self._host_tensor.to(device)
        self.host: dict[str, NDArray[np.generic]] = {}
        self.device: dict[str, Tensor] = {}
        start = 0
        for name, (shape, kind) in fields.items():
            count = int(np.prod(shape)) * np.dtype(kind).itemsize
            part = self._host_tensor[start : start + count].numpy()
            self.host[name] = part.view(kind).reshape(shape)
            dtype = torch.from_numpy(np.zeros(0, kind)).dtype
            self.device[name] = self._device_tensor[start : start + count].view(dtype).view(shape)
            start += sizes[name]

    def upload(self) -> None:
        """Bring the host's values to the device; nothing to do where they are the same memory."""
        if self._device_tensor.data_ptr() != self._host_tensor.data_ptr():
            self._device_tensor.copy_(self._host_tensor, non_blocking=True)


class StepBuffers:
    """Packs one step at a time for up to ``max_num_seqs`` rows, ``max_num_batched_tokens`` tokens."""

    def __init__(
        self,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        block_size: int,
        table_width: int,
        device: torch.device,
        *,
        fixed_width: bool,
    ) -> None:
        """``fixed_width``: steps read the whole block table (captured graphs); else only as far as they need."""
        rows, tokens = max_num_seqs, max(2, max_num_batched_tokens)
        self.max_num_seqs, self.spare_slot, self.block_size = rows, rows, block_size
        self._table_width, self._fixed_width = table_width, fixed_width
        int64, int32, float32 = np.int64, np.int32, np.float32
        self._rows = Arena(
            {
                "row_slot": ((rows,), int64),
                "positions": ((rows,), int64),
                "slot_mapping": ((rows,), int64),
                "context_lens": ((rows,), int32),
                "temperature": ((rows,), float32),
                "top_k": ((rows,), float32),
                "top_p": ((rows,), float32),
                "min_p": ((rows,), float32),
                "seed": ((rows,), int64),
                "draw": ((rows,), int64),
                "blocked_ids": ((rows, MAX_BLOCKED_IDS), int64),
                "blocked": ((rows, MAX_BLOCKED_IDS), float32),
            },
            device,
        )
        self._tokens = Arena(
            {
                "token_ids": ((tokens,), int64),
                "token_slot": ((tokens,), int64),
                "positions": ((tokens,), int64),
                "slot_mapping": ((tokens,), int64),
                "row_slot": ((rows,), int64),
                "context_lens": ((rows,), int32),
                "cu_seqlens_q": ((rows + 1,), int32),
                "sample_at": ((rows,), int64),
            },
            device,
        )
        self._table = Arena({"block_table": ((rows + 1, table_width), int32)}, device)
        self._table_cells = self._table.host["block_table"]
        self.state = StepState(
            last_token=torch.zeros(rows + 1, dtype=torch.int64, device=device),
            block_table=self._table.device["block_table"],
            out=torch.zeros(rows, dtype=torch.int64, device=device),
        )
        self._filled = [0] * rows
        self._nulled = [0] * rows
        self._owner = [-1] * rows
        self._held_position = [-1] * rows
        self._packed: list[int] = []  # admissions in the sampling rows, in order
        self._blocking = False
        self.sampling = Sampling.GREEDY
        self.width = table_width
        self._pad_all()

    # Views for the step.

    def row_inputs(self, rows: int) -> RowInputs:
        """The decode inputs' first ``rows`` entries."""
        device = self._rows.device
        return RowInputs(*(device[name][:rows] for name in RowInputs._fields))

    def sampling_inputs(self, rows: int) -> SamplingInputs:
        """The sampling inputs' first ``rows`` entries."""
        device = self._rows.device
        names = ("temperature", "top_k", "top_p", "min_p", "seed", "draw", "blocked_ids", "blocked")
        return SamplingInputs(*(device[name][:rows] for name in names))

    def token_inputs(self, tokens: int) -> TokenInputs:
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
        )

    def sample_at(self, rows: int) -> Tensor:
        """Token indices of a mixed step that yield a token."""
        return self._tokens.device["sample_at"][:rows]

    def sample_slot(self, rows: int) -> Tensor:
        """The slots those tokens are fed back to: the sampling rows' own."""
        return self._rows.device["row_slot"][:rows]

    # Packing.

    def pack_decode(self, step: Step) -> None:
        """Fill the row arrays; afterwards ``sampling`` and ``width`` say which graph and how wide a table."""
        requests, starts = step.requests, step.starts
        self._sync_table(step)
        held = self._held_position
        for request, start in zip(requests, starts, strict=True):
            slot = request.row_slot
            if held[slot] != start:
                self.state.last_token[slot] = request.token_ids[start]
        self._pack_sampling(requests)
        rows, size = len(requests), self.block_size
        host = self._rows.host
        host["positions"][:rows] = starts
        host["context_lens"][:rows] = [start + 1 for start in starts]
        host["slot_mapping"][:rows] = [
            request.block_ids[start // size] * size + start % size
            for request, start in zip(requests, starts, strict=True)
        ]
        self._set_width(max(starts) + 1)
        self._rows.upload()

    def pack_mixed(self, step: Step) -> int:
        """Fill the token arrays (padded to two tokens at least) and the sampling rows; returns the token count."""
        self._sync_table(step)
        self._pack_sampling([step.requests[row] for row in step.sample_rows])
        host, position = self._tokens.host, 0
        host["row_slot"][:] = self.spare_slot
        host["context_lens"][:] = 1
        ends = np.cumsum(step.counts)
        host["cu_seqlens_q"][1 : len(ends) + 1] = ends
        host["cu_seqlens_q"][len(ends) + 1 :] = ends[-1]
        host["sample_at"][: len(step.sample_rows)] = ends[step.sample_rows] - 1
        for row, (request, start, count) in enumerate(zip(step.requests, step.starts, step.counts, strict=True)):
            span, slot = slice(position, position + count), request.row_slot
            fed = count == 1 and self._held_position[slot] == start
            positions = np.arange(start, start + count)
            host["token_ids"][span] = request.token_ids[start : start + count]
            host["token_slot"][span] = slot if fed else -1
            host["positions"][span] = positions
            cells = self._table_cells[slot, positions // self.block_size].astype(np.int64)
            host["slot_mapping"][span] = cells * self.block_size + positions % self.block_size
            host["row_slot"][row] = slot
            host["context_lens"][row] = start + count
            position += count
        if position == 1:
            for name, value in (("token_ids", 0), ("token_slot", -1), ("positions", 0), ("slot_mapping", 0)):
                host[name][1] = value
        self._set_width(max(start + count for start, count in zip(step.starts, step.counts, strict=True)))
        self._tokens.upload()
        self._rows.upload()
        return max(2, position)

    def note_sampled(self, step: Step) -> None:
        """The step has run: each sampling row's next token is in ``last_token`` of its slot."""
        for row in step.sample_rows:
            slot = step.requests[row].row_slot
            self._held_position[slot] = step.starts[row] + step.counts[row]

    def forget(self) -> None:
        """A step was dropped: trust nothing; the next step brings tables, tokens and parameters anew."""
        self._owner = [-1] * self.max_num_seqs
        self._packed, self._blocking, self.sampling = [], False, Sampling.GREEDY
        self._pad_all()

    def _sync_table(self, step: Step) -> None:
        """Write the block-table cells that changed since each slot was last seen: new at the end, null in front."""
        changed, owner, filled = False, self._owner, self._filled
        for request in step.requests:
            slot, blocks = request.row_slot, request.block_ids
            if owner[slot] != request.admission:
                owner[slot], self._held_position[slot] = request.admission, -1
                filled[slot] = self._nulled[slot] = 0
                self._table_cells[slot] = 0
            if filled[slot] < len(blocks):
                self._table_cells[slot, filled[slot] : len(blocks)] = blocks[filled[slot] :]
                filled[slot] = len(blocks)
                changed = True
            if not blocks[0] and not blocks[self._nulled[slot]]:
                first = self._nulled[slot]
                self._nulled[slot] = next(cell for cell in range(first, len(blocks)) if blocks[cell])
                self._table_cells[slot, first : self._nulled[slot]] = 0
                changed = True
        if changed:
            self._table.upload()

    def _set_width(self, longest: int) -> None:
        if not self._fixed_width:
            self.width = max(2, -(-longest // self.block_size))

    def _pack_sampling(self, requests: Sequence[Request]) -> None:
        """Per sampling row what depends on its request; rewritten only when the rows changed. The draw counts on."""
        host, rows = self._rows.host, len(requests)
        admissions = [request.admission for request in requests]
        if admissions != self._packed or self._blocking:
            self._pack_parameters(requests)
            if rows < len(self._packed):
                self._pad_rows(rows, len(self._packed))
            self._packed = admissions
        if self.sampling is not Sampling.GREEDY:
            host["draw"][:rows] = [request.num_generated for request in requests]

    def _pack_parameters(self, requests: Sequence[Request]) -> None:
        host, rows = self._rows.host, len(requests)
        params = [request.params for request in requests]
        host["row_slot"][:rows] = [request.row_slot for request in requests]
        held_back = [stop_ids(r) if r.num_generated < r.params.min_tokens else () for r in requests]
        drawn = [p for p in params if not p.greedy]
        filtered = any(p.top_k or p.top_p < 1 for p in drawn)
        self._blocking = any(held_back)
        if not drawn and not self._blocking:
            self.sampling = Sampling.GREEDY
            return
        self.sampling = Sampling.FILTERED if filtered else Sampling.DRAWN
        host["temperature"][:rows] = [p.temperature for p in params]
        host["top_k"][:rows] = [p.top_k or 1 << 24 for p in params]
        host["top_p"][:rows] = [p.top_p for p in params]
        host["min_p"][:rows] = [p.min_p for p in params]
        host["seed"].view(np.uint64)[:rows] = [request.seed for request in requests]
        host["blocked"][:rows] = 0
        for row, ids in enumerate(held_back):
            host["blocked_ids"][row, : len(ids)] = sorted(ids)
            host["blocked"][row, : len(ids)] = -np.inf

    def _pad_all(self) -> None:
        """Leave nothing but padding in both arenas: rows without a request, tokens without a row."""
        self._pad_rows(0, self.max_num_seqs)
        values = {"row_slot": self.spare_slot, "context_lens": 1, "token_slot": -1}
        for name, array in self._tokens.host.items():
            array[...] = values.get(name, 0)
        self._rows.upload()
        self._tokens.upload()

    def _pad_rows(self, first: int, last: int) -> None:
        values = {"row_slot": self.spare_slot, "context_lens": 1, "top_k": 1 << 24, "top_p": 1}
        for name, array in self._rows.host.items():
            array[first:last] = values.get(name, 0)


def stop_ids(request: Request) -> set[int]:
    """The tokens that may not be drawn before ``min_tokens``."""
    return {*request.params.stop_token_ids, *(() if request.params.ignore_eos else request.eos_token_ids)}
