"""One checkpoint in the forms it may have on the hub: file formats, names of old files, configs of transformers 4."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Form = Literal["safetensors", "bin", "bin_sharded"]
State = dict[str, Tensor]
Config = dict[str, Any]


def state_on_disk(folder: Path) -> State:
    """The tensors that ``save_pretrained`` wrote, in the order of its files."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def rewrite_weights(folder: Path, form: Form, change: Callable[[State, Config], State]) -> None:
    """Replace the weights with ``change(weights, config)``, in another form.

    safetensors come back as one file; "bin" is what ``torch.save`` wrote before them, "bin_sharded" three of these.
    """
    state = change(state_on_disk(folder), json.loads((folder / "config.json").read_text()))
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    if form == "safetensors":
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    elif form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        _save_bin_shards(folder, state)


def _save_bin_shards(folder: Path, state: State, count: int = 3) -> None:
    names = list(state)
    weight_map: dict[str, str] = {}
    for index in range(count):
        file = f"pytorch_model-{index + 1:05}-of-{count:05}.bin"
        shard = {name: state[name] for name in names[index::count]}
        weight_map |= dict.fromkeys(shard, file)
        torch.save(shard, folder / file)
    size = sum(tensor.nbytes for tensor in state.values())
    index_file = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index_file))


# ------------------------------------------------------------------------------------------------- names on the hub


def unchanged(state: State, config: Config) -> State:
    return state


def hub_names(state: State, config: Config) -> State:
    """The names and the extra tensors that files of this family have on the hub, written by older versions."""
    return HUB_NAMES[config["architectures"][0]](state, config)


def _gpt2(state: State, config: Config) -> State:
    """No prefix; a causal mask in every layer."""
    mask = torch.ones(config["n_positions"], config["n_positions"]).tril()[None, None]
    masks = {f"h.{layer}.attn.bias": mask.clone() for layer in range(config["n_layer"])}
    return {name.removeprefix("transformer."): tensor for name, tensor in state.items()} | masks


def _gpt_neox(state: State, config: Config) -> State:
    """A causal mask, its fill value and the rotary frequencies in every layer."""
    positions = config["max_position_embeddings"]
    buffers = {
        "bias": torch.ones(positions, positions, dtype=torch.bool).tril()[None, None],
        "masked_bias": torch.tensor(-1e9),
        "rotary_emb.inv_freq": torch.ones(2),
    }
    layers = [f"gpt_neox.layers.{layer}.attention" for layer in range(config["num_hidden_layers"])]
    return state | {f"{layer}.{name}": tensor.clone() for layer in layers for name, tensor in buffers.items()}


def _falcon(state: State, config: Config) -> State:
    """The head beside the embedding it is tied to."""
    return {"lm_head.weight": state["transformer.word_embeddings.weight"].clone()} | state


def _llama(state: State, config: Config) -> State:
    layers = range(config["num_hidden_layers"])
    return state | {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(8) for layer in layers}


HUB_NAMES: dict[str, Callable[[State, Config], State]] = {
    "GPT2LMHeadModel": _gpt2,
    "GPTNeoXForCausalLM": _gpt_neox,
    "FalconForCausalLM": _falcon,
    "LlamaForCausalLM": _llama,
}
"""By architecture."""


# ---------------------------------------------------------------------------------------- config.json of version 4


def rewrite_config(folder: Path) -> None:
    """config.json as transformers 4, or the family's own code before it, wrote it."""
    path = folder / "config.json"
    path.write_text(json.dumps(old_config(json.loads(path.read_text())), indent=2))


def old_config(config: Config) -> Config:
    """Version-4 keys for the rope and the dtype, the family's own old names, and nothing the class would derive."""
    old = dict(config)
    old["torch_dtype"] = old.pop("dtype")
    old["transformers_version"] = "4.40.0"
    if config["model_type"] == "gemma3_text":
        _old_gemma3(old)
    elif "rope_parameters" in old:
        _old_rope(old, "type")
    for new, name in _RENAMED.get(config["model_type"], {}).items():
        if new in old:
            old[name] = old.pop(new)
    if config["model_type"] == "mpt":
        old["architectures"] = ["MPTForCausalLM"]
    if config["model_type"] == "minimax_m2":
        old["rotary_dim"] = int(old["head_dim"] * old.pop("partial_rotary_factor"))
    if config["model_type"] == "phi3" and old["rope_scaling"]:
        del old["rope_scaling"]["original_max_position_embeddings"]  # it is beside the section, too
    return _without_derived(old)


_RENAMED = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "qwen3_moe": {"num_local_experts": "num_experts"},
}
_DERIVED = ("layer_types", "head_dim", "num_key_value_heads", "num_kv_heads", "ffn_hidden_size", "no_rope_layers")


def _old_rope(old: Config, kind_key: str) -> None:
    """``rope_theta`` and ``partial_rotary_factor`` beside ``rope_scaling``."""
    scaling = dict(old.pop("rope_parameters"))
    old["rope_theta"] = scaling.pop("rope_theta")
    if "partial_rotary_factor" in scaling:
        old["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
    kind = scaling.pop("rope_type")
    old["rope_scaling"] = None if kind == "default" else {kind_key: kind, **scaling}


def _old_gemma3(old: Config) -> None:
    """The full layers' rope is the model's, the windowed layers' has a base only; every n-th layer is a full one."""
    nested = old.pop("rope_parameters")
    old["rope_local_base_freq"] = nested["sliding_attention"]["rope_theta"]
    old["rope_parameters"] = nested["full_attention"]
    _old_rope(old, "rope_type")
    del old["_sliding_window_pattern"]
    old["sliding_window_pattern"] = old["layer_types"].index("full_attention") + 1


def _without_derived(old: Config) -> Config:
    """``old`` without the values that the class of transformers finds by itself."""
    from transformers import AutoConfig

    for key in _DERIVED:
        shorter = {name: value for name, value in old.items() if name != key}
        if key in old and getattr(AutoConfig.for_model(**shorter), key, None) == old[key]:
            old = shorter
    if old.get("num_ln_in_parallel_attn") == 2:  # Falcon's layer sets it, not its configuration
        del old["num_ln_in_parallel_attn"]
    return old
