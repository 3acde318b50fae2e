"""Which checkpoint tensor fills which rows of which parameter. Names and row ranges only: no file, no bytes.

A rule speaks of modules: every parameter that our module has (``weight``, ``bias``) is looked for under the same name
in the checkpoint's module. So the expected names are enumerated, not matched: a missing tensor has a name to report.

What later checkpoints need has its place here: a ``view`` on the rule (transpose, de-interleave), applied between
reading and copying; a second destination index for stacked experts; the rank's share of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ostinato.models.spec import LayerSpec

Rows = tuple[int, int]
"""First row and one past the last, along dimension 0 of a parameter."""


@dataclass(frozen=True)
class Rule:
    """Checkpoint module ``source`` fills ``rows`` (None: all) of our module ``target``; both may say ``{layer}``."""

    source: str
    target: str
    rows: Callable[[LayerSpec], Rows] | None = None


@dataclass(frozen=True)
class Placement:
    """A checkpoint tensor's place: ``rows`` of ``parameter`` (all, when None)."""

    parameter: str
    rows: Rows | None = None

    def shape(self, parameter_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape the checkpoint tensor must have."""
        if self.rows is None:
            return parameter_shape
        return (self.rows[1] - self.rows[0], *parameter_shape[1:])

    def __str__(self) -> str:
        return self.parameter if self.rows is None else f"{self.parameter}[{self.rows[0]}:{self.rows[1]}]"


def placements(rules: Iterable[Rule], layers: tuple[LayerSpec, ...], parameters: Iterable[str]) -> dict[str, Placement]:
    """Every checkpoint name that ``rules`` give to one of ``parameters``, with its place there."""
    suffixes: dict[str, list[str]] = {}
    for name in parameters:
        module, _, suffix = name.rpartition(".")
        suffixes.setdefault(module, []).append(suffix)
    return dict(placed for rule in rules for placed in _expand(rule, layers, suffixes))


def _expand(
    rule: Rule, layers: tuple[LayerSpec, ...], suffixes: Mapping[str, list[str]]
) -> Iterator[tuple[str, Placement]]:
    repeated = "{layer}" in rule.target
    for index, layer in enumerate(layers if repeated else layers[:1]):
        source, target = rule.source.format(layer=index), rule.target.format(layer=index)
        rows = rule.rows(layer) if rule.rows else None
        for suffix in suffixes.get(target, []):
            yield f"{source}.{suffix}", Placement(f"{target}.{suffix}", rows)


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
