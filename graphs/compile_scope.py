"""The surroundings in which Inductor compiles for us: its cache folder, no worker processes, everything restored after.

What belongs to the process (environment variables, the pool of compile threads) is set by the first scope and restored
by the last, however many engines compile at a time; Inductor's settings belong to a thread, and each restores its own.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import torch


def cache_folder() -> Path:
    """Where compiled code persists: ``TORCHINDUCTOR_CACHE_DIR`` if set, else a private folder of the user's cache."""
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "ostinato" / f"inductor-{torch.__version__}"


class _Scope:
    """The process-wide state of ``compile_scope``: entered once, however many engines compile at a time."""

    lock = threading.Lock()
    depth = 0
    restore = contextlib.ExitStack()


@contextlib.contextmanager
def compile_scope() -> Iterator[None]:
    """Inductor with its cache in ``cache_folder()`` and without worker processes; environment and settings restored.

    The C++ kernels of one function compile side by side, in threads that end with the scope.
    """
    with _Scope.lock:
        if _Scope.depth == 0:
            _Scope.restore = contextlib.ExitStack()
            _Scope.restore.enter_context(_process_settings())
        _Scope.depth += 1
    try:
        with _thread_settings():
            yield
    finally:
        with _Scope.lock:
            _Scope.depth -= 1
            if _Scope.depth == 0:
                _Scope.restore.__exit__(*sys.exc_info())


@contextlib.contextmanager
def _thread_settings() -> Iterator[None]:
    """Inductor's settings, which torch keeps per thread: entered and restored in the same one."""
    import torch._inductor.config as inductor_config

    threads = 1 if torch.cuda.is_available() else max(1, min(8, os.cpu_count() or 1))  # more would mean processes there
    if inductor_config.compile_threads == threads:
        yield
        return
    with inductor_config.patch(compile_threads=threads):
        yield


@contextlib.contextmanager
def _process_settings() -> Iterator[None]:
    from torch._inductor.async_compile import AsyncCompile
    from tqdm import tqdm

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    before = _inductor_variables()
    os.environ.update(TORCHINDUCTOR_CACHE_DIR=str(folder), TORCH_WARM_POOL="0")
    had_pool = AsyncCompile.pool.cache_info().currsize
    monitor, tqdm.monitor_interval = tqdm.monitor_interval, 0  # Inductor's bar would start tqdm's monitor thread
    completed = False
    try:
        yield
        completed = True
    finally:
        tqdm.monitor_interval = monitor
        if AsyncCompile.pool.cache_info().currsize > had_pool:
            AsyncCompile.pool().shutdown(wait=completed, cancel_futures=True)  # Ctrl-C waits for no compiler
            AsyncCompile.pool.cache_clear()
        for name in _inductor_variables().keys() - before.keys():
            del os.environ[name]  # Inductor hands addresses to what it loads this way
        os.environ.update(before)


def _inductor_variables() -> dict[str, str]:
    """What Inductor reads and sets; it points Triton's cache into its own."""
    others = ("TORCH_WARM_POOL", "TRITON_CACHE_DIR")
    return {name: value for name, value in os.environ.items() if "TORCHINDUCTOR" in name or name in others}
