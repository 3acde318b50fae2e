"""Why Dynamo compiled something again, taken apart: which guard failed, on what, and where it comes from.

    0/1: self.k == 3      # self.k += 1  # here/step.py:39 in forward (HINT: ...)
    0/1: tensor 'x' size mismatch at index 0. expected 1, actual 2

A reason names the newest compiled form first; that one tells what the last call was compiled for.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass

from ostinato.graphs.inspect.dynamo.break_text import unresumed
from ostinato.graphs.inspect.dynamo.dynamo_log import DynamoLog, Record
from ostinato.graphs.inspect.source import Place, is_users

_FRAME = re.compile(r'File "(.+?)", line (\d+), in (\S+)')
_COMMENT = re.compile(r"# (\S+?):(\d+) in (\S+)")
_TENSOR = re.compile(r"tensor '(?P<what>.+?)' (?P<kind>.+?) mismatch(?: at index (?P<index>\d+))?"
                     r"(?:\. expected (?P<old>.+?), actual (?P<new>.+?))?\.?$")  # fmt: skip
_EQUAL = re.compile(r"^(?P<what>.+?) == (?P<old>.+)$")
_KINDS = (
    ("module-attribute", r"integer attributes of the nn\.Module"),
    ("identity", r"___check_obj_id|___check_current_device|\bid\(|is not None|BACKEND_MATCH"),
    ("type", r"___check_type_id|isinstance|type\("),
    ("length", r"^(not )?len\(|___dict_contains|___key_to|list\(.*keys|^not [\w.\[\]']+$"),
    ("mode", r"GLOBAL_STATE|grad_mode|___check_global_state|torch_function|inference_mode|autocast"),
    ("freed", r"invalidated because"),
)
"""What a guard that is neither of a tensor nor an equality is about."""
_SIZES = ("size", "rank", "stride", "shape")


@dataclass(frozen=True)
class FailedGuard:
    """The guard of one compiled form that did not hold."""

    text: str
    kind: str
    """size, rank, stride, dtype, requires_grad, value, module-attribute, identity, type, length, mode, freed, other."""
    what: str
    """The expression it looks at, as the function names it."""
    old: str | None
    new: str | None
    place: Place | None
    """The line of the user's that made the guard."""

    @property
    def of_size(self) -> bool:
        """Whether it is about the shape of a tensor."""
        return self.kind in _SIZES


@dataclass(frozen=True)
class Recompile:
    """One compilation of what was compiled before."""

    call: int
    frame: int | None
    failed: FailedGuard
    at_limit: bool
    """Whether there were as many forms as allowed: nothing is compiled any more, it runs uncompiled."""


def recompiles(log: DynamoLog) -> list[Recompile]:
    """All of a log, in order."""
    at_limit = {(record.frame, record.attempt) for record in log.named("compilation_metrics") if _hit_limit(record)}
    files = sorted({str(record.fields.get("co_filename")) for record in log.named("compilation_metrics")})
    found = []
    for record in log.named("recompile_reasons"):
        failed = _parse(_newest(record.text), files)
        if failed.new is None:
            failed = _with_new(failed, record, log)
        found.append(Recompile(record.call, record.frame, failed, (record.frame, record.attempt) in at_limit))
    return found


def _hit_limit(record: Record) -> bool:
    return "recompile limit exceeded" in str(record.fields.get("fail_reason") or "")


def _newest(text: str) -> str:
    """Of several reasons (a JSON list, newest form first), the first."""
    if text.lstrip().startswith("["):
        reasons = json.loads(text)
        return str(reasons[0]) if reasons else ""
    return text


def _parse(reason: str, files: list[str]) -> FailedGuard:
    first, *rest = re.sub(r"^\d+/\d+(_\d+)?: ", "", reason.strip()).splitlines() or [""]
    guard = _plain(first.split("  # ")[0])
    place = _innermost(_FRAME.findall("\n".join(rest))) or _from_comment(first, files)
    if match := _TENSOR.search(guard):
        what = match["what"] + (f".size({match['index']})" if match["kind"] == "size" else "")
        return FailedGuard(guard, match["kind"].strip().replace(" ", "-"), what, match["old"], match["new"], place)
    kind = next((name for name, pattern in _KINDS if re.search(pattern, first)), None)
    match = _EQUAL.match(guard)
    what, old = (match["what"], match["old"]) if match else (guard, None)
    if kind is None and "size()" in guard:
        kind = "size"
    return FailedGuard(guard, kind or ("value" if match else "other"), what, old, None, place)


def _innermost(frames: list[tuple[str, str, str]]) -> Place | None:
    places = [Place(file, int(line), unresumed(name)) for file, line, name in frames]
    return next((place for place in reversed(places) if is_users(place.file)), None)


def _from_comment(line: str, files: list[str]) -> Place | None:
    """The comment has the end of the path only: of one of ``files``, or of a module's."""
    match = _COMMENT.search(line)
    if match is None:
        return None
    modules = sorted(str(getattr(module, "__file__", None)) for module in list(sys.modules.values()))
    whole = next((file for file in [*files, *modules] if file.endswith(match[1])), match[1])
    return Place(whole, int(match[2]), unresumed(match[3]))


def _with_new(failed: FailedGuard, record: Record, log: DynamoLog) -> FailedGuard:
    """The value that the new form was compiled for: of its symbol, or of its own guard."""
    wanted = _plain(failed.what)
    for other in log.named("create_symbol", "dynamo_cpp_guards_str"):
        if (other.frame, other.attempt) != (record.frame, record.attempt):
            continue
        new = _value_of_symbol(wanted, other) or _value_in_guards(wanted, other.text)
        if new is not None:
            return FailedGuard(failed.text, failed.kind, failed.what, failed.old, new, failed.place)
    return failed


def _value_of_symbol(wanted: str, record: Record) -> str | None:
    return str(record.fields.get("val")) if _plain(str(record.fields.get("source", ""))) == wanted else None


def _value_in_guards(wanted: str, guards: str) -> str | None:
    for line in guards.splitlines():
        expression, equal, value = line.partition(" == ")
        if equal and _plain(expression.rpartition(": ")[2]) == wanted:
            return value.split("  #")[0].strip()
    return None


def _plain(expression: str) -> str:
    """``L['x']`` as ``x``, and a global so too."""
    return re.sub(r"\b[LG]\['(\w+)'\]", r"\1", expression).strip()
