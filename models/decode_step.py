"""The pure step: tensors in, tokens out, as pieces that are compiled one by one and strung together here.

A piece is a plain function that is worth compiling: the layer, the head, the sampler's passes over the vocabulary.
``Pieces`` holds one set of them, as written (``eager_pieces``) or compiled. The layer is one piece, called once per
layer with that layer's module and cache as arguments, so all layers of one kind share one compiled form. Knows the
model and its static tensors; knows no request, no schedule and no graph.

    decode:  host tokens or last_token[row_slot] -> embed -> layers -> head -> sample -> last_token[row_slot], out[row]
    mixed:   the same for any number of tokens per row; head and sample run on the rows that end a prompt
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ostinato.layers import logit_edits, sampler
from ostinato.layers.attention.backend import AttentionBackend
from ostinato.layers.attention.metadata import AttentionMetadata, within_window
from ostinato.layers.kernels import sampling_ops
from ostinato.layers.logit_edits import EditInputs, count_drawn
from ostinato.layers.logprobs import probe
from ostinato.layers.sampler import SamplingInputs, Tempered
from ostinato.models.decoder import KVCache
from ostinato.models.rope_tables import RopeTables, Rotation, rotations_at
from ostinato.models.spec import LayerSpec, ModelSpec
from ostinato.models.step_inputs import RowInputs, Sampling, StepState, TokenInputs


class StepDecoder(Protocol):
    """What a step needs of a model. ``Decoder`` has it; a module from outside may have it too.

    ``layers`` are called in turn, each as ``layer(x, keys, values, meta)`` with what ``caches_of_layers`` gives it; x
    begins as what ``embed_tokens`` returns and ends as hidden states ``[tokens, hidden_size]``.
    """

    spec: ModelSpec

    @property
    def kinds(self) -> tuple[LayerSpec, ...]:
        """What each of ``layers`` is; equal ones share a compiled form."""

    @property
    def layers(self) -> Iterable[Callable[..., Any]]:
        """The layers, or the whole of them as one."""

    @property
    def norm(self) -> Callable[[Tensor], Tensor]:
        """The final norm."""

    def embed_tokens(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """``[tokens] int64`` twice to what the first layer takes."""

    def caches_of_layers(self, kv_cache: KVCache) -> Sequence[tuple[Any, Any]]:
        """Keys and values for each of ``layers``."""

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """``[rows, hidden_size] -> [rows, vocab_size]``."""


def layer(block: Callable[..., Tensor], x: Tensor, k_cache: Any, v_cache: Any, meta: AttentionMetadata) -> Tensor:
    """One layer: ``[tokens, hidden_size] -> [tokens, hidden_size]``."""
    return block(x, k_cache, v_cache, meta)


def head(decoder: StepDecoder, x: Tensor) -> Tensor:
    """Final norm and logits: ``[rows, hidden_size] -> [rows, vocab_size]``."""
    return decoder.compute_logits(decoder.norm(x))


def feed_back(last_token: Tensor, out: Tensor, row_slot: Tensor, tokens: Tensor) -> None:
    """Put ``tokens [rows]`` where the next step and the host read them."""
    last_token.index_copy_(0, row_slot, tokens)
    out.copy_(tokens)


class Begun(NamedTuple):
    """What a decode step reads before its first layer."""

    token_ids: Tensor
    """``[rows] int64``."""
    block_table: Tensor
    """``[rows, width] int32``."""
    rotations: list[Rotation]


def begin_rows(last_token: Tensor, block_table: Tensor, rope: Sequence[Rotation], rows: RowInputs) -> Begun:
    """Each row's token, blocks ``block_table [slots, width]`` and rotations; changed cells are written first."""
    if rows.table_at is not None and rows.table_value is not None:
        block_table.view(-1).index_copy_(0, rows.table_at, rows.table_value)
    fed = last_token[rows.row_slot].clamp_min(0)
    token_ids = torch.where(rows.token_ids >= 0, rows.token_ids, fed)
    return Begun(token_ids, block_table[rows.row_slot], rotations_at(rope, rows.positions))


Sample = Callable[[Tensor, Sampling, SamplingInputs], Tensor]
"""``logits [rows, vocab]`` to ``[rows] int64``, ``sampler.FAILED`` where they are not finite."""


Process = Callable[[Tensor], Tensor]
"""``logits [rows, vocab]`` to float32, by code that nobody compiles or captures."""


def sample_by_passes(
    temper: Callable[..., Tempered] = sampler.temper,
    narrow: Callable[..., Tensor] = sampler.narrow,
    draw: Callable[..., Tensor] = sampler.draw,
) -> Sample:
    """The sampler as passes over the vocabulary, which may be compiled forms of ``sampler``'s."""

    def sample(logits: Tensor, sampling: Sampling, inputs: SamplingInputs) -> Tensor:
        if not sampling.draws:
            return sampler.sample_greedy(logits)
        tempered = temper(logits.float(), inputs)  # edited logits are float32: one compiled form serves all
        floor = torch.zeros_like(inputs.min_p)
        if sampling.filters:
            floor = sampler.likelihood_floor(tempered.likelihood, inputs, narrow)
        return draw(tempered, floor, inputs)

    return sample


def sample_by_kernels(logits: Tensor, sampling: Sampling, inputs: SamplingInputs) -> Tensor:
    """The sampler as our kernels, which do no more for a row than it asks for."""
    return sampling_ops.sample(logits, inputs, greedy=not sampling.draws)


_sample_by_eager_passes = sample_by_passes()


@dataclass(frozen=True)
class Pieces:
    """The functions worth compiling, all of one make; what is left of a step are a few gathers and copies."""

    layers: Sequence[Callable[..., Tensor]]
    """``layer`` in this make, one per layer: layers of different kinds are compiled apart."""
    head: Callable[..., Tensor] = head
    sample: Sample = _sample_by_eager_passes
    begin_rows: Callable[..., Begun] = begin_rows
    edit: Callable[[Tensor, EditInputs], Tensor] = logit_edits.edit


def eager_pieces(decoder: StepDecoder, sample: Sample = _sample_by_eager_passes) -> Pieces:
    """The functions as written."""
    return Pieces(layers=(layer,) * len(decoder.kinds), sample=sample)


class MetaKinds(NamedTuple):
    """What makes the metadata of one layer another's: its rotation, and on a decode step its window."""

    distinct: tuple[tuple[int, int | None], ...]
    of_layer: tuple[int, ...]
    """For each layer its index in ``distinct``."""

    @classmethod
    def of(cls, layers: Sequence[tuple[int, int | None]]) -> MetaKinds:
        """From the kind of each layer."""
        distinct = tuple(dict.fromkeys(layers))
        return cls(distinct, tuple(distinct.index(kind) for kind in layers))


def _edited(pieces: Pieces, logits: Tensor, edits: EditInputs, process: Process | None) -> Tensor:
    """``logits`` processed, if they are, and edited: float32. Compiled edits are made for the model's own dtype."""
    return pieces.edit(logits, edits) if process is None else logit_edits.edit(process(logits), edits)


@dataclass(frozen=True)
class StepModel:
    """A decoder with everything a step needs of it that is not an input."""

    decoder: StepDecoder
    rope: RopeTables
    kv_cache: KVCache
    state: StepState
    backend: AttentionBackend = AttentionBackend.TORCH

    def decode(
        self,
        pieces: Pieces,
        rows: RowInputs,
        width: int,
        sampling: Sampling,
        inputs: SamplingInputs,
        edits: EditInputs | None = None,
        process: Process | None = None,
    ) -> None:
        """One token for each row, over the first ``width`` cells of the block table.

        ``edits``: what a ``sampling`` that edits logits reads, as one with ``process`` has to.
        """
        hidden = self.rows_hidden(pieces, rows, width)
        self._sample(pieces, hidden, rows.row_slot, sampling, inputs, edits, process)

    def rows_hidden(self, pieces: Pieces, rows: RowInputs, width: int) -> Tensor:
        """The last layer's output for one token of each row, ``[rows, hidden_size]``; keys and values are stored."""
        state = self.state
        table = state.block_table if rows.table_at is not None else state.block_table[:, :width]
        begun = pieces.begin_rows(state.last_token, table, self.rope.tables, rows)
        meta = AttentionMetadata(
            rows.slot_mapping, begun.block_table, rows.context_lens, None, None, None, backend=self.backend
        )
        return self._layers(pieces, begun.token_ids, rows.positions, begun.rotations, meta)

    def mixed(
        self,
        pieces: Pieces,
        row_pieces: Pieces,
        tokens: TokenInputs,
        width: int,
        sample_at: Tensor,
        sample_slot: Tensor,
        sampling: Sampling,
        inputs: SamplingInputs,
        edits: EditInputs | None = None,
        process: Process | None = None,
        watch: Callable[[Tensor], None] | None = None,
    ) -> None:
        """Any number of tokens per row; at the indices ``sample_at [n]`` one is drawn for ``sample_slot [n]``.

        ``pieces`` run the tokens, ``row_pieces`` the head and the sampling of the ``n`` rows. ``watch`` is shown the
        last layer's output for all tokens.
        """
        x = self.tokens_hidden(pieces, tokens, width)
        if watch is not None:
            watch(x)
        if len(sample_at):
            self._sample(row_pieces, x.index_select(0, sample_at), sample_slot, sampling, inputs, edits, process)

    def tokens_hidden(self, pieces: Pieces, tokens: TokenInputs, width: int) -> Tensor:
        """The last layer's output for each of ``tokens``, ``[tokens, hidden_size]``; keys and values are stored."""
        state = self.state
        fed = state.last_token[tokens.token_slot.clamp_min(0)].clamp_min(0)
        token_ids = torch.where(tokens.token_slot >= 0, fed, tokens.token_ids)
        table = state.block_table[:, :width][tokens.row_slot]
        meta = AttentionMetadata(
            tokens.slot_mapping,
            table,
            tokens.context_lens,
            None,
            None,
            tokens.cu_seqlens_q,
            None,
            self.backend,
            tokens.host,
        )
        return self._layers(pieces, token_ids, tokens.positions, self.rope.at(tokens.positions), meta)

    def _layers(
        self,
        pieces: Pieces,
        token_ids: Tensor,
        positions: Tensor,
        rotations: Sequence[Rotation],
        meta: AttentionMetadata,
    ) -> Tensor:
        """From ids to the last layer's output; ``meta`` is completed with each layer's rotation and window."""
        x = self.decoder.embed_tokens(token_ids, positions)
        kinds = self._mixed_kinds if meta.cu_seqlens_q is not None else self._decode_kinds
        metas = []
        for rope, window in kinds.distinct:
            cos, sin = rotations[rope]
            seen = within_window(meta, window, self.block_size) if window else meta
            metas.append(seen._replace(cos=cos, sin=sin))
        caches = self.decoder.caches_of_layers(self.kv_cache)
        layers = zip(pieces.layers, self.decoder.layers, caches, kinds.of_layer, strict=True)
        for run, block, (k_cache, v_cache), kind in layers:
            x = run(block, x, k_cache, v_cache, metas[kind])
        return x

    @cached_property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self.kv_cache[0][0].shape[1]

    @cached_property
    def _decode_kinds(self) -> MetaKinds:
        """Our kernels begin at the window by themselves; for ATen operations the table is narrowed to it."""
        narrowed = self.backend is AttentionBackend.TORCH
        windows = [layer.attention.window if narrowed else None for layer in self.decoder.kinds]
        return MetaKinds.of(list(zip(self.rope.of_layer, windows, strict=True)))

    @cached_property
    def _mixed_kinds(self) -> MetaKinds:
        return MetaKinds.of([(rope, None) for rope in self.rope.of_layer])

    def _sample(
        self,
        pieces: Pieces,
        x: Tensor,
        row_slot: Tensor,
        sampling: Sampling,
        inputs: SamplingInputs,
        edits: EditInputs | None,
        process: Process | None,
    ) -> None:
        """Logits of ``x [rows, hidden_size]``, a token of each, and every place that must know it."""
        logits = pieces.head(self.decoder, x)
        edited = edits if sampling.edits else None
        chosen = logits if edited is None else _edited(pieces, logits, edited, process)
        tokens = pieces.sample(chosen, sampling, inputs)
        feed_back(self.state.last_token, self.state.out[: len(row_slot)], row_slot, tokens)
        if edited is not None:
            count_drawn(edited.counts, row_slot, tokens)
        if sampling.probes and self.state.probes is not None:
            places = self.state.probes
            for to, value in zip(places, probe(logits, tokens, places.top_ids.shape[1]), strict=True):
                to[: len(row_slot)].copy_(value)
