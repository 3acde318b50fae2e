"""Everything there is to say of a checkpoint before it is loaded, and on request how its model compares.

Each part is examined by itself, so that one fault does not hide the next: what cannot be known after it stays None.
Reads no weights unless a comparison is asked for. Knows no command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from ostinato.doctor_tokenizer import TokenizerReport, examine_tokenizer
from ostinato.graphs.ambient import neutral_state
from ostinato.layers.errors import ConfigError, ModelLoadError, ParamError
from ostinato.memory import format_bytes, free_bytes
from ostinato.models.checkpoint import read_config, read_generation_config
from ostinato.models.config_json import ConfigJson
from ostinato.models.config_reads import watching
from ostinato.models.config_report import ConfigReport, Reads
from ostinato.models.decoder import count_parameters
from ostinato.models.doctor.tensors import FilesReport, FitReport, fit, survey
from ostinato.models.doctor.trace import Comparison, compare
from ostinato.models.families.family import Family
from ostinato.models.implementation import describe, is_known
from ostinato.models.registry import family_for
from ostinato.models.spec import ModelSpec
from ostinato.models.weights.source import open_source
from ostinato.tokenizer import Tokenizer

T = TypeVar("T")

SENTENCE = "The quick brown fox jumps over the lazy dog, and then it sleeps until the next morning."
IDS_WITHOUT_TOKENIZER = range(1, 25)
HEADROOM = 1.1  # of the parameters' bytes: what loading and one short prefill take beside them


@dataclass(frozen=True)
class Diagnosis:
    """What was found. ``spec`` is None where config.json is refused, ``files`` where there are no weights."""

    folder: Path
    architecture: str | None
    family: str | None
    spec: ModelSpec | None
    config: ConfigReport
    files: FilesReport | None
    fit: FitReport | None
    tokenizer: TokenizerReport
    comparison: Comparison | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing was found, in the comparison neither."""
        return not self.problems


def diagnose(folder: Path, against: bool = False) -> Diagnosis:
    """Examine ``folder``; with ``against``, compare with transformers where nothing speaks against loading.

    ``ModelLoadError`` where there is no config.json to begin with, and for what transformers cannot load;
    ``ConfigError`` where there is not enough memory for a comparison.
    """
    raw = read_config(folder)
    problems: list[str] = []
    family, spec, config = _read_spec(folder, raw, problems)
    generation = _or_problem(lambda: read_generation_config(folder), problems) or {}
    source = _or_problem(lambda: open_source(folder), problems)
    files = survey(source, folder) if source else None
    fitted = fit(source, family, spec) if source and family and spec else None
    tokenizer = examine_tokenizer(folder, raw, generation, spec.vocab_size if spec else None)
    problems += [*(files.problems if files else ()), *(fitted.problems if fitted else ()), *tokenizer.problems]
    notes = list(tokenizer.notes)
    comparison = None
    if against and family and spec and fitted and not (fitted.problems or (files and files.problems)):
        comparison = _compare(folder, family, spec, problems)
    elif against:
        why = "its own code runs the model" if spec and not family else "the model cannot be loaded"
        notes.append(f"not compared with transformers: {why}")
    if spec and not family:
        notes.append("no family here knows it: transformers' own code runs the model (docs/transformers_backend.md)")
    names = raw.get("architectures")
    return Diagnosis(
        folder=folder,
        architecture=str(names[0]) if isinstance(names, list) and names else None,
        family=family.name if family else None,
        spec=spec,
        config=config,
        files=files,
        fit=fitted,
        tokenizer=tokenizer,
        comparison=comparison,
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _compare(folder: Path, family: Family, spec: ModelSpec, problems: list[str]) -> Comparison | None:
    """One text through both models in fp32, one after the other: there is room for one at a time."""
    from ostinato.models.doctor.ours import load_ours, trace_ours
    from ostinato.models.doctor.theirs import load_theirs, trace_theirs

    needed, free = int(4 * HEADROOM * count_parameters(spec, family.build)), free_bytes(torch.device("cpu"))
    if needed > free:
        sizes = f"needs {format_bytes(needed)} in float32, and {format_bytes(free)} are free"
        raise ConfigError(f"--against transformers: the model {sizes}")
    token_ids = _token_ids(folder, spec)
    with neutral_state("cpu"):
        ours = _or_problem(lambda: trace_ours(load_ours(folder, family, spec), token_ids), problems)
        if ours is None:
            return None
        comparison = compare(ours, trace_theirs(load_theirs(folder, spec), token_ids), token_ids)
    problems += _difference(comparison)
    return comparison


def _read_spec(
    folder: Path, raw: Mapping[str, object], problems: list[str]
) -> tuple[Family | None, ModelSpec | None, ConfigReport]:
    """The family and the spec, as far as config.json is not refused, and what was read of it.

    Where transformers' own code runs the model there is a spec without a family: its tensors are transformers' affair.
    """
    reads = Reads(raw)
    family = spec = None
    with watching(reads.note):
        values = ConfigJson(raw).values
        values.get("eos_token_id")  # which the engine reads
        try:
            if not is_known(values):
                spec = describe("auto", folder, raw).spec
            else:
                family = family_for(values)
                spec = family.spec(values)
        except ModelLoadError as error:
            problems.append(str(error))
    return family, spec, reads.report(complete=family is not None and spec is not None)


def _or_problem(read: Callable[[], T], problems: list[str]) -> T | None:
    """What ``read`` returns; its ``ModelLoadError`` becomes a problem."""
    try:
        return read()
    except ModelLoadError as error:
        problems.append(str(error))
        return None


def _token_ids(folder: Path, spec: ModelSpec) -> Sequence[int]:
    """The ids of a fixed sentence, or some where no tokenizer gives ids that the model has."""
    ids: Sequence[int] = ()
    try:
        tokenizer = Tokenizer.load(folder) if (folder / "tokenizer.json").is_file() else None
        ids = tokenizer.encode(SENTENCE) if tokenizer else ()
    except (ModelLoadError, ParamError):  # told of elsewhere
        ids = ()
    if not ids or max(ids) >= spec.vocab_size:
        ids = [token_id % spec.vocab_size for token_id in IDS_WITHOUT_TOKENIZER]
    return ids[: spec.max_position_embeddings]


def _difference(comparison: Comparison) -> list[str]:
    first = comparison.first
    if first is None:
        return []
    place = f"layer {first.layer}" if first.layer is not None else first.place
    found = f"{place} differs first, by {first.max_difference:.3g} where the largest value is {first.max_reference:.3g}"
    return [f"transformers: {found}: see {comparison.suspect}"]
