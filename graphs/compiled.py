"""A function compiled exactly once, for one class of shapes, with nothing left to recompile it.

Each ``CompiledPiece`` owns a copy of its function's code object, so its compiled form is its engine's alone and dies
with it; a process may hold any number. Which dimensions are symbolic is said, not guessed: ``mark_dynamic`` fails the
compilation if one would be specialised. Dynamo's guards are dropped: what they would check on every call (modes,
shapes, the identity of modules) is fixed by the caller, who runs each piece under ``neutral_state`` and only ever with
the shape class it was compiled for, and Inductor's own checks of sizes and strides stay in place.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo.eval_frame import reset_code

from ostinato.layers.errors import CaptureError

SymbolicDims = Callable[..., Iterable[tuple[Tensor, int]]]
"""From a call's arguments: the (tensor, dimension) pairs whose size varies from call to call."""


def no_guards(guards: Sequence[object]) -> list[bool]:
    """Dynamo's ``guard_filter_fn``: keep none."""
    return [False for _ in guards]


class CompiledPiece:
    """``function`` under ``torch.compile(fullgraph=True)``; the first call compiles, every later one only runs."""

    def __init__(self, function: Callable[..., Any], symbolic: SymbolicDims) -> None:
        own = types.FunctionType(
            function.__code__.replace(),
            function.__globals__,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        own.__kwdefaults__ = function.__kwdefaults__
        self.name = function.__name__
        self._code = own.__code__
        self._symbolic = symbolic
        self._compiled = torch.compile(own, fullgraph=True, options={"guard_filter_fn": no_guards})
        self._call = self._compile
        self.compiles = 0
        # Dynamo's tables keep a code object and its compiled form alive through each other.
        weakref.finalize(self, reset_code, self._code).atexit = False

    def __call__(self, *args: Any) -> Any:
        """The function's result."""
        return self._call(*args)

    def _compile(self, *args: Any) -> Any:
        for tensor, dim in self._symbolic(*args):
            torch._dynamo.mark_dynamic(tensor, dim)
        with compile_scope():
            result = self._compiled(*args)
        if self.lost:
            raise CaptureError(f"{self.name}: torch.compile did not compile it (is it disabled in this process?)")
        self.compiles += 1
        self._call = self._compiled
        return result

    @property
    def lost(self) -> bool:
        """Whether there is no compiled form: before the first call, and after the host's ``torch._dynamo.reset()``."""
        return not torch._dynamo.eval_frame._debug_get_cache_entry_list(self._code)

    def compile_again(self) -> None:
        """Let the next call compile, as the first one did."""
        self._call = self._compile


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
            _Scope.restore.enter_context(_inductor_settings())
        _Scope.depth += 1
    try:
        yield
    finally:
        with _Scope.lock:
            _Scope.depth -= 1
            if _Scope.depth == 0:
                _Scope.restore.__exit__(*sys.exc_info())


@contextlib.contextmanager
def _inductor_settings() -> Iterator[None]:
    import torch._inductor.config as inductor_config
    from torch._inductor.async_compile import AsyncCompile
    from tqdm import tqdm

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    before = _inductor_variables()
    os.environ.update(TORCHINDUCTOR_CACHE_DIR=str(folder), TORCH_WARM_POOL="0")
    threads = 1 if torch.cuda.is_available() else max(1, min(8, os.cpu_count() or 1))  # more would mean processes there
    had_pool = AsyncCompile.pool.cache_info().currsize
    monitor, tqdm.monitor_interval = tqdm.monitor_interval, 0  # Inductor's bar would start tqdm's monitor thread
    with inductor_config.patch(compile_threads=threads):
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
    return {name: value for name, value in os.environ.items() if "TORCHINDUCTOR" in name or name == "TORCH_WARM_POOL"}


@contextlib.contextmanager
def toolchain_prepared() -> Iterator[None]:
    """Meanwhile, in a thread: what Inductor's first C++ compilation has to find out and make (vector ISA, header).

    That takes a compiler as long as several kernels do; it runs beside the loading of weights and the tracing.
    """
    with compile_scope():
        thread = threading.Thread(target=_compile_something, name="ostinato-toolchain", daemon=True)
        thread.start()
        yield
        thread.join()  # not where an error or Ctrl-C leads out: the compiler may take seconds yet


def _compile_something() -> None:
    from torch._inductor.codecache import CppPythonBindingsCodeCache
    from torch._inductor.exc import CppCompileError

    if cpp_compiler_problem() is not None:
        return
    _probe_vector_isas()
    source = '#include <torch/csrc/inductor/cpp_prefix.h>\nextern "C" void kernel(float* out) { out[0] = 0; }\n'
    with contextlib.suppress(CppCompileError):  # the first real kernel meets it too, and reports it
        CppPythonBindingsCodeCache.load_pybinding(["float*"], source)


def toolchain_failure(error: BaseException | None) -> str | None:
    """The C++ compiler's own complaint, if a compilation ended in ``error`` because of it; else None."""
    from torch._inductor.exc import CppCompileError

    while error is not None:
        if isinstance(error, CppCompileError):
            lines = [line.strip() for line in str(error).splitlines() if "error" in line.lower()]
            return (lines or ["it failed"])[-1][:200]
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
    return None


def _probe_vector_isas() -> None:
    """Let the compiler try the vector instruction sets of this processor side by side; Inductor alone asks in turn."""
    from torch._inductor import cpu_vec_isa

    if platform.machine() in ("x86_64", "AMD64"):
        flags = cpu_vec_isa.x86_isa_checker()
        candidates = [isa for isa in cpu_vec_isa.supported_vec_isa_list if set(str(isa).split()) <= set(flags)]
        with ThreadPoolExecutor(len(candidates) or 1) as pool:
            list(pool.map(bool, candidates))


def cpp_compiler_problem() -> str | None:
    """Why Inductor cannot compile for a CPU here (no C++ compiler), or None if it can."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        return str(error).splitlines()[0]
    return None
