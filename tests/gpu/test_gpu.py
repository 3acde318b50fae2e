"""The engine on a CUDA device: same tokens as on the CPU, through captured graphs; and all memory back at the end.

Run by `make gpu-check`; skipped where torch sees no CUDA device. Needs nothing beyond the shipped model.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import pytest
import torch

from ostinato import LLM, ModelRunner, SamplingParams
from ostinato.errors import OstinatoError
from ostinato.graphs.graph import eager_break
from ostinato.graphs.streams import stream_of
from ostinato.models.decode_step import StepModel
from ostinato.tokenizer import Tokenizer

pytestmark = pytest.mark.gpu

PROMPTS = [
    "def read_lines(path):",
    "class Stack:\n    def push(self, item):",
    "import os\n\n\ndef main():\n",
    "for index, value in enumerate(",
    "    raise ValueError(",
]
LENGTH: dict[str, Any] = {"max_tokens": 32, "ignore_eos": True}
GREEDY = SamplingParams(temperature=0, **LENGTH)
SAMPLED = [SamplingParams(temperature=0.8, top_k=40, top_p=0.95, seed=seed, **LENGTH) for seed in range(5)]
CYCLES = 3  # of opening and closing an engine; 50 with OSTINATO_SOAK=1
if os.environ.get("OSTINATO_SOAK") == "1":
    CYCLES = 50
OPTIONS: dict[str, Any] = {"dtype": "float32", "max_num_seqs": 6, "max_model_len": 256}


@pytest.fixture(scope="module", autouse=True)
def full_precision() -> Iterator[None]:
    """Products in float32 as on the CPU, without TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def on_gpu(**options: Any) -> LLM:
    return LLM("demo", device="cuda", **(OPTIONS | options))


def generate(llm: LLM, params: SamplingParams | list[SamplingParams], prompts: list[str] = PROMPTS) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params)]


@pytest.fixture(scope="module")
def cpu_tokens() -> list[list[int]]:
    with LLM("demo", device="cpu", execution="eager", **OPTIONS) as llm:
        return generate(llm, GREEDY)


@pytest.fixture(scope="module")
def eager_samples() -> list[list[int]]:
    with on_gpu(execution="eager") as llm:
        return generate(llm, SAMPLED)


@pytest.fixture(scope="module")
def graphed() -> Iterator[LLM]:
    """One engine on captured graphs for the tests that leave it as it was."""
    with on_gpu(enable_prefix_caching=False) as llm:
        yield llm


@pytest.mark.parametrize("execution", ["compile", "eager", "emulate"])  # graphs: the next test
def test_every_execution_gives_the_greedy_tokens_of_the_cpu(execution: str, cpu_tokens: list[list[int]]) -> None:
    with on_gpu(execution=execution) as llm:
        assert generate(llm, GREEDY) == cpu_tokens


@pytest.mark.parametrize(
    ("backend", "execution"), [("torch", "graph"), ("torch", "eager"), ("triton", "eager")], ids=lambda name: str(name)
)
def test_every_attention_backend_gives_the_greedy_tokens_of_the_cpu(
    backend: str, execution: str, cpu_tokens: list[list[int]]
) -> None:
    with on_gpu(attention_backend=backend, execution=execution) as llm:
        assert llm.plan.attention.backend.value == backend
        assert generate(llm, GREEDY) == cpu_tokens


@pytest.mark.parametrize("block_size", [64, 256])
def test_every_block_size_gives_the_greedy_tokens_of_the_cpu(block_size: int, cpu_tokens: list[list[int]]) -> None:
    with on_gpu(block_size=block_size) as llm:
        assert generate(llm, GREEDY) == cpu_tokens


def test_what_was_asked_for_and_is_not_there_is_said_and_replaced(cpu_tokens: list[list[int]]) -> None:
    """flash-attn has no float32, installed or not."""
    with pytest.warns(RuntimeWarning, match="flash-attn has no float32"):
        llm = on_gpu(attention_backend="flash")
    with llm:
        assert generate(llm, GREEDY) == cpu_tokens


def test_the_next_step_is_launched_before_the_last_tokens_are_read(graphed: LLM) -> None:
    core, seen = graphed._core, list[int]()
    launch = core.runner.launch

    def noting(step: Any) -> Any:
        seen.append(len(core.scheduler.in_flight))
        return launch(step)

    core.runner.launch = noting  # type: ignore[method-assign]
    try:
        generate(graphed, GREEDY, PROMPTS[:1])
    finally:
        core.runner.launch = launch  # type: ignore[method-assign]
    assert seen[0] == 0
    assert set(seen[1:]) == {1}


def test_debug_mode_names_a_weight_that_moved() -> None:
    with on_gpu(debug=True) as llm:
        generate(llm, GREEDY)
        weight = next(iter(llm._core.runner.open_model.decoder.parameters()))  # type: ignore[attr-defined]
        weight.data = weight.data.clone()
        with pytest.raises(OstinatoError, match="has moved since the graphs were captured"):
            generate(llm, GREEDY)


def test_a_region_that_cannot_be_captured_splits_the_graph() -> None:
    """It synchronises in the midst of the step, which no capture would allow."""
    device = torch.device("cuda")
    stream = stream_of(device, emulate=False)
    x, out = torch.ones(4, device=device), torch.zeros(4, device=device)

    @eager_break
    def through_the_host(t: torch.Tensor) -> torch.Tensor:
        return torch.tensor([value + 1 for value in t.tolist()], device=device)

    def step() -> None:
        out.copy_(through_the_host(x * 2) * 10)

    torch.cuda.synchronize()
    stream.submit(step)
    graph = stream.new_graph()
    stream.submit(lambda: graph.capture(step)).wait()
    for value in (3.0, 7.0):
        stream.submit(lambda value=value: x.fill_(value))  # type: ignore[misc]
        stream.submit(graph.replay).wait()
        assert out.tolist() == [(2 * value + 1) * 10] * 4
    assert len(graph.breaks) == 1
    graph.reset()
    stream.close()


@pytest.mark.parametrize("nth", [1, 5])
def test_out_of_memory_at_a_capture_drops_that_size(nth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the midst of the n-th captured step, with its tensors alive; the first is the largest size's."""
    sample, captured = StepModel._sample, [0]

    def hungry(self: StepModel, *args: Any) -> None:
        capturing = torch.cuda.is_current_stream_capturing()
        captured[0] += capturing
        if capturing and captured[0] == nth:
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
        sample(self, *args)

    monkeypatch.setattr(StepModel, "_sample", hungry)
    lost = 6 if nth < 5 else 5  # four graphs a size
    with pytest.warns(RuntimeWarning, match=f"no graphs for batch sizes {lost}, such steps run slower: CUDA out of"):
        llm = on_gpu()
    with llm:
        assert len(generate(llm, GREEDY, [*PROMPTS, PROMPTS[0]])) == 6
        assert lost not in llm.stats().replays
        assert lost != 6 or llm.stats().eager_fallbacks


def test_memory_is_measured_and_adds_up() -> None:
    with on_gpu() as llm:
        memory = llm.memory
        assert memory.activations is not None
        assert memory.activations > memory.logits > 0
        assert memory.graphs > 0
        assert memory.kv_cache == llm.plan.kv_cache_bytes


def test_sleeping_frees_the_cache_and_no_graph_goes_stale(cpu_tokens: list[list[int]]) -> None:
    with on_gpu(kv_cache_memory="512MiB", debug=True) as llm:
        assert generate(llm, GREEDY) == cpu_tokens
        before, captures = torch.cuda.mem_get_info()[0], llm.stats().captures
        llm.sleep()
        assert torch.cuda.mem_get_info()[0] - before > 500 << 20
        llm.wake()
        assert abs(torch.cuda.mem_get_info()[0] - before) < 16 << 20
        assert generate(llm, GREEDY) == cpu_tokens
        assert llm.stats().captures == captures


def test_a_callers_own_schedule_gives_the_greedy_tokens_of_the_cpu(cpu_tokens: list[list[int]]) -> None:
    with ModelRunner("demo", device="cuda", **OPTIONS) as runner:
        tokenizer = Tokenizer.load(runner.plan.folder)
        assert tokenizer is not None
        wanted = [tokenizer.encode(prompt) for prompt in PROMPTS]
        cache = runner.create_kv_cache(memory=f"{256 * len(wanted)} tokens")
        each = 256 // cache.block_size
        tables = [list(cache.blocks)[each * row : each * (row + 1)] for row in range(len(wanted))]
        tokens = [[token] for token in runner.prefill(cache, wanted, tables).tokens.tolist()]
        for step in range(len(cpu_tokens[0]) - 1):
            at = [len(prompt) + step for prompt in wanted]
            out = runner.decode(cache, [row[-1] for row in tokens], at, tables)
            assert out.logits.argmax(-1).tolist() == out.tokens.tolist()
            for row, token in zip(tokens, out.tokens.tolist(), strict=True):
                row.append(token)
        assert sum(cache.replays.values()) == len(cpu_tokens[0]) - 1
    assert tokens == cpu_tokens


def test_every_batch_size_gives_the_greedy_tokens_of_the_cpu(graphed: LLM, cpu_tokens: list[list[int]]) -> None:
    for size in range(1, len(PROMPTS) + 1):
        assert generate(graphed, GREEDY, PROMPTS[:size]) == cpu_tokens[:size]


def test_prompts_cut_into_chunks_give_the_greedy_tokens_of_the_cpu(cpu_tokens: list[list[int]]) -> None:
    with on_gpu(max_num_batched_tokens=7) as llm:
        assert generate(llm, GREEDY) == cpu_tokens


def test_decode_steps_replay_captured_graphs(graphed: LLM) -> None:
    assert graphed.plan.backend == "cuda"
    before = graphed.stats()
    generate(graphed, GREEDY, PROMPTS[:3])
    after = graphed.stats()
    replays = {size: count - before.replays.get(size, 0) for size, count in after.replays.items()}
    decode_steps = after.steps - before.steps - (after.mixed_steps - before.mixed_steps)
    assert sum(replays.values()) == decode_steps >= 31
    assert replays[3] > 0
    assert after.prefill_replays
    assert after.eager_fallbacks == {}


@pytest.mark.parametrize("execution", ["graph", "compile", "eager"])
def test_nothing_is_compiled_or_captured_after_warm_up(execution: str) -> None:
    """Neither pieces nor kernels, whatever the batch size and the lengths."""
    with on_gpu(execution=execution, enable_prefix_caching=False) as llm:
        for size in range(1, len(PROMPTS) + 1):
            generate(llm, GREEDY, PROMPTS[:size])
            generate(llm, SAMPLED[:size], PROMPTS[:size])
        llm.generate([list(range(1, 200)), [5] * 40], GREEDY)
        stats = llm.stats()
        sizes = len(llm.plan.capture_sizes) + len(llm.plan.prefill_capture_sizes)
        assert stats.captures == (sizes * len(llm._core.runner.kinds) if execution == "graph" else 0)
        assert stats.captures_after_warmup == 0
        assert stats.compiles_after_warmup == 0


@pytest.mark.parametrize("execution", ["graph", "compile"])
def test_sampled_tokens_are_those_of_eager(execution: str, eager_samples: list[list[int]]) -> None:
    with on_gpu(execution=execution) as llm:
        assert generate(llm, SAMPLED) == eager_samples


def test_a_seeded_request_draws_the_same_alone_and_among_others(graphed: LLM) -> None:
    together = generate(graphed, SAMPLED)
    alone = [generate(graphed, [params], [prompt])[0] for prompt, params in zip(PROMPTS, SAMPLED, strict=True)]
    assert alone == together


def test_poison_where_padded_rows_read_harms_nobody(cpu_tokens: list[list[int]]) -> None:
    """One graph of six rows serves one request: five rows of padding read and write the null block."""
    with on_gpu(capture_sizes=[6], enable_prefix_caching=False) as llm:
        for poison in (math.nan, math.inf, 1e4):
            for pages in llm._core.runner.kv_cache:
                for tensor in pages:
                    tensor.fill_(poison)
            torch.cuda.synchronize()  # the engine's stream is its own
            assert generate(llm, GREEDY, PROMPTS[:1]) == cpu_tokens[:1]
            assert generate(llm, GREEDY, PROMPTS[:3]) == cpu_tokens[:3]
        assert llm.stats().padding_rows > 0


def test_the_callers_stream_and_modes_change_no_token(graphed: LLM, cpu_tokens: list[list[int]]) -> None:
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        assert generate(graphed, GREEDY) == cpu_tokens
    with torch.cuda.stream(torch.cuda.Stream()):
        assert generate(graphed, GREEDY) == cpu_tokens
    torch.cuda.synchronize()


def test_bfloat16_generates_through_graphs() -> None:
    with on_gpu(dtype="bfloat16") as llm:
        assert [len(tokens) for tokens in generate(llm, GREEDY)] == [32] * len(PROMPTS)
        assert llm.stats().replays


def test_closing_gives_the_memory_back() -> None:
    def held() -> int:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()

    with on_gpu() as llm:  # what torch keeps for itself (cuBLAS workspaces, compiled kernels) is there afterwards
        generate(llm, GREEDY)
    del llm
    before = held()
    for _ in range(CYCLES):
        llm = on_gpu(kv_cache_memory="64MiB")
        generate(llm, GREEDY)
        assert held() > before + (64 << 20)
        llm.close()
        del llm
        assert held() <= before + (4 << 20)


def test_two_engines_live_side_by_side(graphed: LLM, cpu_tokens: list[list[int]]) -> None:
    with on_gpu(max_num_seqs=3) as other:
        streams = [graphed.stream(PROMPTS[0], GREEDY), other.stream(PROMPTS[1], GREEDY)]
        tokens: list[list[int]] = [[], []]
        for both in zip_longest(*streams):  # a step of one, a step of the other
            for delta, seen in zip(both, tokens, strict=True):
                seen += delta.token_ids if delta is not None else []
    assert tokens == cpu_tokens[:2]
