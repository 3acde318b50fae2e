"""A model of transformers with the surface of ``StepDecoder``: its whole decoder is one "layer"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.layers.attention.metadata import AttentionMetadata
from ostinato.layers.linear import linear
from ostinato.models.decoder import KVCache
from ostinato.models.spec import LayerSpec, ModelSpec
from ostinato.models.transformers_backend.attention import CallScoring, Step, hold
from ostinato.models.transformers_backend.parts import decoder_of, last_hidden_state, logits_of, take_out


class WholeDecoder(nn.Module):
    """transformers' decoder as one layer: ids and positions ``[tokens, 2] int64`` in, normed hidden states out."""

    def __init__(self, decoder: nn.Module, step: Step) -> None:
        super().__init__()
        self.decoder = decoder
        self.step = step

    def forward(
        self, x: Tensor, k_cache: tuple[Tensor, ...], v_cache: tuple[Tensor, ...], meta: AttentionMetadata
    ) -> Tensor:
        """``[tokens, 2] -> [tokens, hidden_size]``; keys and values are written into the caches, one for each call."""
        self.step.begin(k_cache, v_cache, meta)
        hidden = last_hidden_state(self.decoder, x[:, 0], x[:, 1])
        self.step.end()
        return hidden


class TransformersDecoder(nn.Module):
    """The causal model ``model`` of transformers, taken apart; ``spec`` is what ``describe`` learned of it."""

    def __init__(self, model: Any, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        decoder = decoder_of(model)
        step = Step(tuple(_scoring(layer) for layer in spec.layers))
        hold(decoder, step)
        take_out(model, decoder)
        for module in [*decoder.modules(), *model.modules()]:
            if type(module) is nn.Linear:
                module.__class__ = RowLinear
        self.layers = [WholeDecoder(decoder, step)]
        self._decoder = self.layers[0]
        self.headed = model
        self.norm = nn.Identity()

    @property
    def kinds(self) -> tuple[LayerSpec, ...]:
        """One: nothing in it rotates by our tables, and the table it is given is whole, whatever its windows."""
        layer = self.spec.layers[0]
        return (replace(layer, attention=replace(layer.attention, window=None)),)

    def embed_tokens(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """``[tokens] int64`` twice, side by side: the decoder embeds them itself."""
        return torch.stack((token_ids, positions), dim=-1)

    def caches_of_layers(self, kv_cache: KVCache) -> Sequence[tuple[Any, Any]]:
        """All keys and all values, for the one layer."""
        return [(tuple(keys for keys, _ in kv_cache), tuple(values for _, values in kv_cache))]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """``[rows, hidden_size] -> [rows, vocab_size]``."""
        return logits_of(self.headed, hidden)


class RowLinear(nn.Linear):
    """``nn.Linear`` in the form that a compiled single row wants."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features] -> [..., out_features]``."""
        return linear(x.reshape(-1, self.in_features), self.weight, self.bias).view(*x.shape[:-1], self.out_features)


def _scoring(layer: LayerSpec) -> CallScoring:
    attention = layer.attention
    return CallScoring(attention.scale, attention.window or 0, attention.softcap or 0.0)
