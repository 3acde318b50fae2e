"""The tensors of a checkpoint's files against the parameters of its spec: the loader's own plan, taken apart.

Reads headers only. Every list is whole; who shows it shortens it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from ostinato.models.families.family import Family
from ostinato.models.spec import ModelSpec
from ostinato.models.weights.entry import TensorEntry
from ostinato.models.weights.plan import Misfit, Plan, make_plan
from ostinato.models.weights.source import Source


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
        return (*(str(misfit) for misfit in (*self.missing, *self.unexpected, *self.misshapen)), *self.others)


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
    plan = make_plan(decoder, family, spec, source)

    def of(kind: str) -> tuple[Misfit, ...]:
        return tuple(misfit for misfit in plan.misfits if misfit.kind == kind)

    return FitReport(
        num_parameters=sum(parameter.numel() for parameter in decoder.parameters()),
        matched=len(plan.copies) + len(plan.repeats) - len(of("misshapen")),
        missing=of("missing"),
        unexpected=of("unexpected"),
        misshapen=of("misshapen"),
        ignored=plan.ignored,
        repeated=tuple(entry.name for entry, _ in plan.repeats),
        tied_head=_tied_head(plan, spec),
        others=plan.mistakes,
    )


def _tied_head(plan: Plan, spec: ModelSpec) -> bool | None:
    return any(place.parameter == "embed.weight" for _, place in plan.repeats) if spec.tie_word_embeddings else None
