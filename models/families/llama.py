"""Llama 2, 3 and 3.x, CodeLlama, and whatever else calls itself LlamaForCausalLM."""

from __future__ import annotations

from collections.abc import Mapping

from ostinato.models.config_json import ConfigJson
from ostinato.models.families.common import layer_kinds, llama_like, window_size, windows_of_kinds, with_windows
from ostinato.models.families.family import Family
from ostinato.models.spec import ModelSpec
from ostinato.models.weights.rules import Rule, gate_rows, k_rows, q_rows, up_rows, v_rows

LAYER = "model.layers.{layer}"
OUTER_RULES = (
    Rule("model.embed_tokens", "embed"),
    Rule("model.norm", "norm"),
    Rule("lm_head", "lm_head"),
)
NORM_RULES = (
    Rule(f"{LAYER}.input_layernorm", "layers.{layer}.pre_attn_norm"),
    Rule(f"{LAYER}.post_attention_layernorm", "layers.{layer}.pre_ffn_norm"),
)
ATTENTION_RULES = (
    Rule(f"{LAYER}.self_attn.q_proj", "layers.{layer}.attention.qkv", q_rows),
    Rule(f"{LAYER}.self_attn.k_proj", "layers.{layer}.attention.qkv", k_rows),
    Rule(f"{LAYER}.self_attn.v_proj", "layers.{layer}.attention.qkv", v_rows),
    Rule(f"{LAYER}.self_attn.o_proj", "layers.{layer}.attention.o"),
)
QK_NORM_RULES = (
    Rule(f"{LAYER}.self_attn.q_norm", "layers.{layer}.attention.q_norm"),
    Rule(f"{LAYER}.self_attn.k_norm", "layers.{layer}.attention.k_norm"),
)
MLP_RULES = (
    Rule(f"{LAYER}.mlp.gate_proj", "layers.{layer}.ffn.gate_up", gate_rows),
    Rule(f"{LAYER}.mlp.up_proj", "layers.{layer}.ffn.gate_up", up_rows),
    Rule(f"{LAYER}.mlp.down_proj", "layers.{layer}.ffn.down"),
)
RULES = (*OUTER_RULES, *NORM_RULES, *ATTENTION_RULES, *MLP_RULES)
IGNORED = ("*.rotary_emb.inv_freq",)  # a buffer that files from before 2023-09 carry


def llama_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that a Llama ``config.json`` describes."""
    config = ConfigJson(values)
    bias = config.flag("attention_bias", False)
    mlp_bias = config.flag("mlp_bias", False)
    spec = llama_like(config, "LlamaForCausalLM", qkv_bias=bias, o_bias=bias, mlp_bias=mlp_bias)
    return with_windows(spec, _windows(config, len(spec.layers)))


def _windows(config: ConfigJson, num_layers: int) -> list[int | None]:
    """Llama has none; a file that asks for one all the same is refused or, by ``layer_types``, understood."""
    kinds = layer_kinds(config, num_layers, ["full_attention"] * num_layers)
    window = window_size(config)
    if window and config.flag("use_sliding_window", True) and not config.has("layer_types"):
        raise config.refusal("sliding_window", "none, for this architecture")
    return windows_of_kinds(config, kinds, window)


FAMILY = Family(
    "llama", ("LlamaForCausalLM",), llama_spec, RULES, IGNORED,
    about="grouped heads; RoPE, plain or stretched by linear, llama3 or yarn; windows by layer",
)  # fmt: skip
