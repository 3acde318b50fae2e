"""The C++ toolchain that Inductor needs on a CPU: whether there is one, what it can do, and what it complained of."""

from __future__ import annotations

import contextlib
import platform
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ostinato.graphs.compile_scope import compile_scope

if TYPE_CHECKING:
    from torch._inductor.cpu_vec_isa import VecISA


class ToolchainPreparation:
    """Meanwhile, in a thread: what Inductor's first C++ compilation has to find out and make (vector ISA, header).

    That takes a compiler as long as several kernels do, so it runs beside the loading of weights and the tracing.
    Inductor alone begins by building and loading torch's vector code for each instruction set of the processor, in
    turn. Here the widest is taken on trust, and what is made first with it is the proof.
    """

    def __init__(self) -> None:
        self._trust_failed = False
        self._thread = threading.Thread(target=self._prepare, name="ostinato-toolchain", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until it is done."""
        self._thread.join()

    def trust_failed(self) -> bool:
        """Whether the vector instructions were not what they seemed: compile again, Inductor now asks for each."""
        self.join()
        return self._trust_failed

    def _prepare(self) -> None:
        from torch._inductor import cpu_vec_isa
        from torch._inductor.codecache import CppPythonBindingsCodeCache
        from torch._inductor.exc import CppCompileError

        if cpp_compiler_problem() is not None:
            return
        trusted = _trust_vector_isas()
        try:
            CppPythonBindingsCodeCache.load_pybinding(["float*"], _PROOF)
        except (CppCompileError, ImportError):  # the first real kernel meets it too, and reports it
            for isa in trusted:
                _forget(type(isa).__bool__)
            if trusted:
                _forget(cpu_vec_isa.valid_vec_isa_list)
                self._trust_failed = True


_PROOF = """
#include <torch/csrc/inductor/cpp_prefix.h>
extern "C" void kernel(float* out) {
#if INDUCTOR_USE_VECTOR_TYPES()
    at::vec::Vectorized<float>::loadu(out).exp().store(out);
#endif
}
"""


@contextlib.contextmanager
def toolchain_prepared(wanted: bool) -> Iterator[ToolchainPreparation | None]:
    """A preparation that has ended when the scope ends well; None where not ``wanted``."""
    if not wanted:
        yield None
        return
    with compile_scope():
        preparation = ToolchainPreparation()
        yield preparation
        preparation.join()  # not where an error or Ctrl-C leads out: the compiler may take seconds yet


def _trust_vector_isas() -> list[VecISA]:
    """Let Inductor take the processor's vector instruction sets as the compiler's, but for what is quick to ask."""
    import torch._inductor.config as inductor_config
    from torch._inductor import cpu_vec_isa

    if platform.machine() not in ("x86_64", "AMD64"):
        return []
    flags = set(cpu_vec_isa.x86_isa_checker())
    trusted = [isa for isa in cpu_vec_isa.supported_vec_isa_list if set(str(isa).split()) <= flags]

    def ask(isa: VecISA) -> bool:
        with inductor_config.patch({"cpp.vec_isa_ok": True}):
            return bool(isa)

    with ThreadPoolExecutor(len(trusted) or 1) as pool:
        list(pool.map(ask, trusted))
    with inductor_config.patch({"cpp.vec_isa_ok": True}):
        cpu_vec_isa.valid_vec_isa_list()
    return trusted


def _forget(cached: object) -> None:
    getattr(cached, "cache_clear", lambda: None)()


def toolchain_failure(error: BaseException | None) -> str | None:
    """The C++ compiler's own complaint, if a compilation ended in ``error`` because of it; else None."""
    from torch._inductor.exc import CppCompileError

    while error is not None:
        if isinstance(error, CppCompileError):
            lines = [line.strip() for line in str(error).splitlines() if "error" in line.lower()]
            return (lines or ["it failed"])[-1][:200]
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
    return None


def cpp_compiler_problem() -> str | None:
    """Why Inductor cannot compile for a CPU here (no C++ compiler), or None if it can."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        return str(error).splitlines()[0]
    return None
