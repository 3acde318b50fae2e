"""The C++ toolchain: vector instructions are taken on trust, and the trust is not needed to be right."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ostinato.graphs.toolchain import cpp_compiler_problem

pytestmark = pytest.mark.skipif(
    cpp_compiler_problem() is not None or platform.machine() != "x86_64" or shutil.which("g++") is None,
    reason="needs g++ on x86-64, where Inductor asks the compiler",
)

SCRIPT = """
import json
from ostinato.graphs.compile_scope import compile_scope
from ostinato.graphs.toolchain import toolchain_prepared
from torch._inductor.cpu_vec_isa import pick_vec_isa, x86_isa_checker

with toolchain_prepared(True) as toolchain:
    failed = toolchain.trust_failed()
with compile_scope():
    print(json.dumps([failed, str(pick_vec_isa()), x86_isa_checker()]))
"""


def prepare(tmp_path: Path, refused: str) -> tuple[bool, str, list[str]]:
    """In a process whose g++ refuses the option ``refused``: trust failed, Inductor's choice, the processor's sets."""
    compiler = tmp_path / "bin" / "g++"
    compiler.parent.mkdir()
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *{refused}*) echo "error: {refused}" >&2; exit 1;; esac\n'
        f'exec {shutil.which("g++")} "$@"\n'
    )
    compiler.chmod(0o755)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "CXX"},
        "PATH": f"{compiler.parent}:{os.environ['PATH']}",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    failed, isa, flags = json.loads(done.stdout.splitlines()[-1])
    return failed, isa, flags


def test_a_compiler_that_cannot_make_the_widest_instructions_is_asked_again(tmp_path: Path) -> None:
    failed, isa, flags = prepare(tmp_path, "-mavx512f" if "avx512" in _flags() else "-mavx2")
    assert failed
    assert isa == ("avx2" if "avx512" in flags else "INVALID_VEC_ISA")


def _flags() -> list[str]:
    from torch._inductor.cpu_vec_isa import x86_isa_checker

    return x86_isa_checker()
