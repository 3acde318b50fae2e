"""A step as tables: by line of code, and by kernel (by operator where the capture has no nodes).

Each row has an identity that a click in the picture goes to. Shares are of the step's time, or bytes without times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ostinato.graphs.inspect.page.lanes import marks_of
from ostinato.graphs.inspect.page.markup import Markup, element, join, number, number_head, table
from ostinato.graphs.inspect.page.places import Places
from ostinato.graphs.inspect.page.quantities import bytes_text, count_text, percent_text, seconds_text
from ostinato.graphs.inspect.page.step_data import Strings, node_name
from ostinato.graphs.inspect.page.steps import Data, Leaf, Step


@dataclass
class Sum:
    """What a group of leaves costs together."""

    count: int = 0
    seconds: float = 0.0
    bytes: float = 0.0
    ideal: float = 0.0
    """Seconds that the roofline allows, for leaves where it is known."""
    known: float = 0.0
    """Seconds of those leaves."""

    def add(self, leaf: Leaf) -> None:
        """Add one leaf."""
        self.count += 1
        self.seconds += leaf.seconds
        self.bytes += leaf.bytes
        if leaf.share is not None:
            self.ideal += leaf.share * leaf.seconds
            self.known += leaf.seconds

    @property
    def share(self) -> float | None:
        """Of the roofline, weighted by time."""
        return self.ideal / self.known if self.known else None


def total_of(leaves: Iterable[Leaf]) -> Sum:
    """The sum over ``leaves``."""
    total = Sum()
    for leaf in leaves:
        total.add(leaf)
    return total


def line_table(step: Step, findings: Sequence[Data], places: Places, strings: Strings, identity: str) -> Markup:
    """Return the table by line of code, most expensive first."""
    groups: dict[tuple[str, int], Sum] = {}
    about: dict[tuple[str, int], dict[str, Any]] = {}
    for at, op in enumerate(step.ops):
        key = (op["file"] or "", op["line"] or 0)
        seen = about.setdefault(key, {"function": op.get("function") or "", "findings": set(), "ops": 0})
        seen["findings"] |= set(step.findings[at])
        seen["ops"] += 1
        for leaf in step.leaves[slice(*step.ranges[at])]:
            groups.setdefault(key, Sum()).add(leaf)
    whole = total_of(step.leaves)
    rows = [
        _row(
            join([_marks(findings, sorted(about[key]["findings"])), _place(key, about[key]["function"], places)]),
            about[key]["ops"],
            group,
            whole,
            step.timed,
            id=f"{identity}-{step.size}-p{strings.index(places.name(key[0] or None, key[1] or None))}",
        )
        for key, group in _dearest(groups, step.timed)
    ]
    return table(_head("line", "operators", step.timed), rows, f"by line of code, batch size {step.size}")


def kernel_table(step: Step, strings: Strings, identity: str) -> Markup:
    """Return the table by kernel or operator, most expensive first."""
    groups: dict[str, Sum] = {}
    for leaf in step.leaves:
        name = node_name(leaf.node) if leaf.node else str(step.ops[leaf.op or 0]["op"])
        if leaf.node or not step.nodes:
            groups.setdefault(name, Sum()).add(leaf)
    whole = total_of(step.leaves)
    rows = [
        _row(
            element("code", name),
            group.count,
            group,
            whole,
            step.timed,
            id=f"{identity}-{step.size}-k{strings.index(name)}",
        )
        for name, group in _dearest(groups, step.timed)
    ]
    what = "kernel" if step.nodes else "operator"
    return table(
        _head(what, "nodes" if step.nodes else "calls", step.timed), rows, f"by {what}, batch size {step.size}"
    )


def _dearest(groups: dict[Any, Sum], timed: bool) -> list[tuple[Any, Sum]]:
    def cost(item: tuple[Any, Sum]) -> tuple[Any, ...]:
        return (-item[1].seconds if timed else 0.0, -item[1].bytes, str(item[0]))

    return sorted(groups.items(), key=cost)


def _head(first: str, count: str, timed: bool) -> list[Any]:
    times = number_head("time", "roofline") if timed else []
    return [first, *number_head(count), *times, *number_head("bytes", "share")]


def _row(first: Markup, count: int, group: Sum, whole: Sum, timed: bool, **attributes: object) -> Markup:
    share = group.seconds / whole.seconds if timed else group.bytes / (whole.bytes or 1)
    return element(
        "tr",
        element("th", first, scope="row"),
        number(count_text(count)),
        [number(seconds_text(group.seconds)), number(percent_text(group.share))] if timed else None,
        number(bytes_text(group.bytes)),
        number(percent_text(share), class_="number bar", style=f"--part:{share * 100:.1f}%"),
        **attributes,
    )


def _place(key: tuple[str, int], function: str, places: Places) -> Markup:
    file, line = key[0] or None, key[1] or None
    return join(
        [
            places.link(file, line),
            element("span", " ", function, class_="quiet") if function else None,
            places.code(file, line),
        ]
    )


def _marks(findings: Sequence[Data], numbers: Sequence[int]) -> list[Markup]:
    return [
        element(
            "a",
            findings[at]["code"],
            href=f"#f{at}",
            class_=f"chip {findings[at]['severity']} {' '.join(marks_of(findings, [at]))}",
        )
        for at in numbers
    ]
