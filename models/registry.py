"""From the architecture that config.json names to the family that knows it."""

from __future__ import annotations

from collections.abc import Mapping

from ostinato.layers.errors import ModelLoadError
from ostinato.models.config_json import shown
from ostinato.models.families import llama, qwen3
from ostinato.models.families.family import Family

_FAMILIES: dict[str, Family] = {}


def register_model(family: Family) -> None:
    """Make the family's architectures loadable; a later family takes over the names of an earlier one."""
    _FAMILIES.update(dict.fromkeys(family.architectures, family))


def family_for(config: Mapping[str, object]) -> Family:
    """The family of ``architectures[0]``; ``ModelLoadError`` with the supported ones when there is none."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or name not in _FAMILIES:
        supported = ", ".join(sorted(_FAMILIES))
        raise ModelLoadError(f"config.json: architectures: expected one of {supported}, got {shown(names)}")
    return _FAMILIES[name]


for _family in (llama.FAMILY, qwen3.FAMILY):
    register_model(_family)
