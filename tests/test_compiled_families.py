"""Inductor on structurally different families: the reference's tokens, and as many compilations as there are kinds.

Layers of one kind share their compiled forms, so the number does not depend on the depth.
"""

from __future__ import annotations

import pytest

from engines import checkpoint, engine
from ostinato import SamplingParams
from parity import LONG, SHORT
from reference import reference_tokens

NUM_TOKENS = 64
SAMPLER_AND_HEAD = 5  # temper, narrow, draw and edit, and the head of a single row
CLASSES = 3  # one row, several, tokens


@pytest.mark.parametrize(("variant", "kinds"), [("gemma3", 2), ("mixtral", 1), ("falcon_rw", 1), ("gpt_oss", 2)])
def test_compiled_tokens_equal_the_reference_and_kinds_are_compiled_once(variant: str, kinds: int) -> None:
    """Alone (single-row forms), two together (symbolic rows), and a prompt in chunks (symbolic tokens)."""
    want = [reference_tokens(checkpoint(variant)[1], [prompt], NUM_TOKENS)[0] for prompt in (LONG, SHORT)]
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    with engine(variant, execution="graph", max_num_seqs=2, max_num_batched_tokens=24) as llm:
        assert len(set(llm.plan.spec.layers)) == kinds
        assert llm.stats().compiles == SAMPLER_AND_HEAD + CLASSES * kinds
        alone = llm.generate(LONG, params)[0].outputs[0].token_ids
        together = [output.outputs[0].token_ids for output in llm.generate([LONG, SHORT], params)]
        stats = llm.stats()
    assert list(alone) == want[0]
    assert [list(tokens) for tokens in together] == want
    assert (stats.compiles_after_warmup, stats.captures_after_warmup) == (0, 0)
