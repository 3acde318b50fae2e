"""The sampling operators over our kernels, known to ``torch.compile`` by their shapes.

``torch.ops.ostinato.sample_greedy`` and ``sample_drawn``; their arguments are those of ``layers.sampler``'s
``sample_greedy`` and the fields of its ``SamplingInputs``. The kernels are imported, and Triton with them, by the first
launch. On a CPU they run in Triton's interpreter, which is for tests: it has to be asked for before the first launch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ostinato.layers.errors import ConfigError
from ostinato.layers.kernels.availability import interpreted
from ostinato.layers.sampler import SamplingInputs

_library = torch.library.Library("ostinato", "FRAGMENT")
_library.define("sample_greedy(Tensor logits) -> Tensor")
_library.define(
    "sample_drawn(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor seed, "
    "Tensor position, Tensor blocked_ids, Tensor blocked) -> Tensor"
)


def sample(logits: Tensor, inputs: SamplingInputs, greedy: bool) -> Tensor:
    """One token per row of ``logits [rows, vocab]``: ``[rows] int64``; ``greedy`` does not read ``inputs``."""
    if greedy:
        return torch.ops.ostinato.sample_greedy(logits)  # type: ignore[no-any-return]
    return torch.ops.ostinato.sample_drawn(logits, *inputs)  # type: ignore[no-any-return]


def _sample_greedy(logits: Tensor) -> Tensor:
    _check("sample_greedy", logits)
    from ostinato.layers.kernels.sampling import sample_greedy

    return sample_greedy(logits)


def _sample_drawn(logits: Tensor, *inputs: Tensor) -> Tensor:
    given = SamplingInputs(*inputs)
    _check("sample_drawn", logits)
    _check_inputs(logits.shape[0], given)
    from ostinato.layers.kernels.sampling import sample_drawn

    return sample_drawn(logits, given)


def _check(name: str, logits: Tensor) -> None:
    """Refuse logits that the kernels cannot run on."""
    if logits.device.type == "cpu" and not interpreted():
        raise ConfigError(
            f"ostinato::{name}: its logits are on the CPU, where Triton kernels run in Triton's interpreter only; "
            "set TRITON_INTERPRET=1 before the process starts, or sample with ostinato.layers.sampler"
        )
    if logits.dim() != 2 or logits.shape[1] == 0 or logits.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ConfigError(
            f"ostinato::{name}: logits must be [rows, vocab] in bfloat16, float16 or float32, "
            f"not {list(logits.shape)} in {logits.dtype}"
        )


def _check_inputs(rows: int, inputs: SamplingInputs) -> None:
    """Refuse inputs of other sizes or dtypes: a kernel would read what is not there."""
    for name, value in inputs._asdict().items():
        dtype = torch.int64 if name in ("seed", "position", "blocked_ids") else torch.float32
        if value.dtype != dtype or value.shape[0] != rows or value.shape[1:] != inputs.blocked.shape[1 : value.dim()]:
            raise ConfigError(
                f"ostinato::sample_drawn: {name} is {list(value.shape)} {value.dtype} for {rows} rows; "
                f"{'[rows, n]' if name.startswith('blocked') else '[rows]'} {dtype} is needed"
            )


def _one_per_row(logits: Tensor, *_: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


for _name, _launch in (("sample_greedy", _sample_greedy), ("sample_drawn", _sample_drawn)):
    for _key in ("CUDA", "CPU"):
        _library.impl(_name, _launch, _key)
    torch.library.register_fake(f"ostinato::{_name}", _one_per_row, lib=_library)
