"""Bytes on their way from files into parameters, through one small buffer.

The buffer, and one piece that is cast or rearranged, are the only memory beyond the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import tee

import torch
from torch import Tensor, nn

from ostinato.layers.errors import ModelLoadError
from ostinato.models.weights.destination import Part, parts
from ostinato.models.weights.entry import ITEM_SIZES
from ostinato.models.weights.plan import Copy, Plan

CPU_BUFFER_BYTES = 64 << 10  # at most 32,768 elements: torch copies them in this thread, without fork and join
DEVICE_BUFFER_BYTES = 16 << 20
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Parameters = dict[str, nn.Parameter]
Progress = Callable[[int, int], None]
"""Called after each tensor with the bytes read so far and the bytes there are."""


def fill(parameters: Parameters, plan: Plan, progress: Progress | None) -> None:
    """Copy every tensor to its rows; compare second copies of tied ones. ``ModelLoadError`` for NaN and infinity."""
    buffer = _buffer(next(iter(parameters.values())).device, plan)
    work = [(_copy, copy) for copy in plan.copies] + [(_compare, copy) for copy in plan.repeats]
    total = sum(entry.num_bytes for _, (entry, _) in work)
    done = 0
    for action, copy in work:
        action(copy, parameters, buffer)
        done += copy[0].num_bytes
        if progress is not None:
            progress(done, total)


def _buffer(device: torch.device, plan: Plan) -> Tensor:
    """Room for one row of every tensor that is rearranged, at least."""
    rearranged = [entry for entry, place in plan.copies + plan.repeats if place.transposed or place.order is not None]
    size = CPU_BUFFER_BYTES if device.type == "cpu" else DEVICE_BUFFER_BYTES
    size = max([size, *(entry.shape[-1] * ITEM_SIZES[entry.dtype] for entry in rearranged)])
    return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda")


def _copy(copy: Copy, parameters: Parameters, buffer: Tensor) -> None:
    entry, place = copy
    parameter = parameters[place.parameter]
    for part, piece in _pieces(copy, parameter, buffer):
        if not part.write(piece):
            expected = f"finite values in {str(parameter.dtype).removeprefix('torch.')}"
            raise ModelLoadError(
                f"{entry.path}: {entry.name}: expected {expected}, got NaN or infinity from {entry.dtype}"
            )


def _compare(copy: Copy, parameters: Parameters, buffer: Tensor) -> None:
    entry, place = copy
    for part, piece in _pieces(copy, parameters[place.parameter], buffer):
        if not part.holds(piece):
            expected = f"the values of {place.parameter}, to which config.json ties it"
            raise ModelLoadError(f"{entry.path}: {entry.name}: expected {expected}, got others")


def _pieces(copy: Copy, parameter: nn.Parameter, buffer: Tensor) -> Iterator[tuple[Part, Tensor]]:
    """The tensor's elements, flat, in runs that fit the buffer; each with the place it goes to."""
    entry, place = copy
    item_size = ITEM_SIZES[entry.dtype]
    places, same_places = tee(parts(place, parameter, buffer.numel() // item_size))
    sizes = entry.read(buffer.numpy().data, (part.size * item_size for part in same_places))
    for part, num_bytes in zip(places, sizes, strict=True):
        yield part, buffer[:num_bytes].view(DTYPES[entry.dtype])
