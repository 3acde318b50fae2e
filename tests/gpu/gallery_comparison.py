"""Every verdict of the CPU beside what CUDA did: what each finding foretells, and whether it came true. Knows no torch.

    foretold                  because of                                      it came true if CUDA
    refused                   device-sync, data-dependent-shape               refused the capture
    refused or wrong          host-to-device, cpu-tensor                      or raised at once, or replayed old values
    refused                   rng: a generator of its own                     (not where torch registers it by itself)
    wrong                     frozen-value, address-change                    captured, and a replay differed from eager
    depends on the warm-up    warmup-dependent                                gave something else without the warm-ups
    leaks                     padding-leak                                    replays equal, but padding moves real rows
    captured                  freed-input                                     captured; what replays read is nobody's
    equal                     anything else, and nothing                      captured, every replay equals eager

Further: where nothing is found padding may not move real rows, and outputs that are said to be overwritten have to be.
Steps whose fault concerns torch.compile, and random numbers of the process's own generator, are shown and not judged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gallery.index import Step

Foretold = Literal["refused", "refused or wrong", "wrong", "depends on the warm-up", "leaks", "captured", "equal"]

COMPILED = {"graph-break", "recompile", "late-compile"}
_BY_CODE: tuple[tuple[str, Foretold], ...] = (
    ("freed-input", "captured"),
    ("device-sync", "refused"),
    ("data-dependent-shape", "refused"),
    ("host-to-device", "refused or wrong"),
    ("cpu-tensor", "refused or wrong"),
    ("rng", "refused"),
    ("frozen-value", "wrong"),
    ("address-change", "wrong"),
    ("padding-leak", "leaks"),
)
"""What an error of this code foretells, the strongest first."""


@dataclass(frozen=True)
class Row:
    """One step."""

    step: str
    found: tuple[str, ...]
    """Codes, with ``(warning)`` or ``(info)`` behind those that are no errors."""
    foretold: str
    happened: str
    agree: bool | None
    """None: not judged, or not run."""
    why_not: str = ""
    on_gpu: str = ""
    """What the tool says otherwise of tensors that lie on the GPU; empty: the same."""


def foretold(found: Iterable[tuple[str, str]]) -> Foretold:
    """What findings, as (code, severity), say of a capture and its replays."""
    errors = {code for code, severity in found if severity == "error"}
    for code, what in _BY_CODE:
        if code in errors:
            return what
    return "depends on the warm-up" if any(code == "warmup-dependent" for code, _ in found) else "equal"


def happened(result: Mapping[str, Any]) -> str:
    """What CUDA did, in a few words."""
    outcome, error, apart = result["outcome"], result["error"], result["apart"]
    if outcome == "replayed":
        text = "every replay equals eager" if not any(by != 0 for by in apart) else f"replays differ: {_numbers(apart)}"
        if result["cold"] is not None:
            cold = _numbers(result["cold"]) if not result["cold_error"] else result["cold_error"]
            text += f"; without warm-ups: {cold}"
        if result["leak"] is not None:
            text += (
                f"; padding moves real rows by {result['leak']:.3g}" if result["leak"] else "; padding moves nothing"
            )
        return text
    words = {
        "raised": "raised before any capture",
        "refused": "refused",
        "failed": "a replay failed",
        "captured": "captured",
        "lost": "lost its context",
        "not run": "not run",
    }
    return words[outcome] + (f": {error}" if error else "")


def came_true(what: Foretold, found: Iterable[tuple[str, str]], result: Mapping[str, Any]) -> bool:
    """Whether ``result`` is what was foretold."""
    outcome = result["outcome"]
    wrong = outcome == "replayed" and any(by != 0 for by in result["apart"])
    equal = outcome == "replayed" and not wrong
    if what in ("refused", "refused or wrong"):
        return outcome == "refused" or (what == "refused or wrong" and (wrong or outcome == "raised"))
    if what == "wrong":
        return wrong
    if what == "captured":
        return outcome == "captured"
    if what == "depends on the warm-up":
        cold = result["cold"] or ()
        return wrong or bool(result["cold_error"]) or any(by != 0 for by in cold)
    if what == "leaks":
        return equal and bool(result["leak"])
    overwritten = any(code == "output-overwritten" for code, _ in found)
    return equal and not result["leak"] and (not overwritten or bool(result["overwritten"]))


def judged(
    step: Step,
    said: Mapping[str, Any],
    result: Mapping[str, Any],
    machine: Mapping[str, Any],
    on_gpu: Mapping[str, Any] | None = None,
) -> Row:
    """A row of the comparison."""
    found = sorted({(code, severity) for code, severity, _ in said["found"]})
    what = foretold(found)
    why_not = _why_not(step, said, found, result, machine)
    agree = None if why_not else came_true(what, found, result)
    names = tuple(code if severity == "error" else f"{code} ({severity})" for code, severity in found)
    return Row(step.name, names, what, happened(result), agree, why_not, _other(said, on_gpu))


def _why_not(
    step: Step,
    said: Mapping[str, Any],
    found: Sequence[tuple[str, str]],
    result: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> str:
    """Why a step is not judged; empty if it is."""
    if said["error"]:
        return f"the tool did not run: {said['error']}"
    if result["outcome"] in ("not run", "lost"):
        return happened(result)
    if {fault.code for fault in step.faults} & COMPILED:
        return "its fault concerns torch.compile"
    if ("rng", "warning") in found:
        return "random numbers of the process's own generator"
    if ("rng", "error") in found and machine.get("registers_generators"):
        return "this torch registers generators by itself"
    return ""


def _other(said: Mapping[str, Any], on_gpu: Mapping[str, Any] | None) -> str:
    """What ``lint`` says otherwise of tensors on the GPU; the padding test is not run there."""
    if on_gpu is None:
        return ""
    if on_gpu["error"]:
        return str(on_gpu["error"])
    here = {(code, line) for code, _, line in said["found"] if code != "padding-leak"}
    there = {(code, line) for code, _, line in on_gpu["found"]}
    parts = [f"not {code} in line {line}" for code, line in sorted(here - there)]
    return ", ".join(parts + [f"{code} in line {line}" for code, line in sorted(there - here)])


def _numbers(apart: Sequence[float | None]) -> str:
    return ", ".join("another shape" if by is None else f"{by:.3g}" for by in apart)


def summary(rows: Sequence[Row]) -> str:
    """One line."""
    agree, differ = (sum(row.agree is value for row in rows) for value in (True, False))
    return f"{len(rows)} steps: {agree} verdicts came true, {differ} did not, {len(rows) - agree - differ} not judged"


def as_text(rows: Sequence[Row], machine: Mapping[str, Any]) -> str:
    """A table for people."""
    head = ("step", "found by the CPU", "foretold", "what CUDA did", "agree")
    cells = [head]
    for row in rows:
        agree = {True: "yes", False: "NO", None: f"- ({row.why_not})"}[row.agree]
        cells.append((row.step, ", ".join(row.found) or "nothing", row.foretold, row.happened, agree))
    widths = [min(60, max(len(row[column]) for row in cells)) for column in range(len(head))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    other = [f"  {row.step}: {row.on_gpu}" for row in rows if row.on_gpu]
    if other:
        lines += ["", "lint of tensors on the GPU says otherwise:", *other]
    return "\n".join([*(f"{name}: {value}" for name, value in machine.items()), "", *lines, "", summary(rows), ""])


def write(rows: Sequence[Row], machine: Mapping[str, Any], folder: Path) -> None:
    """``gallery-on-cuda.json`` and ``.txt`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"schema": 1, "machine": dict(machine), "summary": summary(rows), "rows": [asdict(row) for row in rows]}
    (folder / "gallery-on-cuda.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (folder / "gallery-on-cuda.txt").write_text(as_text(rows, machine), encoding="utf-8")
