"""The graph-capture debugging tool: what will break, recompile, refuse capture or replay wrong values, and where.

    from ostinato.graphs import inspect

    report = inspect.lint(step, make_inputs)
    for finding in report.findings:
        print(finding.file, finding.line, finding.code, finding.message, finding.fix)

Works on any PyTorch function, without a GPU; knows no model and no engine. Names are imported when they are used.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "CODES": "codes",
    "CapturedGraph": "capturing.captured",
    "CheckFailed": "assertions",
    "EmulatedGraph": "replays.rehearsal",
    "Finding": "report",
    "OGraph": "capturing.ograph",
    "Report": "report",
    "Target": "target",
    "TargetError": "target",
    "advise": "numbers.sizes",
    "assert_capture_safe": "assertions",
    "assert_no_recompile": "assertions",
    "assert_padding_isolated": "assertions",
    "assert_replay_equals_eager": "assertions",
    "best_sizes": "numbers.sizes",
    "breaks": "dynamo.breaks",
    "capture": "capturing.capture",
    "diff_text": "capturing.diff_text",
    "emulate": "replays.emulation",
    "graph_diff": "capturing.graph_diff",
    "lint": "dry_runs.lint",
    "load_target": "target",
    "memory_text": "capturing.pool_memory",
    "record": "tracing.trace",
    "show": "capturing.show",
    "startup": "dynamo.startup",
    "startup_text": "dynamo.startup",
    "verify": "replays.verification",
    "write_page": "page",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
