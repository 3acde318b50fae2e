"""Steps of one KV cache that end in logits: what ``ModelRunner`` runs, and ``WarmUp`` compiles and captures.

Owns the pages, the static inputs and outputs and the graphs over them; the pieces are the runner's. Knows no caller:
what it is given was checked. A call returns when its work has run.
"""

from __future__ import annotations

import contextlib
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ostinato.graphs.streams import DeviceStream
from ostinato.kv_memory import KVMemory
from ostinato.layers.attention.backend import AttentionBackend
from ostinato.layers.errors import EngineDead
from ostinato.layers.sampler import sample_greedy
from ostinato.models.decode_step import StepDecoder, StepModel
from ostinato.models.decoder import KVCache
from ostinato.models.rope_tables import rope_of
from ostinato.models.step_inputs import Sampling
from ostinato.plan import Plan
from ostinato.row_batch import Ints, RowBatch
from ostinato.row_buffers import RowBuffers
from ostinato.step_graphs import StepGraphs
from ostinato.step_pieces import MIN_BLOCKS, StepPieces
from ostinato.warm_up import WarmUp


class StepOutput(NamedTuple):
    """What a call of ``ModelRunner`` computed, a row for each set of logits asked for."""

    logits: Tensor
    """``[rows, vocab_size]`` in the model's dtype, on its device. Of ``decode`` a static buffer: valid until the next
    call with the same cache. Of ``prefill`` the caller's own."""
    tokens: Tensor
    """``[rows] int64`` on the CPU: the likeliest token of each row, -1 where its logits are not finite. The caller's
    own."""


class LogitSteps:
    """One cache's steps, ready to run once ``warm_up`` returned."""

    kinds = compiled_kinds = (Sampling.GREEDY,)

    def __init__(
        self,
        plan: Plan,
        decoder: StepDecoder,
        stream: DeviceStream,
        pieces: StepPieces,
        backend: tuple[str, str | None],
    ) -> None:
        """``plan``: of the runner, with this cache's blocks; ``backend``: who runs steps, and why it is a fallback."""
        config = plan.config
        self.plan, self.stream, self.pieces = plan, stream, pieces
        self.backend, self.fallback_reason = backend
        kernels = plan.attention.backend is not AttentionBackend.TORCH
        self._memory: KVMemory | None = KVMemory(plan, max(plan.num_blocks, MIN_BLOCKS), "create_kv_cache")
        self.buffers = RowBuffers(
            config.max_num_seqs,
            config.max_num_batched_tokens,
            plan.block_size,
            plan.table_width,
            stream,
            fixed_width=self.backend in ("cuda", "emulated") or kernels,
        )
        self.logits = torch.zeros(config.max_num_seqs, plan.spec.vocab_size, dtype=plan.dtype, device=plan.device)
        self.tokens = torch.zeros(config.max_num_seqs, dtype=torch.int64, device=plan.device)
        self._landing = stream.staging(8 * config.max_num_seqs).view(torch.int64)
        self.width = plan.table_width
        """Cells of the block table that a host graph reads in its next replay."""
        self.graphs = StepGraphs(plan, stream, captured=plan.captures and self.fallback_reason is None)
        rope = rope_of(decoder, plan.max_model_len, plan.device)
        pages, state = self._memory.cache, self.buffers.state
        self._model: StepModel | None = StepModel(decoder, rope, pages, state, plan.attention.backend)
        self.activation_bytes: int | None = None
        self.graph_bytes = 0

    @property
    def kv_cache(self) -> KVCache:
        """The pages, per layer."""
        return self.open_model.kv_cache

    @property
    def open_model(self) -> StepModel:
        """The model with its cache; ``EngineDead`` after ``close``."""
        if self._model is None:
            raise EngineDead("the KV cache is closed")
        return self._model

    def new_pieces(self, decoder: StepDecoder, *, compiled: bool) -> StepPieces:
        """Others, for ``WarmUp`` where these cannot be compiled."""
        return new_pieces(self.plan, decoder, compiled=compiled)

    def new_output(self, rows: int) -> StepOutput:
        """Room for as many rows, on the device."""
        device = self.plan.device
        logits = torch.empty(rows, self.plan.spec.vocab_size, dtype=self.plan.dtype, device=device)
        return StepOutput(logits, torch.empty(rows, dtype=torch.int64, device=device))

    def decode(self, batch: RowBatch) -> StepOutput:
        """One token of each row; logits in the static buffer."""
        self._compile_if_lost()
        rows = len(batch.counts)
        packed, size = self.buffers.pack_decode(batch), self.graphs.decode_size(rows)
        run = functools.partial(self.run_decode, rows, Sampling.GREEDY, packed.width)
        if size is not None:
            run = functools.partial(self._replay, size, packed.width)

        def work() -> None:
            packed.upload()
            run()
            self._landing[:rows].copy_(self.tokens[:rows], non_blocking=True)

        self.stream.follow()  # what the caller's own stream still reads of the last logits comes first
        self.stream.submit(work).wait()
        return StepOutput(self.logits[:rows], self._landing[:rows].clone())

    def prefill(self, batch: RowBatch, picked: Ints, logits: Tensor, tokens: Tensor) -> None:
        """Any number of tokens of each row; for those at ``picked`` fill ``logits`` and ``tokens``, in their order."""
        self._compile_if_lost()
        wanted, graphs = len(picked), self.graphs
        served = 0 < wanted <= graphs.prefill_rows
        size = graphs.prefill.size_for(max(2, len(batch.token_ids))) if served else None
        packed = self.buffers.pack_tokens(batch, picked, size or 0)

        def work() -> None:
            packed.upload()
            if size is not None:
                graphs.prefill.replay(size, Sampling.GREEDY)
                self._keep(logits, tokens, 0, wanted)
                return
            hidden = self._hidden(packed.tokens, packed.width, packed.host)
            for first in range(0, wanted, len(self.logits)):
                last = min(wanted, first + len(self.logits))
                self._end(hidden.index_select(0, self.buffers.picked(first, last)))
                self._keep(logits, tokens, first, last)

        self.stream.follow()
        self.stream.submit(work).wait()

    def copy_blocks(self, sources: Tensor, targets: Tensor) -> None:
        """Keys and values of blocks ``sources [n] int64`` into ``targets``, all read before any is written."""

        def work() -> None:
            for pair in self.kv_cache:
                for pages in pair:
                    pages.index_copy_(0, targets, pages.index_select(0, sources))

        self.stream.follow()
        self.stream.submit(work).wait()

    def close(self) -> None:
        """Free the graphs and the pages. Again: no effect."""
        with contextlib.ExitStack() as last_first:
            last_first.callback(setattr, self, "_memory", None)
            last_first.callback(setattr, self, "_model", None)
            last_first.callback(self.graphs.close)
            last_first.callback(self.stream.synchronize)

    # What is compiled and captured.

    def run_decode(self, rows: int, sampling: Sampling, width: int) -> None:
        """A decode step's pieces on what the static inputs hold; ``sampling`` is the likeliest token always."""
        self._end(self.open_model.rows_hidden(self.pieces.for_rows(rows), self.buffers.row_inputs(rows), width))

    def run_mixed(self, tokens: int, width: int, rows: int, sampling: Sampling, host: Tensor | None) -> None:
        """The pieces of a step of any tokens, with logits of the first ``rows`` that are picked."""
        hidden = self._hidden(tokens, width, host)
        if rows:
            self._end(hidden.index_select(0, self.buffers.picked(0, rows)))

    def _hidden(self, tokens: int, width: int, host: Tensor | None) -> Tensor:
        inputs = self.buffers.token_inputs(tokens, host)
        return self.open_model.tokens_hidden(self.pieces.for_tokens, inputs, width)

    def _end(self, hidden: Tensor) -> None:
        """Head, and where its results are read: ``hidden [rows, hidden_size]``."""
        rows = len(hidden)
        logits = self.pieces.for_rows(rows).head(self.open_model.decoder, hidden)
        self.logits[:rows].copy_(logits[:, : self.logits.shape[1]])
        self.tokens[:rows].copy_(sample_greedy(logits))

    def _keep(self, logits: Tensor, tokens: Tensor, first: int, last: int) -> None:
        """Copy what the static outputs hold into the caller's rows ``[first, last)``."""
        logits[first:last].copy_(self.logits[: last - first])
        tokens[first:last].copy_(self.tokens[: last - first])

    def _replay(self, size: int, width: int) -> None:
        self.width = width
        self.graphs.decode.replay(size, Sampling.GREEDY)

    def _compile_if_lost(self) -> None:
        """The host reset Dynamo: compile anew, on padding."""
        if self.pieces.lost:
            self.buffers.pad()
            self.pieces.compile_again()
            WarmUp(self, lambda *_: None).compile()


def new_pieces(plan: Plan, decoder: StepDecoder, *, compiled: bool) -> StepPieces:
    """The functions of a step, for all caches of a runner. The caller samples: no sampler is compiled for that."""
    on_gpu = plan.device.type == "cuda"
    return StepPieces(decoder, plan.config.max_num_seqs, compiled=compiled, on_gpu=on_gpu, kernels=True)
