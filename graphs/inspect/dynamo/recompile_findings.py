"""What is said of recompilations: which line, which guard, how often, and what keeps it from happening.

error: again at every step (twice or more without a new batch size), or often enough that torch.compile gives up.
warning: once for a value that changed between steps, or for each of several batch sizes. info: once for the first new
batch size, after which the size is symbolic.
"""

from __future__ import annotations

import re
from collections import defaultdict

from ostinato.graphs.inspect.dynamo.break_text import unresumed
from ostinato.graphs.inspect.dynamo.guards import FailedGuard, Recompile, recompiles
from ostinato.graphs.inspect.dynamo.walk import Walk
from ostinato.graphs.inspect.report import Finding, Severity
from ostinato.graphs.inspect.source import Place, is_users

_FIXES = {
    "size": "torch._dynamo.mark_dynamic({tensor}, {dim}) before the first call, or call every size once at start-up; "
    "batch size 1 is always a form of its own: pad it to 2",
    "growing": "keep {tensor} at its largest size and write into it (a static cache): a shape that changes from step "
    "to step cannot be in a CUDA graph either",
    "stride": "make it contiguous before the step, always in the same layout",
    "rank": "always pass the same number of dimensions",
    "value": "make {what} a 0-dimensional tensor that the step reads, or a constant; an int used in arithmetic only is "
    "made symbolic at its second value",
    "module-attribute": "keep {what} in a tensor (register_buffer) and change it with add_; integers of a module are "
    "constants to torch.compile unless torch._dynamo.config.allow_unspec_int_on_nn_module is set",
    "identity": "pass the same object at every step; what changes goes in as a tensor",
    "type": "always pass the same type",
    "length": "fix the length or the keys: pad the list, or one stacked tensor instead of it",
    "mode": "enter the mode (no_grad, inference_mode, autocast) around every call, the first included",
    "freed": "keep the object alive that the compiled form was made for",
    "dtype": "always pass the same dtype",
    "requires_grad": "run under torch.inference_mode(), and detach() what comes in",
    "other": "keep what this guard looks at the same from step to step",
}
_Key = tuple[str, int | None, str]


def recompile_findings(walk: Walk) -> list[Finding]:
    """One finding for each cause."""
    functions = _functions(walk)
    causes: dict[_Key, list[Recompile]] = defaultdict(list)
    for each in recompiles(walk.log):
        causes[_cause(each, walk, functions)].append(each)
    return [_finding(events, walk, functions) for events in causes.values()]


def recompiles_by_size(walk: Walk) -> dict[str, int]:
    """How many compilations followed the first, by the batch size of the call."""
    count = {str(call.batch_size): 0 for call in walk.calls}
    for each in recompiles(walk.log):
        if each.call < len(walk.calls):
            count[str(walk.calls[each.call].batch_size)] += 1
    return count


def _functions(walk: Walk) -> dict[int | None, Place]:
    """Which function each of Dynamo's frames is, or is the rest of."""
    found: dict[int | None, Place] = {}
    for record in walk.log.named("compilation_metrics"):
        file, line, name = (record.fields.get(key) for key in ("co_filename", "co_firstlineno", "co_name"))
        if file is None or record.frame in found:
            continue
        own = Place(str(file), int(line or 0), unresumed(str(name)))
        found[record.frame] = own if is_users(own.file) else walk.subject.place or own
    return found


def _cause(each: Recompile, walk: Walk, functions: dict[int | None, Place]) -> _Key:
    """All sizes of one function are one cause: a new batch size changes every tensor in it. So may a step: another."""
    function = functions.get(each.frame)
    file = function.file if function else ""
    if each.failed.of_size:
        return file, None, f"{function.function if function else ''} {_is_new_size(each, walk)}"
    place = each.failed.place or function
    what = re.sub(r"\[\d+\]", "[…]", each.failed.what)  # each element of a list has a guard of its own
    return place.file if place else file, place.line if place else None, what


def _is_new_size(each: Recompile, walk: Walk) -> bool:
    return each.call < len(walk.calls) and walk.calls[each.call].new_size


def _finding(events: list[Recompile], walk: Walk, functions: dict[int | None, Place]) -> Finding:
    first = _telling(events)
    function = functions.get(first.frame)
    place = first.failed.place or function
    name = function.function if function else walk.subject.function.__name__
    severity, how_often = _how_often(events, walk)
    changes = ", ".join(dict.fromkeys(_change(each.failed) for each in events))
    message = walk.subject.named(f"`{name}` is compiled again {how_often}: {_says(first.failed)}")
    times = len({each.call for each in events})
    evidence = f"{times} of {len(walk.calls)} calls compiled again; failed guards: {walk.subject.named(changes)}"
    at = place.at if place else None
    return Finding.of(
        "recompile", severity, at, message, "torch.compile", evidence, walk.subject.named(_fix(first, walk))
    )


def _telling(events: list[Recompile]) -> Recompile:
    """The event to report: of sizes, one of an argument whose old and new value are known."""
    return next((each for each in events if each.failed.old and each.failed.new), events[0])


def _how_often(events: list[Recompile], walk: Walk) -> tuple[Severity, str]:
    if any(each.at_limit for each in events):
        return "error", f"until the limit of {walk.recompile_limit}, from where on it runs uncompiled without a word"
    calls = [walk.calls[index] for index in sorted({each.call for each in events}) if index < len(walk.calls)]
    at_steps = [call for call in calls if not call.new_size]
    if len(at_steps) > 1:
        return "error", f"{len(at_steps)} times without a new batch size"
    if at_steps:
        return "warning", "when a value changes between two steps"
    sizes = ", ".join(str(call.batch_size) for call in calls)
    if len(calls) > 1:
        return "warning", f"for each new batch size ({sizes})"
    return "info", f"once, for batch size {sizes}, after which the size is symbolic"


def _says(failed: FailedGuard) -> str:
    if failed.old is not None and failed.new is not None:
        return f"{failed.what} went from {failed.old} to {failed.new}"
    if failed.old is not None:
        return f"{failed.what} is no longer {failed.old}"
    return f"the guard `{failed.text}` failed"


def _change(failed: FailedGuard) -> str:
    values = f" ({failed.old} -> {failed.new})" if failed.old is not None and failed.new is not None else ""
    return f"`{failed.text}`{values if failed.kind != 'size' or 'mismatch' not in failed.text else ''}"


def _fix(each: Recompile, walk: Walk) -> str:
    failed = each.failed
    tensor, _, dim = failed.what.partition(".size(")
    grows = failed.of_size and not _is_new_size(each, walk)
    fix = _FIXES["growing"] if grows else _FIXES.get(failed.kind, _FIXES["other"])
    return fix.format(what=failed.what, tensor=tensor, dim=dim.rstrip(")") or "dim")
