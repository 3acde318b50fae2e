"""Sampling in Triton: what ``layers.sampler`` does with logits, in few passes over the vocabulary.

    scan    (rows, splits)  each chunk's argmax and mass, and the peaks of its groups of tokens   1 pass
    select  (rows,)         greedy rows; rows whose filters keep few tokens                       a few groups
    bid     (rows, splits)  of the rows still open, the noise of every token                      0 or 1 pass
    weigh   (rows, splits)  of these, what is likelier than the token that the noise favours      0 or 1 pass
    settle  (rows,)         of these, that token, or the next that the filters keep               0 passes or more

Grids depend on shapes alone, nothing is added atomically and the host reads nothing: the launches can be captured, and
a row's token depends on no other row. Where every row is greedy, ``scan`` and ``argmax`` (rows,) are all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ostinato.layers.kernels.launch import dtype_name, power_of_two, strides
from ostinato.layers.kernels.sampling_scan import bid_kernel, scan_kernel
from ostinato.layers.kernels.sampling_select import argmax_kernel, select_kernel
from ostinato.layers.kernels.sampling_settle import settle_kernel, weigh_kernel
from ostinato.layers.kernels.specimen import Specimen
from ostinato.layers.sampler import SamplingInputs

CHUNK = 4096
"""Tokens of one program of those that share a row."""
GROUP = 64
"""Neighbouring tokens whose largest logit is kept; 128 bytes of bf16."""
CAPACITY = 512
"""Candidates that a row is settled among; with more, or with others that may be kept, it takes the longer way."""


class Stage(NamedTuple):
    """One launch."""

    name: str
    kernel: Any
    num_warps: int
    shared: bool
    """Whether several programs share a row."""
    tile: int = 0
    """Tokens that a program reads at a time, if not a chunk."""


GREEDY = Stage("scan_greedy", scan_kernel, 8, True), Stage("argmax", argmax_kernel, 1, False)
DRAWN = (
    Stage("scan", scan_kernel, 8, True),
    Stage("select", select_kernel, 16, False, tile=2048),
    Stage("bid", bid_kernel, 8, True),
    Stage("weigh", weigh_kernel, 8, True),
    Stage("settle", settle_kernel, 16, False, tile=4096),
)
_NOTHING = dict.fromkeys((*SamplingInputs._fields, "masses", "group_peaks", "num_groups"))
"""What a greedy scan has no use for."""


def sample(logits: Tensor, inputs: SamplingInputs, greedy: bool) -> Tensor:
    """One token per row of ``logits [rows, vocab]``: ``[rows] int64``; ``FAILED`` where the logits are not finite.

    ``greedy``: every row takes the argmax and ``inputs`` are not read.
    """
    return sample_greedy(logits) if greedy else sample_drawn(logits, inputs)


def sample_greedy(logits: Tensor) -> Tensor:
    """Argmax of ``logits [rows, vocab]``, the first of equals: ``[rows] int64``."""
    constants = _constants(logits.shape[1], capacity=1, blocked=0, drawn=False)
    return _run(GREEDY, logits, _scratch(logits, GREEDY, capacity=1) | constants | _NOTHING)


def sample_drawn(logits: Tensor, inputs: SamplingInputs, capacity: int = CAPACITY) -> Tensor:
    """One token per row as ``inputs`` ask, greedy rows among them: ``[rows] int64``.

    ``capacity``: candidates at most, a power of two; rows that need more give the same token, later.
    """
    given = {name: value.contiguous() for name, value in inputs._asdict().items()}
    constants = _constants(logits.shape[1], capacity, inputs.blocked.shape[1], drawn=True)
    return _run(DRAWN, logits, _scratch(logits, DRAWN, capacity) | given | constants)


def _run(stages: tuple[Stage, ...], logits: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Launch one after the other, each with those of the arguments that it names; any row stride will do."""
    rows, vocab = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    arguments |= {"logits": logits, "row_stride": strides(logits)[0], "vocab": vocab}
    for stage in stages if rows else ():
        grid = (rows, arguments["splits"]) if stage.shared else (rows,)
        launch(stage, grid, arguments)
    out: Tensor = arguments["out"]
    return out


def launch(stage: Stage, grid: tuple[int, ...], arguments: Mapping[str, Any]) -> None:
    """Launch one stage."""
    given = {**arguments, "TILE": stage.tile}
    named = {name: given[name] for name in stage.kernel.arg_names}
    stage.kernel[grid](**named, num_warps=stage.num_warps, num_stages=1)


def _scratch(logits: Tensor, stages: tuple[Stage, ...], capacity: int) -> dict[str, Any]:
    """Memory for what one kernel leaves to the next, by argument; and the result."""
    rows, splits, groups = logits.shape[0], *_shares(logits.shape[1])
    needed = {name for stage in stages for name in stage.kernel.arg_names}
    whole, real = torch.int32, torch.float32
    kinds: dict[str, tuple[Any, ...]] = {
        "out": (torch.int64,),
        "peaks": (real, splits),
        "peak_tokens": (whole, splits),
        "masses": (real, splits),
        "group_peaks": (real, groups),
        "shortlist": (whole, capacity),
        "candidates": (whole, capacity),
        "gaps": (real, capacity),
        "row_peak": (real,),
        "row_mass": (real,),
        "arrivals": (real, splits),
        "bidders": (whole, splits),
        "counts_above": (whole, splits),
        "masses_above": (real, splits),
    }
    return {
        name: logits.new_empty(rows, *shape, dtype=dtype) for name, (dtype, *shape) in kinds.items() if name in needed
    }


def _shares(vocab: int) -> tuple[int, int]:
    """How many chunks and groups there are of so many tokens."""
    return triton.cdiv(vocab, CHUNK), triton.cdiv(vocab, GROUP)


def _constants(vocab: int, capacity: int, blocked: int, drawn: bool) -> dict[str, Any]:
    """The arguments that are the same at every launch, most of them compiled into the kernels."""
    splits, groups = _shares(vocab)
    return {
        "splits": splits,
        "num_groups": groups,
        "SPLITS": power_of_two(splits),
        "GROUPS": power_of_two(groups),
        "CHUNK": CHUNK,
        "GROUP": GROUP,
        "CAPACITY": capacity,
        "BLOCKED": blocked,
        "BLOCKED_TILE": power_of_two(max(blocked, 1)),
        "DRAWN": drawn,
    }


_TYPES = (
    dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "blocked"), "*fp32")
    | dict.fromkeys(("peaks", "masses", "group_peaks", "gaps", "row_peak", "row_mass"), "*fp32")
    | dict.fromkeys(("arrivals", "masses_above"), "*fp32")
    | dict.fromkeys(("peak_tokens", "shortlist", "candidates", "bidders", "counts_above"), "*i32")
    | dict.fromkeys(("seed", "position", "blocked_ids", "out"), "*i64")
    | dict.fromkeys(("row_stride", "vocab", "num_groups", "splits"), "i32")
)
"""Every argument of the kernels but the logits and the constants."""


def specimens() -> list[Specimen]:
    """The vocabulary of Qwen3, one that no power of two divides, and one of a single program; each dtype of a head."""
    cases = (torch.bfloat16, 151936), (torch.float32, 300001), (torch.float16, 50)
    return [
        _specimen(stage, dtype, vocab, drawn)
        for dtype, vocab in cases
        for drawn, stages in ((False, GREEDY), (True, DRAWN))
        for stage in stages
    ]


def _specimen(stage: Stage, dtype: torch.dtype, vocab: int, drawn: bool) -> Specimen:
    """As an engine launches it, which has 64 blocked tokens at most."""
    constants = _constants(vocab, CAPACITY, 64 if drawn else 0, drawn) | {"TILE": stage.tile}
    constants = {name: value for name, value in constants.items() if name.isupper() or value == 1}
    if not drawn:
        constants |= _NOTHING
    arguments: list[str] = stage.kernel.arg_names
    types = _TYPES | {"logits": f"*{dtype_name(dtype)}"}
    return Specimen(
        f"sample_{stage.name}-{dtype_name(dtype)}-v{vocab}",
        stage.kernel,
        {name: types[name] for name in arguments if name not in constants},
        {name: constants[name] for name in arguments if name in constants},
        num_warps=stage.num_warps,
        num_stages=1,
        aligned=tuple(name for name in ("row_stride", "vocab") if name in arguments and vocab % 16 == 0),
    )
