"""Headers against parameters: which tensor is copied where, and everything that does not fit. Allocates nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import nn

from ostinato.models.families.family import Family
from ostinato.models.spec import ModelSpec
from ostinato.models.weights.entry import ITEM_SIZES, TensorEntry
from ostinato.models.weights.placements import Placement, Shapes, placements
from ostinato.models.weights.source import Source

Copy = tuple[TensorEntry, Placement]


@dataclass(frozen=True)
class Misfit:
    """A tensor that does not fit; its text is the line that says so. ``file`` is None for one that is in none.

    ``misshapen`` are those of a dtype that is not read, too.
    """

    kind: Literal["missing", "unexpected", "misshapen"]
    name: str
    file: str | None
    expected: str
    got: str

    def __str__(self) -> str:
        where = f"{self.file}: " if self.file is not None else ""
        return f"{where}{self.name}: expected {self.expected}, got {self.got}"


@dataclass(frozen=True)
class Plan:
    """``copies`` fill every parameter exactly once, in the order of the files.

    ``repeats`` are further copies of a tied tensor, which must hold the same values; ``ignored`` are tensors that the
    family knows and does not need. What is wrong: ``defects`` of the files, ``mistakes`` of the family, and tensors.
    """

    copies: tuple[Copy, ...]
    repeats: tuple[Copy, ...]
    ignored: tuple[str, ...]
    defects: tuple[str, ...]
    mistakes: tuple[str, ...]
    misfits: tuple[Misfit, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """A line for each thing that is wrong."""
        return (*self.defects, *self.mistakes, *map(str, self.misfits))


def make_plan(model: nn.Module, family: Family, spec: ModelSpec, source: Source) -> Plan:
    """How ``source`` fills the parameters of ``model``; those that are one object (a tied head) are filled once."""
    named = list(model.named_parameters(remove_duplicate=False))
    firsts = {id(parameter): name for name, parameter in reversed(named)}
    shapes = {name: tuple(parameter.shape) for name, parameter in named}
    aliases = {name: firsts[id(parameter)] for name, parameter in named}
    tensors, collisions = _renamed(source, family)
    expected = placements(family.rules, spec.layers, shapes, tensors)
    expected = {name: replace(place, parameter=aliases[place.parameter]) for name, place in expected.items()}
    alike = _by_place(expected)
    misfits = collisions
    copies: list[Copy] = []
    repeats: list[Copy] = []
    for names in alike:
        found = [(tensors[name], expected[name]) for name in names if name in tensors]
        misfits += [bad for entry, place in found if (bad := _misfit(entry, place.shape(shapes[place.parameter])))]
        copies += found[:1]
        repeats += found[1:]
        if not found and not source.problems:  # with a broken file or index, that is why
            misfits.append(_missing(names[0], expected[names[0]], shapes, source))
    others = {name: entry for name, entry in tensors.items() if name not in expected}
    ignored = {name for name in others if any(fnmatchcase(name, each) for each in family.ignored)}
    misfits += [_unwanted(entry) for name, entry in others.items() if name not in ignored]
    copies.sort(key=lambda copy: (copy[0].path, copy[0].offset))
    return Plan(
        copies=tuple(copies),
        repeats=tuple(repeats),
        ignored=tuple(sorted(others[name].name for name in ignored)),
        defects=source.problems,
        mistakes=tuple(_family_mistakes(shapes, aliases, expected, alike, family)),
        misfits=tuple(misfits),
    )


def _renamed(source: Source, family: Family) -> tuple[dict[str, TensorEntry], list[Misfit]]:
    """The files' tensors by the names that the rules speak of, and those that get a name already taken."""
    tensors: dict[str, TensorEntry] = {}
    collisions: list[Misfit] = []
    for entry in source.tensors.values():
        name = entry.name
        for pattern, replacement in family.renames:
            name = re.sub(pattern, replacement, name)
        if (first := tensors.setdefault(name, entry)) is not entry:
            also = f"{first.name} in {first.path.name} too"
            collisions.append(Misfit("unexpected", entry.name, entry.path.name, f"to be the only {name}", also))
    return tensors, collisions


def _by_place(expected: Mapping[str, Placement]) -> list[list[str]]:
    """Checkpoint names that fill the same rows: more than one where parameters are tied."""
    names: dict[tuple[object, ...], list[str]] = {}
    for name, place in expected.items():
        names.setdefault((place.parameter, place.rows, place.expert), []).append(name)
    return list(names.values())


def _family_mistakes(
    shapes: Shapes,
    aliases: Mapping[str, str],
    expected: Mapping[str, Placement],
    alike: Iterable[list[str]],
    family: Family,
) -> list[str]:
    """Parameters whose elements the rules do not account for, counted; orders that lose rows."""
    counts = dict.fromkeys(aliases.values(), 0)
    for names in alike:
        place = expected[names[0]]
        counts[place.parameter] += math.prod(place.shape(shapes[place.parameter]))
    sizes = {name: math.prod(shapes[name]) for name in counts}
    return [
        f"family {family.name}: {name}: expected rules for {sizes[name]:,} elements, got {count:,}"
        for name, count in counts.items()
        if count != sizes[name]
    ] + [f"family {family.name}: {line}" for line in _bad_orders(shapes, expected)]


def _bad_orders(shapes: Shapes, expected: Mapping[str, Placement]) -> list[str]:
    """Orders must name each row once. Experts share theirs, which is looked at once."""
    ordered = {
        (id(place.order), place.num_rows(shapes[place.parameter])): place
        for place in expected.values()
        if place.order is not None
    }
    return [
        f"{place}: expected an order that names each of {count:,} rows once, got another"
        for (_, count), place in ordered.items()
        if place.order is not None and not torch.equal(place.order.sort().values, torch.arange(count, device="cpu"))
    ]


def _misfit(entry: TensorEntry, shape: tuple[int, ...]) -> Misfit | None:
    if entry.dtype not in ITEM_SIZES:
        wanted, got = f"one of {', '.join(ITEM_SIZES)}", entry.dtype
    elif entry.shape != shape:
        wanted, got = str(list(shape)), str(list(entry.shape))
    else:
        return None
    return Misfit("misshapen", entry.name, entry.path.name, wanted, got)


def _missing(name: str, place: Placement, shapes: Shapes, source: Source) -> Misfit:
    where = source.files[0] if len(source.files) == 1 else f"any of {len(source.files)} files"
    shape = list(place.shape(shapes[place.parameter]))
    return Misfit("missing", name, None, f"{shape} for {place}", f"no such tensor in {where}")


def _unwanted(entry: TensorEntry) -> Misfit:
    got = f"{entry.dtype} {list(entry.shape)}"
    return Misfit("unexpected", entry.name, entry.path.name, "no such tensor", got)
