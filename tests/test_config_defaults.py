"""What config.json does not say: a family takes the default that transformers takes, or refuses by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import AutoConfig

from engines import checkpoint
from ostinato.layers.errors import ModelLoadError
from ostinato.models.registry import family_for
from ostinato.models.spec import ModelSpec
from tiny_checkpoints import ALL_VARIANTS

# The length that a model was trained for has a safe default here (2,048); transformers' differs by class.
KEPT = {"architectures", "model_type", "dtype", "max_position_embeddings"}


def config_of(variant: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((checkpoint(variant)[0] / "config.json").read_text())
    return config


def spec_of(config: dict[str, Any]) -> ModelSpec | None:
    """None where it is refused."""
    try:
        return family_for(config).spec(config)
    except ModelLoadError:
        return None


def completed(config: dict[str, Any]) -> dict[str, Any] | None:
    """With every default of transformers written out; None where transformers takes no such file."""
    given = {key: value for key, value in config.items() if key not in KEPT - {"max_position_embeddings"}}
    try:
        filled = AutoConfig.for_model(config["model_type"], **given).to_dict()
    except Exception:  # transformers' own checks: whatever they raise, there is nothing to compare with
        return None
    return {**filled, **{key: config[key] for key in KEPT if key in config}}


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_an_absent_key_means_what_it_means_to_transformers(variant: str) -> None:
    config = config_of(variant)
    compared = 0
    for key in sorted(set(config) - KEPT):
        for changed in ({k: v for k, v in config.items() if k != key}, {**config, key: None}):
            ours, filled = spec_of(changed), completed(changed)
            if ours is not None and filled is not None and (theirs := spec_of(filled)) is not None:
                assert ours == theirs, f"{key}: {changed.get(key, 'absent')}"
                compared += 1
    assert compared > 10
