"""A model that is nothing but named parameters, and a family that is nothing but rules: for tests of the loader."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ostinato.models.families.family import Family
from ostinato.models.spec import AttentionSpec, FfnSpec, LayerSpec, RopeSpec
from ostinato.models.weights.load import LoadReport, load_weights
from ostinato.models.weights.stream import Progress

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


def layer_spec(heads: int = 4, kv_heads: int = 2, head_dim: int = 3, intermediate_size: int = 5) -> LayerSpec:
    attention = AttentionSpec(heads, kv_heads, head_dim, 1.0, RopeSpec(1e4, head_dim))
    return LayerSpec(attention, FfnSpec(intermediate_size, "silu"))


def model_of(shapes: Shapes) -> nn.Module:
    """A tree of modules on ``meta`` with these parameters."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, nn.Parameter(torch.empty(shape, device="meta")))
    return root


def load(
    folder: Path,
    shapes: Shapes,
    rules: tuple[Any, ...],
    layers: tuple[LayerSpec, ...] = (layer_spec(),),
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    model: nn.Module | None = None,
    progress: Progress | None = None,
    **family: Any,
) -> tuple[State, LoadReport]:
    """The parameters of ``shapes`` from the files of ``folder`` by ``rules``."""
    model = model or model_of(shapes)
    toy = Family("toy", (), lambda config: None, rules, **family)
    report = load_weights(model, toy, SimpleNamespace(layers=layers), folder, device, dtype, progress)
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}, report


def save(folder: Path, state: State) -> Path:
    """One safetensors file in ``folder``."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    return folder


def numbered(*shape: int, start: int = 0) -> Tensor:
    """Different whole numbers."""
    count = torch.Size(shape).numel()
    return torch.arange(start, start + count, dtype=torch.float32).view(shape)


def status(key: str) -> int:
    """A figure of this process in bytes, from Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))
