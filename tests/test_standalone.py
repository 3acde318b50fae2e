"""A model without an engine: the same hidden states as transformers', in every shape a caller may give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ostinato.models
from engines import engine
from ostinato import LLM, SamplingParams
from ostinato.layers.errors import ConfigError, ModelLoadError, ParamError, PromptTooLong
from ostinato.models.standalone import Model, load, public_names
from reference import reference_logits
from tiny_checkpoints import build

VARIANTS = ["qwen3", "gpt2", "mpt", "gemma3", "mixtral", "mistral_window", "falcon_40b", "phi3_longrope"]
GREEDY = SamplingParams(temperature=0, max_tokens=12)
IDS = torch.arange(3, 33) * 7 % 90


@pytest.fixture(params=VARIANTS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Model, Tensor]:
    """Our model of a checkpoint, and transformers' logits of ``IDS``."""
    reference = build(request.param, tmp_path)
    return load(tmp_path), reference_logits(reference, IDS.tolist())


def assert_close(got: Tensor, want: Tensor) -> None:
    assert (got - want).abs().max() <= 2e-5 * want.abs().max()


def test_one_sequence_a_batch_and_padding_on_the_right_are_transformers_logits(pair: tuple[Model, Tensor]) -> None:
    model, want = pair
    hidden = model(IDS)
    assert hidden.shape == (len(IDS), model.spec.hidden_size)
    assert_close(model.compute_logits(hidden), want)
    padded = torch.stack([IDS, torch.cat([IDS[:11], torch.zeros(19, dtype=torch.int64)])])
    logits = model.compute_logits(model(padded))
    assert logits.shape == (2, len(IDS), model.spec.vocab_size)
    assert_close(logits[0], want)
    assert_close(logits[1, :11], want[:11])


def test_embeddings_may_be_given_in_place_of_ids(pair: tuple[Model, Tensor]) -> None:
    model, _ = pair
    assert torch.equal(model(inputs_embeds=model.embed_tokens(IDS)), model(IDS))
    assert torch.equal(model(inputs_embeds=model.embed_tokens(IDS[None])), model(IDS[None]))


def test_logits_of_one_position(pair: tuple[Model, Tensor]) -> None:
    model, want = pair
    assert_close(model.compute_logits(model(IDS)[-1]), want[-1])


SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def test_a_model_of_keywords_is_that_of_the_same_dictionary() -> None:
    ours = ostinato.models.Qwen3(**SMALL)
    same = load({"architectures": ["Qwen3ForCausalLM"], **SMALL})
    assert ours.spec == same.spec
    ids = torch.arange(20)
    assert torch.equal(ours(ids), same(ids))
    assert ours(ids).isfinite().all()
    assert not torch.equal(ostinato.models.Qwen3(**SMALL, seed=1)(ids), ours(ids))
    assert ostinato.models.Qwen3(**SMALL, dtype="bfloat16")(ids).dtype is torch.bfloat16


@pytest.mark.parametrize(
    "name", ["Llama", "Qwen2", "Mistral", "Gemma2", "Olmo2", "Phi3", "SmolLM3", "Granite", "Gemma3"]
)
def test_every_constructor_makes_a_model_that_runs(name: str) -> None:
    assert name in public_names()
    model = getattr(ostinato.models, name)(**SMALL)
    assert model(torch.arange(12)).isfinite().all()


def test_an_unknown_constructor_names_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no 'Quen3'; models: .*Qwen3"):
        ostinato.models.Quen3  # noqa: B018


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((torch.tensor([0.5]),), r"expected an int64 tensor \[tokens\] or \[batch, seq\], got torch.float32 \[1\]"),
        (([1, 2],), "expected an int64 tensor .*, got list"),
        ((torch.tensor(3),), r"got torch.int64 \[\]"),
        ((torch.tensor([50]),), "expected ids from 0 to 49, got 50"),
        ((torch.tensor([-1, 3]),), "expected ids from 0 to 49, got -1"),
        ((torch.zeros(0, dtype=torch.int64),), r"sequences of 1 to 2,048 tokens, got \[0\]"),
        ((torch.zeros(1, 2049, dtype=torch.int64),), r"sequences of 1 to 2,048 tokens, got \[1, 2049\]"),
        ((), "input_ids or inputs_embeds"),
    ],
)
def test_what_cannot_be_is_refused(given: tuple[object, ...], message: str) -> None:
    with pytest.raises(ParamError, match=message):
        ostinato.models.Qwen3(**SMALL)(*given)


def test_a_wrong_dtype_shape_or_config_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dtype: expected 'auto', .*, got 'int8'"):
        ostinato.models.Qwen3(**SMALL, dtype="int8")
    with pytest.raises(
        ParamError, match=r"inputs_embeds: expected a tensor \[tokens, 32\] .* got torch.float32 \[4, 31\]"
    ):
        ostinato.models.Qwen3(**SMALL)(inputs_embeds=torch.zeros(4, 31))
    with pytest.raises(ModelLoadError, match="vocab_size: expected an integer"):
        ostinato.models.Qwen3(**{**SMALL, "vocab_size": "50"})
    with pytest.raises(ModelLoadError, match="no/such"):
        load(Path("no/such"))


# Vectors of texts.


def test_vectors_are_pooled_hidden_states(tmp_path: Path) -> None:
    build("qwen3", tmp_path)
    model = load(tmp_path)
    prompts = [IDS.tolist(), IDS[:5].tolist(), IDS[2:19].tolist()]
    hidden = [model(torch.tensor(prompt)) for prompt in prompts]
    with LLM(tmp_path, execution="eager", max_num_batched_tokens=32) as llm:
        want = {"last": [each[-1] for each in hidden], "cls": [each[0] for each in hidden]}
        want["mean"] = [each.mean(0) for each in hidden]
        for pooling, vectors in want.items():
            got = llm.embed(prompts, pooling=pooling, normalize=False)  # type: ignore[arg-type]
            torch.testing.assert_close(got, torch.stack(vectors), rtol=0, atol=2e-5)
            unit = llm.embed(prompts, pooling=pooling)  # type: ignore[arg-type]
            torch.testing.assert_close(unit.norm(dim=-1), torch.ones(3))
            torch.testing.assert_close(unit, torch.nn.functional.normalize(got, dim=-1))


def test_vectors_leave_the_engines_cache_and_counters_alone() -> None:
    with engine("qwen3") as llm:
        before = llm.generate([[1, 2, 3]], GREEDY)[0].outputs[0].token_ids
        steps = llm.stats().steps
        llm.embed([[1, 2, 3], [4, 5]])
        assert llm.stats().steps == steps
        assert llm.generate([[1, 2, 3]], GREEDY)[0].outputs[0].token_ids == before
        with pytest.raises(ParamError, match="pooling: expected one of last, mean, cls, got 'max'"):
            llm.embed([[1]], pooling="max")  # type: ignore[arg-type]
        with pytest.raises(PromptTooLong, match="the prompt has"):
            llm.embed([[1] * (llm.plan.max_model_len + 1)])


def test_a_vector_does_not_depend_on_its_batch_mates_where_lengths_choose_the_positions(tmp_path: Path) -> None:
    build("phi3_longrope", tmp_path)  # long texts have other rotary factors from 32 tokens on
    short, long = IDS[:5].tolist(), [*IDS.tolist(), *IDS.tolist()]
    with LLM(tmp_path, execution="eager", max_model_len=128) as llm:
        alone, together = llm.embed([short]), llm.embed([short, long])
        assert llm.embed([]).shape == (0, llm.plan.spec.hidden_size)
    torch.testing.assert_close(together[0], alone[0], rtol=0, atol=1e-5)


def test_the_demo_model_puts_like_texts_near_each_other() -> None:
    with LLM("demo", execution="eager") as llm:
        code, other, prose = llm.embed(
            ["def add(a, b):\n    return a + b", "def sub(x, y):\n    return x - y", "the quick brown fox, they say"],
            pooling="mean",
        )
    assert float(code @ other) > float(code @ prose)


def test_a_misspelt_keyword_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"Llama: nothing reads 'rope_thetaa' .*; did you mean rope_theta"):
        ostinato.models.Llama(**SMALL, rope_thetaa=5.0)


def test_random_biases_are_zero_and_norms_one() -> None:
    model = ostinato.models.GptOss(**SMALL, num_local_experts=4, num_experts_per_tok=2, sliding_window=8)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif not name.endswith("sinks"):
            assert 0.01 < float(parameter.std()) < 0.03, name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"device": "banana"}, "device: expected 'cpu' or 'cuda', got 'banana'"),
        ({"model": None}, "model: expected a folder, .*, got NoneType"),
    ],
)
def test_wrong_arguments_of_load_are_config_errors(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(**({"model": "demo"} | wrong))


def test_wrong_tensors_are_refused_and_other_dtypes_taken() -> None:
    model = ostinato.models.Qwen3(**SMALL, dtype="bfloat16")
    with pytest.raises(ParamError, match=r"hidden: expected a tensor \[..., 32\], got torch.float32 \[2, 5\]"):
        model.compute_logits(torch.zeros(2, 5))
    with pytest.raises(ParamError, match=r"inputs_embeds: expected a tensor .*, got list"):
        model(inputs_embeds=[1])
    with pytest.raises(ParamError, match="expected ids from 0 to 49, got 99999"):
        model.embed_tokens(torch.tensor([99999]))
    assert model(inputs_embeds=torch.zeros(3, 32)).dtype is torch.bfloat16


def test_a_config_file_as_a_dictionary_makes_the_same_architecture(tmp_path: Path) -> None:
    build("llama3_gqa", tmp_path)
    model = load(json.loads((tmp_path / "config.json").read_text()))
    assert model.spec == load(tmp_path).spec
