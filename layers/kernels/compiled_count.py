"""How many compiled forms of our kernels there are: none may be added while an engine serves.

Triton compiles a kernel at its first launch with new types, constants or alignments. Each compiled form stays in its
function's cache, so the caches are counted; a process-wide hook, which a host may want for itself, is left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

PACKAGE = "ostinato.layers.kernels."


def compiled_kernels() -> int:
    """Compiled forms of all our kernels in this process; 0 in Triton's interpreter."""
    return sum(_forms(function) for function in _functions())


def _functions() -> Iterator[Any]:
    """Every ``@triton.jit`` function in the kernel modules that were imported."""
    triton = sys.modules.get("triton")
    if triton is None:
        return
    seen: set[int] = set()
    for name, module in list(sys.modules.items()):
        for value in vars(module).values() if name.startswith(PACKAGE) else ():
            if isinstance(value, triton.runtime.JITFunction) and id(value) not in seen:
                seen.add(id(value))
                yield value


def _forms(function: Any) -> int:
    """Entries of a function's caches, one per device; each is a tuple whose first part maps keys to compiled forms."""
    return sum(len(cache[0]) for cache in function.device_caches.values())
