"""A checkpoint's tensors, streamed into the parameters of a model that was built on ``meta``.

First every header is checked against every parameter, and all problems are reported together; then each parameter is
allocated once, in its final fused shape, and filled piece by piece. The peak is the parameters and one small buffer:
nothing is concatenated, and no safetensors file is mapped. Knows no architecture: names, rows and layouts come from the
family's rules.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from ostinato.layers.errors import ModelLoadError
from ostinato.models.families.family import Family
from ostinato.models.spec import ModelSpec
from ostinato.models.weights.plan import make_plan
from ostinato.models.weights.source import open_source
from ostinato.models.weights.stream import Parameters, Progress, fill

PROBLEMS_SHOWN = 10
LINE_SHOWN = 300  # characters: a broken header may hold a name of megabytes


@runtime_checkable
class MakesBuffers(Protocol):
    """A module with tensors that are neither parameters nor in a checkpoint."""

    def make_buffers(self, device: torch.device) -> None:
        """Make them, on ``device``; the module's parameters have their final dtype and no values yet."""


@dataclass(frozen=True)
class LoadReport:
    """What a load did; ``ignored`` are tensors that the family knows and does not need."""

    num_parameters: int
    parameter_bytes: int
    num_files: int
    seconds: float
    ignored: tuple[str, ...]


def load_weights(
    model: nn.Module,
    family: Family,
    spec: ModelSpec,
    folder: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> LoadReport:
    """Give ``model`` the parameters of ``folder``, on ``device`` and in ``dtype``, without gradients.

    Parameters that were one object (a tied head) stay one. Modules that have ``make_buffers`` make what no file holds.
    ``ModelLoadError`` lists broken files and tensors that are missing, not wanted or misshapen before anything is
    allocated; values that are not finite are found while copying, and leave a model that must be dropped.
    """
    began = time.perf_counter()
    source = open_source(folder)
    plan = make_plan(model, family, spec, source)
    raise_problems(folder, plan.problems)
    with torch.inference_mode(False), torch.no_grad():
        parameters = _allocate(model, torch.device(device), dtype)
        _make_buffers(model, torch.device(device))
        fill(parameters, plan, progress)
    owned = list(model.parameters())
    return LoadReport(
        num_parameters=sum(parameter.numel() for parameter in owned),
        parameter_bytes=sum(parameter.nbytes for parameter in owned),
        num_files=len(source.files),
        seconds=time.perf_counter() - began,
        ignored=plan.ignored,
    )


def raise_problems(folder: Path, problems: Sequence[str]) -> None:
    """One ``ModelLoadError`` for all ``problems``, the first of them shown; nothing where there are none."""
    if not problems:
        return
    lines = [line if len(line) <= LINE_SHOWN else line[:LINE_SHOWN] + "..." for line in problems[:PROBLEMS_SHOWN]]
    if len(problems) > len(lines):
        lines.append(f"... and {len(problems) - len(lines)} more")
    raise ModelLoadError(f"{folder}: the weights do not fit ({len(problems)} found):\n  " + "\n  ".join(lines))


def _allocate(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Parameters:
    """Replace every parameter by an empty one of its shape; one new object for each old one."""
    places = [
        (module, name)
        for module in model.modules()
        for name, _ in module.named_parameters(recurse=False, remove_duplicate=False)
    ]
    fresh: dict[nn.Parameter, nn.Parameter] = {}
    for module, name in places:
        old = getattr(module, name)
        if old not in fresh:
            fresh[old] = _empty(old, device, dtype)
        setattr(module, name, fresh[old])
    return dict(model.named_parameters(remove_duplicate=False))


def _make_buffers(model: nn.Module, device: torch.device) -> None:
    """Tables that follow from the spec alone, such as ALiBi slopes; on ``meta`` they could not be computed."""
    for module in model.modules():
        if isinstance(module, MakesBuffers):
            module.make_buffers(device)


def _empty(like: nn.Parameter, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    try:
        return nn.Parameter(torch.empty(like.shape, dtype=dtype, device=device), requires_grad=False)
    except RuntimeError as error:  # torch's only error for memory it does not get
        size = like.numel() * dtype.itemsize
        raise ModelLoadError(f"{device}: no {size:,} bytes for a parameter {list(like.shape)}: {error}") from error
