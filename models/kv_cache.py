"""Allocation of the paged KV cache. Its blocks are counted by the engine's pool; here it is only tensors."""

from __future__ import annotations

import math
import mmap

import torch

from ostinato.models.decoder import KVCache
from ostinato.models.spec import ModelSpec


def allocate_kv_cache(
    spec: ModelSpec, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> KVCache:
    """Zeroed keys and values per layer, each ``[num_blocks, block_size, num_kv_heads, head_dim]``.

    One tensor per layer and kind: a compiled region that mutated a slice of one big tensor would copy the whole.
    """

    def pages(num_kv_heads: int, head_dim: int) -> torch.Tensor:
        return zero_pages((num_blocks, block_size, num_kv_heads, head_dim), dtype, device)

    sizes = [(layer.attention.num_kv_heads, layer.attention.head_dim) for layer in spec.layers]
    return [(pages(*size), pages(*size)) for size in sizes]


def zero_pages(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros that, on a CPU, the operating system hands out a page at a time, when they are first written.

    ``torch.zeros`` writes them all at once, which takes seconds for gigabytes, most of which few programs ever fill.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def zero_null_block(cache: KVCache) -> None:
    """Clear block 0, where padding rows wrote."""
    for keys, values in cache:
        keys[0].zero_()
        values[0].zero_()
