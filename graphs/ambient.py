"""One ambient state for everything the engine runs, whatever the calling thread has switched on.

Gradient and inference mode, autocast, a default device and a default dtype all belong to the caller. They change what a
step computes or how it is compiled, so a step runs with all of them neutral and hands them back as they were. All but
one belong to the calling thread; the default dtype is the process's, so where the host has set another one, its other
threads see float32 during a step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.overrides import _get_current_function_mode_stack


@contextlib.contextmanager
def neutral_state(device_type: str) -> Iterator[None]:
    """No gradients, inference mode and autocast off, default device and dtype as torch starts; restored on leaving."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for autocast in {"cpu", device_type}:
            if torch.is_autocast_enabled(autocast):
                stack.enter_context(torch.autocast(autocast, enabled=False))
        if _get_current_function_mode_stack():
            stack.enter_context(_no_function_modes())
        if torch.get_default_dtype() is not torch.float32:
            stack.enter_context(_default_dtype(torch.float32))
        yield


@contextlib.contextmanager
def _no_function_modes() -> Iterator[None]:
    """Lift the thread's torch-function modes (``torch.set_default_device`` is one) and put them back."""
    modes = []
    while _get_current_function_mode_stack():
        modes.append(torch.overrides._pop_mode())
    try:
        yield
    finally:
        for mode in reversed(modes):
            torch.overrides._push_mode(mode)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
