"""One run of a step under the modes: its trace, what it returned, and what it takes to undo it.

Compiled functions run as they were written; ``device="cuda"`` is taken to the CPU where there is no GPU (``trace``).
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ostinato.graphs.emulated_graph import EmulatedGraph
from ostinato.graphs.inspect.replays.keeper import Keeper
from ostinato.graphs.inspect.source import Place, is_users, users_stack
from ostinato.graphs.inspect.target import Step, Target, TargetError
from ostinato.graphs.inspect.time_limit import time_limit
from ostinato.graphs.inspect.tracing.imagined import make_inputs
from ostinato.graphs.inspect.tracing.python_state import PythonState
from ostinato.graphs.inspect.tracing.reachable import Reachable, argument_names, reachable
from ostinato.graphs.inspect.tracing.residency import Residency, storage_key
from ostinato.graphs.inspect.tracing.trace import Trace, record

SEED = 20240229


@dataclass
class Run:
    """A run that has ended."""

    inputs: tuple[Any, ...]
    reach: Reachable
    """What it could get at, before it ran."""
    trace: Trace
    keeper: Keeper
    result: Any
    python: PythonState
    seconds: float

    def undo(self) -> None:
        """Give every tensor that it wrote its values from before; Python state stays as the run left it."""
        with torch.inference_mode():
            self.keeper.before.restore()

    def undo_all(self) -> None:
        """Undo what it did to tensors and to Python's own state."""
        self.undo()
        self.python.restore()

    def let_go(self) -> None:
        """Keep the trace alone."""
        self.result = None
        self.reach, self.python, self.keeper = Reachable(), PythonState([]), Keeper()
        self.inputs = ()

    @property
    def written(self) -> dict[str, Tensor]:
        """The tensors from before that it changed, by name."""
        keys = self.keeper.before.tensors
        named = {name: tensor for name, tensor in self.reach.tensors.items() if storage_key(tensor) in keys}
        known = {storage_key(tensor) for tensor in named.values()}
        unnamed = {f"tensor {number}": tensor for number, (key, tensor) in enumerate(keys.items()) if key not in known}
        return named | unnamed


class StepRunner:
    """Runs one target at one batch size, each time with the same random numbers."""

    def __init__(self, target: Target, batch_size: int, limit: float, device_type: str = "cuda") -> None:
        """``limit``: seconds that one run may take; ``device_type``: where tensors count as lying."""
        self.target, self.batch_size, self._limit = target, batch_size, limit
        self.device_type = device_type
        self.residency: Residency = target.residency or Residency()

    def inputs(self, variant: int, batch_size: int | None = None) -> tuple[Any, ...]:
        """Fresh arguments, made as if there were a device; those that name none are on it."""
        size = batch_size or self.batch_size
        return make_inputs(self.target, self.residency, self.device_type, size, variant, self._limit)

    def reach(self, inputs: tuple[Any, ...]) -> Reachable:
        """What the step could get at with ``inputs``."""
        return reachable(self.target.function, inputs, names_of(self.target.function, len(inputs)))

    def run(
        self,
        inputs: tuple[Any, ...],
        window: range = range(0),
        graph: EmulatedGraph | None = None,
        seed: int = SEED,
        listener: TorchDispatchMode | None = None,
        limit: float | None = None,
    ) -> Run:
        """Run once; into ``graph``, if one is given. ``TargetError`` with the user's line if the step raises.

        ``window``: calls whose results are kept; ``listener``: one more mode, which sees calls before all others;
        ``limit``: seconds, where they are fewer than usual. A run that raises leaves the state as it was.
        """
        reach = self.reach(inputs)
        keeper, python = Keeper(window, graph), PythonState([self.target.function, *reach.kept])
        kept: list[Any] = []

        def step() -> None:
            with contextlib.ExitStack() as modes:
                listening_to = record(
                    self.residency,
                    device_type=self.device_type,
                    modules=reach.modules,
                    is_real=any(tensor.is_cuda for tensor in reach.tensors.values()),
                )
                recording = modes.enter_context(listening_to)
                modes.enter_context(keeper)
                if listener is not None:
                    modes.enter_context(listener)
                kept.append(recording)
                kept.append(self.target.function(*inputs))

        started, outside = time.monotonic(), frozenset(users_stack(limit=100))
        try:
            with self.errors_named(), time_limit(limit or self._limit, self.what), torch.no_grad():
                torch.manual_seed(seed)
                with into(graph) if graph is not None else contextlib.nullcontext():
                    step()
        except TargetError:
            python.restore()
            keeper.before.restore()
            raise
        trace = _within(kept[0].trace, outside)
        return Run(inputs, reach, trace, keeper, kept[1], python, time.monotonic() - started)

    @property
    def what(self) -> str:
        """What is run, for messages."""
        return f"{self.target.name}: step(batch_size={self.batch_size})"

    @contextlib.contextmanager
    def errors_named(self) -> Iterator[None]:
        """What the step raises becomes a ``TargetError`` that says where."""
        try:
            yield
        except TargetError:
            raise
        except Exception as error:
            users = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users(frame.filename)]
            at = f" at {users[-1].filename}:{users[-1].lineno}" if users else ""
            raise TargetError(f"{self.what} raised {type(error).__name__}: {error}{at}") from error


def _within(trace: Trace, outside: frozenset[Place]) -> Trace:
    """``trace`` without the lines that called this tool, at the far end of each stack."""

    def inside(stack: tuple[Place, ...]) -> tuple[Place, ...]:
        while stack and stack[-1] in outside:
            stack = stack[:-1]
        return stack

    return replace(trace, calls=[call._replace(stack=inside(call.stack)) for call in trace.calls])


@contextlib.contextmanager
def into(graph: EmulatedGraph) -> Iterator[None]:
    """Capture what runs within."""
    graph.capture_begin()
    try:
        yield
    finally:
        graph.capture_end()


@contextlib.contextmanager
def own_random_numbers() -> Iterator[None]:
    """Seeds set within are forgotten afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield


def seed_again() -> None:
    """The random numbers that every run begins with."""
    torch.manual_seed(SEED)


def names_of(function: Step, count: int) -> list[str]:
    """Names of ``count`` positional arguments; of a module, as its ``forward`` calls them."""
    return argument_names(function.forward if isinstance(function, nn.Module) else function, count)


def tensors_of(name: str, value: Any) -> dict[str, Tensor]:
    """Tensors in what a step returned, by name."""
    found = Reachable()
    found.walk(name, value)
    return found.tensors


def values_of(name: str, value: Any) -> dict[str, Any]:
    """Plain Python values in what a step returned, by name."""
    found = Reachable()
    found.walk(name, value)
    return {key: each for key, each in found.values.items() if not key.startswith("len(")}
