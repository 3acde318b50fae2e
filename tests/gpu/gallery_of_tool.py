"""What the tool says of the gallery's steps, in a process of its own: the other side of the comparison with CUDA.

    python tests/gpu/gallery_of_tool.py RESULTS.jsonl cpu|cuda STEP...

``cpu``: as on a machine without a GPU; run it with CUDA_VISIBLE_DEVICES empty. ``cuda``: ``lint`` of tensors that lie
on the GPU, in a process that may lose its context.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gallery.index import Command, Step, steps
from gallery.tool import look
from gpu.gallery_on_cuda import Copy
from ostinato.graphs import inspect
from ostinato.graphs.inspect import Finding

BATCH_SIZE = 4


def of_cpu(step: Step) -> Iterator[Finding]:
    """``lint``'s findings, and those of the padding test where padding is the fault or nothing is."""
    commands: list[Command] = ["lint"]
    codes = {code for fault in step.faults for code in fault.codes}
    if not codes or "padding-leak" in codes:
        commands.append("emulate --poison-padding")
    for command in commands:
        yield from look(step, command).findings


def of_cuda(step: Step) -> Iterator[Finding]:
    """``lint``'s findings with inputs and module on the GPU."""
    copy = Copy(step, "cuda", 3)

    def make_inputs(batch_size: int, variant: int = 0) -> tuple[Any, ...]:
        return copy.inputs(variant, batch_size)

    yield from inspect.lint(copy.module.step, make_inputs, batch_sizes=(BATCH_SIZE,)).findings
    torch.cuda.synchronize()


def said(step: Step, device: str) -> dict[str, Any]:
    """The findings as data, or why there are none."""
    began, error = time.monotonic(), ""
    found: list[Finding] = []
    try:
        found = list(of_cpu(step) if device == "cpu" else of_cuda(step))
    except Exception as raised:  # whatever it is, it is the answer
        line = next((line.strip() for line in str(raised).splitlines() if line.strip()), "")
        error = f"{type(raised).__name__}: {line}"[:300]
    places = sorted({(f.code, f.severity, (f.line or 0) if f.file == str(step.path) else 0) for f in found})
    return {"step": step.name, "found": places, "error": error, "seconds": round(time.monotonic() - began, 2)}


def main(argv: Sequence[str]) -> int:
    """A JSON line in ``argv[0]`` for each of the steps ``argv[2:]``."""
    wanted = set(argv[2:])
    with Path(argv[0]).open("a", encoding="utf-8") as file:
        for step in steps("faulty", "clean", "issues"):
            if step.name in wanted:
                print(json.dumps({"begun": step.name}), file=file, flush=True)
                print(json.dumps({"said": said(step, argv[1])}), file=file, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
