"""Mistral 7B, Nemo and Large: Llama's shape, a sliding window in the first of them."""

from __future__ import annotations

from collections.abc import Mapping

from ostinato.models.config_json import ConfigJson
from ostinato.models.families import llama
from ostinato.models.families.common import llama_like, window_size, with_windows
from ostinato.models.families.family import Family
from ostinato.models.spec import ModelSpec

DEFAULT_WINDOW = 4096  # transformers' own where config.json does not mention it; null means none


def mistral_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that a Mistral ``config.json`` describes."""
    config = ConfigJson(values)
    spec = llama_like(config, "MistralForCausalLM")
    return with_windows(spec, [window_size(config, DEFAULT_WINDOW)] * len(spec.layers))


FAMILY = Family(
    "mistral", ("MistralForCausalLM",), mistral_spec, llama.RULES, llama.IGNORED,
    about="Llama's shape with a sliding window",
)  # fmt: skip
