"""``emulate``: a replay that does not do what the step does is found, at the line and with the cause."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from inspect_steps import Attention, Paged, Step, hidden, line, paged_inputs
from ostinato.graphs.emulated_graph import EmulatedGraph
from ostinato.graphs.inspect.replays.emulation import emulate
from ostinato.graphs.inspect.report import Finding, Report
from ostinato.graphs.inspect.target import MakeInputs, TargetError
from ostinato.graphs.inspect.tracing.python_state import PythonState
from ostinato.layers.errors import CaptureError


def errors(report: Report) -> list[tuple[str, int | None]]:
    return [(finding.code, finding.line) for finding in report.errors]


def only(report: Report, code: str) -> Finding:
    (finding,) = (finding for finding in report.findings if finding.code == code)
    return finding


# What is right.


def test_a_paged_decode_step_replays_as_it_runs() -> None:
    report = emulate(Paged(static_bound=True).eval(), paged_inputs, shuffle_slots=True)
    assert report.verdict == "clean", report.findings
    assert report.metrics["replay_equals_eager"] and report.metrics["replays"] == 4
    assert report.metrics["written"] == ["kv_cache_0", "kv_cache_1"]
    assert {"x", "slot_mapping", "layers.1.out.weight"} <= set(report.metrics["reads_by_address"])


def test_what_is_never_checked_is_said() -> None:
    report = emulate(lambda x: x + 1, lambda batch_size: hidden(batch_size))
    text = " ".join(report.not_checked)
    assert all(word in text for word in ("streams", "addresses", "variant"))
    assert Report.from_dict(report.as_dict()).findings == report.findings


def test_the_state_afterwards_is_that_of_the_eager_runs() -> None:
    total = torch.zeros(8)

    def step(x: Tensor) -> Tensor:
        return total.add_(x[0])

    emulate(step, hidden, steps=3)
    assert torch.allclose(total, sum(hidden(8, variant)[0][0] for variant in range(3)))  # type: ignore[arg-type]


# What is frozen.


def test_a_baked_length_is_named_with_both_values_and_its_effect() -> None:
    model = Paged(static_bound=False).eval()
    report = emulate(model, paged_inputs)
    assert not report.metrics["replay_equals_eager"]
    finding = report.errors[0]
    assert (finding.code, finding.line) == ("frozen-value", line(Attention.forward, "keys = "))
    assert "end 7 -> 8" in finding.evidence and "is off by" in finding.evidence
    first = report.metrics["first_divergence"]
    assert first["module"] == "layers.0" and first["variant"] == 1


def branching(x: Tensor, wide: bool) -> Tensor:
    if wide:
        return x * 2
    return x - 1


def constant(x: Tensor, factor: float) -> Tensor:
    return x * torch.tensor([factor])


def scalar(x: Tensor, factor: float) -> Tensor:
    return x * factor


@pytest.mark.parametrize(
    ("step", "values", "text"),
    [(branching, (True, False), "if wide"), (constant, (0.5, 1.5), "torch.tensor"), (scalar, (2.0, 3.0), "* factor")],
)
def test_frozen(step: Step, values: tuple[Any, Any], text: str) -> None:
    report = emulate(step, lambda batch_size, variant=0: (*hidden(batch_size), values[variant % 2]))
    assert errors(report) == [("frozen-value", line(step, text))]


def test_a_value_that_makes_no_difference_is_a_warning() -> None:
    def step(x: Tensor, lens: Tensor, longest: int) -> Tensor:
        mask = torch.arange(8, device=x.device) < lens[:, None]
        return x.masked_fill(~mask, 0)[:, :longest].sum(-1)

    def inputs(batch_size: int, variant: int = 0) -> tuple[Any, ...]:
        return *hidden(batch_size, variant), torch.full((batch_size,), 4), 5 + variant % 3

    report = emulate(step, inputs)
    assert not report.errors and only(report, "frozen-value").severity == "warning"


def test_a_python_value_that_is_returned() -> None:
    report = emulate(lambda x: (x, float(x.max())), hidden)
    assert "returns that of the capture" in only(report, "frozen-value").message


def test_a_shape_that_depends_on_values_fails_at_its_line() -> None:
    def step(x: Tensor) -> Tensor:
        return x[x > 0].sum()

    assert errors(emulate(step, hidden)) == [("data-dependent-shape", line(step, "x > 0"))]


def test_inputs_of_another_shape_are_a_finding_and_no_crash() -> None:
    def inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
        return (torch.ones(batch_size, 4 + variant),)

    report = emulate(lambda x: x + 1, inputs)
    assert [f.evidence for f in report.errors] == ["float32[8, 4] at capture, float32[8, 5] later"]
    assert report.metrics["replays"] == 1


# Memory.


class Growing(torch.nn.Module):
    """Its cache is another tensor after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = torch.zeros(1, 8)

    def forward(self, x: Tensor) -> Tensor:
        self.keys = torch.cat([self.keys, x[:1]])
        return self.keys.sum(0)


def test_a_tensor_that_is_replaced_is_an_address_change() -> None:
    found = errors(emulate(Growing(), hidden))
    assert ("address-change", line(Growing.forward, "torch.cat")) in found
    assert {code for code, _ in found} <= {"address-change", "freed-input"}


def test_a_result_that_the_step_keeps_is_overwritten() -> None:
    history: list[Tensor] = []

    def step(x: Tensor) -> Tensor:
        history.append(x * 2)
        return history[-1] + 1

    assert ("output-overwritten", line(step, "x * 2")) in errors(emulate(step, hidden))


def test_returned_outputs_are_no_finding_but_counted() -> None:
    report = emulate(lambda x: x * 2, hidden)
    assert report.verdict == "clean"
    assert report.metrics["outputs_overwritten_by_the_next_replay"] == ["output"]


def test_moved_inputs_are_each_named_with_what_goes_stale() -> None:
    report = emulate(Paged(static_bound=True).eval(), paged_inputs, move_inputs=True)
    assert report.verdict == "clean"
    moved = {finding.message.split()[0]: finding for finding in report.findings}
    assert {"x", "slot_mapping", "block_tables", "context_lens"} < set(moved)
    assert "is off by" in moved["x"].evidence and "copy_" in moved["x"].fix
    assert "kv_cache_0" in moved["6"].evidence  # weights and caches, in one


# Randomness, warm-ups.


def test_random_numbers_are_found_by_another_seed() -> None:
    def step(x: Tensor) -> Tensor:
        noise = torch.empty_like(x).exponential_()
        return (x / noise).argmax(-1)

    report = emulate(step, hidden)
    finding = only(report, "rng")
    assert (finding.line, finding.op) == (line(step, "exponential_"), "aten.exponential_.default")
    assert report.metrics["replay_equals_eager"]  # with the same seed


def test_a_generator_of_its_own_is_an_error() -> None:
    generator = torch.Generator()

    def step(x: Tensor) -> Tensor:
        return x + torch.rand(x.shape, generator=generator, device=x.device)

    assert errors(emulate(step, hidden)) == [("rng", line(step, "torch.rand"))]


def test_a_branch_that_another_warm_up_takes() -> None:
    calls: list[int] = []

    def step(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) % 2:
            x = x + 1
        return x * 2

    assert ("warmup-dependent", line(step, "if len(calls)")) in errors(emulate(step, hidden))


def test_lazy_initialisation_is_a_warning() -> None:
    table: dict[str, Tensor] = {}

    def step(x: Tensor) -> Tensor:
        if not table:
            table["ones"] = torch.ones(8, device=x.device)
        return x + table["ones"]

    report = emulate(step, hidden)
    assert not report.errors and only(report, "warmup-dependent").severity == "warning"


# Slots.


def test_block_numbers_that_are_kept_as_python_values_show_when_blocks_are_shuffled() -> None:
    def step(x: Tensor, kv_cache: Tensor, block_tables: Tensor, context_lens: Tensor) -> Tensor:
        first = block_tables[0, 0].item()
        kv_cache[block_tables[:, 0], 0] = x
        return kv_cache[first].sum(0) + x + context_lens[:, None]

    def inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
        tables = 1 + torch.arange(2 * batch_size).view(batch_size, 2)
        cache = torch.zeros(40, 4, 8)
        return *hidden(batch_size, variant), cache, tables, torch.ones(batch_size, dtype=torch.int64)

    assert emulate(step, inputs).verdict == "clean"
    report = emulate(step, inputs, shuffle_slots=True)
    assert "numbers are kept as Python values" in report.errors[0].message


# Targets that do not run.


def test_a_step_that_raises_is_told_with_its_line() -> None:
    def step(x: Tensor) -> Tensor:
        raise ValueError("no such row")

    with pytest.raises(
        TargetError, match=rf"step\(batch_size=8\) raised ValueError: no such row at .*:{line(step, 'raise')}"
    ):
        emulate(step, hidden)


def endless_python(x: Tensor) -> Tensor:
    while True:
        pass


def endless_operations(x: Tensor) -> Tensor:
    while True:
        try:
            x = x + 1
        except Exception:
            continue


@pytest.mark.parametrize("step", [endless_python, endless_operations])
def test_a_step_that_never_ends_is_stopped(step: Step) -> None:
    with pytest.raises(TargetError, match=r"batch_size=8\) ran for more than 0.3 s, at .*does it end"):
        emulate(step, hidden, time_limit=0.3)


# The parts.


def test_inference_mode_does_not_hide_a_reshape_that_copies() -> None:
    def step(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return x.t().reshape(-1).to(torch.float64) + 1

    report = emulate(step, hidden)
    assert report.verdict == "clean" and report.metrics["replay_equals_eager"], report.findings


def test_the_emulated_graph_has_the_surface_of_a_cuda_graph() -> None:
    graph, x = EmulatedGraph(keep_graph=True), torch.ones(4)
    graph.capture_begin(pool=(0, 7))
    y = x * 2
    graph.capture_end()
    graph.instantiate()
    x.fill_(5)
    graph.replay()
    assert torch.equal(y, torch.full((4,), 10.0)) and graph.pool() == (0, 7) and graph.count == 1
    with pytest.raises(CaptureError, match="no cudaGraph_t"):
        graph.raw_cuda_graph()
    with pytest.raises(CaptureError, match="without capture_begin"):
        graph.capture_end()


def test_python_state_is_put_back() -> None:
    class Holder:
        def __init__(self) -> None:
            self.number, self.items, self.named = 1, [1, 2], {"a": 1}

    holder = Holder()
    state = PythonState([holder, holder.items, holder.named])
    holder.number, holder.extra = 2, 3  # type: ignore[attr-defined]
    holder.items.append(3)
    holder.named["b"] = 2
    state.restore()
    assert vars(holder) == {"number": 1, "items": [1, 2], "named": {"a": 1}}


def test_compiled_functions_run_as_they_were_written() -> None:
    compiled = torch.compile(lambda x: x * 2, backend="eager")
    inputs: MakeInputs = hidden
    assert emulate(compiled, inputs).verdict == "clean"
