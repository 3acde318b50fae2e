"""From rules to names: every tensor that a checkpoint must have, and its place. Knows no file and no bytes.

Names are enumerated, not matched: so a missing tensor has a name to report.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ostinato.models.spec import LayerSpec
from ostinato.models.weights.rules import OneOf, Order, Rows, Rule

Shapes = Mapping[str, tuple[int, ...]]
"""Of all parameters, by name."""


@dataclass(frozen=True)
class Placement:
    """A checkpoint tensor's place in a parameter, and how the tensor is laid out.

    The place is ``rows`` (None: all) of the parameter; if it is ``stacked``, of its matrix ``expert`` (None: of every
    matrix). ``transposed`` and ``order`` are the rule's.
    """

    parameter: str
    rows: Rows | None = None
    stacked: bool = False
    expert: int | None = None
    transposed: bool = False
    order: Order | None = None

    def shape(self, parameter_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape the checkpoint tensor must have."""
        experts, matrix = parameter_shape[: self.stacked], parameter_shape[self.stacked :]
        if self.rows is not None:
            matrix = (self.rows[1] - self.rows[0], *matrix[1:])
        if self.transposed:
            matrix = matrix[::-1]
        return matrix if self.expert is not None else experts + matrix

    def num_rows(self, parameter_shape: tuple[int, ...]) -> int:
        """How many rows ``order`` is about."""
        first, end = self.rows or (0, parameter_shape[self.stacked])
        return end - first

    def __str__(self) -> str:
        index = [] if self.expert is None else [str(self.expert)]
        if self.rows is not None:
            index += [":"] * (self.stacked and self.expert is None) + [f"{self.rows[0]}:{self.rows[1]}"]
        return f"{self.parameter}[{', '.join(index)}]" if index else self.parameter


def placements(
    rules: Iterable[Rule | OneOf], layers: tuple[LayerSpec, ...], shapes: Shapes, present: Collection[str]
) -> dict[str, Placement]:
    """Every checkpoint name that ``rules`` give to a parameter; ``present`` are the names that the checkpoint has."""
    modules: dict[str, list[str]] = {}
    for name in shapes:
        module, _, suffix = name.rpartition(".")
        modules.setdefault(module, []).append(suffix)
    expected: dict[str, Placement] = {}
    for rule in rules:
        alternatives = rule.alternatives if isinstance(rule, OneOf) else ((rule,),)
        for index in (None, *range(len(layers))):
            layer = layers[index or 0]
            names = [_expand_all(each, index, layer, modules, shapes) for each in alternatives]
            possible = [each for each in names if each]
            expected |= next((each for each in possible if any(name in present for name in each)), (*possible, {})[0])
    return expected


def _expand_all(
    rules: Iterable[Rule], index: int | None, layer: LayerSpec, modules: Mapping[str, list[str]], shapes: Shapes
) -> dict[str, Placement]:
    """What ``rules`` say about one layer; with ``index`` None, about what is in no layer."""
    chosen = [rule for rule in rules if ("{layer}" in rule.target) == (index is not None)]
    return dict(placed for rule in chosen for placed in _expand(rule, index, layer, modules, shapes))


def _expand(
    rule: Rule, index: int | None, layer: LayerSpec, modules: Mapping[str, list[str]], shapes: Shapes
) -> Iterator[tuple[str, Placement]]:
    target = rule.target.format(layer=index)
    stacked = any(len(shapes[f"{target}.{suffix}"]) == 3 for suffix in modules.get(target, []))
    texts = {f"{target}.{suffix}": rule.suffixes.get(suffix, f".{suffix}") for suffix in modules.get(target, [])}
    if target in shapes:
        texts, stacked = {target: ""}, len(shapes[target]) == 3
    rows = rule.rows(layer) if texts and rule.rows else None
    order = rule.order(layer) if texts and rule.order else None
    for parameter, text in texts.items():
        for expert in _experts(rule, stacked, shapes[parameter]):
            name = rule.source.format(layer=index, expert=expert) + text
            yield name, Placement(parameter, rows, stacked, expert, rule.transposed, order)


def _experts(rule: Rule, stacked: bool, shape: tuple[int, ...]) -> Iterable[int | None]:
    """The experts that ``rule`` names one by one; None where it names all of them, or there are none."""
    if "{expert}" not in rule.source:
        return (None,)
    return range(shape[0]) if stacked else ()
