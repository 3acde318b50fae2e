"""A family from outside the package: names, numbers, or a module of its own; then run as any other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engines import checked, token_ids
from ostinato import LLM, EngineConfig, SamplingParams
from ostinato.layers.embedding import Embedding
from ostinato.layers.errors import ModelLoadError
from ostinato.models import Family, Rule, load, register_model, registry
from ostinato.models.decoder import Decoder
from ostinato.models.families import llama
from ostinato.models.spec import LayerSpec, ModelSpec
from tiny_checkpoints import build

PROMPTS = [[5, 17, 40, 3], [9] * 11]


@pytest.fixture(autouse=True)
def registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))


def checkpoint_of(architecture: str, folder: Path, renames: Mapping[str, str] | None = None) -> Path:
    """A tiny Llama by another architecture's name and tensor names."""
    build("llama3_gqa", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
    tensors = load_file(folder / "model.safetensors")
    named = {(renames or {}).get(name, name): tensor for name, tensor in tensors.items()}
    save_file(named, folder / "model.safetensors")
    return folder


def greedy_by_hand(folder: Path, prompt: list[int], count: int) -> list[int]:
    """A plain loop over the whole model."""
    model, ids = load(folder), list(prompt)
    for _ in range(count):
        ids.append(int(model.compute_logits(model(torch.tensor(ids))[-1]).argmax()))
    return ids[len(prompt) :]


def generated(folder: Path) -> list[list[int]]:
    with checked(LLM(folder, execution="emulate", max_num_seqs=2, max_model_len=64, block_size=4)) as llm:
        return [list(ids) for ids in token_ids(llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=16)))]


def test_another_spec_and_other_names(tmp_path: Path) -> None:
    def spec(config: Mapping[str, object]) -> ModelSpec:
        return replace(llama.llama_spec(config), embed_scale=4.0, logit_softcap=5.0)

    rules = [rule for rule in llama.RULES if rule.target != "norm"] + [Rule("model.final_norm", "norm")]
    register_model(Family("tide", ("TideForCausalLM",), spec, tuple(rules)))
    folder = checkpoint_of("TideForCausalLM", tmp_path / "tide", {"model.norm.weight": "model.final_norm.weight"})
    got = generated(folder)
    assert got == [greedy_by_hand(folder, prompt, 16) for prompt in PROMPTS]
    assert got != generated(checkpoint_of("LlamaForCausalLM", tmp_path / "llama"))


class Doubled(Decoder):
    """Its own logits, its own extra parameter."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.tilt = torch.nn.Parameter(torch.empty(spec.hidden_size), requires_grad=False)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return super().compute_logits(hidden * self.tilt)


def test_a_module_of_ones_own(tmp_path: Path) -> None:
    rules = (*llama.RULES, Rule("model.tilt", "tilt"))
    register_model(Family("doubled", ("DoubledForCausalLM",), llama.llama_spec, rules, build=Doubled))
    folder = checkpoint_of("DoubledForCausalLM", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    size = tensors["model.norm.weight"].shape[0]
    save_file({**tensors, "model.tilt": torch.linspace(-1, 1, size)}, folder / "model.safetensors")
    assert generated(folder) == [greedy_by_hand(folder, prompt, 16) for prompt in PROMPTS]


def test_the_plan_counts_what_the_module_has(tmp_path: Path) -> None:
    rules = (*llama.RULES, Rule("model.tilt", "tilt"))
    register_model(Family("doubled", ("DoubledForCausalLM",), llama.llama_spec, rules, build=Doubled))
    config = EngineConfig(checkpoint_of("DoubledForCausalLM", tmp_path / "doubled"))
    plain = EngineConfig(checkpoint_of("LlamaForCausalLM", tmp_path / "llama"))
    assert config.resolve().num_parameters == plain.resolve().num_parameters + 48


class Bare(torch.nn.Module):
    """Not a ``Decoder``: no more than a step needs of a model. Remembers nothing of what came before."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.table = Embedding(spec.vocab_size, spec.hidden_size)
        self.norm = torch.nn.Identity()
        self.layers = [lambda x, keys, values, meta: x * 2]

    @property
    def kinds(self) -> tuple[LayerSpec, ...]:
        return self.spec.layers[:1]

    def embed_tokens(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return self.table(token_ids)

    def caches_of_layers(self, kv_cache: Any) -> Any:
        return kv_cache[:1]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.table.weight.T


def test_a_module_with_nothing_of_ours_but_the_surface(tmp_path: Path) -> None:
    rules = (Rule("model.embed_tokens", "table"),)
    ignored = ("model.layers.*", "model.norm.*", "lm_head.*")
    register_model(Family("bare", ("BareForCausalLM",), llama.llama_spec, rules, ignored, build=Bare))
    folder = checkpoint_of("BareForCausalLM", tmp_path)
    assert generated(folder) == [greedy_by_hand(folder, prompt, 16) for prompt in PROMPTS]


def test_what_the_rules_forget_is_named(tmp_path: Path) -> None:
    register_model(Family("doubled", ("DoubledForCausalLM",), llama.llama_spec, llama.RULES, build=Doubled))
    with pytest.raises(ModelLoadError, match="family doubled: tilt: expected rules for 48 elements, got 0"):
        load(checkpoint_of("DoubledForCausalLM", tmp_path))
