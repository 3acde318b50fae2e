"""Which checkpoint tensor fills which rows of which parameter, as data that a family states. Knows no file, no bytes.

A rule speaks of modules: every parameter that our module has (``weight``, ``bias``) is looked for under the same name
in the checkpoint's module. A rule may also name one parameter, and then one tensor. ``placements`` enumerates from
these the names that a checkpoint must have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ostinato.models.spec import LayerSpec

Rows = tuple[int, int]
"""First row and one past the last, along dimension 0 of a parameter, or of one expert's part of it."""

Order = Tensor
"""Where rows go: row r of the checkpoint's tensor becomes row ``order[r]`` of the destination. ``[rows] int64``."""


@dataclass(frozen=True)
class Rule:
    """Checkpoint module ``source`` fills ``rows`` (None: all) of our module ``target``.

    Both may say ``{layer}``. Where ``target`` stacks experts (``weight [experts, rows, cols]``), ``source`` says
    ``{expert}`` too, and everything else here applies within one expert; without it, ``source`` is stacked itself. If
    ``target`` is a parameter, ``source`` is the name of a tensor.

    ``transposed``: a matrix is stored the other way round, ``[in, out]``. ``order``: then its rows go elsewhere within
    ``rows``. ``suffixes``: what follows ``source`` for a parameter of ours, where that is not a dot and its name.
    """

    source: str
    target: str
    rows: Callable[[LayerSpec], Rows] | None = None
    transposed: bool = False
    order: Callable[[LayerSpec], Order] | None = None
    suffixes: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class OneOf:
    """Ways of storing the same parameters. Each layer takes the first of which the checkpoint has a tensor.

    Without any, the first that has a place in the layer tells what is missing. Dense and sparse layers of one model are
    alternatives too: a rule with ``{expert}`` has no place in a module that stacks no experts.
    """

    alternatives: tuple[tuple[Rule, ...], ...]


def q_rows(layer: LayerSpec) -> Rows:
    """Query heads: the first rows of the fused ``qkv``."""
    return 0, layer.attention.q_size


def k_rows(layer: LayerSpec) -> Rows:
    """Key heads: the rows of ``qkv`` after the queries."""
    return layer.attention.q_size, layer.attention.q_size + layer.attention.kv_size


def v_rows(layer: LayerSpec) -> Rows:
    """Value heads: the last rows of ``qkv``."""
    return layer.attention.q_size + layer.attention.kv_size, layer.attention.q_size + 2 * layer.attention.kv_size


def gate_rows(layer: LayerSpec) -> Rows:
    """The half of ``gate_up`` that goes through the activation."""
    return 0, layer.ffn.intermediate_size


def up_rows(layer: LayerSpec) -> Rows:
    """The other half of ``gate_up``."""
    return layer.ffn.intermediate_size, 2 * layer.ffn.intermediate_size
