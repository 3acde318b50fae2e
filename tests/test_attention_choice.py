"""Which attention an engine gets, and that it says why: the one asked for, or the next that the device can use."""

from __future__ import annotations

import warnings

import pytest
import torch

from engines import engine
from ostinato import attention_choice
from ostinato.attention_choice import Attention, choose_attention
from ostinato.layers.attention.backend import AttentionBackend
from ostinato.layers.attention.flash import FlashBuild, FlashKind, no_pages

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def build(kind: FlashKind, *passed_over: str) -> FlashBuild:
    return FlashBuild(kind, "1.2.3", no_pages, no_pages, frozenset(), passed_over=passed_over)


def choose(
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    *,
    device: torch.device = GPU,
    dtype: torch.dtype = torch.bfloat16,
    triton: str | None = None,
    flash: FlashBuild | str = "nothing is installed",
    largest_head: int = 128,
) -> Attention:
    monkeypatch.setattr(attention_choice, "triton_problem", lambda device: triton)
    monkeypatch.setattr(attention_choice, "detect", lambda device: flash)
    return choose_attention(wanted, device, dtype, largest_head)


def test_auto_takes_the_first_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flash = choose(monkeypatch, "auto", flash=build(FlashKind.FLASH2))
        assert flash == Attention(AttentionBackend.FLASH, "FlashAttention-2 1.2.3", 256)
        ours = choose(monkeypatch, "auto", flash="FlashAttention-2 2.8 cannot be imported with torch 2.11")
        assert ours.backend is AttentionBackend.TRITON
        assert ours.block_size == 16
        assert ours.reason == "our kernels; flash: FlashAttention-2 2.8 cannot be imported with torch 2.11"
        torchs = choose(monkeypatch, "auto", triton="compute capability 7.5", flash=build(FlashKind.FLASH2))
        assert torchs.backend is AttentionBackend.TORCH
        assert "triton: compute capability 7.5" in torchs.reason
        assert "flash: it needs our kernels beside it" in torchs.reason
        assert choose(monkeypatch, "auto", device=CPU).backend is AttentionBackend.TORCH


@pytest.mark.parametrize("kind", [FlashKind.FLASH4, FlashKind.TORCH])
def test_what_serves_prompts_only_is_taken_when_asked_for(monkeypatch: pytest.MonkeyPatch, kind: FlashKind) -> None:
    unasked = choose(monkeypatch, "auto", flash=build(kind))
    assert unasked.backend is AttentionBackend.TRITON
    assert "1.2.3 serves prompts only" in unasked.reason
    with pytest.warns(RuntimeWarning, match=r"attention_backend='flash' is .* serves prompts only"):
        assert choose(monkeypatch, "flash", flash=build(kind)).backend is AttentionBackend.FLASH


@pytest.mark.parametrize("kind", [FlashKind.FLASH2, FlashKind.TORCH])
def test_a_package_of_another_abi_is_named_though_another_one_works(
    monkeypatch: pytest.MonkeyPatch, kind: FlashKind
) -> None:
    """torch's own varlen attention is nearly always there: it must not hide why flash-attn is not used."""
    broken = "FlashAttention-3 3.0 cannot be imported with torch 2.11: ImportError: undefined symbol"
    found = build(kind, broken, "FlashAttention-4 is not installed")
    unasked = choose(monkeypatch, "auto", flash=found)
    assert broken in unasked.reason
    assert "is not installed" not in unasked.reason
    with pytest.warns(RuntimeWarning, match="attention_backend='flash' is .*undefined symbol"):
        asked = choose(monkeypatch, "flash", flash=found)
    assert asked.backend is AttentionBackend.FLASH
    assert broken in asked.reason


def test_float32_is_nothing_for_flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = choose(monkeypatch, "auto", dtype=torch.float32, flash=build(FlashKind.FLASH2))
    assert chosen.backend is AttentionBackend.TRITON
    assert "flash-attn has no float32" in chosen.reason


@pytest.mark.parametrize(
    ("wanted", "triton", "gets", "says"),
    [
        ("flash", None, AttentionBackend.TRITON, "flash: FlashAttention-2 2.8.3 cannot be imported"),
        ("flash", "no compiler", AttentionBackend.TORCH, "triton: no compiler"),
        ("triton", "compute capability 7.0", AttentionBackend.TORCH, "triton: compute capability 7.0"),
    ],
)
def test_what_was_asked_for_and_cannot_be_used_is_named_and_the_next_one_taken(
    monkeypatch: pytest.MonkeyPatch, wanted: str, triton: str | None, gets: AttentionBackend, says: str
) -> None:
    flash = "FlashAttention-2 2.8.3 cannot be imported with torch 2.11: ImportError: undefined symbol"
    with pytest.warns(
        RuntimeWarning, match=f"attention_backend='{wanted}' cannot be used, '{gets.value}' is: .*{says}"
    ):
        chosen = choose(monkeypatch, wanted, triton=triton, flash=flash)
    assert chosen.backend is gets


def test_heads_that_are_too_large_for_the_kernels_go_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(monkeypatch, "auto", largest_head=256).backend is AttentionBackend.TRITON
    chosen = choose(monkeypatch, "auto", largest_head=512, flash=build(FlashKind.FLASH2))
    assert chosen.backend is AttentionBackend.TORCH
    assert "the kernels take heads of up to 256 elements, the model has 512" in chosen.reason


def test_torch_is_always_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(monkeypatch, "torch") == Attention(AttentionBackend.TORCH, "asked for")


def test_the_plan_says_which_and_why() -> None:
    with engine("qwen3", attention_backend="torch") as llm:
        assert "attention               torch (asked for)" in str(llm.plan)
    with engine("qwen3") as llm:
        assert "attention               torch (compiled for this CPU by Inductor)" in str(llm.plan)
