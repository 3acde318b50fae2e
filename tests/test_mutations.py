"""What the parity tests are worth: each of many deliberate faults moves a variant's logits far out of tolerance."""

from __future__ import annotations

import pytest

from faults import FAULTS
from parity import Way, chunks_then_tokens, expected, loaded, one_prefill
from reference import TOLERANCE, agrees, disagreement
from step_driver import StepDriver, with_spec

WAYS = [one_prefill, chunks_then_tokens]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FAULTS)
def test_parity_shows_the_fault(name: str, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = FAULTS[name]
    right = loaded(fault.variant)
    fault.apply(monkeypatch)
    wrong = with_spec(right, fault.spec(right.spec))
    fault.parameters(wrong)
    (logits,) = way(StepDriver(wrong))
    want = expected(fault.variant, len(logits))
    assert not agrees(logits, want)
    assert disagreement(logits, want) > 5 * TOLERANCE, "the fault hardly shows: give its variant other numbers"


@pytest.mark.parametrize("variant", sorted({fault.variant for fault in FAULTS.values()}))
def test_the_same_model_without_a_fault_agrees(variant: str) -> None:
    right = loaded(variant)
    (logits,) = one_prefill(StepDriver(with_spec(right, right.spec)))
    assert agrees(logits, expected(variant, len(logits)))
