"""Writing keys and values into pages, in Triton's interpreter."""

from __future__ import annotations

import math
import mmap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.attention_cases import same_bits
from ostinato.layers.attention.scoring import Scoring
from ostinato.layers.kernels.kv_write import write_kv
from ostinato.layers.kernels.paged_decode import paged_decode

pytestmark = pytest.mark.kernels


def empty_caches(num_blocks: int, block_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> list[Tensor]:
    return [torch.full((num_blocks, block_size, kv_heads, head_dim), math.nan, dtype=dtype) for _ in range(2)]


def expected_cache(cache: Tensor, new: Tensor, slots: list[int]) -> Tensor:
    expected = cache.clone()
    for token, slot in zip(new, slots, strict=True):
        if slot >= 0:
            expected[slot // cache.shape[1], slot % cache.shape[1]] = token
    return expected


@settings(max_examples=40)
@given(
    block_size=st.sampled_from([1, 4, 16, 256]),
    kv_heads=st.integers(1, 9),
    head_dim=st.sampled_from([16, 64, 80, 128, 256]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    data=st.data(),
)
def test_each_token_is_written_at_its_slot_and_nothing_else_is(
    block_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    """From parts of a fused projection or tensors of their own; a negative slot is skipped."""
    free = st.lists(st.integers(0, 3 * block_size - 1), unique=True, max_size=5)
    slots = data.draw(st.permutations(data.draw(free) + [-1] * data.draw(st.integers(0, 2))))
    caches = empty_caches(3, block_size, kv_heads, head_dim, dtype)
    fused = torch.randn(len(slots), (3 * kv_heads) * head_dim).to(dtype)
    parts = (part.unflatten(1, (kv_heads, head_dim)) for part in fused.chunk(3, 1)[1:])
    k, v = (part.clone() if data.draw(st.booleans()) else part for part in parts)
    expected = [expected_cache(cache, new, slots) for cache, new in zip(caches, (k, v), strict=True)]
    write_kv(k, v, *caches, torch.tensor(slots, dtype=torch.int64))
    assert all(same_bits(got, wanted) for got, wanted in zip(caches, expected, strict=True))


def test_caches_may_be_parts_of_one_tensor() -> None:
    both = torch.zeros(4, 2, 16, 2, 64)
    k, v = torch.randn(2, 3, 2, 64).unbind()
    slots = torch.tensor([17, 63, 2])
    write_kv(k, v, both[:, 0], both[:, 1], slots)
    assert same_bits(both[slots // 16, 0, slots % 16], k)
    assert same_bits(both[slots // 16, 1, slots % 16], v)
    assert int(both.count_nonzero()) == 2 * k.numel()


def test_pages_may_lie_beyond_two_to_the_31_elements() -> None:
    """An address in 32 bits would be another; the map costs the pages that are touched."""
    head_dim, block_size = 128, 16
    num_blocks = 2**31 // (block_size * head_dim) + 2
    size = num_blocks * block_size * head_dim * 2
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, size, flags=flags)
    cache = torch.frombuffer(memory, dtype=torch.float16).view(num_blocks, block_size, 1, head_dim)
    new = torch.randn(1, 1, head_dim).half()
    slot = num_blocks * block_size - block_size
    write_kv(new, new, cache, cache, torch.tensor([slot]))
    assert same_bits(cache[-1, 0], new[0])
    table = torch.tensor([[num_blocks - 1]], dtype=torch.int32)
    out = paged_decode(new, cache, cache, table, torch.tensor([1], dtype=torch.int32), Scoring(1.0))
    assert same_bits(out, new)
