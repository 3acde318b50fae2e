"""A run's results as data, as a table and as JSON.

A figure is one number with its unit, what it is held against, and what is needed to judge it. A report is the figures
of one run on one machine. Targets are stated for one size (``TARGET_SIZE``): a report of another has none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ostinato.perf.measure import Summary

SCHEMA = "ostinato.perf/1"
TARGET_SIZE = "qwen3-0.6b"
TABLE_WIDTH = 132  # characters, where standard output is no terminal


@dataclass(frozen=True)
class Figure:
    """``value`` in ``unit`` ("x": a ratio); ``bound`` says on which side of ``target`` it has to be.

    ``low`` and ``high`` are the quartiles of ``rounds`` values, ``value`` their median, where there was more than one.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    bound: Literal["at least", "at most"] = "at least"
    note: str = ""
    low: float | None = None
    high: float | None = None
    rounds: int = 1
    detail: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, summary: Summary, unit: str, **others: Any) -> Figure:
        """A figure from a summary, whose median is its value."""
        return cls(name, summary.median, unit, low=summary.low, high=summary.high, rounds=summary.count, **others)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.value >= self.target if self.bound == "at least" else self.value <= self.target

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        fields = ("name", "value", "unit", "target", "bound", "note", "low", "high", "rounds")
        return {name: getattr(self, name) for name in fields} | {"met": self.met, "detail": dict(self.detail)}


def make_report(
    size: str, machine: Mapping[str, object], label: str, figures: Sequence[Figure], **others: object
) -> dict[str, Any]:
    """The JSON object of one run; ``label`` is the machine in one line and stands at every figure."""
    rows = [figure.as_dict() | {"machine": label} for figure in figures]
    if size != TARGET_SIZE:
        rows = [row | {"target": None, "met": None} for row in rows]
    return {"schema": SCHEMA, "size": size, "machine": dict(machine), "machine_label": label, "figures": rows} | others


def read_report(path: Path, schema: str = SCHEMA, of: str = "this suite") -> dict[str, Any]:
    """A report that an earlier run wrote, one ``of`` this suite by default; ``ValueError`` says what is wrong."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    found = report.get("schema") if isinstance(report, dict) else None
    if found != schema:
        raise ValueError(f"{path} is no report of {of}: its schema is {found!r}, not {schema!r}")
    return dict(report)


def print_table(report: Mapping[str, Any]) -> None:
    """The figures as a table on standard output, a line each."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    title = f"{report['size']} sizes, random weights\n{report['machine_label']}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in ("figure", "value", "quartiles", "target", "met", "what it is"):
        table.add_column(name, justify="right" if name in ("value", "quartiles", "target") else "left")
    for row in report["figures"]:
        table.add_row(*_cells(row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=TABLE_WIDTH)
    console.print(table)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    spread = "" if row["rounds"] < 2 else f"{shown(row['low'])} … {shown(row['high'])}"
    sign = "≥" if row["bound"] == "at least" else "≤"
    target = "" if row["target"] is None else f"{sign} {shown(row['target'])}"
    met = {None: "", True: "yes", False: "[bold red]no[/]"}[row["met"]]
    return row["name"], f"{shown(row['value'])} {row['unit']}".strip(), spread, target, met, row["note"]


def shown(value: float) -> str:
    """A number with three digits that count; whole numbers and large ones as they are."""
    if value == round(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - _magnitude(value))}f}"


def _magnitude(value: float) -> int:
    """The power of ten of the first digit of ``value``, which is not 0."""
    return int(f"{value:e}".partition("e")[2])
