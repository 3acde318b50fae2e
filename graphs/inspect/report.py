"""What the tool has to say of a target, as data: findings, metrics, and what was not checked.

    {"schema": 1, "target": "step.py:decode", "environment": {...}, "verdict": "clean" | "findings",
     "findings": [{"code", "severity", "file", "line", "op", "message", "evidence", "fix", "doc"}],
     "metrics": {...}, "not_checked": [...]}

A reader may rely on these names; new ones may be added within a schema number. The verdict is "findings" if there is an
error or a warning. Knows no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from ostinato.graphs.inspect.codes import CODES
from ostinato.layers.errors import ConfigError

SCHEMA = 1
Severity = Literal["error", "warning", "info"]
"""error: refused, wrong or stale on a GPU. warning: slow, or wrong under a condition. info: good to know."""
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True)
class Finding:
    """One thing that will go wrong, where, why, and what to write instead."""

    code: str
    severity: Severity
    file: str | None
    """As the interpreter names it; None where no line of the user's code is to blame."""
    line: int | None
    op: str | None
    """The function or operator, as in ``Tensor.item`` or ``aten.slice.Tensor``."""
    message: str
    evidence: str = ""
    """What was seen: numbers, names, the other value."""
    fix: str = ""
    doc: str = ""

    @classmethod
    def of(
        cls,
        code: str,
        severity: Severity,
        at: tuple[str, int] | None,
        message: str,
        op: str | None = None,
        evidence: str = "",
        fix: str = "",
    ) -> Finding:
        """A finding at (file, line) ``at``; ``fix`` and ``doc`` are the code's own where nothing better is given."""
        file, line = at or (None, None)
        known = CODES[code]
        return cls(code, severity, file, line, op, message, evidence, fix or known.fix, known.doc)


@dataclass(frozen=True)
class Report:
    """Everything found out about one target."""

    target: str
    environment: Mapping[str, Any]
    findings: tuple[Finding, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    not_checked: tuple[str, ...] = ()
    """What the tool could not look into, one sentence each."""

    @property
    def verdict(self) -> Literal["clean", "findings"]:
        """ "findings" if there is an error or a warning."""
        return "findings" if any(finding.severity != "info" for finding in self.findings) else "clean"

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings of severity error."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as documented above."""
        return {
            "schema": SCHEMA,
            "target": self.target,
            "environment": dict(self.environment),
            "verdict": self.verdict,
            "findings": [asdict(finding) for finding in self.findings],
            "metrics": dict(self.metrics),
            "not_checked": list(self.not_checked),
        }

    def as_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.as_dict(), indent=1, allow_nan=False)

    def __str__(self) -> str:
        """For a terminal: see ``report_text``."""
        from ostinato.graphs.inspect.report_text import as_text

        return as_text(self)

    @classmethod
    def from_dict(cls, data: Any) -> Report:
        """Read what ``as_dict`` gave; ``ConfigError`` names what is wrong with it."""
        validate(data)
        findings = tuple(Finding(**{name: each[name] for name in _FINDING}) for each in data["findings"])
        return cls(data["target"], data["environment"], findings, data["metrics"], tuple(data["not_checked"]))


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Without repetitions; errors first, then by file and line."""
    first: dict[tuple[Any, ...], Finding] = {}
    for finding in findings:
        first.setdefault((finding.code, finding.file, finding.line, finding.op, finding.message), finding)
    rank = SEVERITIES.index
    return tuple(sorted(first.values(), key=lambda f: (rank(f.severity), f.file or "", f.line or 0, f.code)))


_TOP: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "target": str,
    "environment": dict,
    "verdict": str,
    "findings": list,
    "metrics": dict,
    "not_checked": list,
}
_FINDING: dict[str, type | tuple[type, ...]] = {
    "code": str,
    "severity": str,
    "file": (str, type(None)),
    "line": (int, type(None)),
    "op": (str, type(None)),
    "message": str,
    "evidence": str,
    "fix": str,
    "doc": str,
}


def validate(data: Any) -> None:
    """Raise ``ConfigError`` naming the first field in which ``data`` is not a report of this schema."""
    _check_fields(data, _TOP, "report")
    if data["schema"] != SCHEMA:
        raise ConfigError(f"report.schema is {data['schema']}; this version reads {SCHEMA}")
    for number, finding in enumerate(data["findings"]):
        where = f"report.findings[{number}]"
        _check_fields(finding, _FINDING, where)
        if finding["code"] not in CODES:
            raise ConfigError(f"{where}.code: {finding['code']!r} is none of {', '.join(CODES)}")
        if finding["severity"] not in SEVERITIES:
            raise ConfigError(f"{where}.severity: {finding['severity']!r} is none of {', '.join(SEVERITIES)}")
    found = any(finding["severity"] != "info" for finding in data["findings"])
    if data["verdict"] != ("findings" if found else "clean"):
        raise ConfigError(f"report.verdict is {data['verdict']!r}, but its findings say otherwise")
    if not all(isinstance(line, str) for line in data["not_checked"]):
        raise ConfigError("report.not_checked: every entry is a sentence")


def _check_fields(data: Any, fields: Mapping[str, type | tuple[type, ...]], where: str) -> None:
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected an object, got {type(data).__name__}")
    for name, kind in fields.items():
        if name not in data:
            raise ConfigError(f"{where}.{name} is missing")
        if not isinstance(data[name], kind) or isinstance(data[name], bool):
            raise ConfigError(f"{where}.{name}: unexpected {type(data[name]).__name__}")
