"""Checkpoints of random weights drawn on the device itself: seconds instead of a minute for the large ones."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from ostinato.perf.checkpoints import SEED, SIZES, Shape, Size

VERSION = 1  # of what is written: another number makes every checkpoint anew
SHARD_TENSORS = 48


@dataclass(frozen=True)
class UntiedSize(Size):
    """A Qwen3 model with a head of its own; a decode step reads all but the embedding."""

    @property
    def weight_bytes(self) -> int:
        """Bytes that a decode step reads."""
        return super().weight_bytes - 2 * self.vocab_size * self.hidden_size

    def config(self) -> dict[str, object]:
        """The checkpoint's ``config.json``."""
        return super().config() | {"tie_word_embeddings": False}

    def tensors(self) -> Iterator[tuple[str, Shape]]:
        """Qwen3's, and the head."""
        yield from super().tensors()
        yield "lm_head.weight", (self.vocab_size, self.hidden_size)


@dataclass(frozen=True)
class LlamaSize(Size):
    """A Llama model with a tied head: no norms of queries and keys."""

    def config(self) -> dict[str, object]:
        """The checkpoint's ``config.json``."""
        return super().config() | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        }

    def tensors(self) -> Iterator[tuple[str, Shape]]:
        """Qwen3's without two of its norms."""
        yield from ((name, shape) for name, shape in super().tensors() if "q_norm" not in name and "k_norm" not in name)


LLAMA_1B = LlamaSize("llama-3.2-1b", 128_256, 2048, 8192, 16, 32, 8, 64, 131_072)
QWEN_8B = UntiedSize("qwen3-8b", 151_936, 4096, 12_288, 36, 32, 8, 128, 40_960)
GPU_SIZES = {**SIZES, LLAMA_1B.name: LLAMA_1B, QWEN_8B.name: QWEN_8B}


def prepare_on(device: str, size: Size, root: Path) -> Path:
    """The checkpoint's folder under ``root``, written if it is not there yet. It appears whole or not at all."""
    folder = root / f"{size.name}-on-{device}-{VERSION}"
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{size.name}-", dir=root))
    try:
        _write(device, size, unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write(device: str, size: Size, folder: Path) -> None:
    """config.json, shards and their index."""
    generator = torch.Generator(device).manual_seed(SEED)
    tensors = list(size.tensors())
    weight_map = {}
    for first in range(0, len(tensors), SHARD_TENSORS):
        name = f"model-{first:05}.safetensors"
        shard = {tensor: _draw(tensor, shape, size, generator) for tensor, shape in tensors[first:][:SHARD_TENSORS]}
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(size.config(), indent=2), encoding="utf-8")


def _draw(name: str, shape: Shape, size: Size, generator: torch.Generator) -> torch.Tensor:
    """Scales at which greedy decoding does not fall into repeating one token (as in ``perf.checkpoints``)."""
    if "norm" in name:
        mean, deviation = 1.0, 0.3
    else:
        mean, deviation = 0.0, 0.3 if "embed" in name else 2.0 * shape[1] ** -0.5
    values = torch.empty(shape, dtype=getattr(torch, size.dtype), device=generator.device)
    return values.normal_(mean, deviation, generator=generator).cpu()
