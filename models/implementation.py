"""Who runs a checkpoint: a family of this package, or transformers' own code over our pages.

Imports transformers only where that is what runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ostinato.layers.errors import ModelLoadError
from ostinato.models.decoder import count_parameters
from ostinato.models.registry import architectures, family_for
from ostinato.models.spec import ModelSpec


@dataclass(frozen=True)
class Described:
    """A checkpoint before its weights are read. ``model_impl``: "ostinato" or "transformers"."""

    model_impl: str
    spec: ModelSpec
    num_parameters: int
    notes: tuple[str, ...] = ()


def is_known(raw: Mapping[str, object]) -> bool:
    """Whether a family of this package knows the architecture that config.json names, if it names one at all."""
    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    return not isinstance(name, str) or name in architectures()


def describe(model_impl: str, folder: Path, raw: Mapping[str, object]) -> Described:
    """What the config.json ``raw`` of ``folder`` describes; "auto" takes a family where there is one.

    ``ModelLoadError`` where neither can run it, with the reason of each.
    """
    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    known = is_known(raw)
    if model_impl == "transformers":
        return _by_transformers(str(name), folder, raw, known)
    if model_impl == "auto" and not known:
        try:
            return _by_transformers(str(name), folder, raw, known)
        except ModelLoadError as error:
            supported = ", ".join(architectures())
            text = (
                f"config.json: architectures: expected one of {supported}, got {name!r}; and as a last resort: {error}"
            )
            raise ModelLoadError(text) from error
    try:
        family = family_for(raw)
    except ModelLoadError as error:
        if model_impl == "auto":
            raise
        raise ModelLoadError(f"{error}; model_impl='auto' also tries transformers' own code") from None
    spec = family.spec(raw)
    return Described("ostinato", spec, count_parameters(spec, family.build))


def _by_transformers(name: str, folder: Path, raw: Mapping[str, object], known: bool) -> Described:
    from ostinato.models.transformers_backend.describe import describe as describe_with_transformers

    spec, num_parameters = describe_with_transformers(folder, raw)
    why = "as asked for" if known else f"no family here knows {name}"
    return Described("transformers", spec, num_parameters, (f"transformers' own code runs the model: {why}",))
