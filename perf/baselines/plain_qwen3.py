"""A Qwen3 decoder in plain torch operations, as nano-vllm composes one: fused QKV and gate-up, sums in the norm.

Reads a checkpoint folder by itself and shares no code with the engine, so that it can be a peer and a reference. Knows
a contiguous cache, no pages and no graphs. ``fused=True`` compiles the elementwise functions and the softmax, as
nano-vllm does; everything else is one torch operation after another.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""``(layer, q [tokens, heads, head_dim], k, v [tokens, kv_heads, head_dim]) -> [tokens, heads, head_dim]``."""


def add_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``(rms_norm(x + residual), x + residual)``, both ``[tokens, hidden_size]``."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension, in fp32 (https://arxiv.org/abs/1910.07467, equation 4)."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of ``x [tokens, heads, head_dim]``; cos, sin ``[tokens, 1, head_dim / 2]`` fp32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """``[tokens, 2 * inner] -> [tokens, inner]``."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def masked_softmax(scores: Tensor, positions: Tensor, scale: float) -> Tensor:
    """Softmax of ``scores [rows, kv_heads, group, cells]`` over the cells up to ``positions [rows]``."""
    cells = torch.arange(scores.shape[-1], device=scores.device)
    hidden = cells > positions[:, None, None, None]
    return torch.softmax((scores.float() * scale).masked_fill(hidden, float("-inf")), dim=-1).to(scores.dtype)


@dataclass(frozen=True)
class Layer:
    """The weights of one layer: matrices ``[out, in]``."""

    input_norm: Tensor
    qkv: Tensor
    q_norm: Tensor
    k_norm: Tensor
    o: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Cache:
    """Keys and values of all layers, ``[layers, rows, kv_heads, cells, head_dim]`` each."""

    keys: Tensor
    values: Tensor


class PlainQwen3:
    """The decoder of a Qwen3 checkpoint on ``device``, in the checkpoint's type or ``dtype``."""

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype | None = None, *, fused: bool = False
    ) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.num_heads, self.num_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_dim, self.eps = config["head_dim"], config["rms_norm_eps"]
        self.device, self.dtype = device, dtype or getattr(torch, config["dtype"])
        weights = _read(folder, device, self.dtype)
        self.embed, self.norm = weights["model.embed_tokens.weight"], weights["model.norm.weight"]
        self.head = weights.get("lm_head.weight", self.embed)
        self.layers = [_layer(weights, f"model.layers.{index}.") for index in range(config["num_hidden_layers"])]
        self._cos, self._sin = self._rotations(
            config["rope_parameters"]["rope_theta"], config["max_position_embeddings"]
        )
        functions: tuple[Any, ...] = (add_norm, rms_norm, rotate, silu_and_mul, masked_softmax)
        if fused:
            functions = tuple(torch.compile(function, dynamic=True) for function in functions)
        self._add_norm, self._rms_norm, self._rotate, self._silu_and_mul, self._masked_softmax = functions

    def new_cache(self, rows: int, cells: int) -> Cache:
        """An empty cache for ``rows`` sequences of up to ``cells`` tokens."""
        shape = (len(self.layers), rows, self.num_kv_heads, cells, self.head_dim)
        keys, values = (torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        return Cache(keys, values)

    def prefill(self, ids: Tensor, cache: Cache, row: int) -> Tensor:
        """A whole prompt ``ids [tokens]`` into ``row`` of the cache; the last hidden state ``[1, hidden_size]``."""

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
            cache.keys[layer, row, :, : len(ids)] = k
            cache.values[layer, row, :, : len(ids)] = v
            k, v = (x.repeat_interleave(self.num_heads // self.num_kv_heads, dim=0) for x in (k, v))
            return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0].transpose(0, 1)

        return self._hidden(ids, torch.arange(len(ids), device=self.device), attend)[-1:]

    def decode(self, ids: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """One token for each of the first rows of the cache: ids, positions ``[rows]``; ``[rows, hidden_size]``."""
        rows = torch.arange(len(ids), device=self.device)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = cache.keys[layer], cache.values[layer]
            keys[rows, :, positions] = k
            values[rows, :, positions] = v
            grouped = q.view(len(ids), self.num_kv_heads, -1, self.head_dim)
            scores = grouped @ keys[: len(ids)].transpose(-1, -2)
            weights = self._masked_softmax(scores, positions, self.head_dim**-0.5)
            attended: Tensor = weights @ values[: len(ids)]
            return attended.view_as(q)

        return self._hidden(ids, positions, attend)

    def greedy(self, hidden: Tensor) -> Tensor:
        """The likeliest token of each row: ``[rows, hidden_size] -> [rows] int64``."""
        return F.linear(hidden, self.head).argmax(dim=-1)

    def _hidden(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """All layers and the final norm: ``[tokens] -> [tokens, hidden_size]``."""
        residual = F.embedding(ids, self.embed)
        x, rotation = torch.zeros_like(residual), (self._cos[positions], self._sin[positions])
        for index, layer in enumerate(self.layers):
            normed, residual = self._add_norm(x, residual, layer.input_norm, self.eps)
            x = self._attention(index, layer, normed, rotation, attend)
            normed, residual = self._add_norm(x, residual, layer.post_norm, self.eps)
            x = F.linear(self._silu_and_mul(F.linear(normed, layer.gate_up)), layer.down)
        final: Tensor = self._add_norm(x, residual, self.norm, self.eps)[0]
        return final

    def _attention(
        self, index: int, layer: Layer, x: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend
    ) -> Tensor:
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        projected = F.linear(x, layer.qkv).split([count * self.head_dim for count in heads], dim=-1)
        q, k, v = (part.view(len(x), -1, self.head_dim) for part in projected)
        q = self._rotate(self._rms_norm(q, layer.q_norm, self.eps), *rotation)
        k = self._rotate(self._rms_norm(k, layer.k_norm, self.eps), *rotation)
        return F.linear(attend(index, q, k, v).reshape(len(x), -1), layer.o)

    def _rotations(self, theta: float, positions: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of all positions, ``[positions, 1, head_dim / 2]``."""
        exponents = torch.arange(0, self.head_dim, 2, device=self.device, dtype=torch.float32) / self.head_dim
        angles = torch.arange(positions, device=self.device)[:, None, None] / theta**exponents
        return angles.cos(), angles.sin()


def _read(folder: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of the folder's safetensors files."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    return {name: x.to(dtype) for file in files for name, x in load_file(file, device=str(device)).items()}


def _layer(weights: dict[str, Tensor], prefix: str) -> Layer:
    def joined(*names: str) -> Tensor:
        return torch.cat([weights.pop(f"{prefix}{name}.weight") for name in names])

    return Layer(
        input_norm=joined("input_layernorm"),
        qkv=joined("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        q_norm=joined("self_attn.q_norm"),
        k_norm=joined("self_attn.k_norm"),
        o=joined("self_attn.o_proj"),
        post_norm=joined("post_attention_layernorm"),
        gate_up=joined("mlp.gate_proj", "mlp.up_proj"),
        down=joined("mlp.down_proj"),
    )
