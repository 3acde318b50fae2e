"""``diff`` as text: the totals, then what came, went and changed, as tables of 100 columns.

Modules that differ in a number only are one row: 28 layers change alike. Of each kind the first 20 rows are shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ostinato.graphs.inspect.capturing.graph_diff import graph_diff
from ostinato.graphs.inspect.capturing.ograph import SizeGraph
from ostinato.graphs.inspect.capturing.show import rolled, short_op
from ostinato.graphs.inspect.tables import bytes_text, seconds_text, table

_SHOWN = 20
_SIGNS = {"added": "+", "removed": "-", "changed": "~"}


def diff_text(before: SizeGraph, after: SizeGraph, names: tuple[str, str] = ("before", "after")) -> str:
    """What ``graph_diff`` gives, for a person."""
    difference = graph_diff(before, after)
    rows = [(name, _number(name, a), _number(name, b)) for name, (a, b) in difference["totals"].items()]
    parts = [table(("", *names), rows)]
    for kind in ("ops", "kernels"):
        found = difference[kind].items()
        parts += [_changes(f"{kind} {which}", _SIGNS[which], entries) for which, entries in found if entries]
    if difference["lines"]:
        moved = [(e["place"], e["what"], str(e["before"]), str(e["after"])) for e in difference["lines"][:_SHOWN]]
        parts.append("lines that moved the counts\n" + table(("line", "of", *names), moved))
    if len(parts) == 1:
        parts.append("no op and no kernel differs")
    return "\n\n".join(parts)


def _changes(title: str, sign: str, entries: list[dict[str, Any]]) -> str:
    members: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for entry in entries:
        members.setdefault((entry["name"], rolled(entry["module"]), entry["place"]), []).append(entry)
    ordered = sorted(members.items(), key=lambda item: -_weight(item[1]))
    rows = [
        (f"{sign} {short_op(name)}", module or "-", place.partition(" ")[0], str(len(each)), *_columns(each))
        for (name, module, place), each in ordered[:_SHOWN]
    ]
    rest = f"\n… and {len(ordered) - _SHOWN} more rows" if len(ordered) > _SHOWN else ""
    header = ("name", "module", "line", "times", "bytes", "time", "what")
    return f"{title} ({len(entries)})\n{table(header, rows, flexible=(0, 1, 2, 6))}{rest}"


def _weight(entries: list[dict[str, Any]]) -> float:
    """Time first, then bytes: what to look at first."""
    ends = [(entry.get("before", {}), entry.get("after", entry)) for entry in entries]
    seconds: float = sum(abs((b.get("seconds") or 0.0) - (a.get("seconds") or 0.0)) for a, b in ends)
    moved: int = sum(abs((b.get("bytes") or 0) - (a.get("bytes") or 0)) for a, b in ends)
    return seconds * 1e12 + moved


def _columns(entries: list[dict[str, Any]]) -> tuple[str, str, str]:
    return _moved(entries, "bytes"), _moved(entries, "seconds"), _other(entries)


def _moved(entries: list[dict[str, Any]], name: str) -> str:
    """The sum before and after over those that changed in it, or of what came or went."""
    if "before" not in entries[0]:
        return _number(name, _sum(entry[name] for entry in entries))
    changed = [entry for entry in entries if name in entry["before"]]
    if not changed:
        return "="
    ends = (_sum(entry[end][name] for entry in changed) for end in ("before", "after"))
    return " → ".join(_number(name, end) for end in ends)


def _other(entries: list[dict[str, Any]]) -> str:
    """Of the first entry: grid, shapes where the bytes are the same, constants."""
    if "before" not in entries[0]:
        return entries[0].get("shapes", "") or f"grid {entries[0].get('grid')}"
    before, after = entries[0]["before"], entries[0]["after"]
    told = [name for name in before if name not in ("bytes", "seconds", "flops", "constants")]
    if "bytes" in before and "shapes" in told:
        told.remove("shapes")
    parts = [f"{name} {before[name]} → {after[name]}" for name in told]
    pairs = zip(before.get("constants", ()), after.get("constants", ()), strict=False)
    return ", ".join(parts + [f"{a} → {b}" for a, b in pairs if a != b])


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _number(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name.endswith("seconds"):
        return seconds_text(value)
    return bytes_text(value) if name.endswith("bytes") else f"{value:,}"
