"""A compiled function walked through what a server would call it with: every batch size, every variant, sizes again.

The backend is "eager": Dynamo traces, guards and breaks as it always does, and the graphs run as they are, so that only
Dynamo's own work is waited for. Where the last call still compiled something new, more variants follow, until nothing
more is compiled or the limit is reached at which torch.compile silently gives up.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ostinato.graphs.inspect.dynamo.dynamo_log import DynamoLog, listening
from ostinato.graphs.inspect.dynamo.dynamo_state import hosts_state_kept
from ostinato.graphs.inspect.dynamo.subject import Subject, subject_of
from ostinato.graphs.inspect.source import Place, is_users
from ostinato.graphs.inspect.target import Target, TargetError
from ostinato.graphs.inspect.time_limit import time_limit

TOOL = __file__
"""The file whose frame is the last of ours below the target's."""
_CALL_LIMIT = 180.0
"""Seconds that one call may take, compilation included."""
_LIMITS = ("recompile_limit", "cache_size_limit")


@dataclass(frozen=True)
class Call:
    """One call of the walk."""

    batch_size: int
    variant: int
    new_size: bool
    """Whether it is the first of its batch size."""
    seconds: float


@dataclass
class Walk:
    """What was called, and what was said meanwhile."""

    subject: Subject
    recompile_limit: int
    log: DynamoLog = field(default_factory=DynamoLog)
    calls: list[Call] = field(default_factory=list)
    failure: Exception | None = None
    """What the compiled function raised, where the same function uncompiled does not."""


def walk(target: Target, batch_sizes: Sequence[int], variants: int) -> Walk:
    """Run the script; the process is as before afterwards. ``TargetError`` if the target raises by itself."""
    subject = subject_of(target.function)
    with hosts_state_kept(), listening() as log:
        result = Walk(subject, _recompile_limit(), log)
        compiled = torch.compile(subject.function, backend="eager", dynamic=subject.dynamic)
        _walk(target, compiled, result, batch_sizes, variants)
    return result


def _walk(target: Target, compiled: Callable[..., Any], walk: Walk, sizes: Sequence[int], variants: int) -> None:
    seen: set[int] = set()
    script = [(size, variant) for size in sizes for variant in range(variants if target.has_variants else 2)]
    script += [(size, 0) for size in sizes]
    for size, variant in script:
        if not _call(target, compiled, walk, size, variant, size not in seen):
            return
        seen.add(size)
    if _compiling_calls(walk) < 2:
        return
    with contextlib.suppress(TargetError):  # these variants are ours: the target may not have that many
        for variant in range(variants, variants + walk.recompile_limit + 1):
            before = _compiling_calls(walk)
            if not _call(target, compiled, walk, sizes[-1], variant, False) or _compiling_calls(walk) == before:
                return


def _compiling_calls(walk: Walk) -> int:
    """How many calls compiled again although their batch size was not new: what a further token may do."""
    recompiled = {record.call for record in walk.log.named("recompile_reasons")}
    return sum(not call.new_size for index, call in enumerate(walk.calls) if index in recompiled)


def _call(target: Target, compiled: Callable[..., Any], walk: Walk, size: int, variant: int, new: bool) -> bool:
    """One call; False if the compiled function failed."""
    inputs = target.inputs(size, variant)
    walk.log.call = len(walk.calls)
    began = time.perf_counter()
    try:
        with time_limit(_CALL_LIMIT, f"{target.name}: compiling and running batch size {size}"):
            compiled(*inputs)
    except TargetError:
        raise
    except Exception as error:
        _raise_if_its_own(target, walk.subject, size, variant)
        walk.failure = error
    walk.calls.append(Call(size, variant, new, time.perf_counter() - began))
    return walk.failure is None


def _raise_if_its_own(target: Target, subject: Subject, size: int, variant: int) -> None:
    inputs = target.inputs(size, variant)
    try:
        subject.original(*inputs)
    except Exception as error:
        raise TargetError(f"{target.name}: {describe(error)} for batch size {size}, variant {variant}") from error


def describe(error: BaseException) -> str:
    """What was raised, and at which line of the user's."""
    traceback, place = error.__traceback__, None
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if is_users(code.co_filename):
            place = Place(code.co_filename, traceback.tb_lineno, code.co_qualname)
        traceback = traceback.tb_next
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"raised {type(error).__name__}{': ' + lines[0] if lines else ''}{f' at {place}' if place else ''}"


def _recompile_limit() -> int:
    """What torch calls ``recompile_limit`` now, and called ``cache_size_limit`` before."""
    return next(int(getattr(torch._dynamo.config, name)) for name in _LIMITS if hasattr(torch._dynamo.config, name))
