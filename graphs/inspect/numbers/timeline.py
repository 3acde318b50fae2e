"""``ostinato graph timeline``: where the time between replays goes, from a recorded timeline or a profiler's trace.

Recorded timelines come from ``llm.record_timeline()``, traces from ``torch.profiler`` (``export_chrome_trace``). Knows
no torch. Times in seconds. In a gap the device runs no replay; meanwhile the host delivers the tokens of the step
before (``sample``), prepares the next one (``prepare``) and hands it over (``launch``). What is left of the gap is
``elsewhere``: the caller's own code, and what the device takes to begin.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ostinato.graphs.inspect.json_file import read_json
from ostinato.graphs.inspect.numbers.chrome_trace import from_trace
from ostinato.layers.errors import ConfigError

KIND = "ostinato-timeline"
PARTS = ("prepare", "launch", "sample", "wait")
LARGEST = 5
"""Gaps that are listed one by one."""


def read_timeline(path: str | Path) -> dict[str, Any]:
    """A timeline of either kind of file, gzipped or not, checked; ``ConfigError`` names the file, step and field."""
    data = read_json(path)
    if not (isinstance(data, dict) and data.get("kind") == KIND):
        if isinstance(data, dict) and "kind" in data:
            raise ConfigError(f"{path}: kind is {data['kind']!r}; expected {KIND!r} or a Chrome trace")
        return from_trace(data, Path(path).name)
    if data.get("schema") != 1:
        raise ConfigError(f"{path}: schema is {data.get('schema')!r}; this version reads 1")
    steps = data.get("steps")
    if not isinstance(steps, list):
        raise ConfigError(f"{path}: steps: expected a list, got {type(steps).__name__}")
    for number, step in enumerate(steps):
        _check_step(step, f"{path}: steps[{number}]")
    return data


def _check_step(step: Any, where: str) -> None:
    if not isinstance(step, dict):
        raise ConfigError(f"{where}: expected an object, got {type(step).__name__}")
    for name in ("start", "gap", *PARTS):
        value = step.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ConfigError(f"{where}.{name}: expected seconds, got {value!r}")
    if step.get("kind") not in ("decode", "mixed"):
        raise ConfigError(f"{where}.kind: expected 'decode' or 'mixed', got {step.get('kind')!r}")


def summary(data: Mapping[str, Any]) -> dict[str, Any]:
    """Totals, medians, 99th percentiles and maxima of the gaps and their parts; the largest gaps; what the device did.

    ``device_busy``: the share of the time of replays and gaps that was replays, None where replays were not timed.
    """
    steps: Sequence[Mapping[str, Any]] = data["steps"]
    splits = [_split(before, step) for before, step in itertools.pairwise(steps)]
    values = {name: [step[name] for step in steps] for name in ("gap", *PARTS)}
    values["elsewhere"] = [split["elsewhere"] for split in splits]
    order = sorted(range(len(splits)), key=lambda number: -splits[number]["gap"])
    replayed = [step["replay"] for step in steps if step.get("replay") is not None]
    busy = sum(replayed)
    every = busy + sum(values["gap"])
    return {
        "steps": len(steps),
        "kinds": dict(Counter(step["kind"] for step in steps)),
        "seconds": steps[-1]["start"] - steps[0]["start"] if steps else 0.0,
        "device_busy": busy / every if steps and len(replayed) == len(steps) and every else None,
        **{name: _spread(each) for name, each in values.items()},
        "largest_gaps": [{"step": number + 1, **splits[number]} for number in order[:LARGEST] if splits[number]["gap"]],
    }


def _split(before: Mapping[str, Any], step: Mapping[str, Any]) -> dict[str, Any]:
    """The gap before ``step``: the host's parts, latest first, as far as they fit into it; the rest is elsewhere."""
    left, parts = step["gap"], {}
    for name, seconds in (("launch", step["launch"]), ("prepare", step["prepare"]), ("sample", before["sample"])):
        parts[name] = min(seconds, left)
        left -= parts[name]
    other = min(step.get("other", 0.0), left)
    return {"start": step["start"], "gap": step["gap"], **parts, "other": other, "elsewhere": left - other}


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return dict.fromkeys(("total", "median", "p99", "largest"), 0.0)
    ranked = sorted(values)
    p99 = ranked[math.ceil(0.99 * len(ranked)) - 1]
    return {"total": math.fsum(ranked), "median": median(ranked), "p99": p99, "largest": ranked[-1]}


def timeline_text(data: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    found = summary(data)
    if not found["steps"]:
        return f"{data.get('target', '')}: no steps were recorded"
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in found["kinds"].items())
    lines = [f"{data.get('target', '')}: {found['steps']:,} steps ({kinds}) in {found['seconds']:.3f} s"]
    if found["device_busy"] is not None:
        lines.append(f"of the time of replays and gaps the device worked {found['device_busy']:.1%}")
    lines += ["", f"{'ms':<10}{'total':>12}{'median':>10}{'p99':>10}{'largest':>10}"]
    lines += [_row(name, found[name]) for name in ("gap", "prepare", "launch", "sample", "elsewhere", "wait")]
    if found["largest_gaps"]:
        lines += ["", "largest gaps", f"{'step':>6}{'at, s':>10}{'ms':>9}  of which"]
        lines += [_gap(gap) for gap in found["largest_gaps"]]
    return "\n".join([*lines, *(f"not checked: {text}" for text in data.get("not_checked", ()))])


def _row(name: str, spread: Mapping[str, float]) -> str:
    cells = (f"{spread[column] * 1e3:>{width},.3f}" for column, width in zip(spread, (12, 10, 10, 10), strict=True))
    return f"{name:<10}{''.join(cells)}"


def _gap(gap: Mapping[str, Any]) -> str:
    parts = sorted(((gap[name], name) for name in ("sample", "prepare", "launch", "other", "elsewhere")), reverse=True)
    shown = ", ".join(f"{name} {seconds * 1e3:,.3f}" for seconds, name in parts if seconds > 0.01 * gap["gap"])
    return f"{gap['step']:>6}{gap['start']:>10.3f}{gap['gap'] * 1e3:>9,.3f}  {shown}"
