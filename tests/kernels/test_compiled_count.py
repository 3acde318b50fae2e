"""Compiled forms of kernels are counted where Triton keeps them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from types import ModuleType

import pytest
import triton

from ostinato.layers.kernels.compiled_count import PACKAGE, compiled_forms, kernel_functions

pytestmark = pytest.mark.kernels


def some_kernel(x, size):  # type: ignore[no-untyped-def]
    pass


def test_each_compiled_form_of_each_of_our_kernels_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(kernel_functions())
    kernel = triton.runtime.JITFunction(some_kernel)
    ours, other = ModuleType(f"{PACKAGE}made_up"), ModuleType("somebody_elses_kernels")
    ours.kernel = ours.the_same_again = other.kernel = kernel
    for module in (ours, other):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    assert len(kernel_functions()) == before + 1
    assert compiled_forms(kernel_functions()) == 0
    form = object()  # a cache for each device: forms by their types and constants, then what makes them
    kernel.device_caches = {0: ({"fp32, 128": form, "bf16, 128": form}, {}), 1: ({"bf16, 128": form}, {})}
    assert compiled_forms(kernel_functions()) == 3


def test_counting_imports_no_triton() -> None:
    code = """
        import sys
        from ostinato.layers.kernels.compiled_count import kernel_functions
        assert kernel_functions() == ()
        assert "triton" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
