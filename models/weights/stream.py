"""Bytes on their way from files into parameters, through one small buffer.

The buffer is the only memory beyond the parameters. A parameter's rows are contiguous, so a tensor is copied as a flat
run of elements and cast on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ostinato.layers.errors import ModelLoadError
from ostinato.models.weights.plan import Copy, Plan
from ostinato.models.weights.safetensors_file import TensorEntry

CPU_BUFFER_BYTES = 64 << 10  # at most 32,768 elements: torch copies them in this thread, without fork and join
DEVICE_BUFFER_BYTES = 16 << 20
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Parameters = dict[str, nn.Parameter]
Progress = Callable[[int, int], None]
"""Called after each tensor with the bytes read so far and the bytes there are."""


def fill(parameters: Parameters, plan: Plan, progress: Progress | None) -> None:
    """Copy every tensor to its rows; compare second copies of tied ones. ``ModelLoadError`` for NaN and infinity."""
    kind = next(iter(parameters.values())).device.type
    size = CPU_BUFFER_BYTES if kind == "cpu" else DEVICE_BUFFER_BYTES
    buffer = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=kind == "cuda")
    work = [(_copy, copy) for copy in plan.copies] + [(_compare, copy) for copy in plan.repeats]
    total = sum(entry.num_bytes for _, (entry, _) in work)
    done = 0
    for action, copy in work:
        action(copy, parameters, buffer)
        done += copy[0].num_bytes
        if progress is not None:
            progress(done, total)


def _copy(copy: Copy, parameters: Parameters, buffer: Tensor) -> None:
    entry, rows = copy[0], _rows(copy, parameters)
    for start, piece in _pieces(entry, buffer):
        written = rows[start : start + piece.numel()]
        written.copy_(piece)
        if not _is_finite(written):
            expected = f"finite values in {str(rows.dtype).removeprefix('torch.')}"
            raise ModelLoadError(
                f"{entry.path}: {entry.name}: expected {expected}, got NaN or infinity from {entry.dtype}"
            )


def _is_finite(values: Tensor) -> bool:
    """One fast sum; the elements are looked at only where it is not finite (in fp16 it may overflow)."""
    return math.isfinite(float(values.sum())) or bool(torch.isfinite(values).all())


def _compare(copy: Copy, parameters: Parameters, buffer: Tensor) -> None:
    entry, rows = copy[0], _rows(copy, parameters)
    for start, piece in _pieces(entry, buffer):
        if not torch.equal(piece.to(rows), rows[start : start + piece.numel()]):
            expected = f"the values of {copy[1].parameter}, to which config.json ties it"
            raise ModelLoadError(f"{entry.path}: {entry.name}: expected {expected}, got others")


def _rows(copy: Copy, parameters: Parameters) -> Tensor:
    """The destination, flat: a view."""
    parameter, rows = parameters[copy[1].parameter], copy[1].rows
    return (parameter if rows is None else parameter[rows[0] : rows[1]]).view(-1)


def _pieces(entry: TensorEntry, buffer: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The tensor's elements, flat, in runs that fit the buffer; each with the number of elements before it."""
    dtype = DTYPES[entry.dtype]
    start = 0
    for num_bytes in entry.read(buffer.numpy().data):
        piece = buffer[:num_bytes].view(dtype)
        yield start, piece
        start += piece.numel()
