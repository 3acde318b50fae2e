"""What a part found: figures by name, what to know about them, and details that no target is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ostinato.perf.measure import Summary

Status = str
"""``"ok"``; ``"failed"``: it raised, died or took longer than it may; ``"skipped"``: the time was up."""


class NotMeasurable(RuntimeError):
    """The engine or the machine has no such thing: not measured, and no failure."""


@dataclass(frozen=True)
class Finding:
    """Figures are numbers in the unit of their target, named ``part.figure``; spreads are quartiles of the same."""

    figures: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)
    spreads: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, summaries: Mapping[str, Summary], notes: tuple[str, ...] = (), **detail: Any) -> Finding:
        """Medians as figures, quartiles as their spreads."""
        return cls(
            figures={name: summary.median for name, summary in summaries.items()},
            notes=notes,
            detail=detail,
            spreads={name: (summary.low, summary.high) for name, summary in summaries.items()},
        )

    def joined(self, other: Finding) -> Finding:
        """Both as one."""
        return Finding(
            {**self.figures, **other.figures},
            (*self.notes, *other.notes),
            {**self.detail, **other.detail},
            {**self.spreads, **other.spreads},
        )

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "figures": dict(self.figures),
            "notes": list(self.notes),
            "detail": dict(self.detail),
            "spreads": {name: list(spread) for name, spread in self.spreads.items()},
        }


def outcome(status: Status, seconds: float, error: str | None = None, **found: Any) -> dict[str, Any]:
    """A part's entry in the report."""
    empty: dict[str, Any] = Finding().as_dict()
    return {"status": status, "seconds": round(seconds, 1), "error": error, **empty, **found}
