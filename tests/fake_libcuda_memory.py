"""A CUDA driver's memory for tests: ``fake_libcuda_memory.c`` compiled against the cuda.h that triton brings along.

``install`` puts it under ``graphs.regions``: a region for a GPU is then one of this process, whose addresses fault
while it is released.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ostinato.graphs import device_memory, regions

UNIT = 65536
GPU = torch.device("cuda", 0)


@functools.cache
def library() -> str:
    """Its path; skips the test where there is no compiler or no header."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    header = pytest.importorskip("triton").__path__[0] + "/backends/nvidia/include"
    if compiler is None or not Path(header, "cuda.h").exists():
        pytest.skip("needs a C compiler and triton's cuda.h")
    folder = tempfile.mkdtemp(prefix="ostinato-fake-memory-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder, "libcuda.so")
    source = Path(__file__).with_name("fake_libcuda_memory.c")
    command = [compiler, "-shared", "-fPIC", "-Werror=incompatible-pointer-types", "-I", header]
    subprocess.run([*command, str(source), "-o", str(path)], check=True)
    return str(path)


class Driver:
    """What a test sets and asks."""

    def __init__(self) -> None:
        gc.collect()  # what an earlier test left
        self._library: Any = ctypes.CDLL(library())
        for name in ("fake_reserved", "fake_taken"):
            getattr(self._library, name).restype = ctypes.c_size_t
        self.limit(-1)
        self.unsupported(False)
        self.fail_access(0)

    def limit(self, num_bytes: int) -> None:
        self._library.fake_limit(ctypes.c_size_t(num_bytes))

    def unsupported(self, on: bool) -> None:
        self._library.fake_unsupported(int(on))

    def fail_access(self, status: int) -> None:
        self._library.fake_fail_access(status)

    @property
    def reserved(self) -> int:
        return int(self._library.fake_reserved())

    @property
    def taken(self) -> int:
        return int(self._library.fake_taken())


class _Stream:
    def synchronize(self) -> None:
        pass


def _tensor_at(memory: Any, start: int, size: int, device: torch.device) -> Tensor:
    buffer = (ctypes.c_ubyte * size).from_address(memory.address + start)
    buffer.memory = memory  # type: ignore[attr-defined]  # the tensor keeps the buffer, the buffer the memory
    return torch.frombuffer(buffer, dtype=torch.uint8)


def install(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Regions for ``GPU`` come from the fake driver, and their tensors say that they are on the CPU."""
    monkeypatch.setattr(device_memory, "LIBRARY", library())
    monkeypatch.setattr(regions, "_tensor_at", _tensor_at)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: _Stream())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return Driver()
