"""gpt-oss in bfloat16: attention sinks, alternating windows, experts with biases and clamped gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ostinato.models.config_json import ConfigJson
from ostinato.models.families import llama
from ostinato.models.families.common import layer_kinds, llama_like, window_size, windows_of_kinds, with_windows
from ostinato.models.families.family import Family
from ostinato.models.families.moe import moe_spec, with_experts
from ostinato.models.spec import ClampedGlu, ModelSpec, RoutingSpec
from ostinato.models.weights.layouts import interleaved_halves
from ostinato.models.weights.rules import Rule

_EXPERTS = f"{llama.LAYER}.mlp.experts"
_YARN = {  # transformers' own where config.json does not mention positions
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}
_BARE = {"weight": "", "bias": "_bias"}
RULES = (
    *llama.OUTER_RULES,
    *llama.NORM_RULES,
    *llama.ATTENTION_RULES,
    Rule(f"{llama.LAYER}.self_attn.sinks", "layers.{layer}.attention.sinks"),
    Rule(f"{llama.LAYER}.mlp.router", "layers.{layer}.ffn.router"),
    Rule(
        f"{_EXPERTS}.gate_up_proj",
        "layers.{layer}.ffn.gate_up",
        transposed=True,
        order=interleaved_halves,
        suffixes=_BARE,
    ),
    Rule(f"{_EXPERTS}.down_proj", "layers.{layer}.ffn.down", transposed=True, suffixes=_BARE),
)


def gpt_oss_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that a gpt-oss ``config.json`` describes."""
    config = ConfigJson(values)
    if not config.has("rope_parameters") and not config.has("rope_scaling"):
        config = ConfigJson({**values, "rope_scaling": _YARN})
    bias = config.flag("attention_bias", True)
    spec = llama_like(
        config,
        "GptOssForCausalLM",
        default_head_dim=64,
        default_theta=150_000.0,
        default_eps=1e-5,
        qkv_bias=bias,
        o_bias=bias,
        sinks=True,
    )
    routing = RoutingSpec("topk_softmax", bias=True)
    glu = ClampedGlu(config.number("swiglu_alpha", 0, 100, 1.702), config.number("swiglu_limit", 0, 1e6, 7.0))
    moe = moe_spec(config, "silu", routing, default_experts=128, default_top_k=4)
    spec = with_experts(spec, replace(moe, bias=True, clamped=glu))
    num_layers = len(spec.layers)
    alternating = ["sliding_attention" if index % 2 == 0 else "full_attention" for index in range(num_layers)]
    kinds = layer_kinds(config, num_layers, alternating)
    return with_windows(spec, windows_of_kinds(config, kinds, window_size(config, 128)))


FAMILY = Family(
    "gpt_oss", ("GptOssForCausalLM",), gpt_oss_spec, RULES, llama.IGNORED,
    about="alternating windows, yarn, clamped gates, experts with biases",
)  # fmt: skip
