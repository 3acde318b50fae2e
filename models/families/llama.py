"""Llama 2, 3 and 3.x, CodeLlama, and whatever else calls itself LlamaForCausalLM."""

from __future__ import annotations

from collections.abc import Mapping

from ostinato.layers.activation import ACTIVATIONS
from ostinato.models.config_json import ConfigJson
from ostinato.models.families.family import Family
from ostinato.models.rope_json import MAX_POSITIONS, rope_spec
from ostinato.models.spec import AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec
from ostinato.models.weights.rules import Rule, gate_rows, k_rows, q_rows, up_rows, v_rows

_LAYER = "model.layers.{layer}"
RULES = (
    Rule("model.embed_tokens", "embed"),
    Rule("model.norm", "norm"),
    Rule("lm_head", "lm_head"),
    Rule(f"{_LAYER}.input_layernorm", "layers.{layer}.pre_attn_norm"),
    Rule(f"{_LAYER}.post_attention_layernorm", "layers.{layer}.pre_ffn_norm"),
    Rule(f"{_LAYER}.self_attn.q_proj", "layers.{layer}.attention.qkv", q_rows),
    Rule(f"{_LAYER}.self_attn.k_proj", "layers.{layer}.attention.qkv", k_rows),
    Rule(f"{_LAYER}.self_attn.v_proj", "layers.{layer}.attention.qkv", v_rows),
    Rule(f"{_LAYER}.self_attn.o_proj", "layers.{layer}.attention.o"),
    Rule(f"{_LAYER}.mlp.gate_proj", "layers.{layer}.ffn.gate_up", gate_rows),
    Rule(f"{_LAYER}.mlp.up_proj", "layers.{layer}.ffn.gate_up", up_rows),
    Rule(f"{_LAYER}.mlp.down_proj", "layers.{layer}.ffn.down"),
)
IGNORED = ("*.rotary_emb.inv_freq",)  # a buffer that files from before 2023-09 carry


def llama_spec(values: Mapping[str, object]) -> ModelSpec:
    """The model that a Llama ``config.json`` describes."""
    config = ConfigJson(values)
    window = config.has("sliding_window") and config.flag("use_sliding_window", True)
    return rms_gated_spec(config, "LlamaForCausalLM", window=window, mlp_bias=config.flag("mlp_bias", False))


def rms_gated_spec(
    config: ConfigJson,
    architecture: str,
    *,
    window: bool,
    default_head_dim: int | None = None,
    mlp_bias: bool = False,
    qk_norm: bool = False,
) -> ModelSpec:
    """RMS norms, full rotary attention, gated feed-forward, all layers alike; ``window``: a sliding one is in use."""
    refuse_unsupported(config, window)
    hidden_size = config.integer("hidden_size", 1, 1 << 17)
    attention = _attention(config, hidden_size, default_head_dim, qk_norm)
    activation = config.text("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise config.refusal("hidden_act", f"one of {', '.join(ACTIVATIONS)}")
    ffn = FfnSpec(config.integer("intermediate_size", 1, 1 << 20), activation, mlp_bias)
    return ModelSpec(
        architecture=architecture,
        vocab_size=config.integer("vocab_size", 1, 1 << 22),
        hidden_size=hidden_size,
        layers=(LayerSpec(attention, ffn),) * config.integer("num_hidden_layers", 1, 1024),
        norm=NormSpec(config.number("rms_norm_eps", 0, 1, 1e-6)),
        tie_word_embeddings=config.flag("tie_word_embeddings", False),
        max_position_embeddings=max_positions(config, attention),
        dtype=dtype_name(config),
    )


def _attention(config: ConfigJson, hidden_size: int, default_head_dim: int | None, qk_norm: bool) -> AttentionSpec:
    heads = config.integer("num_attention_heads", 1, 1024)
    kv_heads = config.integer("num_key_value_heads", 1, 1024, heads)
    if heads % kv_heads:
        raise config.refusal("num_key_value_heads", f"a divisor of num_attention_heads = {heads}")
    if "head_dim" not in config.values and default_head_dim:
        head_dim = default_head_dim
    elif config.has("head_dim"):
        head_dim = config.integer("head_dim", 2, 1024)
    elif hidden_size % heads:
        raise config.refusal("num_attention_heads", f"a divisor of hidden_size = {hidden_size} without a head_dim")
    else:
        head_dim = hidden_size // heads
    rope = rope_spec(config, head_dim)
    if rope.rotary_dim != head_dim:
        raise config.refusal("partial_rotary_factor", "1, for this architecture", rope.rotary_dim / head_dim)
    bias = config.flag("attention_bias", False)
    return AttentionSpec(heads, kv_heads, head_dim, head_dim**-0.5, rope, qkv_bias=bias, o_bias=bias, qk_norm=qk_norm)


def refuse_unsupported(config: ConfigJson, window: bool) -> None:
    """Settings that would change the result and that nothing here computes yet."""
    for key in ("quantization_config", "compression_config"):
        if config.has(key):
            raise config.refusal(key, "none (quantised weights are not supported)")
    if window:
        raise config.refusal("sliding_window", "none in use (sliding windows are not supported)")
    kinds = config.values.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        raise config.refusal("layer_types", "full_attention alone")


def max_positions(config: ConfigJson, attention: AttentionSpec) -> int:
    """The longest sequence. Qwen's instructions add yarn without raising the number: the extended length counts too."""
    positions = config.integer("max_position_embeddings", 1, MAX_POSITIONS, 2048)
    scaling = attention.rope.scaling
    if scaling is not None and scaling.kind == "yarn":
        return max(positions, min(int(scaling.original_max_position * scaling.factor), MAX_POSITIONS))
    return positions


def dtype_name(config: ConfigJson) -> str:
    """What the weights are in: ``dtype``, in older files ``torch_dtype``; float32 when the file does not say."""
    key = "dtype" if config.has("dtype") else "torch_dtype"
    name = config.text(key, "float32")
    if name not in ("float32", "bfloat16", "float16"):
        raise config.refusal(key, "float32, bfloat16 or float16")
    return name


FAMILY = Family("llama", ("LlamaForCausalLM",), llama_spec, RULES, IGNORED)
