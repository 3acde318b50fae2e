"""Writing new keys and values into the pages, at slots that are known on the device only."""

# mypy: disable-error-code="no-untyped-def, misc, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ostinato.layers.kernels.launch import dtype_name, power_of_two, strides
from ostinato.layers.kernels.specimen import Specimen

MAX_CHUNK = 1024
"""Elements of one token that a program writes, at most."""
NUM_WARPS = 4


@triton.jit(do_not_specialize_on_alignment=["slot_mapping"])
def _write_kernel(
    k,
    v,
    k_cache,
    v_cache,
    slot_mapping,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    stride_kcb,
    stride_kcs,
    stride_kch,
    stride_vcb,
    stride_vcs,
    stride_vch,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token)
    if slot < 0:
        return
    element = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    head, dim = element // HEAD_DIM, element % HEAD_DIM
    inside = element < NUM_KV_HEADS * HEAD_DIM
    block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    key = tl.load(k + token * stride_kt + head * stride_kh + dim, mask=inside)
    value = tl.load(v + token * stride_vt + head * stride_vh + dim, mask=inside)
    tl.store(k_cache + block * stride_kcb + offset * stride_kcs + head * stride_kch + dim, key, mask=inside)
    tl.store(v_cache + block * stride_vcb + offset * stride_vcs + head * stride_vch + dim, value, mask=inside)


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Store k, v ``[tokens, kv_heads, head_dim]`` at ``slot_mapping [tokens] int64``; a negative slot is skipped.

    Caches ``[num_blocks, block_size, kv_heads, head_dim]`` of the same dtype, written in place. Any strides, but the
    last dimension is contiguous.
    """
    tokens, num_kv_heads, head_dim = k.shape
    if tokens == 0:
        return
    chunk = min(MAX_CHUNK, power_of_two(num_kv_heads * head_dim))
    _write_kernel[tokens, triton.cdiv(num_kv_heads * head_dim, chunk)](
        k,
        v,
        k_cache,
        v_cache,
        slot_mapping,
        *strides(k),
        *strides(v),
        *strides(k_cache),
        *strides(v_cache),
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=k_cache.shape[1],
        CHUNK=chunk,
        num_warps=NUM_WARPS,
    )


def specimens() -> list[Specimen]:
    """Eight heads of 128 in a fused projection, and one head of a size that is no power of two."""
    return [
        _specimen(torch.bfloat16, num_kv_heads=8, head_dim=128, block_size=16),
        _specimen(torch.float32, num_kv_heads=1, head_dim=80, block_size=256),
    ]


def _specimen(dtype: torch.dtype, num_kv_heads: int, head_dim: int, block_size: int) -> Specimen:
    pointer = f"*{dtype_name(dtype)}"
    stride_names = [name for name in _write_kernel.arg_names if name.startswith("stride_")]
    return Specimen(
        f"kv_write-{dtype_name(dtype)}-h{num_kv_heads}-d{head_dim}-b{block_size}",
        _write_kernel,
        dict.fromkeys(("k", "v", "k_cache", "v_cache"), pointer)
        | {"slot_mapping": "*i64"}
        | dict.fromkeys(stride_names, "i32"),
        {
            "NUM_KV_HEADS": num_kv_heads,
            "HEAD_DIM": head_dim,
            "BLOCK_SIZE": block_size,
            "CHUNK": min(MAX_CHUNK, power_of_two(num_kv_heads * head_dim)),
        },
        num_warps=NUM_WARPS,
        num_stages=1,
        aligned=tuple(stride_names),
    )
