"""Which implementation of attention an engine uses on its device, and why: found out before anything is allocated."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from ostinato.layers.attention.backend import AttentionBackend
from ostinato.layers.attention.flash import FlashBuild, FlashKind, preferred_block_size
from ostinato.layers.attention.flash_detect import detect
from ostinato.layers.kernels.availability import triton_problem

DEFAULT_BLOCK_SIZE = 16
LARGEST_HEAD = 256
SERVE_DECODE = (FlashKind.FLASH3, FlashKind.FLASH2)
"""What is taken unasked: the others serve prompts only, and everything else falls to our kernels."""


@dataclass(frozen=True)
class Attention:
    """The implementation, why it is that one, and the block size (tokens) that it likes best."""

    backend: AttentionBackend
    reason: str
    block_size: int = DEFAULT_BLOCK_SIZE


def choose_attention(wanted: str, device: torch.device, dtype: torch.dtype, largest_head: int) -> Attention:
    """The backend ``wanted`` ("auto", "triton", "flash" or "torch"), or the next one that the device can use.

    ``largest_head``: elements of the model's largest attention head. A backend asked for by name that cannot be used
    is a warning, which says why.
    """
    if wanted == "torch":
        return Attention(AttentionBackend.TORCH, "asked for")
    if wanted == "auto" and device.type == "cpu":
        return Attention(AttentionBackend.TORCH, "compiled for this CPU by Inductor")
    problem = _kernels_problem(device, largest_head)
    passed_over: list[str] = []
    if wanted in ("auto", "flash"):
        build = _flash(device, dtype, problem)
        faults = _faults(build)
        if isinstance(build, FlashBuild) and (wanted == "flash" or build.kind in SERVE_DECODE):
            if wanted == "flash" and faults:
                warnings.warn(f"attention_backend='flash' is {build.name}: {faults}", RuntimeWarning, stacklevel=5)
            reason = "; ".join(filter(None, [build.name, faults]))
            return Attention(AttentionBackend.FLASH, reason, preferred_block_size(build))
        passed_over.append(f"flash: {faults}")
    if problem is None:
        chosen = Attention(AttentionBackend.TRITON, "; ".join(["our kernels", *passed_over]))
    else:
        passed_over.append(f"triton: {problem}")
        chosen = Attention(AttentionBackend.TORCH, "; ".join(passed_over))
    if wanted not in ("auto", chosen.backend.value):
        text = f"attention_backend={wanted!r} cannot be used, {chosen.backend.value!r} is: {'; '.join(passed_over)}"
        warnings.warn(text, RuntimeWarning, stacklevel=5)
    return chosen


def _faults(build: FlashBuild | str) -> str:
    """What is wrong with the implementations that are installed and not used, or with all; "" if nothing is."""
    if isinstance(build, str):
        return build
    lines = [line for line in build.passed_over if not line.endswith(" is not installed")]
    if build.kind not in SERVE_DECODE:
        lines.append(f"{build.name} serves prompts only")
    return "; ".join(lines)


def _kernels_problem(device: torch.device, largest_head: int) -> str | None:
    if largest_head > LARGEST_HEAD:
        return f"the kernels take heads of up to {LARGEST_HEAD} elements, the model has {largest_head:,}"
    return triton_problem(device)


def _flash(device: torch.device, dtype: torch.dtype, kernels_problem: str | None) -> FlashBuild | str:
    """flash-attn beside our kernels, which write the pages and serve what it does not; or why not."""
    if dtype not in (torch.float16, torch.bfloat16):
        return f"flash-attn has no {str(dtype).removeprefix('torch.')}"
    return detect(device) if kernels_problem is None else f"it needs our kernels beside it: {kernels_problem}"
