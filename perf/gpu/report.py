"""A run as one JSON object, written after every part, and as a table of its targets."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ostinato.perf.gpu.targets import TARGETS, verdicts
from ostinato.perf.report import read_report, shown

SCHEMA = "ostinato.perf.gpu/1"
TESTS = ("passed", "failed", "not run")
SHOWN_VERDICTS = {"met": "met", "missed": "MISSED", "not measured": "-"}
STATED_FOR = "H200"


def new_report(gpu: str, label: str, size: str, tests: str) -> dict[str, Any]:
    """A report without a part yet. ``label``: the machine in one line; ``tests``: what became of the GPU tests."""
    return {"schema": SCHEMA, "gpu": gpu, "machine": label, "size": size, "tests": tests, "parts": {}, "targets": []}


def add_part(report: dict[str, Any], name: str, outcome: Mapping[str, Any]) -> None:
    """Note a part's outcome, and what all figures so far say of the targets."""
    report["parts"][name] = dict(outcome)
    report["targets"] = verdicts(figures_of(report))


def figures_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Every figure of every part."""
    return {name: value for part in report["parts"].values() for name, value in part["figures"].items()}


def exit_status(report: Mapping[str, Any], asked: Sequence[str]) -> int:
    """1 if tests or a part failed, or a correctness target of a part in ``asked`` is not met; speed fails nothing."""
    failed = any(part["status"] == "failed" for part in report["parts"].values())
    wrong = any(
        row["correctness"] and row["verdict"] != "met" and row["figure"].partition(".")[0] in asked
        for row in report["targets"]
    )
    return int(report["tests"] == "failed" or failed or wrong)


def slug(gpu: str) -> str:
    """A device's name as part of a file's: ``NVIDIA H200`` becomes ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") or "unnamed"


def write(report: Mapping[str, Any], path: Path) -> None:
    """Replace ``path`` at once: whoever is killed leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
            file.write("\n")
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def read(path: Path) -> dict[str, Any]:
    """A report that an earlier run wrote; ``ValueError`` says what is wrong with the file."""
    return read_report(path, SCHEMA, "this check")


def render(report: Mapping[str, Any]) -> str:
    """The whole report as text: targets of today, those of later, the other figures, the parts, a summary."""
    rows = report["targets"] or verdicts({})
    sections = [
        f"{report['machine']}\n{report['size']} sizes, random weights. GPU tests: {report['tests']}.",
        _titled("asked of today's engine", [row for row in rows if row["asked"] == "now"]),
        _titled("asked of a later one (PERFORMANCE's G1-G9)", [row for row in rows if row["asked"] == "later"]),
        "other figures\n" + _others(report),
        "parts\n" + _parts(report),
        _summary(report, rows),
    ]
    return "\n\n".join(sections)


def _titled(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    head = ("target", "what", "measured", "target", "floor", "")
    cells = [head] + [
        (
            row["id"],
            row["what"],
            _value(row["value"], row["unit"]),
            ("≥ " if row["bound"] == "at least" else "≤ ") + _value(row["limit"], row["unit"]),
            _value(row["floor"], row["unit"]) if row["floor"] is not None else "",
            SHOWN_VERDICTS[row["verdict"]],
        )
        for row in rows
    ]
    return f"{title}\n{_aligned(cells, right=(2, 3, 4))}"


def _others(report: Mapping[str, Any]) -> str:
    judged = {target.figure for target in TARGETS}
    cells = [(name, shown(value)) for name, value in figures_of(report).items() if name not in judged]
    return _aligned(cells, right=(1,)) or "  none"


def _parts(report: Mapping[str, Any]) -> str:
    lines = []
    for name, part in report["parts"].items():
        error = f": {part['error'].splitlines()[0]}" if part["error"] else ""
        lines.append(f"  {name:<14} {part['status']:<8} {part['seconds']:>6.1f} s{error}")
        lines += [f"  {'':<14} {note}" for note in part["notes"]]
    return "\n".join(lines) or "  none ran"


def _summary(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    counts = {
        asked: {
            verdict: sum(r["verdict"] == verdict and r["asked"] == asked for r in rows) for verdict in SHOWN_VERDICTS
        }
        for asked in ("now", "later")
    }
    lines = [
        f"of today's targets {now['met']} met, {now['missed']} missed, {now['not measured']} not measured; "
        f"of later ones {later['met']}, {later['missed']}, {later['not measured']}"
        for now, later in [(counts["now"], counts["later"])]
    ]
    if STATED_FOR not in report["gpu"]:
        lines.append(f"times in ms and µs are stated for an {STATED_FOR}; this is {report['gpu']}: go by the ratios")
    lines.append("a missed speed target fails nothing; failed tests or parts and wrong numbers do")
    return "\n".join(lines)


def _value(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{shown(value)} {unit}".strip()


def _aligned(rows: Sequence[Sequence[str]], right: Sequence[int]) -> str:
    """Rows as lines with aligned columns, those in ``right`` to the right."""
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  "
        + "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
