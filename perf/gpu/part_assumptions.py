"""What the engine's plan takes for granted on a GPU, asked of this one: each answer alone, none stops the others."""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ostinato.perf.gpu import graph_nodes
from ostinato.perf.gpu.context import Context
from ostinato.perf.gpu.engine import operator
from ostinato.perf.gpu.finding import Finding, NotMeasurable
from ostinato.perf.gpu.timing import captured, event_seconds

KV_SHAPE = (4096, 16, 8, 128)  # 128 MiB in bf16
TRIVIAL_KERNELS = 400
LAUNCHES = 2000
ORDER = (5, 1, 7, 3, 8, 2, 6, 4)  # sizes of kernels whose grids tell them apart
UNIT = 1 << 18  # elements
SMI = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,persistence_mode"


def measure(context: Context) -> Finding:
    """Floors and launch times, then the assumptions."""
    floors = context.floors
    found = Finding(
        {"assumptions.gb_per_second": floors.bandwidth / 1e9, "assumptions.tflops": floors.flops / 1e12},
        detail=machine(),
    )
    for question in (_copied_bytes, _node_order, _launch_times):
        found = found.joined(answer(question))
    return found


def answer(question: Callable[[], Finding]) -> Finding:
    """What ``question`` finds; an error is a note, and the figure that is missing then says the rest."""
    try:
        return question()
    except Exception as error:
        traceback.print_exc()
        return Finding(notes=(f"{question.__name__.strip('_')}: {type(error).__name__}: {error}"[:500],))


def _copied_bytes() -> Finding:
    """Memory that a compiled function takes for writing into a large tensor through an operator that declares it."""
    k_cache, v_cache = (torch.zeros(KV_SHAPE, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    k, v = (torch.ones(3, *KV_SHAPE[2:], dtype=torch.bfloat16, device="cuda") for _ in range(2))
    slots = torch.tensor([16, 40, 65_535], device="cuda")
    write, name = _writer()

    def step(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> Tensor:
        write(k * 2, v, k_cache, v_cache, slots)
        return k_cache.view(-1, *KV_SHAPE[2:])[slots].float().sum()

    compiled = torch.compile(step, fullgraph=True)
    compiled(k, v, k_cache, v_cache, slots)
    taken = _peak_of(lambda: compiled(k, v, k_cache, v_cache, slots))
    written, touched = int((k_cache == 2).sum()), int((k_cache != 0).sum())
    if (written, touched) != (k.numel(), k.numel()):
        raise RuntimeError(f"{name}, compiled: {written} elements are right, {touched} touched, of {k.numel()}")
    copied = taken if taken >= k_cache.nbytes // 2 else 0
    return Finding({"assumptions.copied_bytes": float(copied)}, (f"in-place write inside torch.compile: by {name}",))


def _writer() -> tuple[Callable[..., Any], str]:
    """The engine's operator, or one of the same form where it has no CUDA kernel."""
    try:
        return operator("write_kv"), "ostinato::write_kv"
    except NotMeasurable:
        return _stand_in(), "a stand-in, as ostinato::write_kv has no CUDA kernel"


def _stand_in() -> Callable[..., Any]:
    @torch.library.custom_op("ostinato_gpu_check::write_kv", mutates_args=("k_cache", "v_cache"))
    def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
        for new, cache in ((k, k_cache), (v, v_cache)):
            cache.view(-1, *cache.shape[2:]).index_copy_(0, slots, new)

    return write_kv


def _peak_of(run: Callable[[], Any]) -> int:
    """Bytes allocated at once during ``run``, beyond those before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _node_order() -> Finding:
    """Whether the driver lists kernel nodes in the order in which they were captured."""
    tensors = [torch.zeros(size * UNIT, device="cuda") for size in ORDER]

    def run() -> None:
        for tensor in tensors:
            tensor.add_(1)

    try:
        graph = _kept_graph(run)
        grids = graph_nodes.kernel_grids(graph.raw_cuda_graph(), graph_nodes.load_driver())
    except (graph_nodes.CudaDriverError, NotMeasurable) as error:
        return Finding(notes=(f"order of a graph's nodes: not checked, {error}",))
    in_order = graph_nodes.same_ranks(grids, list(ORDER))
    return Finding({"assumptions.in_order": float(in_order)}, detail={"grids": grids})


def _kept_graph(run: Callable[[], None]) -> Any:
    """A graph whose ``CUgraph`` can be read."""
    if not hasattr(torch.cuda.CUDAGraph, "raw_cuda_graph"):
        raise NotMeasurable(f"torch {torch.__version__} has no CUDAGraph.raw_cuda_graph")
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        run()
    return graph


def _launch_times() -> Finding:
    """Microseconds: launching a graph of one trivial kernel from the host, and a kernel node of a graph of many."""
    value = torch.zeros(1, device="cuda")
    one, many = captured(lambda: value.add_(1)), captured(lambda: value.add_(1), TRIVIAL_KERNELS)
    one.replay()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(LAUNCHES):
        one.replay()
    launched = time.perf_counter() - began
    torch.cuda.synchronize()
    finished = time.perf_counter() - began
    node = min(event_seconds(many.replay, 20)) / TRIVIAL_KERNELS
    return Finding(
        {
            "assumptions.us_graph_launch": 1e6 * launched / LAUNCHES,
            "assumptions.us_graph": 1e6 * finished / LAUNCHES,
            "assumptions.us_node": 1e6 * node,
        },
        (f"us_graph_launch: {LAUNCHES:,} replays of a one-kernel graph, host time; us_node: {TRIVIAL_KERNELS} in one",),
    )


def machine() -> dict[str, Any]:
    """Versions, and what nvidia-smi says of driver, clocks and power."""
    import transformers
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "transformers": transformers.__version__,
        "nvidia_smi": _nvidia_smi(),
    }


def _nvidia_smi() -> dict[str, str]:
    """Read only; empty where there is no such program."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={SMI}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    if done.returncode != 0:
        return {"error": (done.stderr or done.stdout).strip()[:300]}
    return dict(zip(SMI.split(","), (value.strip() for value in done.stdout.split(",")), strict=False))
