"""``ostinato doctor``: a diagnosis as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from ostinato.doctor import Diagnosis
from ostinato.doctor_tokenizer import TokenizerReport
from ostinato.memory import format_bytes
from ostinato.models.config_json import shown
from ostinato.models.config_report import ConfigReport
from ostinato.models.doctor.tensors import FilesReport, FitReport
from ostinato.models.doctor.trace import TOLERANCE, Comparison, Gap
from ostinato.models.doctor.words import indices, layer_kinds, layer_words, model_words
from ostinato.models.spec import ModelSpec

NAMES_SHOWN = 12
KINDS_SHOWN = 6
LINE_SHOWN = 300  # characters: a broken header may hold a name of megabytes

Rows = Iterator[tuple[str, str]]


def as_text(found: Diagnosis) -> str:
    """All of it as aligned lines, the verdict last."""
    rows = [("model", f"{found.architecture} (family {found.family or 'unknown'}) from {found.folder}")]
    if found.spec is not None:
        rows += _spec(found.spec)
    rows += _config(found.config)
    rows += _files(found.files) if found.files else [("weights", "none to look at")]
    if found.fit is not None:
        rows += _fit(found.fit)
    rows += _tokenizer(found.tokenizer)
    if found.comparison is not None:
        rows += _comparison(found.comparison)
    rows += [("note", note) for note in found.notes]
    rows += [("problem", _short(problem)) for problem in found.problems[:NAMES_SHOWN]]
    if len(found.problems) > NAMES_SHOWN:
        rows.append(("problem", f"… and {len(found.problems) - NAMES_SHOWN:,} more (--json has them all)"))
    rows.append(("verdict", verdict(found)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def as_json(found: Diagnosis) -> str:
    """The same, whole, as one JSON object: sizes in bytes, every name."""
    values = dataclasses.asdict(found) | {"sound": found.sound}
    if found.comparison is not None:
        values["comparison"] |= {
            "tolerance": TOLERANCE,
            "equal": found.comparison.first is None,
            "first": found.comparison.first and dataclasses.asdict(found.comparison.first),
            "suspect": found.comparison.suspect,
        }
    return json.dumps(_plain(values), indent=2)


def verdict(found: Diagnosis) -> str:
    """In one line."""
    if not found.sound:
        return f"{len(found.problems):,} problem{'s'[: len(found.problems) != 1]} found"
    return "sound" if found.comparison is None else "sound, and equal to transformers"


def _plain(value: Any) -> Any:
    """What JSON can hold: sets become lists, paths text, and numbers that are not finite null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _spec(spec: ModelSpec) -> Rows:
    yield from model_words(spec)
    kinds = layer_kinds(spec)
    for layer, places in list(kinds.items())[:KINDS_SHOWN]:
        yield "layers", f"{len(places)} of {len(spec.layers)}: {indices(places)}"
        yield from ((f"  {name}", words) for name, words in layer_words(layer))
    if len(kinds) > KINDS_SHOWN:
        yield "layers", f"… and {len(kinds) - KINDS_SHOWN} more kinds"


def _config(report: ConfigReport) -> Rows:
    yield "config.json", f"{len(report.read)} keys read" + ("" if report.ignored is not None else ", then refused")
    defaults = [f"{key} {json.dumps(value)}" for key, value in report.defaults.items()]
    yield "  defaults", _names(defaults, "none taken")
    yield "  absent", _names(report.absent, "none")
    if report.ignored is not None and report.bookkeeping is not None:
        yield "  ignored", _names(report.ignored, "none")
        yield "  bookkeeping", _names(report.bookkeeping, "none")


def _files(report: FilesReport) -> Rows:
    dtypes = ", ".join(f"{each.num_tensors} {each.dtype} ({format_bytes(each.num_bytes)})" for each in report.dtypes)
    what = f"{len(report.files)} file{'s'[: len(report.files) != 1]}, {format_bytes(report.file_bytes)}"
    yield "weights", f"{what}: {dtypes or 'no tensors'}"


def _fit(report: FitReport) -> Rows:
    counts = {
        "matched": report.matched,
        "missing": len(report.missing),
        "unexpected": len(report.unexpected),
        "misshapen": len(report.misshapen),
        "ignored": len(report.ignored),
    }
    yield "tensors", ", ".join(f"{count:,} {name}" for name, count in counts.items())
    yield "parameters", f"{report.num_parameters:,}"
    if report.ignored:
        yield "  ignored", _names(report.ignored)
    if report.tied_head is not None:
        carried = "carried as well, and compared when loading" if report.tied_head else "not in the files, as usual"
        yield "tied head", carried


def _tokenizer(report: TokenizerReport) -> Rows:
    if report.kind is None or report.vocab_size is None or report.largest_id is None:
        yield "tokenizer", "none opened"
    else:
        yield "tokenizer", f"{report.kind}; {report.vocab_size:,} tokens, ids up to {report.largest_id:,}"
    special = [f"{name} {text!r} = {'no id' if i is None else i}" for name, (text, i) in report.special_tokens.items()]
    yield "  its tokens", ", ".join(special) or "none named"
    if report.config_ids:
        yield "  config.json", ", ".join(f"{name} {shown(value)}" for name, value in report.config_ids.items())
    for place, ids in report.eos_ids.items():
        texts = (f"{token_id}" + (f" ({text})" if text is not None else "") for token_id, text in ids.items())
        yield "  ends a text", f"{', '.join(texts)} ({place})"
    yield "chat template", {True: "present", False: "none", None: "not readable"}[report.chat_template]


def _comparison(report: Comparison) -> Rows:
    yield "transformers", f"{len(report.token_ids)} tokens in float32, equal within {TOLERANCE:g} of the largest value"
    layers = [gap for gap in report.stages if gap.layer is not None]
    for gap in report.stages:
        if gap.layer is None:
            yield f"  {gap.place}", _gap(gap)
        elif gap is layers[-1]:
            worst = max(layers, key=lambda gap: math.inf if math.isnan(gap.relative) else gap.relative)
            name = f"  layers {layers[0].layer}-{layers[-1].layer}"
            yield name, f"{_gap(worst)}, worst in layer {worst.layer}"
    if report.first is not None and report.first.layer is not None:
        yield f"  layer {report.first.layer}", f"{_gap(report.first)}, the first that differs"
        yield from ((f"    {gap.place}", _gap(gap)) for gap in report.parts)


def _gap(gap: Gap) -> str:
    amount = f"{gap.max_difference:.2g} of {gap.max_reference:.3g}"
    return f"{'equal' if gap.equal else 'DIFFERS'}: max |Δ| {amount} = {gap.relative:.1e}"


def _names(names: Sequence[str], none: str = "") -> str:
    more = [f"… and {len(names) - NAMES_SHOWN:,} more"] if len(names) > NAMES_SHOWN else []
    return ", ".join([*(_short(name) for name in names[:NAMES_SHOWN]), *more]) or none


def _short(line: str) -> str:
    line = " ".join(line.splitlines())
    return line if len(line) <= LINE_SHOWN else line[:LINE_SHOWN] + "…"
