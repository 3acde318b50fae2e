"""What a model family is to the registry and to the loader: a name and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ostinato.models.decoder import Decoder
from ostinato.models.spec import ModelSpec
from ostinato.models.weights.rules import OneOf, Rule


@dataclass(frozen=True)
class Family:
    """Checkpoints that share a ``config.json`` dialect and tensor names.

    ``architectures`` are the names in config.json that mean this family; ``spec`` reads a parsed config.json and raises
    ``ModelLoadError`` for what it does not support; ``ignored`` are tensor names (``fnmatch`` patterns) that files of
    the family carry and no parameter needs. ``renames`` are regular expressions and what replaces them, applied
    in turn to every name in the files (``re.sub``); rules and ``ignored`` speak of what comes out. ``build`` makes the
    module that the rules fill: ours, or one from outside with the surface of ``models.decode_step.StepDecoder``.
    ``about`` says in a phrase what its models can be made of, as far as the rules do not show it.
    """

    name: str
    architectures: tuple[str, ...]
    spec: Callable[[Mapping[str, object]], ModelSpec]
    rules: tuple[Rule | OneOf, ...]
    ignored: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    build: Callable[[ModelSpec], Any] = Decoder
    about: str = ""
