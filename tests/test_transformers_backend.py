"""Architectures without a family: transformers' own code over our pages gives transformers' own tokens."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)
from transformers.models.starcoder2.modeling_starcoder2 import Starcoder2MLP

from engines import checked, checkpoint, reference_tokens, token_ids
from ostinato import LLM, EngineConfig, SamplingParams
from ostinato.errors import ConfigError, ModelLoadError
from ostinato.models.transformers_backend.probe import Unfit, window_of
from tiny.foreign import FOREIGN

LENGTHS = (1, 5, 30, 17, 9)
LONG = SamplingParams(temperature=0, max_tokens=64)


def engine(variant: str, **options: Any) -> LLM:
    """A small engine, checked at each step, whose prompts come in chunks."""
    settings: dict[str, Any] = {
        "device": "cpu",
        "execution": "eager",
        "model_impl": "transformers",
        "max_num_seqs": 4,
        "max_model_len": 128,
        "max_num_batched_tokens": 16,
        "block_size": 4,
    }
    return checked(LLM(checkpoint(variant)[0], **(settings | options)))


def prompts() -> list[list[int]]:
    draw = random.Random(3)
    return [[draw.randrange(3, 112) for _ in range(length)] for length in LENGTHS]


def expected(variant: str, count: int = 64) -> list[list[int]]:
    return [reference_tokens(variant, prompt, count) for prompt in prompts()]


@pytest.mark.parametrize("execution", ["eager", "emulate"])
@pytest.mark.parametrize("variant", FOREIGN)
def test_greedy_tokens_are_those_of_transformers(variant: str, execution: str) -> None:
    """More prompts than rows, prompts in chunks beside decodes, then a prompt whose beginning is cached."""
    with engine(variant, execution=execution) as llm:
        assert token_ids(llm.generate(prompts(), LONG)) == expected(variant)
        (again,) = llm.generate([prompts()[2]], LONG)
        assert token_ids([again]) == [expected(variant)[2]]
        assert again.num_cached_tokens >= 24 or llm.plan.window is not None


def test_every_batch_size_has_a_graph_that_gives_the_same() -> None:
    with engine("glm4", execution="emulate") as llm:
        for count in range(1, 5):
            assert token_ids(llm.generate(prompts()[:count], LONG)) == expected("glm4")[:count]
        assert llm.plan.capture_sizes == (1, 2, 3, 4)


def test_preempted_requests_end_with_the_same_tokens() -> None:
    block = EngineConfig(checkpoint("glm4")[0], block_size=4, model_impl="transformers").resolve().block_bytes
    with engine("glm4", kv_cache_memory=34 * block) as llm:
        assert token_ids(llm.generate(prompts(), LONG)) == expected("glm4")
        assert llm.stats().preemptions > 0


def test_compiled_graphs_give_the_same_and_compile_nothing_later() -> None:
    with engine("starcoder2", execution="graph", max_num_seqs=2) as llm:
        assert token_ids(llm.generate(prompts(), LONG)) == expected("starcoder2")
        stats = llm.stats()
        assert stats.eager_fallbacks == {}
        assert stats.compiles_after_warmup == 0


def test_the_plan_knows_windows_sizes_and_who_runs_the_model() -> None:
    folder, model = checkpoint("olmo3")
    plan = EngineConfig(folder, device="cpu").resolve()
    assert plan.model_impl == "transformers"
    assert [layer.attention.window for layer in plan.spec.layers] == [8, 8, 8, None]
    assert plan.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert "transformers' own code runs the model: no family here knows Olmo3ForCausalLM" in str(plan)


# --------------------------------------------------------------------------------------------------- whose code runs


def test_auto_says_once_that_there_is_no_family() -> None:
    with pytest.warns(RuntimeWarning, match="no family here knows OPTForCausalLM") as seen:
        engine("opt", model_impl="auto").close()
    assert len(seen) == 1


def test_without_transformers_an_unknown_architecture_is_refused_with_a_hint() -> None:
    with pytest.raises(ModelLoadError, match=r"expected one of .*Qwen3ForCausalLM.*model_impl='auto' also tries"):
        engine("opt", model_impl="ostinato")


def test_a_family_can_be_compared_with_transformers_code_of_it() -> None:
    with engine("qwen3", model_impl="ostinato") as ours, engine("qwen3") as theirs:
        assert (ours.plan.model_impl, theirs.plan.model_impl) == ("ostinato", "transformers")
        assert token_ids(theirs.generate(prompts(), LONG)) == token_ids(ours.generate(prompts(), LONG))


def test_an_unknown_choice_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="model_impl: expected one of 'auto', 'ostinato', 'transformers'"):
        EngineConfig("demo", model_impl="vllm")


def test_a_model_with_a_family_imports_no_transformers() -> None:
    code = "import sys, ostinato; ostinato.LLM('demo', execution='eager').close(); print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_the_host_keeps_transformers_settings(capfd: pytest.CaptureFixture[str]) -> None:
    log = transformers.utils.logging
    before = log.get_verbosity(), log.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine("cohere").close()
    assert (log.get_verbosity(), log.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------------- refusals

SIZES = {"vocab_size": 112, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LATENT = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "recurrent": ("MambaForCausalLM", {}, "keep a recurrent state"),
    "hybrid": ("Qwen3NextForCausalLM", SIZES, "of the kind linear_attention keep a recurrent state"),
    "convolutions": ("Lfm2ForCausalLM", SIZES | {"layer_types": ["conv", "full_attention"]}, "of the kind conv keep"),
    "encoder": ("BartForCausalLM", {}, "it is an encoder and a decoder"),
    "latent": ("DeepseekV3ForCausalLM", SIZES | LATENT, r"keys have \d+ heads of 192, its values \d+ of 128"),
    "bidirectional": ("BertLMHeadModel", SIZES, "its attention is not causal"),
    "own_attention": ("GPTJForCausalLM", {}, "does not use transformers' attention interface"),
    "own_positions": ("BloomForCausalLM", SIZES, "takes no position_ids"),
    "changing_rope": (
        "Phi3ForCausalLM",
        SIZES | {"pad_token_id": 0, "rope_parameters": LONGROPE | {"original_max_position_embeddings": 64}},
        "changes with the longest text",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_pages_cannot_hold_is_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    name, settings, reason = REFUSED[kind]
    config = getattr(transformers, name).config_class(**settings)
    config.architectures = [name]
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=f"{name}.*cannot run over a paged cache: .*{reason}"):
        EngineConfig(tmp_path, model_impl="transformers").resolve()


def test_an_architecture_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    config = {"architectures": ["NoSuchForCausalLM"], "model_type": "no_such", "auto_map": {"AutoConfig": "no.Such"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="'NoSuchForCausalLM' is known neither here nor to transformers"):
        EngineConfig(tmp_path).resolve()


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    config = json.loads((checkpoint("glm4")[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ModelLoadError, match="quantization_config: expected none"):
        EngineConfig(tmp_path).resolve()


def _changed_copy(folder: Path, tmp_path: Path, *, drop: str = "", add: str = "") -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    state = load_file(copy / "model.safetensors")
    state = {name: tensor for name, tensor in state.items() if name != drop}
    save_file(state | ({add: torch.zeros(3)} if add else {}), copy / "model.safetensors", {"format": "pt"})
    return copy


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    copy = _changed_copy(checkpoint("glm4")[0], tmp_path, drop=name)
    with pytest.raises(ModelLoadError, match=f"{name}: expected by the model, no such tensor"):
        LLM(copy, model_impl="transformers", execution="eager")


def test_a_tensor_too_many_is_named(tmp_path: Path) -> None:
    copy = _changed_copy(checkpoint("glm4")[0], tmp_path, add="model.extra.weight")
    with pytest.raises(ModelLoadError, match=r"model.extra.weight: not a tensor of the model"):
        LLM(copy, model_impl="transformers", execution="eager")


def test_a_model_that_keeps_more_than_keys_and_values_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Starcoder2MLP.forward

    def shifted(self: Any, x: torch.Tensor) -> Any:
        out = forward(self, x)
        return out + torch.nn.functional.pad(out, (0, 0, 1, 0))[:, :-1]  # reads the token before: a state

    monkeypatch.setattr(Starcoder2MLP, "forward", shifted)
    with pytest.raises(ModelLoadError, match="gives other logits than by itself"):
        engine("starcoder2")


def test_code_that_dynamo_cannot_trace_runs_eagerly_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Starcoder2MLP.forward

    def broken(self: Any, x: torch.Tensor) -> Any:
        torch._dynamo.graph_break()
        return forward(self, x)

    monkeypatch.setattr(Starcoder2MLP, "forward", broken)
    with pytest.warns(RuntimeWarning, match="uncompiled.*torch.compile does not take transformers' code"):
        llm = engine("starcoder2", execution="graph")
    with llm:
        assert token_ids(llm.generate(prompts(), LONG)) == expected("starcoder2")
        assert sum(llm.stats().eager_fallbacks.values()) > 0


# ------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize(("window", "length"), [(1, 9), (8, 256), (100, 5000), (4096, 100)])
def test_a_window_is_read_from_the_mask_function(window: int, length: int) -> None:
    assert window_of(sliding_window_causal_mask_function(window), length) == (window if window < length else 0)
    assert window_of(causal_mask_function, length) == 0


@pytest.mark.parametrize("function", [bidirectional_mask_function, chunked_causal_mask_function(8, torch.zeros(1))])
def test_any_other_mask_is_refused(function: Any) -> None:
    with pytest.raises(Unfit, match="attention mask"):
        window_of(function, 100)
