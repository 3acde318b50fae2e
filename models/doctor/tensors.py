"""The tensors of a checkpoint's files against the parameters of its spec: the loader's own plan, taken apart.

Reads headers only. Every list is whole; who shows it shortens it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from ostinato.models.families.family import Family
from ostinato.models.spec import ModelSpec
from ostinato.models.weights.entry import TensorEntry
from ostinato.models.weights.plan import Plan, make_plan
from ostinato.models.weights.source import Source

# The plan's lines about one tensor: "FILE: NAME: expected …, got …", without FILE for one that is missing.
_ABOUT_A_TENSOR = re.compile(
    r"(?:(?P<file>\S+): )?(?P<name>\S+): expected (?P<expected>.+), got (?P<got>.+)", re.DOTALL
)


@dataclass(frozen=True)
class DtypeTotal:
    """Tensors of one dtype in the files; ``num_bytes`` of them all."""

    dtype: str
    num_tensors: int
    num_elements: int
    num_bytes: int


@dataclass(frozen=True)
class FilesReport:
    """What the files hold; ``problems`` are broken headers and indexes."""

    files: tuple[str, ...]
    file_bytes: int
    dtypes: tuple[DtypeTotal, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Misfit:
    """A tensor that does not fit, and what the loader says of it; ``file`` is None for one that is in none."""

    name: str
    file: str | None
    expected: str
    got: str
    line: str


@dataclass(frozen=True)
class FitReport:
    """What the loader would do with each tensor. ``others`` are its problems that are about no single tensor.

    ``tied_head`` is None where the head is no second name of the embedding, else whether the files carry it too.
    """

    num_parameters: int
    matched: int
    missing: tuple[Misfit, ...]
    unexpected: tuple[Misfit, ...]
    misshapen: tuple[Misfit, ...]
    ignored: tuple[str, ...]
    repeated: tuple[str, ...]
    tied_head: bool | None
    others: tuple[str, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """A line for each."""
        return (*(fault.line for fault in (*self.missing, *self.unexpected, *self.misshapen)), *self.others)


def survey(source: Source, folder: Path) -> FilesReport:
    """Count what is in the files."""
    by_dtype: dict[str, list[TensorEntry]] = {}
    for entry in source.tensors.values():
        by_dtype.setdefault(entry.dtype, []).append(entry)
    totals = [
        DtypeTotal(
            dtype,
            len(entries),
            sum(math.prod(entry.shape) for entry in entries),
            sum(entry.num_bytes for entry in entries),
        )
        for dtype, entries in sorted(by_dtype.items())
    ]
    paths = [folder / file for file in source.files]
    sizes = [path.stat().st_size for path in paths if path.is_file()]
    return FilesReport(source.files, sum(sizes), tuple(totals), source.problems)


def fit(source: Source, family: Family, spec: ModelSpec) -> FitReport:
    """Plan the load and sort what does not fit."""
    with torch.device("meta"):
        decoder = family.build(spec)
    named = list(decoder.named_parameters(remove_duplicate=False))
    firsts = {id(parameter): name for name, parameter in reversed(named)}
    shapes = {name: tuple(parameter.shape) for name, parameter in named}
    plan = make_plan(shapes, {name: firsts[id(parameter)] for name, parameter in named}, family, spec, source)
    missing, unexpected, misshapen, others = _sorted(line for line in plan.problems if line not in source.problems)
    return FitReport(
        num_parameters=sum(math.prod(shapes[name]) for name in firsts.values()),
        matched=len(plan.copies) + len(plan.repeats) - len(misshapen),
        missing=missing,
        unexpected=unexpected,
        misshapen=misshapen,
        ignored=plan.ignored,
        repeated=tuple(entry.name for entry, _ in plan.repeats),
        tied_head=_tied_head(plan, spec),
        others=others,
    )


def _tied_head(plan: Plan, spec: ModelSpec) -> bool | None:
    return any(place.parameter == "embed.weight" for _, place in plan.repeats) if spec.tie_word_embeddings else None


def _sorted(lines: Iterable[str]) -> tuple[tuple[Misfit, ...], tuple[Misfit, ...], tuple[Misfit, ...], tuple[str, ...]]:
    """Missing, unexpected and misshapen (or of a dtype that is not read) tensors, and lines about anything else."""
    missing, unexpected, misshapen, others = [], [], [], []
    for line in lines:
        about = _ABOUT_A_TENSOR.fullmatch(line)
        if about is None:
            others.append(line)
            continue
        misfit = Misfit(about["name"], about["file"], about["expected"], about["got"], line)
        if misfit.got.startswith("no such tensor"):
            missing.append(misfit)
        elif misfit.file is None:
            others.append(line)
        elif misfit.expected.startswith(("no such tensor", "to be the only")):
            unexpected.append(misfit)
        else:
            misshapen.append(misfit)
    return tuple(missing), tuple(unexpected), tuple(misshapen), tuple(others)
