"""Allocation of the paged KV cache. Its blocks are counted by the engine's pool; here it is only tensors."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ostinato.models.decoder import KVCache
from ostinato.models.spec import ModelSpec

Take = Callable[[Sequence[int], torch.device], Sequence[Tensor]]
"""Zeroed ``[bytes] uint8`` tensors of the sizes asked for, each with a storage of its own."""


def _take_now(sizes: Sequence[int], device: torch.device) -> Sequence[Tensor]:
    return [zero_pages((size,), torch.uint8, device) for size in sizes]


def allocate_kv_cache(
    spec: ModelSpec,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    take: Take = _take_now,
) -> KVCache:
    """Zeroed keys and values per layer, each ``[num_blocks, block_size, num_kv_heads, head_dim]``.

    One tensor per layer and kind: a compiled region that mutated a slice of one big tensor would copy the whole.
    """
    heads = [(layer.attention.num_kv_heads, layer.attention.head_dim) for layer in spec.layers]
    shapes = [(num_blocks, block_size, *size) for size in heads for _ in range(2)]
    memory = take([math.prod(shape) * dtype.itemsize for shape in shapes], device)
    pages = [part.view(dtype).view(shape) for part, shape in zip(memory, shapes, strict=True)]
    return list(zip(pages[::2], pages[1::2], strict=True))


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
