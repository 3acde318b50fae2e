"""What the attention kernels' launchers agree on: padded sizes, whole strides, how many multiprocessors there are."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

INTERPRETER_MULTIPROCESSORS = 16
"""Of the GPU that Triton's interpreter stands for."""
MIN_DOT = 16
"""Rows of a matrix product at least: a tensor core's tile."""


def power_of_two(size: int) -> int:
    """The least power of two that is at least ``size``."""
    return 1 << (size - 1).bit_length()


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; a fixed number where the kernels are interpreted."""
    if device.type != "cuda":
        return INTERPRETER_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def readable(q: Tensor) -> Tensor:
    """``q [tokens, heads, head_dim]`` as it is where its last dimension is contiguous, else a copy."""
    return q if q.stride(-1) == 1 or q.shape[-1] == 1 else q.contiguous()


def strides(x: Tensor) -> list[int]:
    """In elements, of all dimensions but the last, which is contiguous; those of size 1 as if ``x`` were contiguous.

    Torch may give a dimension of size 1 any stride, and each alignment of an argument is another compilation.
    """
    shape = x.shape
    return [x.stride(i) if shape[i] > 1 else math.prod(shape[i + 1 :]) for i in range(x.dim() - 1)]


def dtype_name(dtype: torch.dtype) -> str:
    """Triton's name of a floating dtype, in a specimen's signature."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
