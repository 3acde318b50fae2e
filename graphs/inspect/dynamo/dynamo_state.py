"""What of torch.compile belongs to the host: compiled code, counters, what it learnt. Put back after we compiled.

Functions that nobody compiled before are uncompiled again. Where a function was compiled by the host already and is
compiled once more by us (it is called after a graph break), only our entries are invalidated; they go on counting
towards the host's ``recompile_limit`` for that function.
"""

from __future__ import annotations

import collections
import contextlib
import copy
from collections.abc import Iterator
from types import CodeType
from typing import Any

import torch
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list, reset_code
from torch._dynamo import config, convert_frame, guards, pgo, utils
from torch._dynamo.resume_execution import ContinueExecutionCache

_CONTAINERS = (
    "counters",
    "graph_break_reasons",
    "guard_failures",
    "compilation_time_metrics",
    "_compilation_metrics",
    "warn_once_cache",
)


@contextlib.contextmanager
def hosts_state_kept() -> Iterator[None]:
    """Compile inside as if nothing had been compiled, and leave the process as it was."""
    settings = {"automatic_dynamic_local_pgo": False, "automatic_dynamic_remote_pgo": False}
    with contextlib.ExitStack() as stack:
        stack.enter_context(config.patch({k: v for k, v in settings.items() if hasattr(config, k)}))
        stack.enter_context(torch.compiler.set_stance("default"))
        for container in _containers():
            stack.enter_context(_kept(container))
        stack.enter_context(_shapes_forgotten())
        stack.enter_context(_codes_forgotten())
        yield


def _containers() -> Iterator[Any]:
    for name in _CONTAINERS:
        if (container := getattr(utils, name, None)) is not None:
            yield container
    yield utils.graph_break_dup_warning_checker.set


@contextlib.contextmanager
def _kept(container: Any) -> Iterator[None]:
    """A dict, list, set or deque holds afterwards what it held before."""
    is_dict = isinstance(container, dict)
    before = {k: copy.copy(v) for k, v in container.items()} if is_dict else list(container)
    try:
        yield
    finally:
        container.clear()
        extend = container.extend if isinstance(container, list | collections.deque) else container.update
        extend(before)


@contextlib.contextmanager
def _shapes_forgotten() -> Iterator[None]:
    """Which sizes were seen to change is kept by file and line: a copy of a function shares it with the original."""
    names = ("_CODE_STATE", "_INIT_CODE_STATE")
    before = {name: getattr(pgo, name) for name in names}
    for name in names:
        setattr(pgo, name, None)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(pgo, name, value)


@contextlib.contextmanager
def _codes_forgotten() -> Iterator[None]:
    hosts = {id(code): code for code in _seen()}
    managers = {key: [entry.guard_manager for entry in _entries(code)] for key, code in hosts.items()}
    try:
        yield
    finally:
        for code in _seen():
            if id(code) not in hosts:
                _uncompile(code)
        for key, code in hosts.items():
            _invalidate_others(code, managers[key])
        for tracker in (convert_frame.input_codes, convert_frame.output_codes):
            _forget_others(tracker, hosts)


def _seen() -> list[CodeType]:
    """Code that Dynamo was asked to compile, or made."""
    references = [*convert_frame.input_codes.seen, *convert_frame.output_codes.seen]
    return [code for reference in references if (code := reference()) is not None]


def _entries(code: CodeType) -> list[Any]:
    return list(_debug_get_cache_entry_list(code))


def _uncompile(code: CodeType) -> None:
    """Forget its compiled forms, its rests, and the names they put into modules: torch keeps each by the other."""
    reset_code(code)
    for table in (utils.CleanupManager.instance, ContinueExecutionCache.cache, _rests()):
        if code in table:
            table._remove_id(id(code))


def _rests() -> Any:
    return getattr(ContinueExecutionCache, "generated_code_metadata", ())


def _invalidate_others(code: CodeType, managers: list[Any]) -> None:
    for entry in _entries(code):
        manager: Any = entry.guard_manager
        if not any(manager is known for known in managers) and manager.extra_state is not None:
            none = guards.DeletedGuardManagerWrapper("compiled for a report")
            manager.extra_state.invalidate(manager.cache_entry, none)


def _forget_others(tracker: Any, hosts: dict[int, CodeType]) -> None:
    ours = [code for reference in tracker.seen if (code := reference()) is not None and id(code) not in hosts]
    tracker.seen[:] = [reference for reference in tracker.seen if id(reference()) in hosts]
    tracker.seen_ids.difference_update(map(id, ours))
