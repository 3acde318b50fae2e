"""``ostinato graph check``: limits on what a file of the graph tool says, for continuous integration. Knows no torch.

    baseline = "main.ograph"            # optional: where old values come from, beside the gates' file

    [findings]                          # at most so many, by severity or code
    error = 0
    rng = 0

    [[gate]]
    path = "graphs.8.nodes"             # into the JSON; a list counts its entries
    equals = 49                         # or at_most, at_least
    why = "one more node is 2 us a token"
    lines = { "step.py | step | aten.mm.default" = 3 }   # optional, written by ``write_gates``: how much by line

A gate that breaks names the old and the new value, and the lines that moved it: by the baseline, or by ``lines``. A
timeline has ``summary`` too: medians and totals.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostinato.graphs.inspect.codes import CODES
from ostinato.graphs.inspect.json_file import read_json, read_text
from ostinato.graphs.inspect.numbers.dotted_path import look_up
from ostinato.graphs.inspect.numbers.line_counts import Counts, count_lines, moved_lines
from ostinato.graphs.inspect.numbers.timeline import KIND as TIMELINE
from ostinato.graphs.inspect.numbers.timeline import summary
from ostinato.graphs.inspect.report import SEVERITIES
from ostinato.layers.errors import ConfigError

Data = Mapping[str, Any]
_LIMITS = {"equals": "exactly", "at_most": "at most", "at_least": "at least"}
_KINDS = (*SEVERITIES, *CODES)


@dataclass(frozen=True)
class Gate:
    """One limit on one value."""

    path: str
    kind: str
    """equals, at_most or at_least."""
    limit: Any
    why: str = ""
    lines: Mapping[str, int] | None = None

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is within the limit."""
        if self.kind == "equals":
            return bool(value == self.limit)
        return bool(value <= self.limit if self.kind == "at_most" else value >= self.limit)


@dataclass(frozen=True)
class Gates:
    """A gates' file: what it asks for, and the older file that it compares with."""

    gates: tuple[Gate, ...] = ()
    findings: Mapping[str, int] | None = None
    baseline: Data | None = None


@dataclass(frozen=True)
class BrokenGate:
    """A gate that does not hold."""

    path: str
    limit: str
    """In words: "at most 49"."""
    old: Any
    """The baseline's value, or the limit itself."""
    new: Any
    why: str
    moved: tuple[str, ...]
    """The lines that made the difference, the largest part first; empty where the value has no lines."""

    def __str__(self) -> str:
        why = f" ({self.why})" if self.why else ""
        lines = [f"{self.path}: {_shown(self.old)} -> {_shown(self.new)}, expected {self.limit}{why}"]
        return "\n".join([*lines, *(f"    {line}" for line in self.moved)])


def read_gates(path: str | Path) -> Gates:
    """Read a gates' file and the baseline that it names; ``ConfigError`` names what is wrong with it."""
    try:
        data = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    unknown = set(data) - {"gate", "findings", "baseline"}
    if unknown:
        raise ConfigError(f"{path}: unknown {', '.join(sorted(unknown))}; expected gate, findings, baseline")
    given = data.get("gate", [])
    if not isinstance(given, list):
        raise ConfigError(f"{path}: gate: write [[gate]], with two brackets")
    gates = tuple(_gate(each, f"{path}: gate {number}") for number, each in enumerate(given, 1))
    name = data.get("baseline")
    baseline = None if name is None else read_json(Path(path).parent / name)
    return Gates(gates, _finding_limits(data.get("findings"), path), baseline)


def check(data: Data, gates: Gates) -> list[BrokenGate]:
    """The gates that ``data``, a file of any kind of this tool, does not pass.

    ``ConfigError`` if a gate's path is not in it; names the nearest one that is.
    """
    data, old = _with_summary(data), None if gates.baseline is None else _with_summary(gates.baseline)
    broken = [each for gate in gates.gates if (each := _check_value(gate, data, old)) is not None]
    return [*broken, *_check_findings(gates.findings or {}, data, old)]


def _check_value(gate: Gate, data: Data, old: Data | None) -> BrokenGate | None:
    value = _comparable(look_up(data, gate.path), gate.limit, gate.path)
    if gate.holds(value):
        return None
    before = gate.limit if old is None else _comparable(look_up(old, gate.path), gate.limit, gate.path)
    counts: Counts = {name: (count, ()) for name, count in (gate.lines or {}).items()}
    if old is not None:
        counts = count_lines(old, gate.path)
    moved = moved_lines(counts, count_lines(data, gate.path)) if counts else ()
    return BrokenGate(gate.path, f"{_LIMITS[gate.kind]} {_shown(gate.limit)}", before, value, gate.why, tuple(moved))


def _check_findings(limits: Mapping[str, int], data: Data, old: Data | None) -> Iterator[BrokenGate]:
    if limits and not isinstance(data.get("findings"), list):
        raise ConfigError(f"findings: a file of kind {data.get('kind')!r} has none")
    for name, limit in limits.items():
        field = "severity" if name in SEVERITIES else "code"
        found = [finding for finding in data["findings"] if finding[field] == name]
        if len(found) <= limit:
            continue
        before = [finding for finding in old.get("findings", ()) if finding[field] == name] if old is not None else []
        known = {_identity(finding) for finding in before}
        new = [finding for finding in found if _identity(finding) not in known]
        count = limit if old is None else len(before)
        moved = tuple(_finding_line(finding) for finding in new or found)
        yield BrokenGate(f"findings.{name}", f"at most {limit}", count, len(found), "", moved)


def _identity(finding: Data) -> tuple[Any, ...]:
    """What a finding is, wherever its line has moved to."""
    return finding["code"], finding["file"], finding["op"], finding["message"]


def _finding_line(finding: Data) -> str:
    place = "" if finding["file"] is None else f"{finding['file']}:{finding['line']}  "
    return f"{place}{finding['code']}: {finding['message']}"


def _comparable(value: Any, limit: Any, path: str) -> Any:
    """What is compared with ``limit``: of a list or an object the number of entries, if the limit is a number."""
    if isinstance(value, list | dict) and isinstance(limit, int):
        return len(value)
    if isinstance(limit, int | float) and not isinstance(value, int | float):
        raise ConfigError(f"gate {path}: the value is {value!r}, which cannot be compared with {limit}")
    return value


def _with_summary(data: Any) -> Data:
    if not isinstance(data, dict):
        raise ConfigError(f"expected a file of the graph tool, got {type(data).__name__}")
    return data | {"summary": summary(data)} if data.get("kind") == TIMELINE else data


def _gate(data: Any, where: str) -> Gate:
    if not isinstance(data, dict) or not isinstance(data.get("path"), str):
        raise ConfigError(f"{where}: path is missing")
    kinds = [kind for kind in _LIMITS if kind in data]
    unknown = set(data) - {"path", "why", "lines", *_LIMITS}
    if unknown or len(kinds) != 1:
        problem = f"unknown {', '.join(sorted(unknown))}" if unknown else f"{len(kinds)} limits"
        raise ConfigError(f"{where} ({data['path']}): {problem}; expected one of {', '.join(_LIMITS)}, and why")
    limit = data[kinds[0]]
    if kinds[0] != "equals" and (isinstance(limit, bool) or not isinstance(limit, int | float)):
        raise ConfigError(f"{where} ({data['path']}): {kinds[0]}: expected a number, got {limit!r}")
    return Gate(data["path"], kinds[0], limit, str(data.get("why", "")), data.get("lines"))


def _finding_limits(data: Any, path: str | Path) -> Mapping[str, int] | None:
    if data is None:
        return None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: findings: expected limits by severity or code")
    for name, limit in data.items():
        if name not in _KINDS:
            raise ConfigError(f"{path}: findings.{name}: expected one of {', '.join(_KINDS)}")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise ConfigError(f"{path}: findings.{name}: expected how many are allowed, got {limit!r}")
    return data


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
