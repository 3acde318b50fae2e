"""The decode attention kernel alone: bytes of keys and values by its time, against the rate at which memory is read.

Sizes of Qwen3-0.6B; pages in random order. Several calls make one graph, so that no launch is measured.
"""

from __future__ import annotations

from functools import partial

import torch

from ostinato.perf.gpu.context import Context
from ostinato.perf.gpu.engine import decode_attention
from ostinato.perf.gpu.finding import Finding
from ostinato.perf.gpu.timing import captured, event_seconds
from ostinato.perf.measure import Summary

BATCH, CONTEXT = 64, 2048
HEADS, KV_HEADS, HEAD_DIM = 16, 8, 128
BLOCK_SIZES = (16, 256)
READ_BYTES = 2 * BATCH * CONTEXT * KV_HEADS * HEAD_DIM * 2
CALLS, REPEATS = 8, 12


def measure(context: Context) -> Finding:
    """Percent of the bandwidth, for blocks of 16 tokens (held to the target) and of 256."""
    found = Finding()
    for block_size in BLOCK_SIZES:
        tensors = inputs(block_size, context.device)
        graph = captured(partial(decode_attention, *tensors), CALLS)
        seconds = [time / CALLS for time in event_seconds(graph.replay, REPEATS)]
        shares = [100 * READ_BYTES / time / context.floors.bandwidth for time in seconds]
        name = "percent_of_bandwidth" if block_size == BLOCK_SIZES[0] else f"percent_of_bandwidth_{block_size}"
        found = found.joined(
            Finding.of(
                {
                    f"attention.{name}": Summary.of(shares),
                    f"attention.us_{block_size}": Summary.of([1e6 * time for time in seconds]),
                }
            )
        )
    return found


def inputs(block_size: int, device: str) -> tuple[torch.Tensor, ...]:
    """q ``[batch, heads, head_dim]``, both caches without a null block in use, block table and lengths."""
    cells = CONTEXT // block_size
    blocks = BATCH * cells
    q = torch.randn(BATCH, HEADS, HEAD_DIM, dtype=torch.bfloat16, device=device)
    shape = (blocks + 1, block_size, KV_HEADS, HEAD_DIM)
    keys, values = (torch.randn(shape, dtype=torch.bfloat16, device=device) for _ in range(2))
    table = (torch.randperm(blocks, device=device) + 1).view(BATCH, cells).to(torch.int32)
    lengths = torch.full((BATCH,), CONTEXT, dtype=torch.int32, device=device)
    return q, keys, values, table, lengths
