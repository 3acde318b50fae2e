"""The gallery in processes of its own: one for CUDA, a few for the CPU's verdicts; a lost context takes only its step.

The steps run in one process as long as its context lives. What is left after a loss is shared out among several, each
of which is replaced when it is lost too: a loss costs the start of a process, and no step but one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ON_CUDA = FOLDER / "gallery_on_cuda.py"
OF_TOOL = FOLDER / "gallery_of_tool.py"
AFTER_A_LOSS = 4
"""Processes at once."""


@dataclass
class Results:
    """What processes wrote: by step, and what they said of the machine."""

    machine: dict[str, Any] = field(default_factory=dict)
    by_step: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    """The last lines of processes that died."""

    def add(self, other: Results) -> None:
        """Take over what another has."""
        self.machine |= other.machine
        self.by_step |= other.by_step
        self.errors += other.errors


def run_all(
    script: Path,
    names: Sequence[str],
    seconds: float,
    *,
    arguments: Sequence[str] = (),
    folder: Path,
    at_once: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Results:
    """Results of ``script`` for each of ``names`` that had its turn within ``seconds``."""
    deadline, results, left, round_number = time.monotonic() + seconds, Results(), list(names), 0
    while left and deadline - time.monotonic() > 1:
        shares = [share for share in (left[n::at_once] for n in range(at_once)) if share]

        def run(share: tuple[int, list[str]], rounds: int = round_number) -> Results:
            number, names = share
            file = folder / f"{script.stem}-{'-'.join(arguments)}-{rounds}-{number}.jsonl"
            return _run(script, arguments, names, file, deadline, environment)

        with ThreadPoolExecutor(at_once) as threads:
            for found in threads.map(run, enumerate(shares)):
                results.add(found)
        remaining = [name for name in left if name not in results.by_step]
        if len(remaining) == len(left):  # nobody got as far as a step: another try would not either
            break
        left, round_number, at_once = remaining, round_number + 1, max(at_once, AFTER_A_LOSS)
    return results


def _run(
    script: Path,
    arguments: Sequence[str],
    names: Sequence[str],
    file: Path,
    deadline: float,
    environment: Mapping[str, str] | None,
) -> Results:
    command = [sys.executable, str(script), str(file), *arguments, *names]
    said = file.with_suffix(".stderr")
    timed_out = False
    with said.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=output, env={**os.environ, **(environment or {})}
        )
        try:
            code = process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            code, timed_out = process.wait(), True
    results, begun = read(file)
    if code != 0:
        tail = said.read_text(encoding="utf-8", errors="replace")[-1500:].strip()
        results.errors.append(
            f"{script.name} ended with code {code}{' (the time was up)' if timed_out else ''}: {tail}"
        )
    if begun is not None and begun not in results.by_step and not timed_out:
        results.by_step[begun] = lost(begun, f"its process ended with code {code}")
    return results


def read(file: Path) -> tuple[Results, str | None]:
    """What ``file`` has, and the step that was begun last."""
    results, begun = Results(), None
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the process ended while it wrote this
            continue
        if "begun" in entry:
            begun = entry["begun"]
        elif "machine" in entry:
            results.machine |= entry["machine"]
        else:
            (result,) = entry.values()
            results.by_step[result["step"]] = result
    return results, begun


def lost(step: str, error: str) -> dict[str, Any]:
    """The result of a step that ended its process."""
    return {**not_run(step), "outcome": "lost", "error": error}


def not_run(step: str) -> dict[str, Any]:
    """The result, from CUDA or of the tool, of a step that did not have its turn."""
    of_cuda = {"outcome": "not run", "apart": [], "cold": None, "cold_error": "", "overwritten": None, "leak": None}
    return {"step": step, "error": "the time was up", "found": [], "seconds": 0.0, **of_cuda}
