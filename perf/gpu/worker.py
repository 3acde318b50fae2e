"""A process that runs parts for the supervisor: a JSON line in, a JSON line out, for as long as nothing fails.

Whatever the parts print goes to standard error. After a failure the process ends: a CUDA error is for ever, and what
the part held is given back.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from typing import Any, TextIO

from ostinato.perf.gpu.context import Context
from ostinato.perf.gpu.finding import Finding, NotMeasurable, outcome


def main() -> int:
    """Serve until standard input ends; 1 after a part that failed."""
    replies = _take_standard_output()
    context = Context(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        reply = run_part(json.loads(line), context)
        print(json.dumps(reply), file=replies, flush=True)
        if reply["status"] != "ok":
            os._exit(1)  # an interpreter with a broken CUDA context may not come to an end
    return 0


def run_part(request: dict[str, Any], context: Context) -> dict[str, Any]:
    """Run ``request["module"]``'s ``measure``; its entry in the report, whatever happens."""
    began = time.monotonic()
    try:
        context.begin(request["seconds"])
        finding = importlib.import_module(request["module"]).measure(context)
        context.settle()
        reply = outcome("ok", time.monotonic() - began, **finding.as_dict())
        json.dumps(reply)
    except NotMeasurable as error:
        reply = outcome("ok", time.monotonic() - began, **Finding(notes=(f"not measured: {error}",)).as_dict())
    except BaseException as error:
        trace = traceback.format_exc()
        print(trace, file=sys.stderr, flush=True)
        text = f"{type(error).__name__}: {error}"
        reply = outcome("failed", time.monotonic() - began, text[:2000], detail={"traceback": trace[-6000:]})
    return reply


def _take_standard_output() -> TextIO:
    """The real standard output for replies; anybody else's prints go to standard error from now on."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


if __name__ == "__main__":
    sys.exit(main())
