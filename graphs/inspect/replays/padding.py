"""Does what lies in the padding change a real row?

The padding rows, and the cache beyond the rows' lengths, are filled with one poison after another; the outputs of the
real rows have to stay the same, bit by bit. A difference is followed back to the operation where it came in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ostinato.graphs.inspect.replays.call_rows import CallRows
from ostinato.graphs.inspect.replays.compare import difference
from ostinato.graphs.inspect.replays.keeper import Saved
from ostinato.graphs.inspect.replays.leak_path import LeakPath
from ostinato.graphs.inspect.replays.poison import (
    CACHE_POISONS,
    PACKED,
    Poison,
    fill_cache,
    fill_rows,
    find_padding,
    mark,
    poisons,
)
from ostinato.graphs.inspect.replays.row_dims import Sizes, all_row_dims, only
from ostinato.graphs.inspect.replays.slots import Layout, Roles, caches_among, held_slots, roles_of
from ostinato.graphs.inspect.replays.step_run import Run, StepRunner, names_of, own_random_numbers, tensors_of
from ostinato.graphs.inspect.report import Finding, Severity
from ostinato.graphs.inspect.target import Target, TargetError
from ostinato.graphs.inspect.tracing.reachable import Reachable
from ostinato.graphs.inspect.tracing.residency import storage_key
from ostinato.graphs.inspect.tracing.trace import Call

_LEAST_SECONDS, _TIMES_AS_LONG = 5.0, 20.0
"""How long a poisoned run may take, and in how many times the seconds of one that is not: it may never end."""
_NO_ROWS = "padding: no input has a dimension that grows with the batch size"


def padding_leaks(
    target: Target, batch_size: int, *, time_limit: float = 120.0, device_type: str = "cuda"
) -> tuple[list[Finding], list[str]]:
    """Findings of code padding-leak, and why something could not be checked. Leaves tensors as they were.

    Runs at two rows at least. A leak of NaN alone out of a cache is a warning: it takes memory that was never written.
    """
    with own_random_numbers():
        test = _PoisonTest(StepRunner(target, max(2, batch_size), time_limit, device_type))
        findings = list(test.findings()) if test.padding.dims else []
        return findings, test.not_checked


@dataclass
class _Leak:
    """Every poison that comes in at one call."""

    call: Call | None
    by: float
    severe: bool
    poisons: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


class _PoisonTest:
    def __init__(self, runner: StepRunner) -> None:
        self.runner = runner
        self.not_checked: list[str] = []
        self._sizes = Sizes(runner.batch_size, runner.batch_size + (1 if runner.batch_size == 2 else -1))
        other = self._other()
        self._args = runner.inputs(0)
        self._inputs = self._named(self._args)
        dims = all_row_dims(self._inputs, other[0], self._sizes) if other else {}
        self.roles = roles_of(self._inputs, {})
        self.padding = find_padding(runner.batch_size, self._inputs, dims, self.roles)
        if not dims or other is None:
            self.not_checked.extend([_NO_ROWS] if other is not None else [])
            return
        self._saved = Saved(self._inputs.values())
        mark(self._inputs, self.padding)
        self._other_trace, self._other_results = other[1].trace, tensors_of("output", other[1].result)
        first, self._first_results = self._run()
        self.base, self._base_results = self._run()
        self.roles = roles_of(first.reach.tensors, first.reach.values)
        self.caches = caches_among(self.base.written, self.roles) if self.roles.known else {}
        self._floor = max((difference(self._base_results[n], t) for n, t in self._first_results.items()), default=0.0)

    def _named(self, inputs: tuple[object, ...]) -> dict[str, Tensor]:
        found = Reachable()
        for name, value in zip(names_of(self.runner.target.function, len(inputs)), inputs, strict=True):
            found.walk(name, value)
        return {name: tensor for name, tensor in found.tensors.items() if storage_key(tensor) is not None}

    def _other(self) -> tuple[dict[str, Tensor], Run] | None:
        """Inputs of the other batch size, and the step on them."""
        try:
            inputs = self.runner.inputs(0, self._sizes.other)
            if packed := [name for name in names_of(self.runner.target.function, len(inputs)) if PACKED.search(name)]:
                self.not_checked.append(f"padding: rows are packed ({packed[0]}), so no dimension counts them")
                return None
            run = self.runner.run(inputs)
        except TargetError as error:
            self.not_checked.append(f"padding: batch size {self._sizes.other} does not run ({error})")
            return None
        run.undo_all()
        return self._named(inputs), run

    def _run(self, window: range = range(0), limit: float | None = None) -> tuple[Run, dict[str, Tensor]]:
        """Run, take what real rows see of the results, undo."""
        run = self.runner.run(self._args, window, limit=limit)
        results = {name: tensor.clone() for name, tensor in self._results(run).items()}
        run.undo_all()
        return run, results

    def _results(self, run: Run) -> dict[str, Tensor]:
        """Outputs and written inputs, the real rows of them."""
        outputs = tensors_of("output", run.result)
        dims = all_row_dims(outputs, self._other_results, self._sizes)
        seen = {name: only(outputs[name], of, self.padding.real) for name, of in dims.items()}
        written = {name: t for name, t in run.written.items() if name in self.padding.dims}
        return seen | {name: only(t, self.padding.dims[name], self.padding.real) for name, t in written.items()}

    def findings(self) -> Iterator[Finding]:
        """One for each call where a leak comes in."""
        leaks: dict[int, _Leak] = {}
        for poison in self._poisons():
            try:
                self._try(poison, leaks)
            except TargetError as error:
                self.not_checked.append(f"{poison.what}: {error}")
        self._saved.restore()
        for leak in leaks.values():
            yield self._finding(leak)

    def _poisons(self) -> Iterator[Poison]:
        yield from poisons(self._inputs, self.padding, self.roles)
        if self.caches and self.roles.table is not None and self.roles.lengths is not None:
            yield from CACHE_POISONS
        elif self.roles.known and self.roles.table is not None:
            self.not_checked.append("padding inside of the cache: its layout, or the rows' lengths, are not known")

    def _try(self, poison: Poison, leaks: dict[int, _Leak]) -> None:
        run, results = self._poisoned(poison, range(0))
        if _shapes(run) != _shapes(self.base):
            self.not_checked.append(f"{poison.what}: the output has another shape then")
            return
        wrong = {n: by for n, t in results.items() if (by := difference(self._base_results[n], t)) > 2 * self._floor}
        if not wrong:
            return
        call = self._came_in(poison, run, set(wrong))
        leak = leaks.setdefault(call.number if call else -1, _Leak(call, max(wrong.values()), False))
        leak.severe |= poison.finite or not poison.in_cache
        leak.poisons.append(poison.what)
        leak.outputs.extend(name for name in wrong if name not in leak.outputs)

    def _poisoned(self, poison: Poison, window: range) -> tuple[Run, dict[str, Tensor]]:
        before = Saved([*self._inputs.values(), *(tensor for tensor, _ in self.caches.values())])
        with torch.inference_mode():
            fill_rows(self._inputs, self.padding, poison)
            if poison.in_cache:
                fill_cache(self.caches, self.roles, poison.finite)
        try:
            return self._run(window, limit=max(_LEAST_SECONDS, _TIMES_AS_LONG * self.base.seconds))
        finally:
            with torch.inference_mode():
                before.restore()

    def _came_in(self, poison: Poison, run: Run, wrong: set[str]) -> Call | None:
        """The call where real rows first see the poison, on the way to what is wrong in the end."""
        tainted = self._tainted(poison)
        harmless: set[int] = set()
        if poison.in_cache and not poison.finite:
            harmless = self._tainted(CACHE_POISONS[0])
        ends = {storage_key(t) for name, t in tensors_of("output", run.result).items() if name in wrong}
        ends |= {storage_key(t) for name, t in run.written.items() if name in wrong}
        path = LeakPath(run.trace, tainted, ends)
        return path.first_after(harmless) if poison.in_cache else path.origin

    def _tainted(self, poison: Poison) -> set[int]:
        """Calls whose results differ for real rows."""
        rows = CallRows(self.base.trace, self._other_trace, self._sizes, self.padding.real)
        masks = {tuple(t.shape): (layout, self._real_slots(layout)) for t, layout in self.caches.values()}
        found: set[int] = set()
        for window in rows.windows:
            clean, _ = self._run(window)
            poisoned, _ = self._poisoned(poison, window)
            for index, ours in clean.keeper.results.items():
                theirs = poisoned.keeper.results.get(index, ())
                if any(rows.differ(index, n, a, b, masks) for n, (a, b) in enumerate(zip(ours, theirs, strict=False))):
                    found.add(index)
        return found

    def _real_slots(self, layout: Layout) -> list[int]:
        return sorted(held_slots(_rows_of(self.roles, self.padding.real), layout.block_size))

    def _finding(self, leak: _Leak) -> Finding:
        call = leak.call
        rows = f"rows {_span(self.padding.rows)}" if len(self.padding.rows) > 1 else f"row {self.padding.rows[0]}"
        what = f"{call.name} lets" if call else "the step lets"
        if all("cache" in each for each in leak.poisons):
            message = f"{what} the cache beyond a row's length into the row"
        else:
            message = f"{what} padding ({rows}) change real rows"
        evidence = f"{', '.join(leak.outputs[:3])} of real rows changes with {'; '.join(leak.poisons)}"
        at = call.place.at if call and call.place else None
        severity: Severity = "error" if leak.severe else "warning"
        return Finding.of("padding-leak", severity, at, message, call.name if call else None, evidence)


def _rows_of(roles: Roles, rows: list[int]) -> Roles:
    """``roles`` of some rows alone."""

    def part(tensor: Tensor | None) -> Tensor | None:
        return tensor[[row for row in rows if row < len(tensor)]] if tensor is not None else None

    return Roles(part(roles.slots), part(roles.table), part(roles.lengths), roles.block_size)


def _shapes(run: Run) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors_of("output", run.result).items()}


def _span(rows: list[int]) -> str:
    together = rows == list(range(rows[0], rows[-1] + 1))
    return f"{rows[0]} to {rows[-1]}" if together else ", ".join(map(str, rows[:8]))
