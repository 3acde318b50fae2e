"""Who writes the pages and attends over them: one name per implementation, chosen once per engine."""

from __future__ import annotations

from enum import Enum


class AttentionBackend(Enum):
    """An implementation of paged attention; part of a step's metadata, so a compiled layer knows it statically."""

    TORCH = "torch"
    """ATen operations: any device, compiled by Inductor, recorded by emulated graphs."""
    TRITON = "triton"
    """Our kernels (``layers.kernels``): CUDA, or the CPU under Triton's interpreter."""
    FLASH = "flash"
    """flash-attn where it takes a layer, our kernels for the rest."""
