"""The kernel nodes of a captured graph, read from libcuda: in which order they come, and how large their grids are.

https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__GRAPH.html: cuGraphGetNodes, cuGraphNodeGetType,
cuGraphKernelNodeGetParams_v2 with CUDA_KERNEL_NODE_PARAMS_v2.
"""

from __future__ import annotations

import ctypes
from typing import Any

KERNEL_NODE = 0  # CU_GRAPH_NODE_TYPE_KERNEL


class KernelParams(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2."""

    _fields_ = (
        ("func", ctypes.c_void_p),
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z")),
        ("shared_bytes", ctypes.c_uint),
        ("kernel_params", ctypes.c_void_p),
        ("extra", ctypes.c_void_p),
        ("kernel", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    )


class CudaDriverError(RuntimeError):
    """A call of libcuda failed, or libcuda is not there."""


def load_driver() -> Any:
    """libcuda, which comes with the driver."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise CudaDriverError(f"libcuda.so.1 cannot be loaded: {error}") from error


def kernel_grids(graph: int, driver: Any) -> list[int]:
    """The x size of the grid of every kernel node of a ``CUgraph``, in the order in which the driver lists them."""
    count = ctypes.c_size_t(0)
    _call(driver, "cuGraphGetNodes", ctypes.c_void_p(graph), None, ctypes.byref(count))
    nodes = (ctypes.c_void_p * count.value)()
    _call(driver, "cuGraphGetNodes", ctypes.c_void_p(graph), nodes, ctypes.byref(count))
    return [_grid(driver, node) for node in nodes if node is not None and _type(driver, node) == KERNEL_NODE]


def same_ranks(found: list[int], wanted: list[int]) -> bool:
    """Whether both rise and fall alike: the smallest of one where the smallest of the other is, and so on."""

    def ranks(values: list[int]) -> list[int]:
        return sorted(range(len(values)), key=lambda index: values[index])

    return len(found) == len(wanted) and len(set(found)) == len(found) and ranks(found) == ranks(wanted)


def _type(driver: Any, node: int) -> int:
    kind = ctypes.c_int(-1)
    _call(driver, "cuGraphNodeGetType", ctypes.c_void_p(node), ctypes.byref(kind))
    return kind.value


def _grid(driver: Any, node: int) -> int:
    params = KernelParams()
    _call(driver, "cuGraphKernelNodeGetParams_v2", ctypes.c_void_p(node), ctypes.byref(params))
    return int(params.grid_x)


def _call(driver: Any, name: str, *arguments: Any) -> None:
    function = getattr(driver, name, None)
    if function is None:
        raise CudaDriverError(f"this driver has no {name}")
    code = function(*arguments)
    if code != 0:
        raise CudaDriverError(f"{name} failed with CUresult {code}")
