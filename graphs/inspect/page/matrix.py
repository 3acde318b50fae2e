"""Batch sizes against what they cost, as a heat table. A shade compares a cell with its own column only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ostinato.graphs.inspect.page.markup import Markup, element, number, number_head, table
from ostinato.graphs.inspect.page.quantities import bytes_text, count_text, percent_text, seconds_text
from ostinato.graphs.inspect.page.step_tables import total_of
from ostinato.graphs.inspect.page.steps import Data, Step

_STRONGEST = 42
"""Percent of the heat's colour in the darkest cell: text stays readable on it."""


@dataclass(frozen=True)
class Column:
    """One measure of a step."""

    title: str
    values: Sequence[float | None]
    text: Callable[[float | None], str]


def heat_table(steps: Sequence[Step], graphs: Sequence[Data]) -> Markup:
    """Return the table; columns without any value are left out."""
    columns = [column for column in _columns(steps, graphs) if any(value is not None for value in column.values)]
    rows = [
        element(
            "tr",
            element("th", step.size, scope="row", class_="number"),
            [number(column.text(column.values[at]), style=_heat(column.values, at)) for column in columns],
        )
        for at, step in enumerate(steps)
    ]
    head = number_head("batch size", *(column.title for column in columns))
    caption = "a shade compares a size with the others of its column" if len(steps) > 1 else None
    return table(head, rows, caption, class_="heat")


def _columns(steps: Sequence[Step], graphs: Sequence[Data]) -> list[Column]:
    sums = [total_of(step.leaves) for step in steps]
    replay = [graph["replay_seconds"] for graph in graphs]
    per_row = [took / step.size if took else None for took, step in zip(replay, steps, strict=True)]
    pool = [graph["memory"]["own_bytes"] + (graph["memory"]["exec_bytes"] or 0) for graph in graphs]
    return [
        Column("replay", replay, seconds_text),
        Column("per row", per_row, seconds_text),
        Column("eager", [graph["eager_seconds"] for graph in graphs], seconds_text),
        Column("operators", [len(step.ops) for step in steps], count_text),
        Column("nodes", [step.nodes or None for step in steps], count_text),
        Column("bytes moved", [whole.bytes for whole in sums], bytes_text),
        Column("of the roofline", [whole.share for whole in sums], percent_text),
        Column("padding", [graph["rows_wasted"] for graph in graphs], percent_text),
        Column("graph's memory", pool, bytes_text),
    ]


def _heat(values: Sequence[float | None], at: int) -> str | None:
    known = [value for value in values if value is not None]
    value, low, high = values[at], min(known), max(known)
    if value is None or high == low:
        return None
    return f"--heat:{_STRONGEST * (value - low) / (high - low):.0f}%"
