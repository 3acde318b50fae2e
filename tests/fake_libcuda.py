"""A CUDA driver for tests: ``fake_libcuda.c`` compiled against the cuda.h that triton brings along.

Its graph has the handle ``GRAPH`` and is being captured on ``STREAM``; nodes: a kernel with arguments, a kernel with
a blob, a copy from the host, a memset, a child graph, a conditional, an empty one, a kernel by ``CUkernel``, one of a
type that is not known yet.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

GRAPH, STREAM, NODES = 5, 77, 9


@functools.cache
def fake_libcuda(old: bool = False) -> str:
    """Path of the library; skips the test where there is no compiler or no header."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    header = pytest.importorskip("triton").__path__[0] + "/backends/nvidia/include"
    if compiler is None or not Path(header, "cuda.h").exists():
        pytest.skip("needs a C compiler and triton's cuda.h")
    folder = tempfile.mkdtemp(prefix="ostinato-fake-cuda-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder, "libcuda.so")
    source = Path(__file__).with_name("fake_libcuda.c")
    options = ["-shared", "-fPIC", "-w", "-I", header, *(["-DOLD"] if old else [])]
    subprocess.run([compiler, *options, str(source), "-o", str(path)], check=True)
    return str(path)


class Fake:
    """What a test sets of it; back to the defaults by ``reset``."""

    def __init__(self, path: str) -> None:
        self.library: Any = ctypes.CDLL(path)

    def buffers(self, weight: int, x: int) -> None:
        self.library.fake_buffers(ctypes.c_uint64(weight), ctypes.c_uint64(x))

    def reset(self) -> None:
        self.library.fake_show(NODES)
        self.library.fake_reverse(0)
        self.library.fake_fail_edges(0)
        self.library.fake_capturing(1)
        self.buffers(0, 0)
