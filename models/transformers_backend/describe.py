"""A checkpoint that transformers can run, as a ``ModelSpec``: what the plan, the cache and the scheduler need of it.

Learned from one forward pass on ``meta``; no weight is read. ``ModelLoadError`` says why where it cannot run here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ostinato.layers.errors import ModelLoadError
from ostinato.models.spec import AttentionSpec, FfnSpec, LayerSpec, ModelSpec, NormSpec
from ostinato.models.transformers_backend.build import check_config, first_line, on_meta, quiet, read_hf_config
from ostinato.models.transformers_backend.parts import decoder_of, last_hidden_state, logits_of, take_out
from ostinato.models.transformers_backend.probe import TOKENS, Call, Unfit, recorded_calls

MAX_POSITIONS, LENGTH_TRIED = 1 << 24, 4096
_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")


class Description(NamedTuple):
    """A model of transformers before its weights are read."""

    spec: ModelSpec
    num_parameters: int


def describe(folder: Path, raw: Mapping[str, object]) -> Description:
    """Read ``folder``'s configuration and try its model on ``meta``."""
    names = raw.get("architectures")
    architecture = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    with quiet():
        config = read_hf_config(folder, raw, architecture)
        try:
            check_config(config, architecture)
            return _described(config, architecture)
        except Unfit as unfit:
            raise ModelLoadError(
                f"config.json: architectures: transformers' own code of {architecture!r} cannot run over a paged "
                f"cache: {unfit}"
            ) from unfit


def _described(config: Any, architecture: str) -> Description:
    model = on_meta(config)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    longest = [length for name in _LENGTHS if (length := getattr(config, name, None))]
    max_positions = longest[0] if longest else 0
    calls, hidden_size, vocab_size = _try(model, max_positions or LENGTH_TRIED)
    num_layers = getattr(config, "num_hidden_layers", 0)
    if not calls:
        raise Unfit("it never calls attention through transformers' interface (recurrent, or an attention of its own)")
    if len(calls) < num_layers:
        raise Unfit(f"{len(calls)} of its {num_layers} layers attend: the others keep a state that pages cannot hold")
    if not 1 <= max_positions <= MAX_POSITIONS:
        raise Unfit(f"its config.json does not say how long a text may be (by one of {', '.join(_LENGTHS)})")
    spec = ModelSpec(
        architecture=architecture,
        vocab_size=min(vocab_size, getattr(config, "vocab_size", vocab_size)),
        hidden_size=hidden_size,
        layers=tuple(_layer(config, call) for call in calls),
        norm=NormSpec(eps=0.0),
        tie_word_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        max_position_embeddings=max_positions,
        dtype=_dtype(config),
    )
    return Description(spec, num_parameters)


def _try(model: Any, max_positions: int) -> tuple[list[Call], int, int]:
    """Its attention calls, the width of its hidden states and of its logits."""
    decoder = decoder_of(model)
    positions = torch.arange(TOKENS, device="meta")
    ones = torch.ones((1, TOKENS), dtype=torch.int64, device="meta")  # else positions are searched for packed texts
    try:
        with torch.no_grad(), recorded_calls(max_positions) as calls:
            hidden = last_hidden_state(decoder, torch.zeros_like(positions), positions, attention_mask=ones)
            take_out(model, decoder)
            logits = logits_of(model, hidden)
    except Unfit:
        raise
    except Exception as error:
        raise Unfit(f"its forward pass depends on data or on a state ({first_line(error)})") from error
    return calls, hidden.shape[-1], logits.shape[-1]


def _layer(config: Any, call: Call) -> LayerSpec:
    """One attention call as a layer; what else the layer does is transformers' affair."""
    attention = AttentionSpec(
        num_heads=call.num_heads,
        num_kv_heads=call.num_kv_heads,
        head_dim=call.head_dim,
        scale=call.scoring.scale,
        rope=None,
        window=call.scoring.window or None,
        softcap=call.scoring.softcap or None,
        sinks=call.sinks,
    )
    size = getattr(config, "intermediate_size", None)
    return LayerSpec(attention, FfnSpec(size if isinstance(size, int) else 0, "by transformers"))


def _dtype(config: Any) -> str:
    name = str(config.dtype or "float32").removeprefix("torch.")
    if name not in ("float32", "bfloat16", "float16"):
        raise Unfit(f"its dtype is {name}")
    return name
