"""Reading a ``CUgraph`` through the driver: nodes, edges, kernels and their arguments. By ctypes, nothing is built.

Layouts and signatures are those of cuda.h (12.3 to 13.1); the tests compile a fake driver against that header. Handles
are plain integers. Knows neither torch nor what the nodes mean. It changes nothing: every call is a query.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from typing import Any, NamedTuple

from ostinato.graphs.inspect.capturing.cuda_structs import (
    MEMORY_HOST,
    EdgeData,
    KernelParams,
    MemcpyParams,
    MemsetParams,
)
from ostinato.layers.errors import CaptureError, ConfigError

LIBRARY = "libcuda.so.1"
NODE_TYPES = (
    "kernel",
    "memcpy",
    "memset",
    "host",
    "graph",
    "empty",
    "wait_event",
    "event_record",
    "semaphore_signal",
    "semaphore_wait",
    "mem_alloc",
    "mem_free",
    "batch_mem_op",
    "conditional",
)
"""By ``CUgraphNodeType``."""

_INVALID_VALUE = 1
_PARAM_END, _PARAM_BUFFER, _PARAM_BUFFER_SIZE = 0, 1, 2
_CAPTURE_ACTIVE = 1


class Argument(NamedTuple):
    """``value`` at ``offset`` bytes into a kernel's parameters."""

    offset: int
    value: bytes


class Kernel(NamedTuple):
    """What a kernel node launches."""

    name: str
    """As the compiler mangled it; "" where the driver does not say."""
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    """Dynamic, per block."""
    arguments: tuple[Argument, ...] | None
    """None: the driver (before 12.4) does not tell how many there are."""


class Copy(NamedTuple):
    """A memcpy node; an address is 0 in an array."""

    source: int
    target: int
    bytes: int
    from_host: bool
    to_host: bool


class Memset(NamedTuple):
    """A memset node."""

    address: int
    bytes: int
    value: int


class Driver:
    """The queries that a walk through a graph needs; a failure is a ``CaptureError`` with CUDA's name for it."""

    def __init__(self, library: str = LIBRARY) -> None:
        """Load ``library``; ``ConfigError`` where there is none."""
        try:
            self._cuda: Any = ctypes.CDLL(library)
        except OSError as error:
            raise ConfigError(f"no CUDA driver: {error}") from error
        self._layouts: dict[int, tuple[tuple[int, int], ...] | None] = {}

    @property
    def version(self) -> int:
        """1000 × major + 10 × minor."""
        version = c_int()
        self._call("cuDriverGetVersion", byref(version))
        return version.value

    def nodes(self, graph: int) -> tuple[int, ...]:
        """Handles in the driver's order, which is the order of creation (``attribution`` checks it)."""
        count = c_size_t()
        self._call("cuGraphGetNodes", c_void_p(graph), None, byref(count))
        handles = (c_void_p * count.value)()
        self._call("cuGraphGetNodes", c_void_p(graph), handles, byref(count))
        return tuple(handle or 0 for handle in handles[: count.value])

    def edges(self, graph: int) -> tuple[tuple[int, int], ...]:
        """(from, to) handles."""
        count = c_size_t()
        versioned = hasattr(self._cuda, "cuGraphGetEdges_v2")  # 12.3 and later; CUDA 13 has nothing else
        name, data = ("cuGraphGetEdges_v2", (None,)) if versioned else ("cuGraphGetEdges", ())
        self._call(name, c_void_p(graph), None, None, *data, byref(count))
        sources, targets = (c_void_p * count.value)(), (c_void_p * count.value)()
        filled = ((EdgeData * count.value)(),) if versioned else ()
        self._call(name, c_void_p(graph), sources, targets, *filled, byref(count))
        return tuple((a or 0, b or 0) for a, b in zip(sources[: count.value], targets[: count.value], strict=True))

    def node_type(self, node: int) -> str:
        """One of ``NODE_TYPES``; of a newer driver perhaps ``"type 14"``."""
        number = c_int()
        self._call("cuGraphNodeGetType", c_void_p(node), byref(number))
        known = 0 <= number.value < len(NODE_TYPES)
        return NODE_TYPES[number.value] if known else f"type {number.value}"

    def kernel(self, node: int) -> Kernel:
        """What a node of type ``kernel`` launches."""
        params = KernelParams()
        versioned = hasattr(self._cuda, "cuGraphKernelNodeGetParams_v2")
        name = "cuGraphKernelNodeGetParams_v2" if versioned else "cuGraphKernelNodeGetParams"
        self._call(name, c_void_p(node), byref(params))
        (gx, gy, gz), (bx, by, bz) = params.grid, params.block
        arguments = self._arguments(params)
        return Kernel(self._kernel_name(params), (gx, gy, gz), (bx, by, bz), params.shared_bytes, arguments)

    def copy(self, node: int) -> Copy:
        """What a node of type ``memcpy`` copies."""
        params = MemcpyParams()
        self._call("cuGraphMemcpyNodeGetParams", c_void_p(node), byref(params))
        source, target = params.source, params.target
        size = params.width * max(params.height, 1) * max(params.depth, 1)
        host = source.memory_type == MEMORY_HOST, target.memory_type == MEMORY_HOST
        return Copy(source.address, target.address, size, *host)

    def memset(self, node: int) -> Memset:
        """What a node of type ``memset`` fills."""
        params = MemsetParams()
        self._call("cuGraphMemsetNodeGetParams", c_void_p(node), byref(params))
        return Memset(params.address, params.element_size * params.width * max(params.height, 1), params.value)

    def child(self, node: int) -> int:
        """The graph inside a node of type ``graph``."""
        graph = c_void_p()
        self._call("cuGraphChildGraphNodeGetGraph", c_void_p(node), byref(graph))
        return graph.value or 0

    def graph_being_captured(self, stream: int) -> int | None:
        """The graph into which ``stream`` is captured now; None if it is not."""
        status, number, graph = c_int(), c_uint64(), c_void_p()
        with_edges = hasattr(self._cuda, "cuStreamGetCaptureInfo_v3")
        name = "cuStreamGetCaptureInfo_v3" if with_edges else "cuStreamGetCaptureInfo_v2"
        unasked = (None,) * (3 if with_edges else 2)
        self._call(name, c_void_p(stream), byref(status), byref(number), byref(graph), *unasked)
        return graph.value if status.value == _CAPTURE_ACTIVE else None

    def _kernel_name(self, params: KernelParams) -> str:
        """A node captured by the runtime has a ``CUkernel`` where a ``CUfunction`` is expected: ask in both ways."""
        ways = (("cuFuncGetName", params.func), ("cuKernelGetName", params.kern), ("cuKernelGetName", params.func))
        for function, handle in ways:
            name = c_char_p()
            if handle and hasattr(self._cuda, function):
                status = getattr(self._cuda, function)(byref(name), c_void_p(handle))
                if status == 0 and name.value:
                    return name.value.decode(errors="replace")
        return ""

    def _arguments(self, params: KernelParams) -> tuple[Argument, ...] | None:
        if params.extra:
            return _packed(params.extra)
        layout = self._layout(params)
        if layout is None or (layout and not params.params):
            return None
        places = zip(layout, range(len(layout)), strict=True)
        return tuple(Argument(offset, ctypes.string_at(params.params[i], size)) for (offset, size), i in places)

    def _layout(self, params: KernelParams) -> tuple[tuple[int, int], ...] | None:
        """(offset, size) of each parameter; None where no way of asking works."""
        key = params.func or params.kern or 0
        if key not in self._layouts:
            ways = (
                ("cuFuncGetParamInfo", params.func),
                ("cuKernelGetParamInfo", params.kern),
                ("cuKernelGetParamInfo", params.func),
            )
            found = [self._layout_by(function, handle) for function, handle in ways if handle]
            empty = () if () in found else None  # a wrong handle looks like a kernel without parameters
            self._layouts[key] = next((layout for layout in found if layout), empty)
        return self._layouts[key]

    def _layout_by(self, function: str, handle: int) -> tuple[tuple[int, int], ...] | None:
        if not hasattr(self._cuda, function):
            return None
        places: list[tuple[int, int]] = []
        while True:
            offset, size = c_size_t(), c_size_t()
            status = getattr(self._cuda, function)(c_void_p(handle), c_size_t(len(places)), byref(offset), byref(size))
            if status == _INVALID_VALUE:  # one past the last
                return tuple(places)
            if status:
                return None
            places.append((offset.value, size.value))

    def _call(self, function: str, *args: Any) -> None:
        if not hasattr(self._cuda, function):
            raise CaptureError(f"{function}: this CUDA driver has no such function")
        status = getattr(self._cuda, function)(*args)
        if status:
            raise CaptureError(f"{function}: {self._error_name(status)}")

    def _error_name(self, status: int) -> str:
        name = c_char_p()
        known = self._cuda.cuGetErrorName(status, byref(name)) == 0 and name.value
        return f"{name.value.decode()} ({status})" if known and name.value else f"error {status}"


def _packed(extra: Any) -> tuple[Argument, ...]:
    """The block of bytes given by ``CU_LAUNCH_PARAM_BUFFER_POINTER`` and its size: cuBLASLt launches so."""
    address, size, at = 0, 0, 0
    while (key := extra[at] or 0) != _PARAM_END:
        if key == _PARAM_BUFFER:
            address = extra[at + 1] or 0
        elif key == _PARAM_BUFFER_SIZE:
            size = c_size_t.from_address(extra[at + 1]).value
        else:
            raise CaptureError(f"kernel node: unknown launch parameter {key:#x} in extra")
        at += 2
    return (Argument(0, ctypes.string_at(address, size)),) if address and size else ()
