"""Walking a CUDA graph through the driver, without one: a fake driver compiled against NVIDIA's own header."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

from fake_libcuda import GRAPH, STREAM, Fake, fake_libcuda
from ostinato.graphs.inspect.capturing import cuda_capture, kernel_times
from ostinato.graphs.inspect.capturing.attribution import NodeWatch, owners
from ostinato.graphs.inspect.capturing.bandwidth import Rates
from ostinato.graphs.inspect.capturing.captured import CapturedGraph, KnownBuffers, Span, demangled
from ostinato.graphs.inspect.capturing.kernel_times import DeviceEvent, match
from ostinato.graphs.inspect.capturing.libcuda import Argument, Driver, Kernel
from ostinato.graphs.inspect.capturing.ograph import Node
from ostinato.graphs.inspect.target import as_target
from ostinato.graphs.inspect.tracing.listening_mode import ListeningMode
from ostinato.layers.errors import CaptureError, ConfigError


@pytest.fixture(params=["new", "old"])
def path(request: pytest.FixtureRequest) -> str:
    return fake_libcuda(old=request.param == "old")


@pytest.fixture
def fake(path: str) -> Iterator[Fake]:
    fake = Fake(path)
    fake.reset()
    yield fake
    fake.reset()


@pytest.fixture
def driver(path: str, fake: Fake) -> Driver:
    return Driver(path)


@pytest.fixture
def new_driver() -> Iterator[Driver]:
    path = fake_libcuda()
    Fake(path).reset()
    yield Driver(path)
    Fake(path).reset()


def test_nodes_have_types_and_unknown_ones_keep_their_number(driver: Driver) -> None:
    types = [driver.node_type(node) for node in driver.nodes(GRAPH)]
    assert types == ["kernel", "kernel", "memcpy", "memset", "graph", "conditional", "empty", "kernel", "type 99"]


def test_both_signatures_of_the_edge_query(driver: Driver) -> None:
    nodes = driver.nodes(GRAPH)
    assert driver.version in (13010, 12020)
    assert list(driver.edges(GRAPH)) == list(pairwise(nodes))


def test_grid_block_and_shared_memory_come_from_the_real_layout(driver: Driver) -> None:
    first = driver.kernel(driver.nodes(GRAPH)[0])
    assert (first.grid, first.block, first.shared_bytes) == ((100, 2, 3), (128, 4, 5), 49152)


def test_a_copy_is_read_with_its_offsets(driver: Driver, fake: Fake) -> None:
    fake.buffers(weight=0x1000, x=0x2000)
    copy = driver.copy(driver.nodes(GRAPH)[2])
    assert copy == (0x2004, 0x1008, 16, True, False)


def test_a_memset_is_read_in_bytes(driver: Driver, fake: Fake) -> None:
    fake.buffers(weight=0x1000, x=0x2000)
    assert driver.memset(driver.nodes(GRAPH)[3]) == (0x1000, 24, 9)


def test_names_of_functions_and_of_kernels(new_driver: Driver) -> None:
    nodes = new_driver.nodes(GRAPH)
    names = [new_driver.kernel(nodes[i]).name for i in (0, 1, 7)]
    assert names == ["_ZN2at6native6kernelILi4EEEvi", "gemm_blob", "triton_red_fused_0"]
    assert demangled(names[0]) == "void at::native::kernel<4>(int)"


def test_arguments_by_layout_and_from_the_blob_in_extra(new_driver: Driver) -> None:
    nodes = new_driver.nodes(GRAPH)
    by_layout = new_driver.kernel(nodes[0]).arguments
    assert by_layout is not None
    assert [(offset, len(value)) for offset, value in by_layout] == [(0, 8), (8, 8), (16, 4), (20, 28)]
    assert by_layout[2].value == (5).to_bytes(4, "little")
    blob = new_driver.kernel(nodes[1]).arguments
    assert blob is not None
    assert [(offset, len(value)) for offset, value in blob] == [(0, 24)]
    assert new_driver.kernel(nodes[7]).arguments == ()


def test_a_driver_that_does_not_tell_the_layout_gives_no_arguments() -> None:
    driver = Driver(fake_libcuda(old=True))
    kernel = driver.kernel(driver.nodes(GRAPH)[0])
    assert kernel.name == "" and kernel.arguments is None


def test_an_error_has_the_name_that_cuda_gives_it(driver: Driver, fake: Fake) -> None:
    with pytest.raises(CaptureError, match=r"cuGraphGetNodes: CUDA_ERROR_INVALID_VALUE \(1\)"):
        driver.nodes(6)
    fake.library.fake_fail_edges(402)
    with pytest.raises(CaptureError, match=r"cuGraphGetEdges(_v2)?: CUDA_ERROR_LOSSY_QUERY \(402\)"):
        driver.edges(GRAPH)
    fake.library.fake_fail_edges(777)
    with pytest.raises(CaptureError, match="error 777"):
        driver.edges(GRAPH)


def test_without_a_driver_there_is_a_clear_message() -> None:
    with pytest.raises(ConfigError, match=r"no CUDA driver: .*libnothing"):
        Driver("libnothing.so.1")


# Nodes as data.


def test_parameters_are_matched_to_named_buffers(new_driver: Driver) -> None:
    weight, x = torch.zeros(16), torch.zeros(64)
    Fake(fake_libcuda()).buffers(weight.data_ptr(), x.data_ptr())
    graph = CapturedGraph.from_handle(GRAPH, {"weight": weight, "x": x}, new_driver)
    first, second, copy, fill = graph.nodes[:4]
    assert [(p.offset, p.size, p.buffer) for p in first.parameters] == [
        (0, 8, "weight"),
        (8, 8, "x"),
        (16, 4, None),
        (20, 28, None),
        (40, 8, "weight"),
    ]
    assert first.parameters[2].value == "0x5"
    assert [(p.offset, p.size, p.buffer) for p in second.parameters] == [
        (0, 24, None),
        (0, 8, "x"),
        (16, 8, "weight"),
    ]
    assert copy.name == "memcpy host to device" and [p.buffer for p in copy.parameters] == ["x", "weight"]
    assert (copy.bytes, fill.bytes) == (16, 24)


def test_child_graphs_and_conditionals_are_named_and_noted(driver: Driver) -> None:
    graph = CapturedGraph.from_handle(GRAPH, driver=driver)
    assert graph.nodes[4].name == "graph of 3 nodes: 2 kernel, 1 memcpy"
    assert graph.nodes[5].name == "conditional"
    assert any("2 child graphs and conditional nodes" in note for note in graph.notes)
    assert graph.edges == tuple((i, i + 1) for i in range(8))
    assert len(graph.kernels) == 3


def test_kernels_without_names_are_counted_in_a_note() -> None:
    driver = Driver(fake_libcuda(old=True))
    notes = CapturedGraph.from_handle(GRAPH, driver=driver).notes
    assert any(note.startswith("3 of 3 kernels have no name") for note in notes)


def test_an_address_belongs_to_the_buffer_that_holds_it() -> None:
    known = KnownBuffers({"a": Span(100, 10), "b": Span(110, 5), "nothing": Span(0, 0)})
    found = [known.at(address) for address in (99, 100, 109, 110, 114, 115)]
    assert found == [None, "a", "a", "b", "b", None]


class _Kept:
    def raw_cuda_graph(self) -> int:
        return GRAPH


class _NotKept:
    def raw_cuda_graph(self) -> int:
        raise RuntimeError("You cannot access the raw cudaGraph_t instance unless keep_graph was true\nmore")


def test_a_graph_of_torch_is_asked_for_its_handle(new_driver: Driver) -> None:
    assert len(CapturedGraph.from_torch(_Kept(), driver=new_driver).nodes) == 9
    with pytest.raises(ConfigError, match="keep_graph=True"):
        CapturedGraph.from_torch(_NotKept(), driver=new_driver)
    with pytest.raises(ConfigError, match=r"expected a torch\.cuda\.CUDAGraph, got Tensor"):
        CapturedGraph.from_torch(torch.zeros(1), driver=new_driver)


# Node to op.


def test_a_watch_tells_what_each_op_added_to_the_graph_under_capture(driver: Driver, fake: Fake) -> None:
    watch = NodeWatch.of_capture(driver, STREAM)
    every = driver.nodes(GRAPH)
    created = []
    for nodes_there in (2, 2, 5, 9):
        fake.library.fake_show(nodes_there)
        created.append(watch.new())
    assert created == [every[:2], (), every[2:5], every[5:]]
    found = owners(driver.nodes(GRAPH), created, watch.out_of_order)
    assert found.op_of == (0, 0, 2, 2, 2, 3, 3, 3, 3)
    assert found.nodes_of == ((0, 2), (2, 0), (2, 3), (5, 4))
    assert found.notes == ()


def test_another_order_than_that_of_creation_is_said_and_nodes_keep_their_ops(driver: Driver, fake: Fake) -> None:
    watch = NodeWatch.of_capture(driver, STREAM)
    fake.library.fake_reverse(1)
    created = []
    for nodes_there in (2, 9):
        fake.library.fake_show(nodes_there)
        created.append(watch.new())
    assert watch.out_of_order == 1
    found = owners(driver.nodes(GRAPH), created, watch.out_of_order)
    assert found.op_of == (1,) * 7 + (0, 0)
    assert found.nodes_of == (None, None)
    assert "order of creation" in found.notes[0]


def test_a_node_that_no_op_made_is_listed() -> None:
    found = owners([11, 12, 13], [(11,), (13,)])
    assert found.op_of == (0, None, 1)
    assert found.notes == ("1 of 3 nodes belong to no op: 1",)


def test_outside_of_a_capture_there_are_no_nodes(driver: Driver, fake: Fake) -> None:
    fake.library.fake_capturing(0)
    assert driver.graph_being_captured(STREAM) is None
    assert NodeWatch.of_capture(driver, STREAM).new() == ()


# Times of nodes.

NODES = (
    Node(0, "kernel", "void at::native::add<float>(int)"),
    Node(1, "event_record", "event_record"),
    Node(2, "memcpy", "memcpy device to device"),
)


def test_events_are_matched_in_the_order_of_their_start() -> None:
    copy = DeviceEvent(2.0, "Memcpy DtoD (Device -> Device)", 3e-6)
    events = [copy, DeviceEvent(1.0, "at::native::add<float>", 5e-6)]
    assert match(NODES, events) == [5e-6, None, 3e-6]


@pytest.mark.parametrize(
    "events",
    [
        [DeviceEvent(1.0, "at::native::add<float>", 5e-6)],
        [DeviceEvent(1.0, "at::native::mul<float>", 5e-6), DeviceEvent(2.0, "Memcpy DtoD", 3e-6)],
        [DeviceEvent(1.0, "Memcpy DtoD", 5e-6), DeviceEvent(2.0, "at::native::add<float>", 3e-6)],
    ],
)
def test_events_of_other_nodes_are_not_matched(events: list[DeviceEvent]) -> None:
    assert match(NODES, events) is None


# The whole capture, on a device that is made up: each op that is no view launches one kernel, which is given the
# addresses of its tensors. What is real here is the order of things, not one number.


class Device(ListeningMode):
    """Driver, stream and graph at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: list[tuple[str, list[int]]] = []
        self.capturing = False
        self.memory = 1000
        self.cuda_stream = STREAM
        self.replays = 0

    def called(self, op: Any, args: Any, kwargs: Any) -> Any:
        result = op(*args, **kwargs)
        if self.capturing and not op.is_view:
            tensors = [a for a in [*args, result] if isinstance(a, torch.Tensor)]
            self.kernels.append((str(op), [t.data_ptr() for t in tensors]))
        return result

    def graph_being_captured(self, stream: int) -> int | None:
        assert stream == STREAM
        return GRAPH if self.capturing else None

    def nodes(self, graph: int) -> tuple[int, ...]:
        return tuple(900 - i for i in range(len(self.kernels)))

    def edges(self, graph: int) -> tuple[tuple[int, int], ...]:
        nodes = self.nodes(graph)
        return tuple(pairwise(nodes))

    def node_type(self, node: int) -> str:
        return "kernel"

    def kernel(self, node: int) -> Kernel:
        name, pointers = self.kernels[900 - node]
        arguments = (Argument(8 * i, p.to_bytes(8, "little")) for i, p in enumerate(pointers))
        return Kernel(name, (1, 1, 1), (128, 1, 1), 0, tuple(arguments))

    def synchronize(self) -> None:
        assert not self.capturing

    def raw_cuda_graph(self) -> int:
        return GRAPH

    def instantiate(self) -> None:
        self.memory -= 64

    def replay(self) -> None:
        self.replays += 1

    @contextlib.contextmanager
    def capture(self, graph: Any, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert graph is self and stream is self and capture_error_mode == "thread_local"
        self.kernels, self.capturing = [], True
        try:
            yield
        finally:
            self.capturing = False


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: Event) -> float:
        return 2.0


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    device = Device()
    stand_ins = {
        "Stream": lambda: device,
        "stream": contextlib.nullcontext,
        "graph_pool_handle": lambda: (0, 1),
        "CUDAGraph": lambda keep_graph: device,
        "graph": device.capture,
        "Event": Event,
        "synchronize": device.synchronize,
        "memory_snapshot": lambda mempool_id: [{"total_size": 512}] * bool(device.kernels),
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 100,
        "max_memory_allocated": lambda: 900,
        "mem_get_info": lambda: (device.memory, 2000),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(cuda_capture, "Driver", lambda: device)
    monkeypatch.setattr(kernel_times, "_profiled", lambda replay: _events(device))
    with device:
        yield device


def _events(device: Device) -> list[DeviceEvent]:
    device.replay()
    return [DeviceEvent(float(i), name, 1e-6) for i, (name, _) in enumerate(device.kernels)]


RATES = Rates(1e9, 1e9, 1e9)
LINEAR = torch.nn.Linear(4, 4)


def step(x: torch.Tensor) -> torch.Tensor:
    return LINEAR(x).relu().t()


@torch.no_grad()
def test_a_capture_attributes_every_node_and_names_its_buffers(device: Device) -> None:
    target = as_target(step, lambda batch_size: (torch.zeros(batch_size, 4),))
    graphs, notes = cuda_capture.capture_sizes(target, [1, 2], RATES)
    graph = graphs[2]
    assert notes == [] and list(graphs) == [1, 2] and graph.level == "kernel"
    assert [node.op is not None and graph.ops[node.op].op for node in graph.nodes] == [n.name for n in graph.nodes]
    product = graph.nodes[0]
    assert [p.buffer for p in product.parameters] == ["LINEAR.bias", "x", "LINEAR.weight", "addmm_1"]
    assert [op.nodes for op in graph.ops] == [(0, 0), (0, 1), (1, 1), (2, 0)]
    assert [op.seconds for op in graph.ops] == [None, 1e-6, 1e-6, None]
    assert (graph.replay_seconds, graph.eager_seconds) == (2e-3, 2e-3)
    assert graph.edges == ((0, 1),)
    assert graph.memory.exec_bytes == 64
    assert (graphs[2].memory.own_bytes, graphs[2].memory.shared_bytes) == (512, 288)
    assert (graphs[1].memory.own_bytes, graphs[1].memory.shared_bytes) == (0, 800)


@torch.no_grad()
def test_without_times_of_kernels_ops_are_timed_by_events(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_times, "_profiled", lambda replay: [])
    target = as_target(step, lambda batch_size: (torch.zeros(batch_size, 4),))
    graphs, notes = cuda_capture.capture_sizes(target, [2], RATES)
    assert [op.seconds for op in graphs[2].ops] == [2e-3] * 4
    assert all(node.seconds is None for node in graphs[2].nodes)
    assert any("ops are timed eagerly" in note for note in notes)


@torch.no_grad()
def test_a_refused_capture_says_which_size(device: Device) -> None:
    def syncing(x: torch.Tensor) -> torch.Tensor:
        torch.cuda.synchronize()
        return x

    target = as_target(syncing, lambda batch_size: (torch.zeros(batch_size),), "syncing")
    with pytest.raises(CaptureError, match="syncing: capture at batch size 2 was refused"):
        cuda_capture.capture_sizes(target, [2], RATES)
