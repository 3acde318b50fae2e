"""A whole sequence through a model in one call, without an engine: pages for the call alone, forgotten after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ostinato.layers.attention.metadata import AttentionMetadata
from ostinato.models.decode_step import StepDecoder
from ostinato.models.decoder import KVCache
from ostinato.models.rope_tables import rope_of
from ostinato.models.spec import ModelSpec

BLOCK_SIZE = 64
Enter = Callable[[Tensor], Tensor]


def hidden_states(
    decoder: StepDecoder,
    lengths: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    enter: Enter,
    max_positions: int | None = None,
) -> Tensor:
    """Normed hidden states ``[tokens, hidden_size]`` of sequences of ``lengths`` tokens, one after the other.

    ``enter`` gives, for the tokens' positions, what goes into the first layer. A layer's pages are the next one's: the
    memory is that of one layer. longrope's factors go by ``max_positions``, without it by the longest of ``lengths``.
    """
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    meta, num_blocks = _metadata(lengths, positions)
    rope = rope_of(decoder, max_positions or max(lengths), device)
    metas = [meta._replace(cos=cos, sin=sin) for cos, sin in rope.at(positions)]
    caches = decoder.caches_of_layers(_shared_pages(decoder.spec, num_blocks, dtype, device))
    x = enter(positions)
    for layer, (keys, values), kind in zip(decoder.layers, caches, rope.of_layer, strict=True):
        x = layer(x, keys, values, metas[kind])
    return decoder.norm(x)


def _metadata(lengths: Sequence[int], positions: Tensor) -> tuple[AttentionMetadata, int]:
    """Blocks in order, block 0 left alone as everywhere; and how many there are."""
    counts = torch.tensor([-(-length // BLOCK_SIZE) for length in lengths])
    firsts = 1 + counts.cumsum(0) - counts  # each sequence's first block
    table = firsts[:, None] + torch.arange(int(counts.max()))
    table = table.where(torch.arange(int(counts.max())) < counts[:, None], 0)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(lengths).cumsum(0)])
    offsets = torch.repeat_interleave(firsts * BLOCK_SIZE, torch.tensor(lengths))
    device = positions.device
    meta = AttentionMetadata(
        slot_mapping=offsets.to(device) + positions,
        block_table=table.to(device, torch.int32),
        context_lens=torch.tensor(lengths, dtype=torch.int32, device=device),
        cos=None,
        sin=None,
        cu_seqlens_q=starts.to(device, torch.int32),
    )
    return meta, 1 + int(counts.sum())


def _shared_pages(spec: ModelSpec, num_blocks: int, dtype: torch.dtype, device: torch.device) -> KVCache:
    """Keys and values for each layer, the same tensors for all of one shape: a layer reads what it has just written."""
    sizes = [(layer.attention.num_kv_heads, layer.attention.head_dim) for layer in spec.layers]
    pages = {
        size: tuple(torch.zeros(num_blocks, BLOCK_SIZE, *size, dtype=dtype, device=device) for _ in range(2))
        for size in set(sizes)
    }
    return [(pages[size][0], pages[size][1]) for size in sizes]
