"""What torch.compile says while it traces, heard from its structured trace: breaks, failed guards, frames, phases.

    with listening() as log:
        compiled(*inputs)
    log.artifacts("dynamo_graph_break_reason")

Torch writes these records for ``TORCH_TRACE``; here a handler of our own takes the place of the others, so that the
host's trace file gets nothing of ours, and puts them back. Knows what the records are called, not what they mean.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch._logging.structured as structured

_KINDS = ("compilation_metrics", "create_symbol", "chromium_event")
_ARTIFACTS = ("dynamo_graph_break_reason", "recompile_reasons", "dynamo_error", "dynamo_cpp_guards_str")
_CACHES = ("fx_graph_cache_", "aotautograd_cache_")
_TRACE = "torch.__trace"


@dataclass(frozen=True)
class Record:
    """One thing that was said."""

    name: str
    """Of the artifact, or of the record's kind."""
    call: int
    """``DynamoLog.call`` at that time."""
    frame: int | None
    """Dynamo's number of the function, or of the rest of a function after a break."""
    attempt: int | None
    """The how many-th compilation of that frame, from 0."""
    fields: dict[str, Any]
    text: str


@dataclass
class DynamoLog:
    """Records in order. ``call`` is set by whoever runs the compiled function, to tell its calls apart."""

    call: int = 0
    records: list[Record] = field(default_factory=list)

    def named(self, *names: str) -> list[Record]:
        """Those records, in order."""
        return [record for record in self.records if record.name in names]

    def starting(self, prefix: str) -> list[Record]:
        """The records whose names begin with ``prefix``."""
        return [record for record in self.records if record.name.startswith(prefix)]


class _Ear(logging.Handler):
    def __init__(self, log: DynamoLog) -> None:
        super().__init__()
        self._log = log
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        metadata: dict[str, Any] = getattr(record, "metadata", {})
        kind = next(iter(metadata), "")
        name = metadata[kind].get("name", "") if kind == "artifact" else kind
        heard = kind in _KINDS or name in _ARTIFACTS or name.startswith(_CACHES)
        if not heard or (kind != "chromium_event" and record.thread != self._thread):
            return  # another thread of the host's compiles too; only phases of compilers run in threads of ours
        fields = metadata[kind] if isinstance(metadata[kind], dict) else {}
        frame, attempt = metadata.get("frame_id"), metadata.get("frame_compile_id")
        text = getattr(record, "payload", None) or ""
        self._log.records.append(Record(name, self._log.call, frame, attempt, fields, text))


@contextlib.contextmanager
def listening() -> Iterator[DynamoLog]:
    """What is compiled inside is heard; handlers, levels and torch's table of strings are as before afterwards."""
    logger = logging.getLogger(_TRACE)
    handlers, level, interned = logger.handlers[:], logger.level, dict(structured.INTERN_TABLE)
    log = DynamoLog()
    logger.handlers[:] = [_Ear(log)]
    logger.setLevel(logging.DEBUG)
    try:
        with _without_warnings(), _not_disabled():
            yield log
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        structured.INTERN_TABLE.clear()
        structured.INTERN_TABLE.update(interned)  # a trace file of the host's would name strings that it never got


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Dynamo prints no warnings meanwhile about what the report says; what ``TORCH_LOGS`` asked for is printed."""
    logger = logging.getLogger("torch._dynamo")
    handlers, propagate = logger.handlers[:], logger.propagate
    logger.handlers[:] = [logging.NullHandler()]
    logger.propagate = False
    try:
        yield
    finally:
        logger.handlers[:] = handlers
        logger.propagate = propagate


@contextlib.contextmanager
def _not_disabled() -> Iterator[None]:
    """``logging.disable`` would make torch 2.11 skip its trace as well."""
    manager = logging.root.manager
    disabled = manager.disable
    logging.disable(logging.NOTSET)
    try:
        yield
    finally:
        logging.disable(disabled)
