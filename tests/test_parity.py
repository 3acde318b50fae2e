"""Every family against transformers, in fp32 on a CPU: logits at every position, greedy tokens, forms of the files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engines import checked, checkpoint, token_ids
from ostinato import LLM, SamplingParams
from parity import Way, batched, chunks_then_tokens, expected, loaded, one_prefill, sequence
from reference import agrees, disagreement, reference_tokens
from step_driver import StepDriver, load
from tiny.experts import EXPERTS
from tiny.forms import HUB_NAMES
from tiny_checkpoints import ALL_VARIANTS, build


@pytest.mark.parametrize("way", [one_prefill, chunks_then_tokens, batched])
@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_logits_equal_the_reference(variant: str, way: Way) -> None:
    for logits in way(StepDriver(loaded(variant))):
        want = expected(variant, len(logits))
        assert agrees(logits, want), f"difference {disagreement(logits, want):.1e} of the largest logit"


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_64_greedy_tokens_equal_the_reference(variant: str) -> None:
    folder, model = checkpoint(variant)
    prompts = [sequence(36, seed) for seed in (2, 3)]
    options: dict[str, Any] = {"max_num_seqs": 3, "max_model_len": 128, "block_size": 4, "max_num_batched_tokens": 48}
    with checked(LLM(folder, device="cpu", execution="emulate", **options)) as llm:
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=64))
    assert token_ids(outputs) == reference_tokens(model, prompts, 64)


FORMS: dict[str, dict[str, Any]] = {
    "old_config": {"old_config": True},
    "sharded": {"max_shard_size": "30KB"},
    "bin": {"form": "bin"},
    "bin_sharded": {"form": "bin_sharded", "old_config": True},
    "hub_names": {"hub_names": True, "old_config": True},
    "fused_experts": {"fused_experts": True},
}
FORMS_OF = [
    (variant, form)
    for variant, (model_class, *_) in ALL_VARIANTS.items()
    for form in FORMS
    if (form != "hub_names" or model_class in HUB_NAMES) and (form != "fused_experts" or variant in EXPERTS)
]


@pytest.mark.parametrize(("variant", "form"), FORMS_OF)
def test_every_form_of_the_files_gives_the_same_model(variant: str, form: str, tmp_path: Path) -> None:
    build(variant, tmp_path, **FORMS[form])
    plain, other = loaded(variant), load(tmp_path)
    assert replace(other.spec, architecture=plain.spec.architecture) == plain.spec
    ours, theirs = other.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
