"""The low-level interface: the caller owns sequences and blocks, and gets the reference's logits and tokens."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fake_cuda
import ostinato
from deferred_stream import DeferredStream
from engines import GREEDY, checkpoint, engine, prompts, reference_logits, reference_tokens, token_ids
from ostinato import ModelRunner
from ostinato.graphs import streams
from ostinato.graphs.streams import CudaStream
from ostinato.layers.errors import ConfigError, EngineDead, ParamError
from ostinato.paged_cache import PagedCache
from reference import agrees

TOKENS = 12
SIZE = 4


def open_runner(variant: str = "qwen3", **options: Any) -> ModelRunner:
    settings = {"device": "cpu", "execution": "eager", "max_num_seqs": 4, "max_model_len": 128, "block_size": SIZE}
    return ModelRunner(checkpoint(variant)[0], **(settings | options))


@pytest.fixture
def runner() -> Iterator[ModelRunner]:
    with open_runner() as opened:
        yield opened


class Blocks:
    """The caller's own books: blocks are handed out in random order and never counted."""

    def __init__(self, cache: PagedCache, seed: int = 0) -> None:
        self.free = list(cache.blocks)
        random.Random(seed).shuffle(self.free)

    def table(self, tokens: int) -> list[int]:
        return [self.free.pop() for _ in range(-(-tokens // SIZE))]


def generate(runner: ModelRunner, cache: PagedCache, wanted: Sequence[list[int]], tokens: int = TOKENS) -> list[Any]:
    """Greedy tokens of all prompts, a row each."""
    blocks = Blocks(cache)
    tables = [blocks.table(len(prompt) + tokens) for prompt in wanted]
    generated = [[token] for token in runner.prefill(cache, wanted, tables).tokens.tolist()]
    for step in range(tokens - 1):
        last = [row[-1] for row in generated]
        out = runner.decode(cache, last, [len(prompt) + step for prompt in wanted], tables)
        for row, token in zip(generated, out.tokens.tolist(), strict=True):
            row.append(token)
    return generated


# The same tokens as everybody else's.


@pytest.mark.parametrize("variant", ["qwen3", "gpt2", "mpt", "gemma3", "mixtral", "mistral_window", "falcon_40b"])
@pytest.mark.parametrize("execution", ["eager", "emulate"])
def test_greedy_tokens_are_those_of_transformers_and_of_the_engine(variant: str, execution: str) -> None:
    wanted = prompts(4, seed=1)
    with open_runner(variant, execution=execution) as runner:
        got = generate(runner, runner.create_kv_cache(60), wanted, 24)
    assert got == [reference_tokens(variant, prompt, 24) for prompt in wanted]
    with engine(variant, execution=execution) as llm:
        assert token_ids(llm.generate(wanted, GREEDY)) == got


def test_compiled_and_captured_and_what_the_host_threw_away_is_compiled_again() -> None:
    wanted = prompts(4, seed=2)
    want = [reference_tokens("qwen3", prompt, TOKENS) for prompt in wanted]
    with open_runner(execution="graph") as runner:
        cache = runner.create_kv_cache(60)
        assert generate(runner, cache, wanted) == want
        assert generate(runner, cache, wanted[:1]) == want[:1]
        assert cache.replays == {1: TOKENS - 1, 2: 0, 3: 0, 4: TOKENS - 1}
        pieces = cache.steps.pieces
        compiled = pieces.compiles
        other = runner.create_kv_cache(90)
        assert generate(runner, other, wanted) == want
        assert pieces is other.steps.pieces
        assert pieces.compiles == compiled > 0, "another cache compiles nothing"
        torch._dynamo.reset()
        assert generate(runner, cache, wanted) == want


def test_transformers_own_code_runs_too() -> None:
    wanted = prompts(3, seed=3)
    with open_runner(model_impl="transformers") as runner:
        got = generate(runner, runner.create_kv_cache(60), wanted)
    assert got == [reference_tokens("qwen3", prompt, TOKENS) for prompt in wanted]


def test_on_a_device_that_lags_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ostinato.model_runner.stream_of", lambda device, emulate: DeferredStream(3, eagerness=0.2))
    with open_runner(execution="emulate", max_num_seqs=3, capture_sizes=[1, 3], prefill_capture_sizes=[64]) as runner:
        cache, wanted = runner.create_kv_cache(60), prompts(3, seed=4)
        assert generate(runner, cache, wanted) == [reference_tokens("qwen3", prompt, TOKENS) for prompt in wanted]
        assert cache.replays == {1: 0, 3: TOKENS - 1}
        assert cache.steps.graphs.prefill.replays == {64: 1}
        cache.copy_blocks([(1, 41), (2, 42)])
        for keys, values in cache.pages:
            assert torch.equal(keys[[1, 2]], keys[[41, 42]]) and torch.equal(values[[1, 2]], values[[41, 42]])


def test_captured_on_a_cuda_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = torch.zeros
    monkeypatch.setattr(streams.torch, "zeros", lambda *args, pin_memory=False, **kwargs: zeros(*args, **kwargs))
    log = fake_cuda.install(monkeypatch)
    monkeypatch.setattr(
        "ostinato.model_runner.stream_of", lambda device, emulate: CudaStream(torch.device("cpu"), emulate=False)
    )
    with open_runner(execution="emulate", capture_sizes=[1, 2], prefill_capture_sizes=[64]) as runner:
        caches, wanted = [runner.create_kv_cache(60) for _ in range(2)], prompts(4, seed=5)
        assert log.count("begin") == 2 * (3 + 1) + 1  # sizes 1, 2, 4 and 64, twice; one keeps the pool
        for cache in caches:
            got = generate(runner, cache, wanted, 6)
            assert got == [reference_tokens("qwen3", prompt, 6) for prompt in wanted]
            assert cache.replays == {1: 0, 2: 0, 4: 5}
    assert log.count("reset") == log.count("end")
    assert fake_cuda.State.in_pool == 0


# Logits, chunks, prefixes.


def test_logits_of_the_positions_asked_for(runner: ModelRunner) -> None:
    cache, wanted = runner.create_kv_cache(60), prompts(4, seed=6)
    want = [reference_logits("qwen3", prompt) for prompt in wanted]
    blocks = Blocks(cache)
    tables = [blocks.table(len(prompt)) for prompt in wanted]
    everything = runner.prefill(cache, wanted, tables, logit_positions="all")
    assert agrees(everything.logits, torch.cat(want))
    assert everything.tokens.tolist() == torch.cat(want).argmax(-1).tolist()
    last = runner.prefill(cache, wanted, tables)
    assert agrees(last.logits, torch.stack([logits[-1] for logits in want]))
    some = [[0], [], [1, len(wanted[2]) - 1], [0, 1]]
    picked = runner.prefill(cache, wanted, tables, logit_positions=some)
    assert agrees(picked.logits, torch.cat([logits[at] for logits, at in zip(want, some, strict=True)]))
    alone = runner.prefill(cache, wanted[3], tables[3], logit_positions=[1])
    assert agrees(alone.logits, want[3][[1]])
    assert len(runner.prefill(cache, wanted[3], tables[3], logit_positions=[]).logits) == 0


@pytest.mark.parametrize("limits", [{"max_num_batched_tokens": 7}, {"max_num_seqs": 2}], ids=str)
def test_more_than_a_step_holds_is_done_in_several(limits: dict[str, int]) -> None:
    wanted = prompts(7, seed=7)
    with open_runner(**limits) as runner:
        cache = runner.create_kv_cache(80)
        blocks = Blocks(cache)
        tables = [blocks.table(len(prompt)) for prompt in wanted]
        out = runner.prefill(cache, wanted, tables, logit_positions="all")
    assert agrees(out.logits, torch.cat([reference_logits("qwen3", prompt) for prompt in wanted]))


def test_chunks_over_what_was_computed_before(runner: ModelRunner) -> None:
    cache, (_, first, second) = runner.create_kv_cache(60), prompts(3, seed=8)
    blocks = Blocks(cache)
    tables = [blocks.table(len(first)), blocks.table(len(second))]
    logits = []
    for start in range(0, max(len(first), len(second)), 5):
        rows = [row for row, prompt in enumerate((first, second)) if start < len(prompt)]
        chunks = [(first, second)[row][start : start + 5] for row in rows]
        out = runner.prefill(cache, chunks, [tables[row] for row in rows], [start] * len(rows), "all")
        logits.append(list(zip(rows, out.logits.split([len(chunk) for chunk in chunks]), strict=True)))
    for row, prompt in enumerate((first, second)):
        own = torch.cat([part for step in logits for of, part in step if of == row])
        assert agrees(own, reference_logits("qwen3", prompt))


def test_a_shared_prefix_and_a_copy_before_writing(runner: ModelRunner) -> None:
    """Two continuations of ten tokens in blocks of four: two blocks are shared, the third is copied."""
    cache, prefix = runner.create_kv_cache(30), prompts(2, seed=9, longest=30)[1][:10]
    tables = [[1, 2, 3, 4, 5, 6], [1, 2, 13, 14, 15, 16]]
    runner.prefill(cache, prefix, tables[0])
    cache.copy_blocks([(3, 13)])
    before = [pages[[1, 2]].clone() for pair in cache.pages for pages in pair]
    rows = [[*prefix, 7], [*prefix, 11]]
    for _ in range(8):
        out = runner.decode(cache, [row[-1] for row in rows], [len(row) - 1 for row in rows], tables)
        for row, token in zip(rows, out.tokens.tolist(), strict=True):
            row.append(token)
    for row in rows:
        assert row[11:] == reference_tokens("qwen3", row[:11], 8)
    assert all(map(torch.equal, before, [pages[[1, 2]] for pair in cache.pages for pages in pair]))


@pytest.mark.parametrize(
    "options",
    [{}, {"execution": "emulate", "capture_sizes": [4], "prefill_capture_sizes": [3, 24]}],
    ids=["uncaptured", "padded"],
)
def test_random_schedules_of_a_caller_give_the_reference_logits(options: dict[str, Any]) -> None:
    """Sequences begin, go on by chunks of any size, and end, in any company; padding writes nobody's blocks."""
    with open_runner(**options) as runner:
        check_random_schedule(runner, runner.create_kv_cache(60))


def check_random_schedule(runner: ModelRunner, cache: PagedCache) -> None:
    draw = random.Random(10)
    free, live, compared = list(cache.blocks), list[tuple[list[int], list[int], int]](), 0
    for _ in range(60):
        if len(free) > 20:
            live.append(([draw.randrange(112) for _ in range(draw.randint(1, 20))], [], 0))
        chosen = draw.sample(range(len(live)), min(len(live), draw.randint(1, 4)))
        counts = [draw.randint(1, min(6, len(live[i][0]) - live[i][2])) for i in chosen]
        for i, count in zip(chosen, counts, strict=True):
            ids, table, done = live[i]
            table += [free.pop() for _ in range(-(-(done + count) // SIZE) - len(table))]
        starts = [live[i][2] for i in chosen]
        tables = [live[i][1] for i in chosen]
        chunks = [live[i][0][start : start + n] for i, start, n in zip(chosen, starts, counts, strict=True)]
        if max(counts) == 1 and draw.random() < 0.8:
            out = runner.decode(cache, [chunk[0] for chunk in chunks], starts, tables)
        else:
            out = runner.prefill(cache, chunks, tables, starts)
        for logits, i, count in zip(out.logits, chosen, counts, strict=True):
            ids, table, done = live[i]
            live[i] = ids, table, done + count
            assert agrees(logits[None], reference_logits("qwen3", ids[: done + count])[-1:])
            compared += 1
        for i in sorted(chosen, reverse=True):
            if live[i][2] == len(live[i][0]):
                free += live.pop(i)[1]
                draw.shuffle(free)
    assert compared > 100


def test_tables_may_be_arrays_and_longer_than_needed(runner: ModelRunner) -> None:
    cache, wanted = runner.create_kv_cache(60), prompts(3, seed=11)
    table = np.arange(1, 61, dtype=np.int32).reshape(3, 20)
    first = runner.prefill(cache, [np.array(prompt) for prompt in wanted], table, np.zeros(3, np.int64))
    assert torch.equal(first.tokens, runner.prefill(cache, wanted, torch.from_numpy(table), [0, 0, 0]).tokens)
    lengths = torch.tensor([len(prompt) for prompt in wanted])
    out = runner.decode(cache, first.tokens, lengths, torch.from_numpy(table))
    want = [reference_tokens("qwen3", prompt, 2)[1] for prompt in wanted]
    assert out.tokens.tolist() == want


def test_cells_behind_every_window_may_be_null() -> None:
    prompt = prompts(2, seed=12, longest=100)[1][:40] * 2
    with open_runner("mistral_window") as runner:
        cache = runner.create_kv_cache(40)
        table = [*cache.blocks][:25]
        token = runner.prefill(cache, prompt, table).tokens
        behind = (len(prompt) - runner.plan.spec.layers[0].attention.window + 1) // SIZE  # type: ignore[operator]
        out = runner.decode(cache, token, [len(prompt)], [[0] * behind + table[behind:]])
        assert [*token.tolist(), *out.tokens.tolist()] == reference_tokens("mistral_window", prompt, 2)
        with pytest.raises(ParamError, match=rf"row 0: cell {behind} of its block table .* is block 0; the cache has"):
            runner.decode(cache, token, [len(prompt)], [[0] * (behind + 1) + table[behind + 1 :]])


@pytest.mark.parametrize("poison", [float("nan"), 1e4])
def test_padding_rows_harm_nobody(poison: float) -> None:
    with open_runner(execution="emulate", capture_sizes=[4]) as runner:
        cache, wanted = runner.create_kv_cache(60), prompts(3, seed=13)
        for pair in cache.pages:
            for pages in pair:
                pages[0].fill_(poison)
        cache.steps.logits.fill_(poison)
        assert generate(runner, cache, wanted) == [reference_tokens("qwen3", prompt, TOKENS) for prompt in wanted]
        assert cache.replays == {4: TOKENS - 1}


def test_how_long_outputs_stay_valid(runner: ModelRunner) -> None:
    cache, wanted = runner.create_kv_cache(60), prompts(2, seed=14)
    tables = [[1, 2, 3], [*range(4, 30)]]
    first = runner.prefill(cache, wanted, tables)
    kept = first.logits.clone()
    one = runner.decode(cache, first.tokens, [1, len(wanted[1])], tables)
    tokens = one.tokens.clone()
    two = runner.decode(cache, one.tokens, [2, len(wanted[1]) + 1], tables)
    assert one.logits.data_ptr() == two.logits.data_ptr(), "one static buffer"
    assert torch.equal(first.logits, kept)
    assert torch.equal(one.tokens, tokens)


def test_logits_that_are_not_finite_give_no_token() -> None:
    with open_runner() as runner:
        cache = runner.create_kv_cache(8)
        with torch.no_grad():
            head = runner._open_maker().decoder.lm_head.weight  # type: ignore[attr-defined]
            head[3] = float("nan")
        assert runner.prefill(cache, [5, 6], [1]).tokens.tolist() == [-1]


# What is refused, with nothing launched.

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompts": [[1, 2, 112]]}, r"row 0, position 2: token id 112; the model's vocabulary is 0 to 111"),
    ({"prompts": [[1], [2, -1]], "block_tables": [[1], [2]]}, "row 1, position 1: token id -1"),
    ({"prompts": [[1], []], "block_tables": [[1], [2]]}, "row 1: no token ids"),
    ({"prompts": []}, "no rows"),
    ({"prompts": 7}, "prompts: expected token ids, or a list of them, got int"),
    ({"prompts": "text"}, "row 0: token ids: expected a sequence of integers, got str"),
    ({"prompts": [[1.5]]}, r"row 0: token ids: expected a sequence of integers, got float64 \[1\]"),
    ({"prompts": [[True]]}, "row 0: token ids: .* got bool"),
    ({"prompts": [[1], [2]]}, "block_tables: 1 block tables for 2 rows: expected one each"),
    ({"start": [0, 1]}, "1 rows of token ids, and 2 positions to begin at"),
    ({"start": -1}, "row 0: positions -1 to 3; expected positions 0 or more"),
    ({"start": 124}, "row 0: positions 124 to 128; expected positions below max_model_len = 128"),
    ({"start": 8}, "row 0: positions up to 12 need 4 blocks of 4 tokens; its block table has 3"),
    ({"block_tables": [[1, 31]]}, r"row 0: cell 1 of its block table \(from position 4 on\) is block 31; .* 1 to 30"),
    ({"block_tables": [[0, 2]]}, "row 0: cell 0 of its block table .* is block 0"),
    ({"block_tables": [[1, -2]]}, "cell 1 .* is block -2"),
    ({"block_tables": [["a", "b"]]}, "row 0: block table: expected a sequence of integers"),
    ({"block_tables": [[4, 4]]}, "row 0: block 4 is written from position 0 on, and twice in its block table"),
    (
        {"prompts": [[1], [2]], "block_tables": [[7], [7]]},
        "row 0: block 7 is written from position 0 on, and in the block table of row 1 too",
    ),
    (
        {"prompts": [[1], [2, 3]], "block_tables": [[5, 7, 9], [9]], "start": [5, 0]},
        None,  # row 0 has no use of its third cell
    ),
    (
        {"prompts": [[1], [2, 3]], "block_tables": [[5, 7], [5]], "start": [5, 0]},
        "row 1: block 5 is written from position 0 on, and in the block table of row 0 too",
    ),
    ({"logit_positions": "first"}, "logit_positions: expected 'last', 'all' or positions per row, got 'first'"),
    ({"logit_positions": [[0], [1]]}, "logit_positions: expected positions for each of 1 rows"),
    ({"logit_positions": [[5]]}, r"row 0: logit_positions: expected ascending ones of 0 to 4, .*; got \[5\]"),
    ({"logit_positions": [[1, 1]]}, "row 0: logit_positions: expected ascending"),
]


@pytest.mark.parametrize(("changes", "match"), REFUSED, ids=[str(match)[:60] for _, match in REFUSED])
def test_bad_calls_name_what_is_wrong_and_touch_nothing(
    runner: ModelRunner, changes: dict[str, Any], match: str | None
) -> None:
    cache = runner.create_kv_cache(30)
    arguments: dict[str, Any] = {"prompts": [[1, 2, 3, 4, 5]], "block_tables": [[1, 2, 3]]} | changes
    if match is None:
        runner.prefill(cache, **arguments)
        return
    with pytest.raises(ParamError, match=match):
        runner.prefill(cache, **arguments)
    assert not any(pages.any() for pair in cache.pages for pages in pair)


def test_bad_decodes_name_the_row(runner: ModelRunner) -> None:
    cache = runner.create_kv_cache(30)
    with pytest.raises(ParamError, match="decode: 5 rows; max_num_seqs is 4"):
        runner.decode(cache, [1] * 5, [0] * 5, [[block] for block in range(1, 6)])
    with pytest.raises(ParamError, match=r"row 1, position 3: token id 300"):
        runner.decode(cache, [1, 300], [0, 3], [[1], [2]])
    with pytest.raises(ParamError, match=r"row 1: positions 128 to 128; expected positions below max_model_len = 128"):
        runner.decode(cache, [1, 2], [0, 128], [[1], [2]])
    with pytest.raises(ParamError, match="row 0: block 2 is written from position 4 on, and in the block table of row"):
        runner.decode(cache, [1, 2], [4, 4], [[1, 2], [3, 2]])
    with pytest.raises(ParamError, match="2 rows of token ids, and 1 positions"):
        runner.decode(cache, [1, 2], [0], [[1], [2]])
    with pytest.raises(ParamError, match="copy_blocks: block 31; the cache has 1 to 30"):
        cache.copy_blocks([(1, 31)])
    with pytest.raises(ParamError, match="two copies have one target"):
        cache.copy_blocks([(1, 3), (2, 3)])
    with pytest.raises(ParamError, match="pairs of blocks"):
        cache.copy_blocks([(1, 2, 3)])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "give num_blocks or memory, and not both"),
        ({"num_blocks": 4, "memory": 1 << 20}, "give num_blocks or memory, and not both"),
        ({"num_blocks": 0}, "create_kv_cache: expected 1 to"),
        ({"num_blocks": -3}, "create_kv_cache: expected"),
        ({"memory": 100}, "create_kv_cache: 100 is too little, expected at least 6 KiB, for a block of 4 tokens and"),
        ({"memory": "900TiB"}, "create_kv_cache: 900TiB is 900 TiB; .* are free"),
        ({"memory": "many"}, "create_kv_cache: expected bytes"),
    ],
    ids=str,
)
def test_caches_that_cannot_be(runner: ModelRunner, arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        runner.create_kv_cache(**arguments)


def test_memory_that_is_gone_when_it_is_taken_is_said(monkeypatch: pytest.MonkeyPatch, runner: ModelRunner) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("ostinato.kv_memory.allocate_kv_cache", full)
    with pytest.raises(ConfigError, match="create_kv_cache: there is no room for 93 KiB on cpu any more: CUDA out of"):
        runner.create_kv_cache(30)


def test_caches_by_bytes_tokens_and_blocks(runner: ModelRunner) -> None:
    by_blocks, by_tokens = runner.create_kv_cache(25), runner.create_kv_cache(memory="100 tokens")
    by_bytes = runner.create_kv_cache(memory=26 * runner.plan.block_bytes)
    for cache in (by_blocks, by_tokens, by_bytes):
        assert (cache.num_blocks, cache.block_size, cache.blocks) == (25, SIZE, range(1, 26))
        assert cache.num_bytes == sum(pages.nbytes for pair in cache.pages for pages in pair)


def test_unknown_options_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="ModelRunner: unknown option 'max_num_seq'; did you mean 'max_num_seqs'"):
        open_runner(max_num_seq=3)
    with pytest.raises(ConfigError, match="ModelRunner: unknown option 'kv_cache_memory'"):
        open_runner(kv_cache_memory="1GiB")


# Its life, and its company.


def test_two_runners_beside_an_engine_of_the_same_folder() -> None:
    wanted = prompts(3, seed=15)
    want = [reference_tokens("qwen3", prompt, TOKENS) for prompt in wanted]
    with open_runner() as one, engine("qwen3") as llm, open_runner() as two:
        caches = [one.create_kv_cache(60), two.create_kv_cache(60)]
        got: list[Any] = [None, None]
        threads = [
            threading.Thread(target=lambda n=n, r=r: got.__setitem__(n, generate(r, caches[n], wanted)))
            for n, r in enumerate((one, two))
        ]
        for thread in threads:
            thread.start()
        assert token_ids(llm.generate(wanted, GREEDY)) == [reference_tokens("qwen3", p, 24) for p in wanted]
        for thread in threads:
            thread.join()
        assert got == [want, want]
        with pytest.raises(ParamError, match="made by another ModelRunner"):
            one.decode(caches[1], [1], [0], [[1]])


def test_threads_take_turns(runner: ModelRunner) -> None:
    cache, wanted = runner.create_kv_cache(60), prompts(4, seed=16, longest=20)[1:]
    got: dict[int, list[int]] = {}

    def work(number: int, prompt: list[int], table: list[int]) -> None:
        tokens = runner.prefill(cache, prompt, table).tokens.tolist()
        while len(tokens) < TOKENS:
            tokens += runner.decode(cache, tokens[-1:], [len(prompt) + len(tokens) - 1], [table]).tokens.tolist()
        got[number] = tokens

    tables = [[*cache.blocks][20 * number : 20 * number + 20] for number in range(3)]
    threads = [threading.Thread(target=work, args=args) for args in zip(range(3), wanted, tables, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[number] for number in range(3)] == [reference_tokens("qwen3", prompt, TOKENS) for prompt in wanted]


def test_what_the_caller_has_switched_on_changes_nothing(runner: ModelRunner) -> None:
    cache, prompt = runner.create_kv_cache(60), prompts(2, seed=17)[1]
    want = reference_logits("qwen3", prompt)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        out = runner.prefill(cache, prompt, list(cache.blocks), logit_positions="all")
    assert agrees(out.logits, want)
    assert not out.logits.is_inference()


def test_embed_is_the_engines(runner: ModelRunner) -> None:
    wanted = prompts(3, seed=18)
    with engine("qwen3") as llm:
        want = llm.embed(wanted, "mean")
    assert torch.equal(runner.embed(wanted, "mean"), want)
    assert torch.equal(runner.embed(wanted[1], "mean")[0], want[1])
    assert runner.embed([]).shape == (0, want.shape[1])
    with pytest.raises(ParamError, match="row 1, position 0: token id 112"):
        runner.embed([[1], [112]])
    with pytest.raises(ParamError, match="row 0: positions 0 to 128; expected positions below max_model_len = 128"):
        runner.embed([[1] * 129])


def test_closing_gives_everything_back() -> None:
    runner = open_runner(execution="emulate")
    cache, other = runner.create_kv_cache(30), runner.create_kv_cache(30)
    generate(runner, cache, prompts(1))
    decoder: Any = runner._open_maker().decoder
    held = [weakref.ref(pages) for each in (cache, other) for pair in each.pages for pages in pair]
    held += [weakref.ref(parameter) for parameter in decoder.parameters()]
    del decoder
    other.close()
    other.close()
    gc.collect()
    assert [ref() is None for ref in held[:12]] == [False] * 6 + [True] * 6
    with pytest.raises(EngineDead, match="the KV cache is closed"):
        runner.decode(other, [1], [0], [[1]])
    runner.close()
    runner.close()
    gc.collect()
    assert all(ref() is None for ref in held)
    for call in (lambda: runner.create_kv_cache(3), lambda: runner.embed([[1]])):
        with pytest.raises(EngineDead, match="the runner is closed"):
            call()
    with pytest.raises(EngineDead, match="closed"):
        runner.prefill(cache, [1], [1])
    with pytest.raises(EngineDead, match="closed"):
        _ = cache.pages


def test_a_cache_that_fails_to_warm_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch, runner: ModelRunner) -> None:
    made: list[Tensor] = []

    def fail(steps: Any, *_: object) -> None:
        made.extend(pages for pair in steps.runner.kv_cache for pages in pair)
        raise RuntimeError("no more")

    with monkeypatch.context() as patch:
        patch.setattr("ostinato.warm_up.WarmUp.run", fail)
        with pytest.raises(RuntimeError, match="no more"):
            runner.create_kv_cache(30)
    held = [weakref.ref(pages) for pages in made]
    made.clear()
    gc.collect()
    assert all(ref() is None for ref in held)
    wanted = prompts(1)
    assert generate(runner, runner.create_kv_cache(30), wanted) == [reference_tokens("qwen3", wanted[0], TOKENS)]


def test_it_is_a_public_name() -> None:
    assert ostinato.ModelRunner is ModelRunner
    assert "ModelRunner" in dir(ostinato)
