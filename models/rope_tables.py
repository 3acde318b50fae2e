"""A model's rotary tables: cosines and sines of all positions, one table for each kind of rotation in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ostinato.layers.rope import rope_table

if TYPE_CHECKING:
    from ostinato.models.decode_step import StepDecoder


class Rotation(NamedTuple):
    """Cosines and sines of some positions, ``[n, rotary_dim / 2] float32`` each; None where nothing rotates."""

    cos: Tensor | None
    sin: Tensor | None


@dataclass(frozen=True)
class RopeTables:
    """A table of all positions for each kind of rotation in the model, and which of them each layer takes."""

    tables: tuple[Rotation, ...]
    of_layer: tuple[int, ...]

    def at(self, positions: Tensor) -> list[Rotation]:
        """Each table's rows at ``positions [tokens] int64``."""
        return rotations_at(self.tables, positions)


def rotations_at(tables: Sequence[Rotation], positions: Tensor) -> list[Rotation]:
    """Each table's rows at ``positions [tokens] int64``."""
    return [
        Rotation(cos[positions], sin[positions]) if cos is not None and sin is not None else Rotation(None, None)
        for cos, sin in tables
    ]


def rope_of(decoder: StepDecoder, max_positions: int, device: torch.device) -> RopeTables:
    """The model's rotary tables for positions below ``max_positions``."""
    specs = [layer.attention.rope for layer in decoder.kinds]
    kinds = list(dict.fromkeys(specs))
    tables = [
        Rotation(None, None) if spec is None else Rotation(*rope_table(spec, max_positions, device)) for spec in kinds
    ]
    return RopeTables(tuple(tables), tuple(kinds.index(spec) for spec in specs))
