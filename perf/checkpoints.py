"""Checkpoints of real sizes with random weights, made on the fly: nothing is downloaded.

A tensor at a time is drawn and written, so the peak memory of making one is its largest tensor. The result is an
ordinary folder (config.json, safetensors in shards, an index) without a tokenizer and without an end-of-sequence token,
so that every engine loads it by its own ways and generates exactly as many tokens as it is asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

SHARD_BYTES = 500 << 20
VERSION = 1  # of what is written: another number makes every checkpoint anew
SEED = 0
_DTYPES = {"bfloat16": ("BF16", 2), "float32": ("F32", 4)}
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Size:
    """The sizes of a Qwen3 model with a tied head; lengths in tokens."""

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    dtype: str = "bfloat16"

    @property
    def num_parameters(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(shape) for _, shape in self.tensors())

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors: what a decode step reads, as the embedding is the head too."""
        return self.num_parameters * _DTYPES[self.dtype][1]

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * _DTYPES[self.dtype][1]

    def config(self) -> dict[str, object]:
        """The checkpoint's ``config.json``."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": None,
            "dtype": self.dtype,
        }

    def tensors(self) -> Iterator[tuple[str, Shape]]:
        """Names and shapes as Qwen3 checkpoints have them."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        layer: dict[str, Shape] = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.q_norm": (self.head_dim,),
            "self_attn.k_norm": (self.head_dim,),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        yield "model.embed_tokens.weight", (self.vocab_size, hidden)
        for index in range(self.num_layers):
            yield from ((f"model.layers.{index}.{name}.weight", shape) for name, shape in layer.items())
        yield "model.norm.weight", (hidden,)


SIZES = {
    size.name: size
    for size in (
        Size("qwen3-0.6b", 151_936, 1024, 3072, 28, 16, 8, 128, 40_960),
        Size("tiny", 512, 64, 160, 2, 4, 2, 16, 4_096),
    )
}


def cache_root() -> Path:
    """Where checkpoints are kept from run to run: ``XDG_CACHE_HOME`` or ``~/.cache``, then ``ostinato/perf``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ostinato" / "perf"


def prepare(size: Size, root: Path, progress: Callable[[str], None] = lambda _: None) -> Path:
    """The checkpoint's folder under ``root``, written if it is not there yet. It appears whole or not at all."""
    content = json.dumps([VERSION, SEED, size.config()], sort_keys=True).encode()
    folder = root / f"{size.name}-{hashlib.sha256(content).hexdigest()[:8]}"
    if folder.is_dir():
        return folder
    progress(f"writing {size.weight_bytes / 1e9:.2f} GB of random weights to {folder}")
    root.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{size.name}-", dir=root))
    try:
        write(size, unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def write(size: Size, folder: Path, *, seed: int = SEED, shard_bytes: int = SHARD_BYTES) -> None:
    """Write config.json, the shards and their index into an existing folder."""
    generator = torch.Generator().manual_seed(seed)
    shards = _shards(size, shard_bytes)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map.update({tensor: name for tensor, _ in shard})
        _write_shard(folder / name, shard, size.dtype, generator)
    index = {"metadata": {"total_size": size.weight_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(size.config(), indent=2), encoding="utf-8")


def _shards(size: Size, shard_bytes: int) -> list[list[tuple[str, Shape]]]:
    """All tensors in order, a new shard wherever the next would make one larger than ``shard_bytes``."""
    shards: list[list[tuple[str, Shape]]] = [[]]
    filled = 0
    for name, shape in size.tensors():
        num_bytes = math.prod(shape) * _DTYPES[size.dtype][1]
        if shards[-1] and filled + num_bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape))
        filled += num_bytes
    return shards


def _write_shard(path: Path, tensors: Sequence[tuple[str, Shape]], dtype: str, generator: torch.Generator) -> None:
    """One safetensors file: the header's length (8 bytes), the header (JSON), then the tensors' bytes.

    https://github.com/huggingface/safetensors#format
    """
    code, itemsize = _DTYPES[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors:
        begin, end = end, end + math.prod(shape) * itemsize
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, shape in tensors:
            file.write(_draw(name, shape, getattr(torch, dtype), generator).view(torch.uint8).numpy().data)


def _draw(name: str, shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Random values of scales at which greedy decoding does not fall into repeating one token."""
    if "norm" in name:
        mean, deviation = 1.0, 0.3
    else:
        mean, deviation = 0.0, 0.3 if "embed" in name else 2.0 * shape[1] ** -0.5
    return torch.empty(shape, dtype=dtype).normal_(mean, deviation, generator=generator)
