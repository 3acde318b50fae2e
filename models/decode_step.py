"""The pure step: tensors in, tokens out, as pieces that are compiled one by one and strung together here.

A piece is a plain function that is worth compiling: the layer, the head, the sampler's passes over the vocabulary.
``Pieces`` holds one set of them, as written (``eager_pieces``) or compiled. The layer is one piece, called once per
layer with that layer's module and cache as arguments, so all layers of one kind share one compiled form. Knows the
model and its static tensors; knows no request, no schedule and no graph.

    decode:  last_token[row_slot] -> embed -> layers -> head -> sample -> last_token[row_slot], out[row]
    mixed:   host tokens or last_token -> embed -> layers -> the rows that end a prompt -> head -> sample -> the same
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ostinato.layers import sampler
from ostinato.layers.attention.metadata import AttentionMetadata, within_window
from ostinato.layers.rope import rope_table
from ostinato.layers.sampler import SamplingInputs
from ostinato.models.decoder import KVCache
from ostinato.models.spec import LayerSpec, ModelSpec


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


class Sampling(Enum):
    """How much sampling work a step does; each is a graph of its own."""

    GREEDY = "greedy"  # argmax only
    DRAWN = "drawn"  # temperature, min-p, blocked tokens
    FILTERED = "filtered"  # and the threshold search of top-k and top-p


class RowInputs(NamedTuple):
    """Static inputs of a decode step, one entry per row (views of the first ``rows`` of the engine's buffers)."""

    row_slot: Tensor
    """``[rows] int64``: where in ``last_token`` and ``block_table`` the row lives; padding uses the spare slot."""
    positions: Tensor
    """``[rows] int64``: position of the token computed."""
    slot_mapping: Tensor
    """``[rows] int64``: where its key and value go."""
    context_lens: Tensor
    """``[rows] int32``: positions + 1."""


class TokenInputs(NamedTuple):
    """Inputs of a mixed step: one entry per token, and per row up to ``max_num_seqs``."""

    token_ids: Tensor
    """``[tokens] int64``; read where ``token_slot`` is negative."""
    token_slot: Tensor
    """``[tokens] int64``: the slot whose ``last_token`` is the token, or -1."""
    positions: Tensor
    """``[tokens] int64``."""
    slot_mapping: Tensor
    """``[tokens] int64``."""
    row_slot: Tensor
    """``[max_num_seqs] int64``."""
    context_lens: Tensor
    """``[max_num_seqs] int32``."""
    cu_seqlens_q: Tensor
    """``[max_num_seqs + 1] int32``."""


@dataclass(frozen=True)
class StepState:
    """What outlives a step on the device."""

    last_token: Tensor
    """``[max_num_seqs + 1] int64``: the token each slot's request generated last; the last entry is the spare."""
    block_table: Tensor
    """``[max_num_seqs + 1, width] int32``: each slot's blocks; the spare row is all null block."""
    out: Tensor
    """``[max_num_seqs] int64``: the tokens of this step, by row."""


class Rotation(NamedTuple):
    """Cosines and sines of some positions, ``[n, rotary_dim / 2] float32`` each; None where nothing rotates."""

    cos: Tensor | None
    sin: Tensor | None


@dataclass(frozen=True)
class RopeTables:
    """A table of all positions for each kind of rotation in the model, and which of them each layer takes."""

    tables: tuple[Rotation, ...]
    of_layer: tuple[int, ...]

    def at(self, positions: Tensor) -> list[Rotation]:
        """Each table's rows at ``positions [tokens] int64``."""
        return [
            Rotation(cos[positions], sin[positions]) if cos is not None and sin is not None else Rotation(None, None)
            for cos, sin in self.tables
        ]


def rope_of(decoder: StepDecoder, max_positions: int, device: torch.device) -> RopeTables:
    """The model's rotary tables for positions below ``max_positions``."""
    specs = [layer.attention.rope for layer in decoder.kinds]
    kinds = list(dict.fromkeys(specs))
    tables = [
        Rotation(None, None) if spec is None else Rotation(*rope_table(spec, max_positions, device)) for spec in kinds
    ]
    return RopeTables(tuple(tables), tuple(kinds.index(spec) for spec in specs))


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


@dataclass(frozen=True)
class Pieces:
    """The functions worth compiling, all of one make; what is left of a step are a few gathers and copies."""

    layers: Sequence[Callable[..., Tensor]]
    """``layer`` in this make, one per layer: layers of different kinds are compiled apart."""
    head: Callable[..., Tensor] = head
    narrow: Callable[..., Tensor] = sampler.narrow
    draw: Callable[..., Tensor] = sampler.draw


def eager_pieces(decoder: StepDecoder) -> Pieces:
    """The functions as written."""
    return Pieces(layers=(layer,) * len(decoder.kinds))


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


@dataclass(frozen=True)
class StepModel:
    """A decoder with everything a step needs of it that is not an input."""

    decoder: StepDecoder
    rope: RopeTables
    kv_cache: KVCache
    state: StepState

    def decode(self, pieces: Pieces, rows: RowInputs, width: int, sampling: Sampling, inputs: SamplingInputs) -> None:
        """One token for each row, over the first ``width`` cells of the block table."""
        state = self.state
        tokens = state.last_token[rows.row_slot].clamp_min(0)
        table = state.block_table[:, :width][rows.row_slot]
        meta = AttentionMetadata(rows.slot_mapping, table, rows.context_lens, None, None, None)
        x = self._layers(pieces, tokens, rows.positions, meta)
        self._sample(pieces, x, rows.row_slot, sampling, inputs)

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
    ) -> None:
        """Any number of tokens per row; at the indices ``sample_at [n]`` one is drawn for ``sample_slot [n]``.

        ``pieces`` run the tokens, ``row_pieces`` the head and the sampling of the ``n`` rows.
        """
        state = self.state
        fed = state.last_token[tokens.token_slot.clamp_min(0)].clamp_min(0)
        token_ids = torch.where(tokens.token_slot >= 0, fed, tokens.token_ids)
        table = state.block_table[:, :width][tokens.row_slot]
        meta = AttentionMetadata(tokens.slot_mapping, table, tokens.context_lens, None, None, tokens.cu_seqlens_q)
        x = self._layers(pieces, token_ids, tokens.positions, meta)
        if len(sample_at):
            self._sample(row_pieces, x.index_select(0, sample_at), sample_slot, sampling, inputs)

    def _layers(self, pieces: Pieces, token_ids: Tensor, positions: Tensor, meta: AttentionMetadata) -> Tensor:
        """From ids to the last layer's output; ``meta`` is completed with each layer's rotation and window."""
        x = self.decoder.embed_tokens(token_ids, positions)
        rotations = self.rope.at(positions)
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
        windows = [layer.attention.window for layer in self.decoder.kinds]
        return MetaKinds.of(list(zip(self.rope.of_layer, windows, strict=True)))

    @cached_property
    def _mixed_kinds(self) -> MetaKinds:
        return MetaKinds.of([(rope, None) for rope in self.rope.of_layer])

    def _sample(self, pieces: Pieces, x: Tensor, row_slot: Tensor, sampling: Sampling, inputs: SamplingInputs) -> None:
        logits = pieces.head(self.decoder, x)
        if sampling is Sampling.GREEDY:
            tokens = sampler.sample_greedy(logits)
        else:
            tempered = sampler.temper(logits, inputs)
            floor = torch.zeros_like(inputs.min_p)
            if sampling is Sampling.FILTERED:
                floor = sampler.likelihood_floor(tempered.likelihood, inputs, pieces.narrow)
            tokens = pieces.draw(tempered, floor, inputs)
        feed_back(self.state.last_token, self.state.out[: len(row_slot)], row_slot, tokens)
