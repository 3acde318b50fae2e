"""The tool on the gallery: reports of a step, which of its faults they hold, and the counts for the documentation."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterable

import torch

from gallery.index import Command, Fault, Step
from ostinato.graphs import inspect
from ostinato.graphs.inspect import Finding, Report

BATCH_SIZE = 4


def look(step: Step, command: Command) -> Report:
    """What ``command`` says of ``step``, imported anew; what the step prints is dropped."""
    torch.compiler.reset()
    target = inspect.load_target(f"{step.path}:step")
    with contextlib.redirect_stdout(io.StringIO()):
        if command == "lint":
            return inspect.lint(target.function, target.make_inputs, batch_sizes=(BATCH_SIZE,))
        if command == "breaks":
            return inspect.breaks(target.function, target.make_inputs, batch_sizes=(1, 2, BATCH_SIZE))
        return inspect.emulate(
            target.function, target.make_inputs, batch_size=2 * BATCH_SIZE, steps=3, poison_padding=True
        )


@functools.cache
def findings(step: Step) -> tuple[Finding, ...]:
    """What all of the step's commands find; looked at once in a process."""
    return tuple(finding for command in step.commands for finding in look(step, command).findings)


def missed(step: Step, found: Iterable[Finding]) -> tuple[Fault, ...]:
    """The faults of ``step`` that are not among ``found``: right code, right line."""
    places = {(finding.code, finding.line) for finding in found if finding.file == str(step.path)}
    return tuple(
        fault for fault in step.faults if not places & {(code, line) for code in fault.codes for line in fault.lines}
    )


def alarms(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings that ask somebody to act: errors and warnings."""
    return tuple(finding for finding in found if finding.severity != "info")
