"""From the architecture that config.json names to the family that knows it."""

from __future__ import annotations

from collections.abc import Mapping

from ostinato.layers.errors import ModelLoadError
from ostinato.models.config_json import shown
from ostinato.models.families import (
    falcon,
    gemma,
    gpt2,
    gpt_neox,
    gpt_oss,
    granite,
    llama,
    minimax_m2,
    mistral,
    mixtral,
    mpt,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
)
from ostinato.models.families.family import Family

_FAMILIES: dict[str, Family] = {}


def register_model(family: Family) -> None:
    """Make the family's architectures loadable; a later family takes over the names of an earlier one."""
    if not isinstance(family, Family):
        raise TypeError(f"register_model takes a Family, got {type(family).__name__}")
    _FAMILIES.update(dict.fromkeys(family.architectures, family))


def family_for(config: Mapping[str, object]) -> Family:
    """The family of ``architectures[0]``; ``ModelLoadError`` with the supported ones when there is none."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or name not in _FAMILIES:
        supported = ", ".join(sorted(_FAMILIES))
        raise ModelLoadError(f"config.json: architectures: expected one of {supported}, got {shown(names)}")
    return _FAMILIES[name]


def architectures() -> list[str]:
    """The names in config.json that a family knows, sorted."""
    return sorted(_FAMILIES)


def families() -> list[Family]:
    """Every known family once, in order of registration."""
    return list(dict.fromkeys(_FAMILIES.values()))


for _module in (
    llama, qwen2, qwen3, qwen3_moe, mistral, mixtral, gpt2, gpt_neox, mpt, falcon, phi3, smollm3, olmo2, gpt_oss,
    granite, minimax_m2,
):  # fmt: skip
    register_model(_module.FAMILY)
register_model(gemma.GEMMA2)
register_model(gemma.GEMMA3)
