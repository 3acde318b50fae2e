"""What ``verify`` needs of a graph: capture a step with its side buffers, replay it. On a GPU, or emulated."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from ostinato.graphs.cuda_graph import CudaGraph
from ostinato.graphs.emulated_graph import EmulatedGraph
from ostinato.graphs.inspect.replays.side_buffers import SideBuffers
from ostinato.graphs.inspect.replays.step_run import StepRunner, seed_again
from ostinato.layers.errors import CaptureError


class Replayer(Protocol):
    """One captured step."""

    is_real: bool
    """Whether a device runs it."""

    def capture(self, args: tuple[Any, ...], side: SideBuffers) -> Any:
        """Capture the step on ``args``, whose memory it keeps; returns what the step returned."""

    def replay(self) -> None:
        """Run it to its end."""

    def reset(self) -> None:
        """Free it."""


class EmulatedReplayer:
    """The ATen calls of one run, on any device."""

    is_real = False

    def __init__(self, runner: StepRunner) -> None:
        self._runner = runner
        self.graph = EmulatedGraph()

    def capture(self, args: tuple[Any, ...], side: SideBuffers) -> Any:
        """Runs the step, and undoes what it wrote into tensors."""
        run = self._runner.run(args, graph=self.graph, listener=side)
        run.undo()
        return run.result

    def replay(self) -> None:
        """Run the recorded calls."""
        seed_again()
        with torch.inference_mode(), torch._C.DisableTorchFunction():
            self.graph.replay()

    def reset(self) -> None:
        """Free the recorded tensors."""
        self.graph.reset()


class CudaReplayer:
    """A CUDA graph on a stream and a pool of its own."""

    is_real = True

    def __init__(self, runner: StepRunner) -> None:
        self._runner = runner
        self._stream = torch.cuda.Stream()
        self._graph = CudaGraph(self._stream, torch.cuda.graph_pool_handle())

    def capture(self, args: tuple[Any, ...], side: SideBuffers) -> Any:
        """``CaptureError`` with what CUDA says, if it refuses. The step has run before."""
        kept: list[Any] = []

        def step() -> None:
            with torch.no_grad(), side:
                kept.append(self._runner.target.function(*args))

        torch.cuda.synchronize()
        try:
            with torch.cuda.stream(self._stream):
                self._graph.capture(step)
        except RuntimeError as error:
            raise CaptureError(str(error).splitlines()[0]) from error
        return kept[0]

    def replay(self) -> None:
        """Launch, and wait for the end."""
        seed_again()
        self._graph.replay()
        torch.cuda.synchronize()

    def reset(self) -> None:
        """Free the graph."""
        self._graph.reset()


def replayer(runner: StepRunner, args: tuple[Any, ...]) -> Replayer:
    """A CUDA graph if the inputs lie on a GPU."""
    on_gpu = any(tensor.is_cuda for tensor in runner.reach(args).tensors.values())
    return CudaReplayer(runner) if on_gpu else EmulatedReplayer(runner)
