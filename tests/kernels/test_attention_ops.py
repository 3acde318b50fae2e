"""The attention operators as ``torch.compile`` sees them: by shape, in order, and with the caller's own caches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kernels.attention_cases import Case, assert_close, make_case, reference, same_bits
from ostinato.graphs.compiled import CompiledPiece
from ostinato.layers.attention.scoring import Scoring
from ostinato.layers.errors import ConfigError
from ostinato.layers.kernels import attention_ops as _registers_the_kernels  # noqa: F401
from ostinato.layers.kernels import kv_write, paged_decode

pytestmark = pytest.mark.kernels
ops = torch.ops.ostinato
HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 4, 2, 64, 16
HOW = Scoring(HEAD_DIM**-0.5)


def two_layers(fused: Tensor, caches: list[Tensor], slots: Tensor, block_table: Tensor, lengths: Tensor) -> Tensor:
    """Split, write, attend, and on to the next layer, as a decoder does."""
    for k_cache, v_cache in (caches[:2], caches[2:]):
        q, k, v = fused.split([HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM], -1)
        q, k, v = (each.unflatten(-1, (-1, HEAD_DIM)) for each in (q, k, v))
        ops.write_kv(k * 0.5, v, k_cache, v_cache, slots)
        attended = ops.paged_decode(q, k_cache, v_cache, block_table, lengths, *HOW).flatten(1)
        fused = fused * 0.5 + torch.cat([attended, attended], 1)
    return fused


def one_new_token_each(lengths: list[int]) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]:
    """The arguments of ``two_layers``: contexts whose last token is not written yet."""
    case = make_case(lengths, num_blocks=12)
    table, last = case.block_table, case.context_lens.long() - 1
    slots = table[torch.arange(len(lengths)), last // BLOCK_SIZE] * BLOCK_SIZE + last % BLOCK_SIZE
    caches = [case.k_cache, case.v_cache, case.k_cache * -0.5, case.v_cache.flip(-1)]
    for cache in caches:
        cache.flatten(0, 1)[slots] = math.nan
    fused = torch.randn(len(lengths), 8 * HEAD_DIM, generator=torch.Generator().manual_seed(7))
    return fused, caches, slots, table, case.context_lens


def symbolic_rows(
    fused: Tensor, caches: list[Tensor], slots: Tensor, block_table: Tensor, lengths: Tensor
) -> list[tuple[Tensor, int]]:
    return [(fused, 0), (slots, 0), (block_table, 0), (block_table, 1), (lengths, 0)]


def test_one_compiled_form_reads_what_it_wrote_in_the_callers_own_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of a cache, made by functionalisation or by Inductor, would reach the kernels at another address."""
    seen: list[Tensor] = []
    write, attend = kv_write.write_kv, paged_decode.paged_decode
    monkeypatch.setattr(kv_write, "write_kv", lambda *args: (seen.extend(args[2:4]), write(*args))[1])
    monkeypatch.setattr(paged_decode, "paged_decode", lambda *args: (seen.extend(args[1:3]), attend(*args))[1])
    piece = CompiledPiece(two_layers, symbolic_rows)
    for lengths in ([1, 40, 17], [16, 2], [5, 6, 7, 8, 9]):
        with torch.inference_mode():
            eager, compiled = one_new_token_each(lengths), one_new_token_each(lengths)
            expected = two_layers(*eager)
            seen.clear()
            got = piece(*compiled)
        torch.testing.assert_close(got, expected)
        own = [cache.data_ptr() for cache in compiled[1]]
        assert [cache.data_ptr() for cache in seen] == [*own[:2], *own[:2], *own[2:], *own[2:]]
        assert all(map(same_bits, compiled[1][:2], eager[1][:2]))
    assert piece.compiles == 1


def test_varlen_is_compiled_with_a_symbolic_number_of_tokens() -> None:
    def step(q: Tensor, case: Case, cu_seqlens_q: Tensor) -> Tensor:
        out: Tensor = ops.paged_varlen(q * 2, *case.pages, cu_seqlens_q, None, *HOW) * 0.5
        return out

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for new in ([7, 1, 2], [20, 1, 30]):
        case = make_case([40, 30, 50], new)
        case.q, q = case.q * 2, case.q
        assert_close(compiled(q, case, case.cu_seqlens_q) * 2, reference(case, HOW))


def arguments(name: str) -> tuple[object, ...]:
    case = make_case([20, 35], [1, 1] if name == "paged_decode" else [5, 1])
    k_cache, v_cache = (cache.nan_to_num() for cache in case.pages[:2])
    pages = (case.q, k_cache, v_cache, *case.pages[2:])
    return {
        "write_kv": (torch.ones(2, 2, 64), torch.ones(2, 2, 64), k_cache, v_cache, torch.tensor([3, -1])),
        "paged_decode": (*pages, *HOW),
        "paged_varlen": (*pages, case.cu_seqlens_q, torch.tensor([5, 35, 1]), *HOW),
    }[name]


@pytest.mark.parametrize("name", ["write_kv", "paged_decode", "paged_varlen"])
def test_each_operator_is_what_its_schema_says(name: str) -> None:
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(ops, name).default, arguments(name), test_utils=tests)


@pytest.mark.parametrize("name", ["write_kv", "paged_decode", "paged_varlen"])
def test_a_cpu_without_the_interpreter_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ConfigError, match=f"ostinato::{name}: .*TRITON_INTERPRET=1"):
        getattr(ops, name)(*arguments(name))


def test_a_cache_of_another_dtype_is_refused() -> None:
    case = make_case([3])
    with pytest.raises(ConfigError, match=r"the cache holds torch.float16 heads of 64; it was given torch.float32"):
        ops.paged_decode(case.q, case.k_cache.half(), case.v_cache.half(), *case.pages[2:], *HOW)
