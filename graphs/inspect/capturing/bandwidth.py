"""How fast this device reads memory and multiplies matrices at all, measured in this process.

A plain sum of far more than a cache holds, a plain copy, a plain product; the best of a few tries each.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

_CPU_BYTES = 128 << 20
_GPU_BYTES = 1 << 30
_TRIES = 4
_GPU_CALLS = 10


class Rates(NamedTuple):
    """Of the device, with the threads that everything else has."""

    read: float
    """Bytes per second read by a sum."""
    copy: float
    """Bytes per second read and written by a copy."""
    matrix: float
    """float32 operations per second of a product of 1,024 × 1,024 matrices."""


@functools.cache
def measured_rates(device: str) -> Rates:
    """Measure once per process and device; about a quarter of a second, and 256 MiB (2 GiB on a GPU) for its time."""
    size = _GPU_BYTES if device.startswith("cuda") else _CPU_BYTES
    values = torch.ones(size // 4, device=device)
    target = torch.empty_like(values)
    read = size / _best(values.sum, device)
    copy = 2 * size / _best(lambda: target.copy_(values), device)
    matrix = values[: 1 << 20].view(1024, 1024)
    product = 2 * 1024**3 / _best(lambda: torch.mm(matrix, matrix), device)
    return Rates(read, copy, product)


def _best(function: Callable[[], object], device: str) -> float:
    """Seconds of one call; on a GPU of one among several, so that launching them does not count."""
    function()
    calls = _GPU_CALLS if device.startswith("cuda") else 1
    return min(_seconds(function, calls, device) for _ in range(_TRIES)) / calls


def _seconds(function: Callable[[], object], calls: int, device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - begin
