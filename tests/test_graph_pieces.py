"""Graphs split around calls that cannot be captured, sizes that have no memory, and tensors that have moved."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fake_cuda
from ostinato.graphs.addresses import AddressRegistry
from ostinato.graphs.cuda_graph import CudaGraph
from ostinato.graphs.emulated_graph import EmulatedGraph
from ostinato.graphs.graph import Graph, eager_break
from ostinato.graphs.graph_set import GraphSet, out_of_memory
from ostinato.graphs.streams import HostStream
from ostinato.layers.errors import CaptureError

CPU = torch.device("cpu")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the pieces of CUDA graphs were asked to do; they are stand-ins."""
    return fake_cuda.install(monkeypatch)


def cuda_graph() -> CudaGraph:
    return CudaGraph(fake_cuda.Stream(), fake_cuda.POOL)  # type: ignore[arg-type]


class Step:
    """``out = host(x * 2) + x``, the middle of which goes through the host."""

    def __init__(self) -> None:
        self.x, self.out = torch.ones(3), torch.zeros(3)
        self.seen: list[list[float]] = []

        @eager_break
        def through_the_host(t: Tensor, factor: int) -> Tensor:
            self.seen.append(t.tolist())
            return torch.tensor([factor * value for value in t.tolist()])

        self.through_the_host = through_the_host

    def __call__(self) -> None:
        self.out.copy_(self.through_the_host(self.x * 2, factor=10) + self.x)


@pytest.mark.parametrize("kind", ["cuda", "emulated"])
def test_a_call_that_cannot_be_captured_splits_the_step_and_runs_anew(kind: str, log: list[str]) -> None:
    step = Step()
    graph: Graph = cuda_graph() if kind == "cuda" else EmulatedGraph()
    graph.capture(step)
    assert step.seen == [[2.0] * 3]  # real values, not what lay in memory
    for value in (3.0, 5.0):
        step.x.fill_(value)
        graph.replay()
        assert step.seen[-1] == [2 * value] * 3
        assert step.out.tolist() == [21 * value] * 3
    assert graph.breaks == ("Step.__init__.<locals>.through_the_host",)
    if kind == "cuda":
        assert log == ["begin", "end", "replay", "begin", "end", *["replay"] * 4]


def test_an_operator_may_be_the_call(log: list[str]) -> None:
    calls = []

    @torch.library.custom_op("ostinato_test::doubled_on_the_host", mutates_args=())
    @eager_break
    def doubled(t: Tensor) -> Tensor:
        calls.append(t.tolist())
        return torch.tensor([2 * value for value in t.tolist()])

    x, out = torch.ones(2), torch.zeros(2)
    for graph in (cuda_graph(), EmulatedGraph()):
        x.fill_(1)
        graph.capture(lambda: out.copy_(doubled(x + 1)))
        x.fill_(4)
        calls.clear()
        graph.replay()
        assert calls == [[5.0, 5.0]]
        assert out.tolist() == [10.0, 10.0]


def test_outside_of_a_capture_the_call_is_a_call() -> None:
    step = Step()
    step()
    assert step.out.tolist() == [21.0] * 3


def test_a_break_whose_result_changes_shape_is_refused_by_name(log: list[str]) -> None:
    shapes = iter([2, 3])

    @eager_break
    def growing(t: Tensor) -> Tensor:
        return torch.zeros(next(shapes))

    graph, x = cuda_graph(), torch.ones(2)
    graph.capture(lambda: growing(x).add_(1))  # type: ignore[arg-type, return-value]
    with pytest.raises(CaptureError, match=r"growing gave \[2\] at capture, \[3\] at replay"):
        graph.replay()


def test_a_failed_capture_leaves_the_collector_and_nothing_else(log: list[str]) -> None:
    cuda_graph().capture(lambda: None)  # a pool ends with its last graph
    graph = cuda_graph()
    log.clear()

    def failing() -> None:
        raise ValueError("injected")

    assert gc.isenabled()
    with pytest.raises(ValueError, match="injected"):
        graph.capture(failing)
    assert gc.isenabled()
    assert log == ["begin", "end", "reset"]
    with pytest.raises(CaptureError, match="never captured"):
        graph.replay()
    cuda_graph().capture(lambda: None)  # no capture is left under way


def test_the_hosts_choice_to_collect_nothing_is_kept(log: list[str]) -> None:
    gc.disable()
    try:
        cuda_graph().capture(lambda: None)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_graph_that_was_reset_is_not_captured_again(log: list[str]) -> None:
    graph = cuda_graph()
    graph.capture(lambda: None)
    graph.reset()
    assert log[-1] == "reset"
    with pytest.raises(CaptureError):
        graph.replay()
    with pytest.raises(CaptureError, match="captured before, or reset"):
        graph.capture(lambda: None)


# Sets of graphs.


def steps_that(fail: dict[tuple[int, str], Exception], out: Tensor) -> Callable[[int, str], Callable[[], None]]:
    def step_of(size: int, variant: str) -> Callable[[], None]:
        def step() -> None:
            if (size, variant) in fail:
                raise fail[size, variant]
            out.fill_(size)

        return step

    return step_of


def graph_set(*sizes: int) -> GraphSet[str]:
    return GraphSet(sizes, HostStream(CPU, emulate=True))


@pytest.mark.parametrize("nth", range(6))
def test_a_size_without_memory_is_dropped_with_all_its_variants(nth: int) -> None:
    """Out of memory at the n-th of six captures: its size goes, all others are there."""
    keys = [(size, variant) for size in (4, 2, 1) for variant in ("a", "b")]
    graphs, out = graph_set(1, 2, 4), torch.zeros(1)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    graphs.capture_all(("a", "b"), steps_that({keys[nth]: error}, out))
    size = keys[nth][0]
    assert graphs.dropped == {size: "CUDA out of memory. Tried to allocate 2.00 GiB."}
    left = tuple(other for other in (1, 2, 4) if other != size)
    assert graphs.sizes == left
    for rows in (1, 2, 3, 4):
        want = next((other for other in left if other >= rows), None)
        assert graphs.size_for(rows) == want
        if want is not None:
            for variant in ("a", "b"):
                graphs.replay(want, variant)
                assert out == want
    with pytest.raises(CaptureError, match=f"batch sizes: no graph for {size}, a"):
        graphs.replay(size, "a")


def test_memory_that_ran_out_is_seen_behind_the_error_it_caused() -> None:
    try:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")
    except RuntimeError as error:
        assert out_of_memory(error) == "CUDA out of memory."
    assert out_of_memory(RuntimeError("something else")) is None


def test_any_other_failure_names_its_key_and_leaves_no_graph() -> None:
    graphs = graph_set(1, 2)
    with pytest.raises(CaptureError, match="batch sizes: 1, b: illegal") as error:
        graphs.capture_all(("a", "b"), steps_that({(1, "b"): RuntimeError("illegal")}, torch.zeros(1)))
    assert isinstance(error.value.__cause__, RuntimeError)
    with pytest.raises(CaptureError, match="0 are captured"):
        graphs.replay(2, "a")


# Addresses.


def test_a_registry_names_what_moved_went_or_changed_its_form() -> None:
    tensors = {"weight": torch.zeros(4, 2), "input": torch.zeros(3)}
    registry = AddressRegistry()
    registry.note(tensors)
    registry.check(tensors)
    tensors["weight"].add_(1)
    registry.check(tensors)  # new values in the old place
    kept = tensors["weight"]
    tensors["weight"] = kept.clone()
    with pytest.raises(CaptureError, match=r"weight has moved .* from 0x[0-9a-f]+ to 0x[0-9a-f]+"):
        registry.check(tensors)
    tensors["weight"] = kept.view(8)
    with pytest.raises(CaptureError, match=r"weight has moved .*shape \(4, 2\) and strides \(2, 1\) became \(8,\)"):
        registry.check(tensors)
    del tensors["weight"]
    with pytest.raises(CaptureError, match="weight is gone"):
        registry.check(tensors)
