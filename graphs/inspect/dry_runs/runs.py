"""The runs that tell what a capture would meet: two warm-ups, the capture, and a run for each other set of values.

All of one batch size, on the same static inputs. Works on a CPU as if its tensors lay on a GPU; where the step cannot
be told so (it asks for a kernel that is not there), as on the CPU that it is.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ostinato.graphs.inspect.dry_runs.frozen import differences
from ostinato.graphs.inspect.dry_runs.side_effects import changes, find_lines, snapshot
from ostinato.graphs.inspect.source import Place, is_users
from ostinato.graphs.inspect.target import Target, TargetError
from ostinato.graphs.inspect.time_limit import time_limit
from ostinato.graphs.inspect.tracing.binding import Binding, Change
from ostinato.graphs.inspect.tracing.imagined import make_inputs
from ostinato.graphs.inspect.tracing.reachable import Reachable, argument_names, reachable
from ostinato.graphs.inspect.tracing.residency import Residency, storage_key
from ostinato.graphs.inspect.tracing.trace import TensorRef, Trace, record


@dataclass
class DryRuns:
    """What was seen of one batch size."""

    batch_size: int
    warm_ups: tuple[Trace, Trace]
    capture: Trace
    others: list[Trace]
    """One for each further variant."""
    shapes: list[Change]
    values: list[Change]
    """Inputs whose shape or Python value is another one in a variant."""
    mutations: dict[str, tuple[Any, Any]]
    """Names of Python values that the capture changed."""
    lines: dict[str, Place]
    """Where they are changed."""
    names: dict[int, str]
    """Tensors by the keys of their storages."""
    outputs: list[TensorRef]
    """What the step returned."""
    input_keys: set[int]
    """Storages of the inputs."""
    inputs: tuple[Any, ...]
    """The static inputs: a caller keeps them."""
    alive: set[int]
    """Numbers of the capture's storages that something still held after the other runs."""


@dataclass
class FirstRun:
    """What the first run of a batch size showed, and what the next ones go on with."""

    batch_size: int
    binding: Binding
    inputs: tuple[Any, ...]
    """The static inputs."""
    names: dict[int, str]
    """Tensors by the keys of their storages."""
    trace: Trace
    outputs: list[TensorRef]
    mutated: frozenset[str]
    """Names of Python values that it changed."""


class DryRunner:
    """Runs a target; one for all batch sizes, so that state is carried on as in a warm-up."""

    def __init__(self, target: Target, variants: int, seconds: float, device_type: str) -> None:
        self.target = target
        self.residency: Residency = target.residency or Residency()
        self._variants = variants if target.has_variants else 1
        self._seconds = seconds
        self._device_type = device_type

    def begin(self, batch_size: int) -> FirstRun:
        """The first run of a batch size, from which ``go_on`` goes on; ``TargetError`` as there."""
        inputs = self._inputs(batch_size, 0)
        names = argument_names(self.target.function, len(inputs))
        binding = Binding(names, inputs)
        self._base = self._look(inputs, names)
        storage_names = self._names(inputs, names)
        before = snapshot(self._look(inputs, names))
        trace, outputs = self._step(binding.args, batch_size)
        mutated = changes(before, snapshot(self._look(inputs, names))).keys()
        return FirstRun(batch_size, binding, inputs, storage_names, trace, outputs, frozenset(mutated))

    def is_steady(self, first: FirstRun) -> bool:
        """Whether runs with other values make the calls of the ``first``, with the same numbers: nothing is frozen."""
        others, _, _ = self._varied(first.binding, first.batch_size)
        return not any(True for other in others for _ in differences(first.trace, other))

    def go_on(self, first: FirstRun) -> DryRuns:
        """All runs of one batch size; ``TargetError`` names the line of a step that raises or does not end."""
        batch_size, binding, inputs = first.batch_size, first.binding, first.inputs
        second = self._step(self._load(binding, batch_size, 0)[0], batch_size)[0]
        args = self._load(binding, batch_size, 0)[0]
        before = snapshot(self._look(args, binding.names))
        capture, outputs = self._step(args, batch_size)
        mutations = changes(before, snapshot(self._look(args, binding.names)))
        storage_names = first.names | self._names(inputs, binding.names)
        del args  # with what an earlier variant had put into it
        others, shapes, values = self._varied(binding, batch_size)
        gc.collect()
        alive = {number for number, storage in enumerate(capture.storages) if not storage.gone}
        return DryRuns(
            batch_size=batch_size,
            warm_ups=(first.trace, second),
            capture=capture,
            others=others,
            shapes=shapes,
            values=values,
            mutations=mutations,
            lines=self._lines(binding, batch_size, set(mutations)),
            names=storage_names,
            outputs=outputs,
            input_keys={key for t in Reachable.of(inputs, binding.names).tensors.values() if (key := storage_key(t))},
            inputs=inputs,
            alive=alive,
        )

    def _varied(self, binding: Binding, batch_size: int) -> tuple[list[Trace], list[Change], list[Change]]:
        """A run for each further variant, and the inputs whose shapes and Python values are other ones then."""
        traces: list[Trace] = []
        shapes: list[Change] = []
        values: list[Change] = []
        for variant in range(1, self._variants):
            args, new_shapes, new_values = self._load(binding, batch_size, variant)
            shapes += new_shapes
            values += new_values
            traces.append(self._step(args, batch_size)[0])
        return traces, shapes, values

    def _lines(self, binding: Binding, batch_size: int, mutated: set[str]) -> dict[str, Place]:
        """Where what is ``mutated`` changes: one more run of the capture's values."""
        if not mutated:
            return {}
        args = self._load(binding, batch_size, 0)[0]
        return find_lines(lambda: self._look(args, binding.names), mutated, lambda: self._step(args, batch_size))

    def _look(self, inputs: Iterable[Any] = (), names: Iterable[str] = ()) -> Reachable:
        return reachable(self.target.function, inputs, names)

    def _names(self, inputs: Any, names: Any) -> dict[int, str]:
        found = self._look(inputs, names).tensors
        return {key: name for name, tensor in reversed(found.items()) if (key := storage_key(tensor)) is not None}

    def _load(self, binding: Binding, batch_size: int, variant: int) -> tuple[Any, list[Change], list[Change]]:
        inputs = self._inputs(batch_size, variant)
        with torch._C.DisableTorchFunction():
            return binding.load(inputs)

    def _inputs(self, batch_size: int, variant: int) -> tuple[Any, ...]:
        return make_inputs(self.target, self.residency, self._device_type, batch_size, variant, self._seconds)

    def _step(self, args: tuple[Any, ...], batch_size: int) -> tuple[Trace, list[TensorRef]]:
        """One run, and what it returned."""
        what = f"{self.target.name}: step(batch_size={batch_size})"
        try:
            with (
                time_limit(self._seconds, what),
                torch.no_grad(),
                record(
                    self.residency,
                    device_type=self._device_type,
                    modules=self._base.modules,
                    is_real=any(tensor.is_cuda for tensor in self._base.tensors.values()),
                ) as recording,
            ):
                result = self.target.function(*args)
        except TargetError:
            raise
        except Exception as error:
            raise TargetError(f"{what} raised {type(error).__name__}: {_first_line(error)}{_where(error)}") from error
        outputs = [recording.ref(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return recording.trace, outputs


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
    return f", at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
