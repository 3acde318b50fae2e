"""How many compiled forms of our kernels there are: none may be added while an engine serves.

Triton compiles a kernel at its first launch with new types, constants or alignments. Each compiled form stays in its
function's cache, so the caches are counted; a process-wide hook, which a host may want for itself, is left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

PACKAGE = "ostinato.layers.kernels."


def kernel_functions() -> tuple[Any, ...]:
    """Every ``@triton.jit`` function in the kernel modules imported so far; none in Triton's interpreter."""
    triton = sys.modules.get("triton")
    if triton is None:
        return ()
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(PACKAGE)]
    values = (value for module in modules for value in vars(module).values())
    return tuple({id(value): value for value in values if isinstance(value, triton.runtime.JITFunction)}.values())


def compiled_forms(functions: Iterable[Any]) -> int:
    """Compiled forms of ``functions`` on all devices.

    Each has a cache per device, a tuple whose first part maps types, constants and alignments to a compiled form.
    """
    return sum(len(cache[0]) for function in functions for cache in function.device_caches.values())
