"""A whole engine through ``CudaStream`` and ``CudaGraph`` themselves, over stand-ins for what torch does on a GPU."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fake_cuda
from counting_model import CountingModel, counting_plan
from engines import checkpoint, prompts, reference_tokens
from ostinato import EngineConfig, SamplingParams
from ostinato.core import EngineCore
from ostinato.graphs import streams
from ostinato.graphs.graph import eager_break
from ostinato.graphs.streams import CudaStream, HostStream
from ostinato.layers.errors import CaptureError
from ostinato.load import load_decoder
from ostinato.models.checkpoint import read_config
from ostinato.output_processor import OutputProcessor
from ostinato.request import Request
from ostinato.runner import StepRunner

CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    zeros = torch.zeros
    monkeypatch.setattr(
        streams.torch, "zeros", lambda *args, pin_memory=False, **kwargs: zeros(*args, **kwargs), raising=True
    )
    return fake_cuda.install(monkeypatch)


def core_on_stream(spoil: Any = lambda decoder: None, **options: Any) -> EngineCore:
    folder = checkpoint("qwen3")[0]
    settings: dict[str, Any] = {
        "max_num_seqs": 4,
        "capture_sizes": [1, 2, 4],
        "prefill_capture_sizes": [32],
        "debug": True,
    }
    config = EngineConfig(folder, device="cpu", execution="emulate", max_model_len=128, **(settings | options))
    plan = replace(config.resolve(), num_blocks=20)
    decoder = load_decoder(plan, read_config(folder), lambda *_: None)
    spoil(decoder)
    runner = StepRunner(plan, decoder, CudaStream(CPU, emulate=False))
    runner.warm_up()
    return EngineCore(plan, runner)


def run(core: EngineCore, wanted: list[list[int]]) -> list[list[int]]:
    requests = []
    for number, prompt in enumerate(wanted):
        request = Request(number, prompt, GREEDY, number, frozenset())
        core.add(request, OutputProcessor(None, request, None))
        requests.append(request)
        core.step()
    while any(core.is_live(request) for request in requests):
        core.step()
    return [request.output_token_ids for request in requests]


def test_an_engine_captures_replays_and_gives_the_reference_tokens(log: list[str]) -> None:
    core, wanted = core_on_stream(), prompts(5, seed=12)
    captures = (3 + 1) * 5  # sizes and prompt sizes, for each amount of sampling
    assert core.stats().captures == captures
    assert log.count("begin") == log.count("end") == captures + 1  # one more keeps the pool
    assert run(core, wanted) == [reference_tokens("qwen3", prompt, 12) for prompt in wanted]
    stats = core.stats()
    assert log.count("replay") == sum(stats.replays.values()) + sum(stats.prefill_replays.values()) > 12
    assert stats.graph_bytes == 1024 * (captures + 1)
    core.close()
    assert log.count("reset") == captures + 1
    assert log[-1] == "empty_cache"


def test_the_stream_of_a_closed_engine_serves_the_next(log: list[str]) -> None:
    """cuBLAS keeps a workspace for every stream: a new one for each engine would be a leak."""
    streams_used = []
    for _ in range(3):
        stream = CudaStream(CPU, emulate=False)
        streams_used.append(stream._stream)
        stream.close()
        stream.close()
    assert len(set(map(id, streams_used))) == 1
    both = [CudaStream(CPU, emulate=False) for _ in range(2)]
    assert both[0]._stream is not both[1]._stream


def test_a_region_of_the_model_that_cannot_be_captured_splits_every_graph(log: list[str]) -> None:
    def spoil(decoder: Any) -> None:
        compute_logits = decoder.compute_logits

        @eager_break
        def logits_through_the_host(hidden: Tensor) -> Tensor:
            return torch.tensor(compute_logits(hidden).tolist())

        decoder.compute_logits = logits_through_the_host

    core, wanted = core_on_stream(spoil, prefill_capture_sizes=[]), prompts(3, seed=13)
    assert run(core, wanted) == [reference_tokens("qwen3", prompt, 12) for prompt in wanted]
    (name,) = core.stats().eager_breaks
    assert name.endswith("logits_through_the_host")
    assert log.count("begin") == 2 * core.stats().captures + 1


def test_a_step_that_synchronises_is_refused_with_its_size(log: list[str]) -> None:
    def spoil(decoder: Any) -> None:
        norm = decoder.norm.forward

        def synchronising(x: Tensor) -> Tensor:
            torch.cuda.Stream().synchronize()
            return norm(x)

        decoder.norm.forward = synchronising

    with pytest.raises(
        CaptureError, match=r"batch sizes: 4, Sampling.GREEDY: CUDA error: operation not permitted .* \(900\)"
    ):
        core_on_stream(spoil)
    assert not fake_cuda.State.capturing
    assert not fake_cuda.State.recording
    assert core_on_stream().stats().captures  # the next engine captures as if nothing had been


@pytest.mark.parametrize(("nth", "lost"), [(1, {4}), (2, {4}), (7, {2}), (13, {1})])
@pytest.mark.parametrize("where", ["begin", "in the midst"])
def test_out_of_memory_at_the_nth_capture_is_survived_and_said(
    nth: int, lost: set[int], where: str, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the midst of the step as well, with tensors of it alive; of the very first graph too."""
    wanted = prompts(4, seed=14)
    begin = fake_cuda.CUDAGraph.capture_begin
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")

    def failing(self: fake_cuda.CUDAGraph, **kwargs: Any) -> None:
        begin(self, **kwargs)
        if log.count("begin") == nth + 1 and where == "begin":
            raise full

    def spoil(decoder: Any) -> None:
        norm = decoder.norm.forward

        def forward(x: Tensor) -> Tensor:
            if fake_cuda.State.capturing and log.count("begin") == nth + 1 and where == "in the midst":
                raise full
            result: Tensor = norm(x)
            return result

        decoder.norm.forward = forward

    monkeypatch.setattr(fake_cuda.CUDAGraph, "capture_begin", failing)
    sizes = ", ".join(map(str, lost))
    with pytest.warns(RuntimeWarning, match=f"no graphs for batch sizes {sizes}, such steps run slower: CUDA out of"):
        core = core_on_stream(spoil)
    assert run(core, wanted) == [reference_tokens("qwen3", prompt, 12) for prompt in wanted]
    stats = core.stats()
    assert not lost & stats.replays.keys()
    assert set(stats.eager_fallbacks) == {f"no memory for graphs of batch sizes {sizes}"}
    assert lost != {4} or stats.eager_fallbacks[f"no memory for graphs of batch sizes {sizes}"] > 0


def test_a_driver_without_memory_for_the_executable_graph_is_out_of_memory_too(
    log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    end = fake_cuda.CUDAGraph.capture_end

    def failing(self: fake_cuda.CUDAGraph) -> None:
        end(self)
        if log.count("end") == 2:
            raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")

    monkeypatch.setattr(fake_cuda.CUDAGraph, "capture_end", failing)
    with pytest.warns(RuntimeWarning, match=r"no graphs for batch sizes 4, such steps run slower: CUDA error: out of"):
        core_on_stream()


def test_a_closed_engine_has_let_go_of_everything_though_the_device_is_lost(log: list[str]) -> None:
    core = core_on_stream()
    runner = core.runner

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    runner.stream.synchronize = lost  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="illegal memory access"):
        core.close()
    assert runner._model is None
    assert fake_cuda.State.in_pool == 0
    core.close()


def test_engines_opened_and_closed_leave_nothing(log: list[str]) -> None:
    """No graph, no pool, no stream, no page; without waiting for the garbage collector."""
    gc.collect()
    gc.disable()
    left: list[weakref.ref[Any]] = []
    try:
        for cycle in range(15):
            runner = StepRunner(counting_plan(), CountingModel(), CudaStream(CPU, emulate=False))
            runner.warm_up()
            core = EngineCore(runner.plan, runner)
            request = Request(cycle, [3, 4, 5], GREEDY, cycle, frozenset())
            core.add(request, OutputProcessor(None, request, None))
            while core.is_live(request):
                core.step()
            left += [weakref.ref(page) for pair in runner.kv_cache for page in pair]
            left.append(weakref.ref(runner))
            core.close()
            assert fake_cuda.State.in_pool == 0
            fake_cuda.State.pool_ended = False  # another engine has another pool
            del runner, core
    finally:
        gc.enable()
    assert [ref for ref in left if ref() is not None] == []
    assert [len(idle) for idle in streams._idle.values()] == [1]


def test_no_random_number_generator_is_in_any_captured_step() -> None:
    """Its state would have to be registered, and every replay would draw the same (pytorch#113541)."""
    runner = StepRunner(counting_plan(), CountingModel(), HostStream(CPU, emulate=True))
    runner.warm_up()
    graphs = [graph for graphs in runner.graphs.sets for graph in graphs._graphs.values()]
    ops = {call.op for graph in graphs for call in graph.calls}  # type: ignore[attr-defined]
    assert len(graphs) == 5 * len(runner.kinds)
    assert any("log" in str(op) for op in ops)  # the noise is there
    assert not [op for op in ops if torch.Tag.nondeterministic_seeded in op.tags]
