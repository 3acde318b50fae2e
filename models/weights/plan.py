"""Headers against parameters: which tensor is copied where, and everything that does not fit. Allocates nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ostinato.models.families.family import Family
from ostinato.models.spec import ModelSpec
from ostinato.models.weights.rules import Placement, placements
from ostinato.models.weights.safetensors_file import ITEM_SIZES, TensorEntry
from ostinato.models.weights.source import Source

Copy = tuple[TensorEntry, Placement]


@dataclass(frozen=True)
class Plan:
    """``copies`` fill every parameter exactly once, in the order of the files.

    ``repeats`` are further copies of a tied tensor, which must hold the same values; ``ignored`` are tensors that the
    family knows and does not need; ``problems`` has a line for each tensor or file that does not fit.
    """

    copies: tuple[Copy, ...]
    repeats: tuple[Copy, ...]
    ignored: tuple[str, ...]
    problems: tuple[str, ...]


def make_plan(
    shapes: Mapping[str, tuple[int, ...]], aliases: Mapping[str, str], family: Family, spec: ModelSpec, source: Source
) -> Plan:
    """``shapes`` are those of all parameters; ``aliases`` give each parameter's first name (a tied one has two)."""
    expected = placements(family.rules, spec.layers, shapes)
    copies: list[Copy] = []
    repeats: list[Copy] = []
    problems = [*source.problems]
    places = _by_place(expected, aliases)
    problems += _uncovered(shapes, aliases, places, family)
    for place, names in places.items():
        shape = place.shape(shapes[place.parameter])
        entries = [source.tensors[name] for name in names if name in source.tensors]
        problems += [line for entry in entries if (line := _misfit(entry, shape))]
        copies += [(entry, place) for entry in entries[:1]]
        repeats += [(entry, place) for entry in entries[1:]]
        if not entries and not source.problems:  # with a broken file or index, that is why
            where = source.files[0] if len(source.files) == 1 else f"any of {len(source.files)} files"
            problems.append(f"{names[0]}: expected {list(shape)} for {place}, got no such tensor in {where}")
    others = [entry for name, entry in source.tensors.items() if name not in expected]
    ignored = {entry.name for entry in others if any(fnmatchcase(entry.name, each) for each in family.ignored)}
    problems += [_unwanted(entry) for entry in others if entry.name not in ignored]
    copies.sort(key=lambda copy: (copy[0].path, copy[0].offset))
    return Plan(tuple(copies), tuple(repeats), tuple(sorted(ignored)), tuple(problems))


def _by_place(expected: Mapping[str, Placement], aliases: Mapping[str, str]) -> dict[Placement, list[str]]:
    """Checkpoint names by the rows they fill; more than one name where parameters are tied."""
    names: dict[Placement, list[str]] = {}
    for name, place in expected.items():
        first = replace(place, parameter=aliases[place.parameter])
        names.setdefault(first, []).append(name)
    return names


def _uncovered(
    shapes: Mapping[str, tuple[int, ...]], aliases: Mapping[str, str], places: Iterable[Placement], family: Family
) -> list[str]:
    """Parameters whose elements the family's rules do not account for, counted: a mistake in the family."""
    counts = dict.fromkeys(aliases.values(), 0)
    for place in places:
        counts[place.parameter] += math.prod(place.shape(shapes[place.parameter]))
    sizes = {name: math.prod(shapes[name]) for name in counts}
    return [
        f"family {family.name}: {name}: expected rules for {sizes[name]:,} elements, got {count:,}"
        for name, count in counts.items()
        if count != sizes[name]
    ]


def _misfit(entry: TensorEntry, shape: tuple[int, ...]) -> str | None:
    if entry.dtype not in ITEM_SIZES:
        wanted, got = f"one of {', '.join(ITEM_SIZES)}", entry.dtype
    elif entry.shape != shape:
        wanted, got = str(list(shape)), str(list(entry.shape))
    else:
        return None
    return f"{entry.path.name}: {entry.name}: expected {wanted}, got {got}"


def _unwanted(entry: TensorEntry) -> str:
    return f"{entry.path.name}: {entry.name}: expected no such tensor, got {entry.dtype} {list(entry.shape)}"
