"""Padding and slots: what lies in a padding row, or in a cache beyond a row's length, must not reach a real row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from inspect_steps import Attention, Paged, Step, hidden, line, paged_inputs
from ostinato.graphs.inspect.replays.padding import padding_leaks
from ostinato.graphs.inspect.replays.row_dims import Sizes, row_dims
from ostinato.graphs.inspect.replays.slot_writes import out_of_slot_writes
from ostinato.graphs.inspect.replays.slots import Layout, Roles, held_slots, layout_of, writable_slots
from ostinato.graphs.inspect.target import MakeInputs, as_target


def leaks(step: Step, inputs: MakeInputs = hidden, batch_size: int = 8) -> list[tuple[str, int | None]]:
    findings, _ = padding_leaks(as_target(step, inputs), batch_size)
    assert all(finding.code == "padding-leak" for finding in findings)
    return [(finding.severity, finding.line) for finding in findings]


def per_tensor_scale(x: Tensor) -> Tensor:
    scale = x.abs().amax() / 127
    return (x / scale).round() * scale


def over_rows(x: Tensor) -> Tensor:
    return x.softmax(0)


def masked_by_product(x: Tensor) -> Tensor:
    real = (torch.arange(x.shape[0], device=x.device) < 4).float()
    return x + (x * real[:, None]).sum(0)


@pytest.mark.parametrize(
    ("step", "text"), [(per_tensor_scale, "amax"), (over_rows, "softmax"), (masked_by_product, ".sum(0)")]
)
def test_a_leak_is_found_where_rows_are_mixed(step: Step, text: str) -> None:
    assert leaks(step) == [("error", line(step, text))]


def test_rows_that_are_kept_apart_are_clean() -> None:
    assert leaks(lambda x: (x / x.abs().amax(-1, keepdim=True)).softmax(-1)) == []


def test_a_statistic_that_reaches_no_row_is_no_leak() -> None:
    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x.mean()

    assert leaks(step) == []


def test_a_masked_reduction_is_clean() -> None:
    def step(x: Tensor, valid: Tensor) -> Tensor:
        return x + torch.where(valid[:, None], x, 0.0).sum(0)

    assert leaks(step, lambda batch_size: (*hidden(batch_size), torch.ones(batch_size, dtype=torch.bool))) == []


def test_unused_cache_must_not_be_nan_where_weights_are_zero() -> None:
    model = Paged(static_bound=True).eval()
    findings, not_checked = padding_leaks(as_target(model, paged_inputs), 4)
    (finding,) = findings
    assert (finding.severity, finding.line) == ("warning", line(Attention.forward, "values)"))
    assert "NaN in the cache" in finding.evidence and not_checked == []


def test_a_row_that_reads_past_its_length_leaks() -> None:
    def step(x: Tensor, kv_cache: Tensor, block_tables: Tensor, context_lens: Tensor) -> Tensor:
        kv_cache[block_tables[:, 0], context_lens - 1] = x
        return x + kv_cache[block_tables].flatten(1, 2).sum(1)

    def inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
        tables = 1 + torch.arange(2 * batch_size).view(batch_size, 2)
        return *hidden(batch_size), torch.zeros(40, 4, 8), tables, torch.full((batch_size,), 2)

    findings, _ = padding_leaks(as_target(step, inputs), 4)
    assert [(f.severity, f.line) for f in findings] == [("error", line(step, "sum(1)"))]


def test_a_poisoned_run_that_fails_or_has_another_shape_is_said() -> None:
    def step(ids: Tensor) -> Tensor:
        return torch.arange(int(ids.sum()), device=ids.device)

    findings, not_checked = padding_leaks(as_target(step, lambda b: (torch.arange(1, b + 1),)), 4)
    assert findings == [] and "another shape" in not_checked[0]


def test_inputs_without_rows_are_said() -> None:
    _, not_checked = padding_leaks(as_target(lambda x: x + 1, lambda b: (torch.ones(3),)), 4)
    assert "no input has a dimension that grows" in not_checked[0]


def test_inputs_are_left_as_they_were() -> None:
    table = torch.ones(8, 8)
    padding_leaks(as_target(lambda x: table.mul_(2) + x, hidden), 8)
    assert torch.equal(table, torch.ones(8, 8))


def test_row_dimensions_are_those_that_grow() -> None:
    assert row_dims([8, 4, 16], [7, 4, 14], Sizes(8, 7)) == {0: 1, 2: 2}
    assert row_dims([9], [8], Sizes(8, 7)) == {}  # cu_seqlens: one more than rows


# Slots.


def write(slots_of: Any) -> Step:
    def step(key: Tensor, kv_cache: Tensor, block_tables: Tensor, context_lens: Tensor) -> Tensor:
        block, offset = slots_of(block_tables, context_lens)
        kv_cache[block, offset] = key  # the write
        return key + 1

    return step


def block_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    """The last row is padding: length 0, and a table of zeros."""
    tables = 1 + torch.arange(2 * batch_size).view(batch_size, 2)
    lens = torch.tensor([1 + (row + variant) % 7 for row in range(batch_size)])
    tables[-1], lens[-1] = 0, 0
    return *hidden(batch_size), torch.zeros(20, 4, 8), tables, lens


def own(tables: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
    last = (lens - 1).clamp(min=0)
    return tables.gather(1, (last // 4)[:, None]).squeeze(1), last % 4


CASES = {
    "own": (own, ""),
    "in order": (lambda tables, lens: (torch.arange(len(lens)) * 2, own(tables, lens)[1]), "(block 2, offset"),
    "minus one": (
        lambda tables, lens: (torch.where(lens > 0, own(tables, lens)[0], -1), own(tables, lens)[1]),
        "block 19",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_writes_outside_of_the_rows_slots(case: str) -> None:
    step, text = write(CASES[case][0]), CASES[case][1]
    findings, not_checked = out_of_slot_writes(as_target(step, block_inputs), 6)
    assert not_checked == []
    assert [finding.line for finding in findings] == ([line(step, "# the write")] if text else [])
    assert all(text in finding.message and finding.code == "out-of-slot-write" for finding in findings)


def test_a_write_of_what_lay_there_before_is_seen() -> None:
    def step(kv_cache: Tensor, slot_mapping: Tensor) -> Tensor:
        kv_cache[slot_mapping] = 0.0
        return kv_cache[0] * 1

    def inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
        return torch.zeros(32, 8), torch.tensor([4, -1])

    findings, _ = out_of_slot_writes(as_target(step, inputs), 2)
    assert "slot 31" in findings[0].message


def test_padding_in_block_zero_is_a_fault_only_if_a_row_owns_it() -> None:
    table, lens = torch.tensor([[0, 1], [0, 0]]), torch.tensor([3, 0])
    owned = Roles(torch.tensor([2, 0]), table, lens, 4)
    assert writable_slots(owned, 4, 1) == {2}
    assert writable_slots(Roles(torch.tensor([6, 0]), table + 1, lens, 4), 4, 1) == {0, 1, 2, 3, 6}
    assert held_slots(owned, 4) == {0, 1, 2}


@pytest.mark.parametrize(
    ("shape", "size", "layout"),
    [
        ((30, 4, 2, 8), None, Layout(0, 1, 4)),
        ((2, 30, 4, 2, 8), None, Layout(1, 2, 4)),
        ((30, 2, 4, 2, 8), None, Layout(0, 2, 4)),
        ((30, 2, 4, 8), 4, Layout(0, 2, 4)),
        ((120, 2, 8), 4, Layout(None, 0, 4)),
    ],
)
def test_layouts(shape: tuple[int, ...], size: int | None, layout: Layout) -> None:
    roles = Roles(None, torch.tensor([[29]]), torch.tensor([4]), size)
    assert layout_of(torch.zeros(shape), roles) == layout


def test_a_cache_without_roles_is_said() -> None:
    def step(kv_cache: Tensor, x: Tensor) -> Tensor:
        kv_cache[:2] = x[:2]
        return x + 1

    findings, not_checked = out_of_slot_writes(as_target(step, lambda b: (torch.zeros(9, 8), *hidden(b))), 8)
    assert findings == [] and "no input is called slot_mapping" in not_checked[0]
