"""The structures that a walk through a ``CUgraph`` reads, laid out as cuda.h has them (12.3 to 13.1)."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p

MEMORY_HOST, MEMORY_ARRAY = 1, 3
"""Of ``CUmemorytype``."""


class KernelParams(ctypes.Structure):
    """``CUDA_KERNEL_NODE_PARAMS_v2``."""

    _fields_ = (
        ("func", c_void_p),
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared_bytes", c_uint),
        ("params", POINTER(c_void_p)),
        ("extra", POINTER(c_void_p)),
        ("kern", c_void_p),
        ("ctx", c_void_p),
    )


class End(ctypes.Structure):
    """One half of ``CUDA_MEMCPY3D_v2``: where it reads, or where it writes."""

    _fields_ = (
        ("x_bytes", c_size_t),
        ("y", c_size_t),
        ("z", c_size_t),
        ("lod", c_size_t),
        ("memory_type", c_uint),
        ("host", c_void_p),
        ("device", c_uint64),
        ("array", c_void_p),
        ("reserved", c_void_p),
        ("pitch", c_size_t),
        ("height", c_size_t),
    )

    @property
    def address(self) -> int:
        """Of the first byte; 0 in an array, which has none."""
        if self.memory_type == MEMORY_ARRAY:
            return 0
        base = (self.host or 0) if self.memory_type == MEMORY_HOST else self.device
        return int(base + self.x_bytes + (self.y + self.z * self.height) * self.pitch)


class MemcpyParams(ctypes.Structure):
    """``CUDA_MEMCPY3D_v2``."""

    _fields_ = (("source", End), ("target", End), ("width", c_size_t), ("height", c_size_t), ("depth", c_size_t))


class MemsetParams(ctypes.Structure):
    """``CUDA_MEMSET_NODE_PARAMS_v1``."""

    _fields_ = (
        ("address", c_uint64),
        ("pitch", c_size_t),
        ("value", c_uint),
        ("element_size", c_uint),
        ("width", c_size_t),
        ("height", c_size_t),
    )


class EdgeData(ctypes.Structure):
    """``CUgraphEdgeData``: programmatic launches have some, and without a place for it the query is refused."""

    _fields_ = (("from_port", c_ubyte), ("to_port", c_ubyte), ("type", c_ubyte), ("reserved", c_ubyte * 5))
