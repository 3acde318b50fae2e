"""Where the time of a compilation goes, from the phases that torch reports while it compiles.

Phases lie within each other: Dynamo calls AOTAutograd, that calls Inductor, and that waits for compilers of kernels.
Each moment belongs to the innermost; what is left of a call is its own run.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from ostinato.graphs.inspect.dynamo.dynamo_log import DynamoLog, Record

Span = tuple[float, float]
"""Begin and end, in seconds since the epoch."""

_EVENTS = {
    "dynamo": ("entire_frame_compile",),
    "aot": ("backend_compile",),
    "inductor": ("inductor_compile", "AOTAutogradCache.inductor_load"),
    "triton": ("compile_file", "async_compile.wait", "async_compile.precompile", "PyCodeCache.load_by_key_path"),
}
"""Phase by phase, outer ones first, what torch calls them. "triton" is any compiler of kernels: on a CPU of C++."""
PHASES = tuple(_EVENTS)
_CODE_GENERATION = "Scheduler.codegen"
_CACHES = {"aot": "aotautograd_cache_", "inductor": "fx_graph_cache_"}


@dataclass(frozen=True)
class Phase:
    """One bar of the waterfall."""

    name: str
    start: float
    """Seconds since the epoch."""
    seconds: float
    cache: str | None
    """hit, miss, or None where nothing is cached."""
    why: str


def phases_of(log: DynamoLog, call: int, began: float, ended: float) -> list[Phase]:
    """The phases of one call of a compiled function; "other" is what no phase accounts for."""
    spans = _spans([record for record in log.named("chromium_event") if record.call == call])
    found, inner = [], [(ended, ended)]
    for name in reversed(PHASES):
        own = [span for event in _EVENTS[name] for span in spans[event]]
        if own:
            seconds = covered([*inner, *own]) - covered(inner)
            found.append(Phase(name, min(begin for begin, _ in own), seconds, *_cache(name, log, call, spans)))
            inner += own
    rest = max(0.0, ended - began - covered(inner))
    why = "the run itself" if found else "the run itself; nothing was compiled"
    return [*reversed(found), Phase("other", ended - rest, rest, None, why)]


def covered(spans: list[Span]) -> float:
    """Seconds that lie within at least one of ``spans``."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _spans(records: list[Record]) -> dict[str, list[Span]]:
    """Begin and end events of the same name, paired; of several at once only what they cover together is right."""
    begun: dict[str, list[float]] = defaultdict(list)
    found: dict[str, list[Span]] = defaultdict(list)
    for record in records:
        event: dict[str, Any] = json.loads(record.text)
        name, at = str(event.get("name")), float(event.get("ts", 0)) / 1e6
        if event.get("ph") == "B":
            begun[name].append(at)
        elif event.get("ph") == "E" and begun[name]:
            found[name].append((begun[name].pop(), at))
    return found


def _cache(name: str, log: DynamoLog, call: int, spans: dict[str, list[Span]]) -> tuple[str | None, str]:
    if name == "dynamo":
        return None, _traced(log, call)
    if name == "triton":
        return _kernels(spans)
    records = [record for record in log.starting(_CACHES[name]) if record.call == call]
    states = {record.name.rpartition("_")[2] for record in records}
    if not records:
        return "miss", "the cache is off"
    state = "hit" if states == {"hit"} else "miss"
    return state, "; ".join(dict.fromkeys(_why(record, log) for record in records))


def _traced(log: DynamoLog, call: int) -> str:
    frames = [record for record in log.named("compilation_metrics") if record.call == call]
    again = [str(reason) for record in frames if (reason := record.fields.get("recompile_reason"))]
    says = f"{len(frames)} function{'s' if len(frames) != 1 else ''} traced, which no cache keeps"
    return f"{says}; compiled before, but {_plain_reason(again[0])}" if again else says


def _plain_reason(reason: str) -> str:
    """Without the number of the compiled form and the line that made the guard."""
    return re.sub(r"^\d+/\d+: ", "", reason.splitlines()[0]).split("  # ")[0].strip()


def _kernels(spans: dict[str, list[Span]]) -> tuple[str | None, str]:
    """Files that a compiler was run for; those during code generation find out what it and the processor can do."""
    files = spans["compile_file"]
    asked = [file for file in files if any(b <= file[0] and file[1] <= e for b, e in spans[_CODE_GENERATION])]
    if not files:
        return "hit", "compiled kernels are loaded, or none are needed"
    times = "once" if len(files) == 1 else f"{len(files)} times"
    probes = f", {len(asked)} of them to ask what it and the processor can do" if asked else ""
    return "miss", f"loading, for which a compiler ran {times}{probes} ({covered(files):.1f} s)"


def _why(record: Record, log: DynamoLog) -> str:
    """In a cache's own words: the entry, why there is none, or why it was not asked."""
    said: dict[str, Any] = json.loads(record.text or "{}")
    key = str(said.get("key") or "")[:12]
    match record.name.rpartition("_")[2]:
        case "hit":
            saved = float(said.get("time_saved_ms") or 0) / 1e3 or float(said.get("time_saved_ns") or 0) / 1e9
            return f"found as {key}…" + (f", which saves {saved:.1f} s" if saved else "")
        case "bypass":
            return f"not cached: {said.get('cache_bypass_reason') or 'no reason given'}"
        case "miss":
            return f"no entry {key}…{_differs(record, said, log)}"
        case state:
            return f"{state}: {said.get('error') or said.get('cache_bypass_reason') or ''}"


def _differs(record: Record, said: dict[str, Any], log: DynamoLog) -> str:
    """What of the key is another than in the compilation before, in the same run."""
    before = [other for other in log.starting(record.name.rpartition("_")[0]) if other.call < record.call]
    if not before or not said.get("components"):
        return ""
    known = _components(json.loads(before[-1].text or "{}"))
    changed = [name for name, key in _components(said).items() if known.get(name) != key]
    return f"; differs from the compilation before in {', '.join(changed[:4])}" if changed else ""


def _components(said: dict[str, Any]) -> dict[str, str]:
    """From lines like ``[hash] example_inputs[0]: ...``."""
    parts = [str(line).partition("] ") for line in said.get("components") or ()]
    return {rest.partition(":")[0]: key for key, _, rest in parts}
