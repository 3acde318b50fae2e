"""Which arithmetic form a product takes: the one place that knows what a CPU compiler does well.

A product with one row (a decode step of one request) is a read of the whole weight. On a CPU, Inductor turns
``(w * x).sum(-1)`` into a vectorised read at memory bandwidth, where the matrix kernels behind ``F.linear`` and
scaled-dot-product attention do not get near it. Uncompiled code keeps the matrix form: as separate operations the sum
form would materialise the product.
"""

from __future__ import annotations

import torch
from torch import Tensor


def prefers_sums(x: Tensor) -> bool:
    """True for a single row ``[1, ...]`` on a CPU inside ``torch.compile``; a symbolic row count is never single."""
    return torch.compiler.is_compiling() and x.device.type == "cpu" and x.shape[0] == 1
