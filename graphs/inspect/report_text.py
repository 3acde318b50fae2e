"""A report as text for a terminal, at most 100 columns: findings by severity, then numbers, then what was not checked.

What the command line prints and what ``print(report)`` shows. Plain characters, no colours. Knows no torch.
"""

from __future__ import annotations

import os
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ostinato.graphs.inspect.report import SEVERITIES, Finding, Report

WIDTH = 100
_MOST_SHOWN = 12
_HEADINGS = {"error": "ERRORS", "warning": "WARNINGS", "info": "GOOD TO KNOW"}
_NAMES = {"error": "error", "warning": "warning", "info": "note"}


def as_text(report: Report) -> str:
    """The report, for people."""
    lines = [*_head(report)]
    for severity in SEVERITIES:
        lines += _group(_HEADINGS[severity], [found for found in report.findings if found.severity == severity])
    metrics = {name: value for name, value in report.metrics.items() if name != "advice"}
    if metrics:
        lines += ["", "NUMBERS", *_numbers(metrics)]
    lines += _bullets("ADVICE", report.metrics.get("advice", ()))
    lines += _bullets("NOT CHECKED", report.not_checked)
    return "\n".join(lines)


def _head(report: Report) -> Iterator[str]:
    counts = Counter(finding.severity for finding in report.findings)
    found = [_counted(counts[severity], _NAMES[severity]) for severity in SEVERITIES if counts[severity]]
    yield from _wrapped(f"{report.target}: {', '.join(found) or 'clean'}", "", "    ")
    known = {name: report.environment.get(name) for name in ("torch", "device", "cpu")}
    if known["device"] == "cpu":
        del known["device"]
    where = ", ".join(f"torch {value}" if name == "torch" else str(value) for name, value in known.items() if value)
    if where:
        yield from _wrapped(where, "", "    ")


def _group(heading: str, findings: list[Finding]) -> Iterator[str]:
    if not findings:
        return
    yield from ("", heading)
    for number, finding in enumerate(findings):
        if number:
            yield ""
        yield from _finding(finding)


def _finding(finding: Finding) -> Iterator[str]:
    line = "" if finding.line is None else f":{finding.line}"
    place = None if finding.file is None else _short(finding.file) + line
    yield "  ".join(part for part in (place, finding.code, finding.op) if part)
    yield from _wrapped(finding.message, "    ", "    ")
    for name, text in (("seen", finding.evidence), ("fix", finding.fix), ("see", finding.doc)):
        for number, line in enumerate(text.splitlines()):
            yield from _wrapped(line, f"    {name + ':':<6}" if number == 0 else " " * 10, " " * 10)


def _numbers(metrics: Mapping[str, Any]) -> Iterator[str]:
    width = min(32, max(len(name) for name in metrics))
    for name, value in metrics.items():
        yield from _wrapped(_value(value), f"{name.replace('_', ' '):<{width}}  ", " " * (width + 2))


def _value(value: Any) -> str:
    """A number, or several; what has more levels is counted."""
    if isinstance(value, Mapping):
        flat = all(_is_plain(each) for each in value.values())
        shown = ", ".join(f"{name}: {_plain(each)}" for name, each in value.items()) if flat else None
    elif isinstance(value, list | tuple):
        more = f" and {len(value) - _MOST_SHOWN:,} more" if len(value) > _MOST_SHOWN else ""
        flat = all(_is_plain(each) for each in value)
        shown = ", ".join(_plain(each) for each in value[:_MOST_SHOWN]) + more if flat else None
    else:
        return _plain(value)
    return (shown or "none") if shown is not None else f"{_counted(len(value), 'entry', 'entries')}, in the JSON"


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not measured"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _bullets(heading: str, texts: Any) -> Iterator[str]:
    if texts:
        yield from ("", heading)
        for text in texts:
            yield from _wrapped(str(text), "- ", "  ")


def _wrapped(text: str, first: str, then: str) -> list[str]:
    wrapper = textwrap.TextWrapper(WIDTH, initial_indent=first, subsequent_indent=then, break_on_hyphens=False)
    return wrapper.wrap(text) or [first.rstrip()]


def _short(file: str) -> str:
    """Seen from the current folder, if it lies in it."""
    folder = os.getcwd() + os.sep
    return file.removeprefix(folder)


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"
