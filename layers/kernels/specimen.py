"""One compilation of a kernel, described without compiling it: what ``build`` compiles for each GPU and measures.

Each kernel module has ``specimens() -> list[Specimen]``. Knows no Triton: ``function`` is what ``@triton.jit`` gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Specimen:
    """A kernel with its argument types and its constants, as one launch of it would have them."""

    name: str
    """Unique among all kernels, such as ``decode-bf16-d128-b16-g8``: the key under which resources are recorded."""
    function: Any
    """The ``@triton.jit`` function."""
    signature: Mapping[str, str]
    """The type of every argument that is no constant: ``{"q": "*bf16", "stride": "i64", "scale": "fp32"}``."""
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    """The value of every constant argument, with those that Triton would make constant (None; an integer of 1)."""
    num_warps: int = 4
    num_stages: int = 2
    aligned: tuple[str, ...] = ()
    """Integer arguments that are multiples of 16, as Triton would find at launch. Pointers always are."""
