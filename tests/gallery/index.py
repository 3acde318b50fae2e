"""The gallery: steps with known faults, steps without one, public issues rebuilt; what is to be found, and how.

A step is a file with ``step`` and ``make_inputs(batch_size, variant=0)``: plain PyTorch that knows nothing of this
project. Its faulty lines say so:

    max_len = int(lens.max())  # FAULT: device-sync
    cache[slots] = key  # FAULT: out-of-slot-write, device-sync        both are to be found here
    table[rows]  # FAULT: cpu-tensor or host-to-device                 either is right
    a = x * 2  # FAULT: frozen-value (either)                          on this line, or on another so marked

Tensors that a module or ``make_inputs`` makes are on the default device: on a GPU, import and call them under
``torch.device("cuda")``, and the step outside of it. Batch sizes are 1, 2, 4 or 8, variants 0 to 3. This module knows
no torch.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["faulty", "clean", "issues"]
Command = Literal["lint", "breaks", "emulate --poison-padding"]

FOLDER = Path(__file__).parent
COMMANDS: dict[str, Command] = {
    "device-sync": "lint",
    "data-dependent-shape": "lint",
    "host-to-device": "lint",
    "cpu-tensor": "lint",
    "rng": "lint",
    "frozen-value": "lint",
    "graph-break": "breaks",
    "recompile": "breaks",
    "address-change": "lint",
    "freed-input": "lint",
    "output-overwritten": "lint",
    "padding-leak": "emulate --poison-padding",
    "out-of-slot-write": "lint",
    "warmup-dependent": "lint",
    "python-side-effect": "lint",
    "late-compile": "lint",
}
"""Which command finds which code; what a step of that code is looked at with."""

_MARK = re.compile(r"# FAULT: (?P<codes>[a-z-]+(?:(?:, | or )[a-z-]+)*)(?P<either> \(either\))?$")


@dataclass(frozen=True)
class Fault:
    """One thing to be found: any of ``codes`` on any of ``lines``."""

    codes: tuple[str, ...]
    lines: tuple[int, ...]

    @property
    def code(self) -> str:
        """The code under which it is counted."""
        return self.codes[0]


@dataclass(frozen=True)
class Step:
    """One file of the gallery."""

    path: Path
    kind: Kind
    faults: tuple[Fault, ...]

    @property
    def name(self) -> str:
        """As in ``faulty/rng_dropout``."""
        return f"{self.kind}/{self.path.stem}"

    @property
    def commands(self) -> tuple[Command, ...]:
        """What it is looked at with: those that find its faults; a clean one with all."""
        wanted = {COMMANDS[fault.code] for fault in self.faults} or set(COMMANDS.values())
        return tuple(sorted(wanted, key=list(COMMANDS.values()).index))

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self.path.read_text().partition('"""')[2].partition('"""')[0].splitlines()[0]


def faults_in(text: str) -> tuple[Fault, ...]:
    """The marks in a source; ``ValueError`` for a mark that cannot be read or names an unknown code."""
    faults: list[Fault] = []
    either: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, line in enumerate(text.splitlines(), 1):
        if "# FAULT" not in line:
            continue
        mark = _MARK.search(line)
        if mark is None or not set(re.split(", | or ", mark["codes"])) <= set(COMMANDS):
            raise ValueError(f"line {number}: {line.strip()!r} is no mark with known codes")
        for codes in mark["codes"].split(", "):
            if mark["either"]:
                either[tuple(codes.split(" or "))].append(number)
            else:
                faults.append(Fault(tuple(codes.split(" or ")), (number,)))
    return (*faults, *(Fault(codes, tuple(lines)) for codes, lines in either.items()))


def steps(*kinds: Kind) -> tuple[Step, ...]:
    """All steps of these kinds, by name."""
    paths = [(kind, path) for kind in kinds for path in sorted((FOLDER / kind).glob("*.py"))]
    return tuple(Step(path, kind, faults_in(path.read_text())) for kind, path in paths)
