"""What a real CUDA graph holds: order of creation, names, every node attributed, parameters matched, times measured.

Run by `make gpu-check`; skipped where torch sees no CUDA device.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ostinato.graphs.inspect.capturing.capture import capture
from ostinato.graphs.inspect.capturing.captured import CapturedGraph
from ostinato.graphs.inspect.capturing.libcuda import Driver
from ostinato.graphs.inspect.capturing.ograph import OGraph, working
from ostinato.graphs.inspect.capturing.show import show

pytestmark = pytest.mark.gpu

WIDTH, SLOTS = 1024, 64


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor, cache: Tensor, position: Tensor) -> Tensor:
        cache.index_copy_(1, position, x[:, None])
        return x + self.down(torch.relu(self.up(self.norm(cache.mean(1)))))


@pytest.fixture(scope="module")
def layers() -> nn.ModuleList:
    return nn.ModuleList(Layer() for _ in range(2)).cuda().half()


@pytest.fixture(scope="module")
def ograph(layers: nn.ModuleList) -> OGraph:
    def decode(x: Tensor, caches: list[Tensor], position: Tensor) -> Tensor:
        for layer, cache in zip(layers, caches, strict=True):
            x = layer(x, cache, position)
        position.add_(1)
        return x.argmax(-1)

    def make_inputs(batch_size: int) -> tuple[Tensor, list[Tensor], Tensor]:
        half = {"dtype": torch.float16, "device": "cuda"}
        caches = [torch.zeros(batch_size, SLOTS, WIDTH, **half) for _ in range(2)]
        return torch.ones(batch_size, WIDTH, **half), caches, torch.tensor([3], device="cuda")

    return capture(decode, make_inputs, batch_sizes=(1, 8))


def test_every_node_belongs_to_an_op_and_nodes_come_in_the_order_of_creation(ograph: OGraph) -> None:
    for graph in ograph.graphs.values():
        assert graph.level == "kernel" and graph.nodes
        assert all(node.op is not None for node in graph.nodes)
        assert [node.op for node in graph.nodes] == sorted(node.op or 0 for node in graph.nodes)
        assert all(op.nodes is not None for op in graph.ops)
        assert sum(op.nodes[1] for op in graph.ops if op.nodes) == len(graph.nodes)
    assert not any("order of creation" in note or "belong to no op" in note for note in ograph.not_checked)


def test_every_op_that_computes_launches(ograph: OGraph) -> None:
    silent = [op.op for op in working(ograph.at(8).ops) if not (op.nodes and op.nodes[1])]
    assert silent == []


def test_kernels_have_names_grids_and_blocks(ograph: OGraph) -> None:
    kernels = [node for node in ograph.at(8).nodes if node.type == "kernel"]
    assert all(node.name and node.name != "kernel without a name" for node in kernels)
    assert all(node.grid and node.block and min(*node.grid, *node.block) > 0 for node in kernels)


def test_one_stream_gives_one_chain_of_edges(ograph: OGraph) -> None:
    graph = ograph.at(8)
    assert graph.edges == tuple((i, i + 1) for i in range(len(graph.nodes) - 1))


def test_parameters_point_into_named_buffers(ograph: OGraph) -> None:
    if Driver().version < 12040:
        pytest.skip("this driver does not tell the layout of parameters")
    graph = ograph.at(8)
    found = {p.buffer for node in graph.nodes for p in node.parameters if p.buffer}
    weights = {name for name, buffer in graph.buffers.items() if buffer.kind == "weight"}
    assert "caches[0]" in found and "position" in found
    assert {name for name in weights if name.endswith("norm.weight")} <= found


def test_times_and_bytes_are_measured(ograph: OGraph) -> None:
    graph = ograph.at(8)
    assert graph.replay_seconds and graph.eager_seconds
    assert any(op.seconds for op in graph.ops)
    assert graph.memory.exec_bytes is not None
    assert graph.memory.own_bytes > 0
    assert ograph.at(1).memory.shared_bytes > 0
    assert "nodes" in show(ograph, 8, "kernel")


def test_a_graph_of_the_users_own_is_read() -> None:
    x, weight = torch.ones(64, 64, device="cuda"), torch.ones(64, 64, device="cuda")
    torch.mm(x, weight)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        y = torch.mm(x, weight).relu()
    inside = CapturedGraph.from_torch(graph, {"x": x, "weight": weight, "y": y})
    assert inside.kernels and len(inside.handles) == len(inside.nodes)
    if Driver().version >= 12040:
        assert any(p.buffer == "y" for p in inside.kernels[-1].parameters)
