"""A captured step on fresh inputs: replayed, then run eagerly from the same state, and compared.

    warm-up 1, warm-up 2, capture          each undone, so that all begin with the same tensors
    for each set of inputs:  fill -> replay -> values kept -> undo -> eager -> compare

The eager run has the same tensors and the new inputs' Python values, as a caller who fills static buffers passes them.
The state goes on as the eager run left it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ostinato.graphs.emulated_graph import EmulatedGraph, RecordedCall
from ostinato.graphs.inspect.replays import compare
from ostinato.graphs.inspect.replays.keeper import Saved, results_of
from ostinato.graphs.inspect.replays.step_run import SEED, Run, StepRunner, names_of, seed_again, tensors_of, values_of
from ostinato.graphs.inspect.tracing.binding import Binding, Change
from ostinato.graphs.inspect.tracing.reachable import Reachable
from ostinato.graphs.inspect.tracing.residency import storage_key
from ostinato.graphs.inspect.tracing.trace import Call
from ostinato.layers.errors import CaptureError


class ReplayFailed(CaptureError):
    """A recorded call did not run again; ``call`` is where."""

    def __init__(self, call: Call | None, message: str) -> None:
        super().__init__(message)
        self.call = call


@dataclass(frozen=True)
class Bound:
    """Inputs that are in place."""

    args: tuple[Any, ...]
    shapes: list[Change]
    """What could not be brought into the same memory: the graph cannot be replayed on it."""
    values: list[Change]


@dataclass(frozen=True)
class Outcome:
    """A replay and an eager run of the same step."""

    eager: Run
    apart: dict[str, float]
    """Tensors that differ by more than the noise, by name: outputs and everything written."""
    returned: dict[str, tuple[Any, Any]]
    """Python values that the step returned at capture, and returns now."""


class Rehearsal:
    """One batch size of one target on an emulated graph."""

    def __init__(self, runner: StepRunner) -> None:
        self.runner = runner
        inputs = runner.inputs(0)
        self.binding = Binding(names_of(runner.target.function, len(inputs)), inputs)
        self.graph = EmulatedGraph()
        self.floor = 0.0
        self.warm_ups = [self._undone(inputs), self._undone(self.bind(0).args)]
        self.capture = runner.run(self.bind(0).args, graph=self.graph)
        self.outputs = tensors_of("output", self.capture.result)
        self.capture.undo()
        self._call_of = {number: index for index, number in self.capture.keeper.recorded.items()}

    def _undone(self, args: tuple[Any, ...]) -> Run:
        run = self.runner.run(args)
        run.undo()
        return run

    def bind(self, variant: int) -> Bound:
        """Fill the static inputs with those of ``variant``."""
        fresh = self.runner.inputs(variant)
        with torch.inference_mode():
            return Bound(*self.binding.load(fresh))

    def replay(self, after: Callable[[int, int], None] | None = None) -> None:
        """Run the graph; ``after`` is told of each call that has run, by its index in the trace and in the graph."""
        seed_again()
        with torch.inference_mode(), torch._C.DisableTorchFunction():
            for number, call in enumerate(self.graph.calls):
                index = self._call_of.get(number, -1)
                try:
                    call.replay()
                except (CaptureError, RuntimeError, IndexError) as error:
                    raise ReplayFailed(self.capture.trace.calls[index] if index >= 0 else None, str(error)) from error
                if after is not None:
                    after(index, number)

    def results(self, number: int) -> tuple[Tensor, ...]:
        """Where recorded call ``number`` leaves its results."""
        call = self.graph.calls[number]
        return results_of(call) if isinstance(call, RecordedCall) else ()

    def written_by_replay(self) -> Saved:
        """What a replay will write outside of its own memory, as it is now."""
        return Saved(self.capture.keeper.before.tensors.values())

    def compare(self, args: tuple[Any, ...]) -> Outcome:
        """Replay, undo, run eagerly on ``args`` (which are bound), and compare. ``ReplayFailed`` if it does not run."""
        before = self.written_by_replay()
        self.replay()
        outputs = {name: tensor.clone() for name, tensor in self.outputs.items()}
        state = {name: tensor.clone() for name, tensor in self.capture.written.items()}
        with torch.inference_mode():
            before.restore()
        eager = self.runner.run(args)
        return self._outcome(eager, outputs, state)

    def _outcome(self, eager: Run, outputs: dict[str, Tensor], state: dict[str, Tensor]) -> Outcome:
        with torch.inference_mode():
            own = self.capture.keeper.before.tensors
            theirs = eager.keeper.before
            missed = {
                name: theirs.copy_of(tensor)
                for name, tensor in eager.written.items()
                if storage_key(tensor) not in own  # the graph does not write it at all
            }
            apart = compare.apart(outputs, tensors_of("output", eager.result))
            apart |= compare.apart(state, self.capture.written)
            apart |= compare.apart(missed, eager.written)
        values = compare.changed(values_of("output", self.capture.result), values_of("output", eager.result))
        return Outcome(eager, {name: by for name, by in apart.items() if by > 2 * self.floor}, values)

    def eager_values(self, seed: int) -> dict[str, Tensor]:
        """Outputs and written tensors of an eager run on the capture's inputs, which is undone."""
        run = self.runner.run(self.bind(0).args, seed=SEED + seed)
        values = {name: tensor.clone() for name, tensor in tensors_of("output", run.result).items()}
        values |= {name: tensor.clone() for name, tensor in run.written.items()}
        run.undo_all()
        return values

    def input_tensors(self) -> dict[str, Tensor]:
        """The static inputs by name."""
        found = Reachable()
        for name, value in zip(self.binding.names, self.binding.args, strict=True):
            found.walk(name, value)
        return found.tensors

    def close(self) -> None:
        """Let go of everything but the inputs and the trace: what dies now, only the graph kept alive."""
        self.graph.reset()
        for run in (*self.warm_ups, self.capture):
            run.let_go()
        self.outputs = {}

    def names(self) -> dict[int, str]:
        """What the tensor in each storage is called."""
        found = self.runner.reach(self.binding.args)
        return {key: name for name, tensor in found.tensors.items() if (key := storage_key(tensor)) is not None}
