"""``ostinato models``: the families this version knows and what each is made of, as text and as JSON.

What a family's tensors show is read from its rules; what only a config.json can switch on, the family says itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from ostinato.layers.activation import ACTIVATIONS
from ostinato.models.families.family import Family
from ostinato.models.registry import families
from ostinato.models.spec import NormSpec, RopeScaling, RoutingSpec
from ostinato.models.weights.rules import OneOf

_SIGNS = {
    "embed_positions": "learned positions",
    "layers.{layer}.attention.q_norm": "QK norm",
    "layers.{layer}.attention.sinks": "attention sinks",
    "layers.{layer}.ffn.router": "mixture of experts",
    "layers.{layer}.ffn.correction_bias": "correction bias",
    "layers.{layer}.ffn.gate_up": "gated feed-forward",
    "layers.{layer}.ffn.up": "plain feed-forward",
}
"""Modules and parameters of ours that a rule fills, and the mechanism they belong to."""


@dataclass(frozen=True)
class Catalogue:
    """All that can be put together. ``rope`` are kinds of scaling; "default" is none."""

    families: tuple[Family, ...]
    activations: tuple[str, ...]
    rope: tuple[str, ...]
    norms: tuple[str, ...]
    routing: tuple[str, ...]


def catalogue() -> Catalogue:
    """From the registry, and from the types of the specs."""
    return Catalogue(
        families=tuple(families()),
        activations=tuple(ACTIVATIONS),
        rope=("default", *_choices(RopeScaling, "kind")),
        norms=_choices(NormSpec, "kind"),
        routing=_choices(RoutingSpec, "score"),
    )


def mechanisms(family: Family) -> list[str]:
    """What the family's rules show."""
    targets = set(_targets(family))
    found = [name for target, name in _SIGNS.items() if target in targets]
    norms = {target.rpartition(".")[2] for target in targets}
    if "post_attn_norm" in norms:
        found.append("norms before and behind" if "pre_attn_norm" in norms else "norms behind")
    return found


def as_text(known: Catalogue) -> str:
    """A line for each family, one for its mechanisms, then what they share."""
    width = max(len(family.name) for family in known.families)
    lines = []
    for family in known.families:
        lines.append(f"{family.name:<{width}}  {', '.join(family.architectures)}")
        lines += [f"{'':<{width}}    {text}" for text in (family.about, ", ".join(mechanisms(family))) if text]
    shared = {
        "activations": known.activations, "rope": known.rope, "norms": known.norms, "routing": known.routing,
    }  # fmt: skip
    width = max(map(len, shared))
    return "\n".join([*lines, "", *(f"{name:<{width}}  {', '.join(values)}" for name, values in shared.items())])


def as_json(known: Catalogue) -> str:
    """The same as one JSON object."""
    described = [
        {
            "name": family.name,
            "architectures": family.architectures,
            "about": family.about,
            "mechanisms": mechanisms(family),
        }
        for family in known.families
    ]
    shared = {name: getattr(known, name) for name in ("activations", "rope", "norms", "routing")}
    return json.dumps({"families": described, **shared}, indent=2)


def _choices(spec: type[Any], field: str) -> tuple[str, ...]:
    """The values of a field whose type is a Literal."""
    return get_args(get_type_hints(spec)[field])


def _targets(family: Family) -> Iterator[str]:
    for rule in family.rules:
        for rules in rule.alternatives if isinstance(rule, OneOf) else ((rule,),):
            yield from (each.target for each in rules)
