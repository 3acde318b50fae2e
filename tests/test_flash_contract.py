"""Our calls of flash-attn against its published signatures and a stand-in that computes what it documents.

No GPU and no flash-attn: the operators run on a CPU over the stand-in, and must give what the torch references give.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import fake_flash_attn as fake
from ostinato.layers.attention import flash, flash_detect, flash_ops
from ostinato.layers.attention.backend import AttentionBackend
from ostinato.layers.attention.decode import decode_attention
from ostinato.layers.attention.flash import FlashBuild, FlashKind, FlashLayer
from ostinato.layers.attention.flash_detect import detect
from ostinato.layers.attention.metadata import AttentionMetadata, within_window
from ostinato.layers.attention.paged import write_pages
from ostinato.layers.attention.scoring import Scoring
from ostinato.layers.attention.varlen import varlen_attention

CPU = torch.device("cpu")
HEAD_DIM, SCALE = 64, 0.15
NAMES = ("flash_attn_interface", "flash_attn_3", "flash_attn", "flash_attn.cute", "torch.nn.attention.varlen")
INSTALL: dict[FlashKind, Callable[..., ModuleType]] = {
    FlashKind.FLASH2: fake.install_flash2,
    FlashKind.FLASH3: fake.install_flash3,
    FlashKind.FLASH4: fake.install_flash4,
    FlashKind.TORCH: fake.install_torch_varlen,
}
CAPABILITY = {FlashKind.FLASH3: (9, 0), FlashKind.FLASH4: (10, 0)}
PAGE = {FlashKind.FLASH2: 256, FlashKind.FLASH3: 16}

Install = Callable[..., FlashBuild]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with a device of compute capability 8.0 and nothing installed."""
    for name in NAMES:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(flash_detect, "capability_of", lambda device: ((8, 0), 108))
    monkeypatch.setattr(flash_detect.metadata, "version", no_distribution)
    flash_detect._detect.cache_clear()
    yield
    flash_detect._detect.cache_clear()


def no_distribution(name: str) -> str:
    raise flash_detect.metadata.PackageNotFoundError(name)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install one implementation and find it."""

    def installed(kind: FlashKind, *version: str) -> FlashBuild:
        monkeypatch.setattr(flash_detect, "capability_of", lambda device: (CAPABILITY.get(kind, (8, 0)), 108))
        INSTALL[kind](monkeypatch, *version)
        build = detect(CPU)
        assert isinstance(build, FlashBuild), build
        assert build.kind is kind
        for function in (build.varlen, build.with_kvcache):
            getattr(function, "calls", []).clear()
        return build

    return installed


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Our kernels, replaced by the torch references; which of them ran."""
    ran: list[str] = []

    def decode(q: Tensor, *pages: Tensor) -> Tensor:
        ran.append("decode")
        return decode_attention(q, *pages)

    def varlen(q: Tensor, k: Tensor, v: Tensor, table: Tensor, lengths: Tensor, *rest: object) -> Tensor:
        ran.append("varlen")
        starts, _, scoring = rest
        return varlen_attention(q, k, v, table, lengths, starts, *scoring)

    monkeypatch.setattr(flash_ops, "_decode_by_us", decode)
    monkeypatch.setattr(flash_ops, "_varlen_by_us", varlen)
    return ran


# ---------------------------------------------------------------- steps


@dataclass
class Step:
    """A step over shuffled pages, NaN in every slot without a token and in the whole null block."""

    q: Tensor
    k: Tensor
    v: Tensor
    k_cache: Tensor
    v_cache: Tensor
    meta: AttentionMetadata

    def attend(self, scoring: Scoring) -> Tensor:
        return flash_ops.attend(self.q, self.k, self.v, self.k_cache, self.v_cache, self.meta, scoring)

    def expected(self, scoring: Scoring) -> Tensor:
        """By the torch references, in float32."""
        q, k_cache, v_cache = (each.float() for each in (self.q, self.k_cache, self.v_cache))
        pages = (k_cache, v_cache, self.meta.block_table, self.meta.context_lens)
        if self.meta.cu_seqlens_q is None:
            return decode_attention(q, *pages, scoring, self.meta.table_start)
        return varlen_attention(q, *pages, self.meta.cu_seqlens_q, *scoring)


def step(
    lengths: list[int],
    new: list[int] | None,
    block_size: int,
    *,
    heads: tuple[int, int] = (4, 2),
    padded_rows: int = 0,
    padded_tokens: int = 0,
    captured: bool = False,
    dtype: torch.dtype = torch.float16,
) -> Step:
    """Contexts of ``lengths``, the last ``new`` tokens of each row being new; ``new`` None: a decode step.

    Padded rows have length 1 on the null block, and no tokens on a varlen step; padded tokens belong to no row.
    """
    generator = torch.Generator().manual_seed(sum(lengths) + block_size)
    num_heads, kv_heads = heads
    counts = [-(-length // block_size) for length in lengths]
    shuffled = (torch.randperm(sum(counts) + 2, generator=generator) + 1).tolist()
    table = torch.zeros(len(lengths) + padded_rows, max(counts) + 1, dtype=torch.int32)
    caches = [torch.full((sum(counts) + 3, block_size, kv_heads, HEAD_DIM), fake.NAN, dtype=dtype) for _ in range(2)]
    fresh: tuple[list[Tensor], list[Tensor]] = ([], [])
    for row, length in enumerate(lengths):
        table[row, : counts[row]] = torch.tensor([shuffled.pop() for _ in range(counts[row])])
        at = torch.arange(length)
        slots = table[row, at // block_size].long() * block_size + at % block_size
        for cache, last in zip(caches, fresh, strict=True):
            tokens = torch.randn(length, kv_heads, HEAD_DIM, generator=generator).to(dtype)
            write_pages(cache, tokens, slots)
            last.append(tokens[length - (new[row] if new else 1) :])
    spare = padded_tokens if new else padded_rows
    k, v = (torch.cat([*last, torch.ones(spare, kv_heads, HEAD_DIM, dtype=dtype)]) for last in fresh)
    q = torch.randn(len(k), num_heads, HEAD_DIM, generator=generator).to(dtype)
    starts = torch.tensor([0, *new, *[0] * padded_rows]).cumsum(0, dtype=torch.int32) if new else None
    host = torch.tensor([max(new), max(lengths), int(new != lengths)]) if new and not captured else None
    context = torch.tensor([*lengths, *[1] * padded_rows], dtype=torch.int32)
    slots = torch.zeros(len(k), dtype=torch.int64)
    meta = AttentionMetadata(slots, table, context, None, None, starts, None, AttentionBackend.FLASH, host)
    return Step(q, k, v, *caches, meta)


def scoring(name: str, heads: int = 4) -> Scoring:
    slopes = torch.linspace(0.5, 0.05, heads)
    return {
        "plain": Scoring(SCALE),
        "window": Scoring(SCALE, window=37),
        "narrow": Scoring(SCALE, window=1),
        "softcap": Scoring(SCALE, softcap=0.7),
        "alibi": Scoring(SCALE, slopes=slopes),
        "all": Scoring(SCALE, 37, 0.9, slopes),
    }[name]


def assert_close(actual: Tensor, expected: Tensor, rows: int | None = None) -> None:
    """Within float16, over the first ``rows``."""
    assert actual.dtype == torch.float16
    torch.testing.assert_close(actual[:rows].float(), expected[:rows], rtol=2e-3, atol=2e-3)


SERVED = {
    FlashKind.FLASH2: ["plain", "window", "narrow", "softcap", "alibi", "all"],
    FlashKind.FLASH3: ["plain", "window", "narrow", "softcap"],
    FlashKind.FLASH4: ["plain", "window", "narrow", "softcap"],
    FlashKind.TORCH: ["plain", "window", "narrow"],
}
EVERYWHERE = [(kind, name) for kind, names in SERVED.items() for name in names]
WITH_PAGES = [(kind, name) for kind, name in EVERYWHERE if kind in PAGE]


# ---------------------------------------------------------------- the operators


@pytest.mark.parametrize(("kind", "name"), WITH_PAGES)
def test_decode_is_what_torch_computes(kind: FlashKind, name: str, install: Install, ours: list[str]) -> None:
    build = install(kind)
    work = step([1, 300, 256, 17], None, PAGE[kind], padded_rows=2)
    assert_close(work.attend(scoring(name)), work.expected(scoring(name)), 4)
    assert (len(build.with_kvcache.calls), ours) == (1, [])


@pytest.mark.parametrize(("kind", "name"), WITH_PAGES)
def test_chunks_and_decode_rows_are_what_torch_computes(
    kind: FlashKind, name: str, install: Install, ours: list[str]
) -> None:
    install(kind)
    work = step([1, 300, 70, 257, 40], [1, 5, 70, 1, 33], PAGE[kind], padded_rows=3)
    assert_close(work.attend(scoring(name)), work.expected(scoring(name)))
    assert ours == []


@pytest.mark.parametrize(("kind", "name"), EVERYWHERE)
def test_prompts_are_what_torch_computes_and_need_no_pages(
    kind: FlashKind, name: str, install: Install, ours: list[str]
) -> None:
    build = install(kind)
    work = step([3, 130, 1, 64], [3, 130, 1, 64], 32, padded_rows=2)
    assert_close(work.attend(scoring(name)), work.expected(scoring(name)))
    assert (len(build.varlen.calls), ours) == (1, [])


@pytest.mark.parametrize("heads", [(4, 4), (8, 1)])
@pytest.mark.parametrize("kind", list(PAGE))
def test_any_number_of_heads_shares_keys(kind: FlashKind, heads: tuple[int, int], install: Install) -> None:
    install(kind)
    for new in (None, [1, 20], [1, 40]):
        work = step([1, 40], new, PAGE[kind], heads=heads)
        assert_close(work.attend(scoring("plain")), work.expected(scoring("plain")))


@pytest.mark.parametrize("cached", [False, True], ids=["prompts", "chunks"])
@pytest.mark.parametrize("kind", list(FlashKind))
def test_rows_of_one_token_each_may_be_padded(kind: FlashKind, cached: bool, install: Install, ours: list[str]) -> None:
    """FlashAttention-2 takes another way where no row has two tokens, and takes it for granted that none is padding."""
    install(kind)
    lengths = [1 + 5 * cached, 1]
    work = step(lengths, [1, 1], PAGE.get(kind, 256), padded_rows=2, padded_tokens=3)
    assert_close(work.attend(scoring("plain")), work.expected(scoring("plain")))
    assert ours == ["varlen"] * (cached and kind not in PAGE)


@pytest.mark.parametrize("kind", list(FlashKind))
def test_tokens_of_no_row_return_zeros(kind: FlashKind, install: Install) -> None:
    install(kind)
    for lengths in ([9, 30], [4, 3]):
        work = step(lengths, [4, 3], PAGE.get(kind, 16), padded_tokens=5)
        if kind in PAGE or lengths == [4, 3]:
            assert torch.equal(work.attend(scoring("plain"))[7:], torch.zeros(5, 4, HEAD_DIM, dtype=torch.float16))


@pytest.mark.parametrize("kind", list(PAGE))
def test_a_captured_step_depends_on_no_length(kind: FlashKind, install: Install) -> None:
    build = install(kind)
    asked = []
    for lengths in ([40, 300], [9, 33]):
        work = step([*lengths, 301], [3, 9, 2], PAGE[kind], captured=True, padded_tokens=2)
        assert_close(work.attend(scoring("plain")), work.expected(scoring("plain")))
        step_of_one = step([*lengths, 301], None, PAGE[kind])
        assert_close(step_of_one.attend(scoring("plain")), step_of_one.expected(scoring("plain")))
        calls = [*build.varlen.calls, *build.with_kvcache.calls]
        asked.append([{k: v for k, v in call.items() if isinstance(v, int)} for call in calls])
        build.varlen.calls.clear()
        build.with_kvcache.calls.clear()
    assert asked[0] == asked[1]


def test_a_captured_step_of_prompts_only_knows_nothing_of_it_and_reads_pages(install: Install, ours: list[str]) -> None:
    install(FlashKind.FLASH2)
    work = step([5, 7], [5, 7], 16, captured=True)
    assert_close(work.attend(scoring("plain")), work.expected(scoring("plain")))
    assert ours == ["varlen"]


@pytest.mark.parametrize("kind", list(PAGE))
def test_a_table_narrowed_to_the_window_counts_from_its_first_cell(kind: FlashKind, install: Install) -> None:
    build = install(kind)
    work = step([700, 1500, 20], None, PAGE[kind])
    for name in ("window", "narrow"):
        wide = work.expected(scoring(name))
        narrowed = within_window(work.meta, scoring(name).window, PAGE[kind])
        assert narrowed.block_table.shape[1] < work.meta.block_table.shape[1]
        assert_close(Step(work.q, work.k, work.v, work.k_cache, work.v_cache, narrowed).attend(scoring(name)), wide)
    assert len(build.with_kvcache.calls) == 2


def test_unwritten_slots_of_large_pages_reach_no_result(install: Install, ours: list[str]) -> None:
    """FlashAttention-3 would multiply them by 0; NaN times 0 is NaN."""
    install(FlashKind.FLASH3)
    work = step([40, 100], [3, 9], 64)
    assert_close(work.attend(scoring("plain")), work.expected(scoring("plain")))
    assert ours == ["varlen"]
    work = step([40, 100], None, 64)
    assert_close(work.attend(scoring("plain")), work.expected(scoring("plain")))
    assert ours == ["varlen"]


@pytest.mark.parametrize(
    ("kind", "block_size", "how", "dtype"),
    [
        (FlashKind.FLASH2, 16, Scoring(SCALE), torch.float16),
        (FlashKind.FLASH2, 256, Scoring(SCALE), torch.float32),
        (FlashKind.FLASH2, 256, Scoring(SCALE, sinks=torch.zeros(4)), torch.float16),
        (FlashKind.FLASH3, 16, scoring("alibi"), torch.float16),
        (FlashKind.TORCH, 256, Scoring(SCALE), torch.float16),
    ],
)
def test_what_is_refused_is_computed_by_our_kernels(
    kind: FlashKind, block_size: int, how: Scoring, dtype: torch.dtype, install: Install, ours: list[str]
) -> None:
    build = install(kind)
    for new in (None, [3, 9]):
        work = step([40, 300], new, block_size, dtype=dtype)
        expected = work.expected(how).to(dtype)
        torch.testing.assert_close(work.attend(how), expected, rtol=2e-3, atol=2e-3)
    assert ours == ["decode", "varlen"]
    assert build.varlen.calls == []


def test_prompts_that_are_refused_are_computed_by_our_kernels(install: Install, ours: list[str]) -> None:
    build = install(FlashKind.TORCH)
    work = step([6, 9], [6, 9], 16)
    assert_close(work.attend(scoring("softcap")), work.expected(scoring("softcap")))
    assert (ours, build.varlen.calls) == (["varlen"], [])


@pytest.mark.parametrize("served", [True, False])
def test_results_are_laid_out_as_announced_however_the_queries_lie(
    served: bool, install: Install, ours: list[str]
) -> None:
    install(FlashKind.FLASH2)
    how = (SCALE, 0, 0.0, None, None if served else torch.zeros(4))
    for lengths, new in (([40, 300], None), ([40, 300], [3, 9]), ([6, 9], [6, 9])):
        work = step(lengths, new, 256)
        q, meta = work.q.transpose(0, 1).contiguous().transpose(0, 1), work.meta
        pages = (work.k_cache, work.v_cache, meta.block_table, meta.context_lens)
        if meta.cu_seqlens_q is None:
            operator, arguments = torch.ops.ostinato.flash_decode, (q, *pages, *how)
        else:
            operator = torch.ops.ostinato.flash_varlen
            arguments = (q, work.k, work.v, *pages, meta.cu_seqlens_q, meta.host, *how)
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("kind", list(FlashKind))
def test_every_step_compiles_whole(kind: FlashKind, install: Install, ours: list[str]) -> None:
    install(kind)
    how = scoring("window")

    def layer(q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, meta: AttentionMetadata) -> Tensor:
        return flash_ops.attend(q * 2, k, v, k_cache, v_cache, meta, how).flatten(1) + 1

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for lengths, new in (([40, 300], None), ([40, 300], [3, 9]), ([6, 9], [6, 9])):
        work = step(lengths, new, PAGE.get(kind, 16))
        arguments = (work.q, work.k, work.v, work.k_cache, work.v_cache, work.meta)
        assert torch.equal(compiled(*arguments), layer(*arguments))
    assert ours == ["decode", "decode", "varlen", "varlen"] * (kind not in PAGE)


def test_inductor_takes_queries_that_are_a_slice(install: Install) -> None:
    """What a model without rotation gives: views of one projection, whose rows are further apart than they are long."""
    install(FlashKind.FLASH2)
    work, how = step([6, 9], [6, 9], 16), scoring("plain")
    qkv = torch.cat([each.flatten(1) for each in (work.q, work.k, work.v)], 1)

    def layer(qkv: Tensor, k_cache: Tensor, v_cache: Tensor, meta: AttentionMetadata) -> Tensor:
        split = qkv.split([4 * HEAD_DIM, 2 * HEAD_DIM, 2 * HEAD_DIM], dim=-1)
        q, k, v = (each.unflatten(-1, (-1, HEAD_DIM)) for each in split)
        return flash_ops.attend(q, k, v, k_cache, v_cache, meta, how).flatten(1)

    found = torch.compile(layer, fullgraph=True)(qkv, work.k_cache, work.v_cache, work.meta)
    assert_close(found.view_as(work.q), work.expected(how))


# ---------------------------------------------------------------- signatures


def test_our_call_of_torch_fits_the_installed_release(monkeypatch: pytest.MonkeyPatch, install: Install) -> None:
    monkeypatch.undo()
    import torch.nn.attention.varlen as real

    published = inspect.signature(real.varlen_attn)
    build = install(FlashKind.TORCH)
    assert {*flash_detect.PACKAGES[-1].varlen[1]} <= {*published.parameters}
    flash.prompts(
        FlashBuild(FlashKind.TORCH, "", build.varlen, flash.no_pages, frozenset(published.parameters)),
        *(torch.ones(2, heads, 8, dtype=torch.float16) for heads in (2, 1, 1)),
        torch.tensor([0, 2], dtype=torch.int32),
        2,
        Scoring(1.0),
    )
    call = {name: value for name, value in build.varlen.calls[-1].items() if name in published.parameters}
    bound = published.bind(*list(call.values())[:7], **dict(list(call.items())[7:]))
    assert bound.arguments["window_size"] == (-1, 0)


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        (FlashKind.FLASH2, "2.8.3"),
        (FlashKind.FLASH2, "2.6.0"),
        (FlashKind.FLASH3, "3.0.0"),
        (FlashKind.FLASH4, "4.0.0b8"),
        (FlashKind.FLASH4, "4.0.0b27"),
        (FlashKind.TORCH, "torch 2.11"),
        (FlashKind.TORCH, "torch 2.12"),
    ],
)
def test_every_release_that_is_taken_takes_our_calls(kind: FlashKind, version: str, install: Install) -> None:
    build = install(kind, version)
    for lengths, new in (([40, 300], None), ([40, 300], [3, 9]), ([6, 9], [6, 9])):
        if kind in PAGE or lengths == new:
            work = step(lengths, new, PAGE.get(kind, 16))
            assert_close(work.attend(scoring("window")), work.expected(scoring("window")))
    assert build.version == version


def test_a_name_that_is_not_published_fails() -> None:
    published = fake.Published("2.8.3", "flash_attn_with_kvcache", lambda **_: None)
    published(1, 2, 3, cache_seqlens=4)
    with pytest.raises(TypeError, match="page_table"):
        published(1, 2, 3, page_table=4)


def test_splits_fill_the_device_and_depend_on_shapes_only() -> None:
    build = FlashBuild(FlashKind.FLASH2, "", flash.no_pages, flash.no_pages, frozenset(), multiprocessors=132)
    assert flash.num_splits(build, 1, 8, 40_960) == 32
    assert flash.num_splits(build, 4, 8, 40_960) == 8
    assert flash.num_splits(build, 1, 8, 1_024) == 4
    assert flash.num_splits(build, 256, 8, 40_960) == 1
    assert flash.num_splits(build, 1, 8, 48) == 1


# ---------------------------------------------------------------- what is served

FP16, FP32 = torch.float16, torch.float32
REFUSALS = [
    (FlashKind.FLASH2, FlashLayer(FP32, 64, 256), "prompts", "float16 and bfloat16, the layer in float32"),
    (FlashKind.FLASH2, FlashLayer(FP16, 264, 256), "decode", "up to 256 that are multiples of 8, the layer has 264"),
    (FlashKind.FLASH3, FlashLayer(FP16, 68, 16), "decode", "the layer has 68"),
    (FlashKind.FLASH2, FlashLayer(FP16, 64, 256, sinks=True), "decode", "sinks"),
    (FlashKind.FLASH3, FlashLayer(FP16, 64, 16, alibi=True), "chunks", "FlashAttention-3 has no ALiBi"),
    (FlashKind.FLASH2, FlashLayer(FP16, 64, 256, alibi=True), "chunks", None),
    (FlashKind.TORCH, FlashLayer(FP16, 64, 16, softcap=True), "prompts", "no softcap"),
    (FlashKind.FLASH2, FlashLayer(FP16, 64, 16), "decode", "multiples of 256 tokens, these have 16"),
    (FlashKind.FLASH2, FlashLayer(FP16, 64, 16), "chunks", "multiples of 256 tokens, these have 16"),
    (FlashKind.FLASH2, FlashLayer(FP16, 64, 16), "prompts", None),
    (FlashKind.FLASH2, FlashLayer(torch.bfloat16, 128, 512), "chunks", None),
    (FlashKind.FLASH3, FlashLayer(FP16, 128, 16, softcap=True), "chunks", None),
    (FlashKind.FLASH3, FlashLayer(FP16, 128, 128), "chunks", "unwritten slots of pages of multiples of 64 tokens"),
    (FlashKind.FLASH3, FlashLayer(FP16, 128, 128), "decode", None),
    (FlashKind.FLASH4, FlashLayer(FP16, 128, 128), "decode", "without cached tokens only"),
    (FlashKind.FLASH4, FlashLayer(FP16, 192, 128), "prompts", "up to 128, and 256, on this device"),
    (FlashKind.TORCH, FlashLayer(FP16, 128, 256), "chunks", "without cached tokens only"),
    (FlashKind.TORCH, FlashLayer(FP16, 128, 16), "prompts", None),
]


@pytest.mark.parametrize(("kind", "layer", "path", "reason"), REFUSALS)
def test_a_layer_is_served_or_the_reason_is_said(
    kind: FlashKind, layer: FlashLayer, path: flash.Path, reason: str | None
) -> None:
    build = FlashBuild(kind, "1", flash.no_pages, flash.no_pages, frozenset(), (10, 0))
    found = flash.refusal(build, layer, path)
    assert found is None if reason is None else reason in (found or "")


def test_the_preferred_page_size_is_one_that_every_path_takes(install: Install) -> None:
    for kind in PAGE:
        build = install(kind)
        layer = FlashLayer(torch.bfloat16, 128, flash.preferred_block_size(build))
        assert [flash.refusal(build, layer, path) for path in ("decode", "chunks", "prompts")] == [None] * 3
        flash_detect._detect.cache_clear()


# ---------------------------------------------------------------- detection


def at(monkeypatch: pytest.MonkeyPatch, major: int, minor: int = 0) -> None:
    monkeypatch.setattr(flash_detect, "capability_of", lambda device: ((major, minor), 132))


def kind_of(found: FlashBuild | str) -> FlashKind:
    assert isinstance(found, FlashBuild), found
    return found.kind


def test_a_cpu_is_no_place_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    flash_detect._detect.cache_clear()
    assert detect(CPU) == "flash-attn needs a CUDA device, not cpu"


def test_what_is_absent_is_said_of_each() -> None:
    assert detect(CPU) == (
        "FlashAttention-3 is not installed; FlashAttention-2 is not installed; FlashAttention-4 is not installed; "
        "torch's varlen attention is not installed"
    )


@pytest.mark.parametrize(
    ("capability", "kind"),
    [((8, 0), FlashKind.FLASH2), ((8, 9), FlashKind.FLASH2), ((9, 0), FlashKind.FLASH3), ((10, 0), FlashKind.FLASH2)],
)
def test_the_order_depends_on_the_device(
    capability: tuple[int, int], kind: FlashKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    for install in (fake.install_flash3, fake.install_flash2, fake.install_torch_varlen):
        install(monkeypatch)
    at(monkeypatch, *capability)
    found = detect(CPU)
    assert kind_of(found) is kind
    passed_over = f"FlashAttention-3 3.0.0 runs on Hopper (9.x), this device is {capability[0]}.{capability[1]}"
    assert found.passed_over == (() if capability == (9, 0) else (passed_over,))


def test_flash_attention_4_serves_where_it_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fake.install_flash4(monkeypatch)
    at(monkeypatch, 10)
    found = detect(CPU)
    assert kind_of(found) is FlashKind.FLASH4
    assert found.name == "FlashAttention-4 4.0.0b27"
    assert "FlashAttention-2 is not installed" in found.passed_over


def test_too_old_a_device_is_told_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    fake.install_flash2(monkeypatch)
    at(monkeypatch, 7, 5)
    assert "FlashAttention-2 2.8.3 runs on 8.0 and later, this device is 7.5" in str(detect(CPU))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E\\n  and more')",
            "ImportError: flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E and more",
        ),
        ("raise OSError('libcudart.so.12: cannot open')", "OSError: libcudart.so.12: cannot open"),
        ("import einops_of_nobody", "ModuleNotFoundError: No module named 'einops_of_nobody'"),
        ("raise RuntimeError('operator registered twice')", "RuntimeError: operator registered twice"),
    ],
)
def test_a_build_for_another_torch_is_one_line_and_the_next_is_tried(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn")
    monkeypatch.setattr(flash_detect.metadata, "version", lambda name: "2.8.3")
    fake.install_torch_varlen(monkeypatch)
    found = detect(CPU)
    assert kind_of(found) is FlashKind.TORCH
    line = f"FlashAttention-2 2.8.3 cannot be imported with torch {torch.__version__}: {reason}"
    assert found.passed_over[1] == line


@pytest.mark.parametrize(
    ("install", "version", "lacking"),
    [
        (fake.install_flash2, "2.5.9", "flash_attn_varlen_func takes no softcap"),
        (fake.install_torch_varlen, "torch 2.10", "varlen_attn takes no scale, window_size"),
    ],
)
def test_too_old_a_release_is_told_what_it_lacks(
    install: Callable[..., ModuleType], version: str, lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, version)
    assert f"{version} is too old or too new: {lacking}" in str(detect(CPU))


def test_a_release_without_the_function_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake.install_flash2(monkeypatch)
    del module.flash_attn_with_kvcache
    assert "there is no flash_attn_with_kvcache" in str(detect(CPU))


def test_what_does_not_run_on_the_device_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> Tensor:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with …")

    fake.install_flash2(monkeypatch).flash_attn_varlen_func.compute = fail
    fake.install_torch_varlen(monkeypatch)
    found = detect(CPU)
    assert kind_of(found) is FlashKind.TORCH
    line = "FlashAttention-2 2.8.3 does not run on this device: RuntimeError: CUDA error: no kernel image"
    assert found.passed_over[1].startswith(line)


def test_what_computes_something_else_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake.install_flash2(monkeypatch)
    module.flash_attn_varlen_func.compute = lambda q, **_: torch.zeros_like(q)
    assert "FlashAttention-2 2.8.3 computes wrong values on this device" in str(detect(CPU))


def test_it_is_found_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake.install_flash2(monkeypatch)
    assert detect(CPU) is detect(torch.device("cpu"))
    assert len(module.flash_attn_varlen_func.calls) == 1


def test_importing_the_operators_imports_none_of_them() -> None:
    code = (
        "import sys, ostinato.layers.attention.flash_ops; "
        f"print([name for name in {NAMES!r} if name in sys.modules and not name.startswith('torch')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
