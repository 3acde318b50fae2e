"""A spec in words: what kinds of layers there are, and what each is made of. Knows no checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ostinato.models.spec import (
    AttentionSpec,
    ClampedGlu,
    FfnSpec,
    LayerSpec,
    ModelSpec,
    MoeSpec,
    RopeSpec,
)

_PLACES = ("pre_attn", "post_attn", "pre_ffn", "post_ffn")
INDICES_SHOWN = 6


def layer_kinds(spec: ModelSpec) -> dict[LayerSpec, list[int]]:
    """The different layers and where each stands, in order of their first."""
    kinds: dict[LayerSpec, list[int]] = {}
    for index, layer in enumerate(spec.layers):
        kinds.setdefault(layer, []).append(index)
    return kinds


def indices(numbers: Sequence[int]) -> str:
    """``0-3`` for a run of them, ``0, 2, 4`` for others; only the first where there are many."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}-{numbers[-1]}"
    more = [f"… {numbers[-1]}"] if len(numbers) > INDICES_SHOWN else []
    return ", ".join([*map(str, numbers[: len(numbers) if not more else INDICES_SHOWN - 1]), *more])


def layer_words(layer: LayerSpec) -> list[tuple[str, str]]:
    """The parts of one kind of layer."""
    norms = ", ".join(place for place in _PLACES if place in layer.norms)
    flow = [norms or "none", *(["parallel attention and feed-forward"] if layer.parallel else [])]
    if layer.residual_scale != 1.0:
        flow.append(f"residuals times {layer.residual_scale:g}")
    return [
        ("attention", "; ".join(_attention(layer.attention))),
        ("positions", _positions(layer.attention)),
        ("feed-forward", "; ".join(_experts(layer.ffn) if isinstance(layer.ffn, MoeSpec) else _dense(layer.ffn))),
        ("norms", "; ".join(flow)),
    ]


def model_words(spec: ModelSpec) -> list[tuple[str, str]]:
    """What all layers share."""
    bias = {"rms": "", "gemma": ", weights around zero"}.get(
        spec.norm.kind, ", with biases" if spec.norm.bias else ", no biases"
    )
    head = ["tied to the embedding" if spec.tie_word_embeddings else "of its own"]
    if spec.logit_scale != 1.0:
        head.append(f"logits times {spec.logit_scale:g}")
    if spec.logit_softcap:
        head.append(f"logits capped at {spec.logit_softcap:g}")
    embedding = [f"vocabulary {spec.vocab_size:,}"]
    if spec.embed_scale != 1.0:
        embedding.append(f"times {spec.embed_scale:g}")
    if spec.num_learned_positions:
        embedding.append(f"{spec.num_learned_positions:,} learned positions added")
    return [
        (
            "size",
            f"{len(spec.layers)} layers, hidden {spec.hidden_size:,}, up to {spec.max_position_embeddings:,} tokens",
        ),
        ("embedding", ", ".join(embedding)),
        ("norm", f"{'layer norm' if spec.norm.kind == 'layer' else 'RMS norm'}, eps {spec.norm.eps:g}{bias}"),
        ("head", ", ".join(head)),
        ("dtype", spec.dtype),
    ]


def _attention(spec: AttentionSpec) -> Iterator[str]:
    kind = "multi-head" if spec.num_kv_heads == spec.num_heads else "GQA" if spec.num_kv_heads > 1 else "multi-query"
    yield f"{spec.num_heads} heads of {spec.head_dim} on {spec.num_kv_heads} KV heads ({kind}), scale {spec.scale:.4g}"
    if spec.window:
        yield f"window of {spec.window:,} tokens"
    if spec.qk_norm:
        yield "QK norm by head" if spec.qk_norm == "head" else "QK norm over the full width"
    if spec.softcap:
        yield f"scores capped at {spec.softcap:g}"
    if spec.sinks:
        yield "sinks"
    if spec.clip_qkv is not None:
        yield f"q, k, v clamped to ±{spec.clip_qkv:g}"
    if biased := [name for name, on in (("q, k, v", spec.qkv_bias), ("output", spec.o_bias)) if on]:
        yield f"biases on {' and '.join(biased)}"


def _positions(spec: AttentionSpec) -> str:
    if spec.alibi is not None:
        return f"ALiBi, steepest slope for a bias of {spec.alibi.max_bias:g}"
    return "none within the layer" if spec.rope is None else "; ".join(_rope(spec.rope, spec.head_dim))


def _rope(rope: RopeSpec, head_dim: int) -> Iterator[str]:
    yield f"RoPE, theta {rope.theta:g}" + (", neighbours paired" if rope.interleaved else "")
    if rope.rotary_dim != head_dim:
        yield f"{rope.rotary_dim} of {head_dim} dimensions rotate"
    if rope.scaling is not None:
        attention = rope.scaling.attention_factor
        factor = f", cos and sin times {attention:.4g}" if attention != 1.0 else ""
        stretch = f"{rope.scaling.kind} scaling by {rope.scaling.factor:g}"
        yield f"{stretch} from {rope.scaling.original_max_position:,} tokens{factor}"


def _dense(spec: FfnSpec) -> Iterator[str]:
    activation = _activation(spec.activation, spec.clamped)
    yield f"{'gated ' if spec.gated else ''}{activation}, width {spec.intermediate_size:,}"
    if spec.bias:
        yield "biases"


def _experts(spec: MoeSpec) -> Iterator[str]:
    activation = _activation(spec.activation, spec.clamped)
    width = f"each gated {activation}, width {spec.intermediate_size:,}"
    yield f"{spec.num_experts} experts, {spec.top_k} for a token, {width}"
    routing = spec.routing
    details = [
        routing.score, *(["renormalised"] if routing.renormalise else []),
        *(["correction bias"] if routing.correction_bias else []),
    ]  # fmt: skip
    yield f"routing by {', '.join(details)}"
    if spec.bias:
        yield "biases"


def _activation(name: str, clamped: ClampedGlu | None) -> str:
    return name if clamped is None else f"clamped glu (alpha {clamped.alpha:g}, limit {clamped.limit:g})"
