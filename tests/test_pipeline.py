"""The way of a step through a device that works on its own: launched ahead, packed in turns, collected late.

The engine's own code end to end (core, scheduler, buffers, runner, graph sets) over ``DeferredStream``, which lags
behind at random as a GPU may. What comes out is compared with a plain loop per request. Every fault of that kind that
we know of is put in on purpose, and must be seen.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from counting_model import VOCABULARY, CountingModel, counting_plan, next_token
from deferred_stream import DeferredStream
from engines import checkpoint, prompts, reference_tokens
from ostinato import EngineConfig, SamplingParams
from ostinato.core import EngineCore, StepFault
from ostinato.layers.errors import CaptureError, EngineDead
from ostinato.load import load_decoder
from ostinato.models.checkpoint import read_config
from ostinato.output_processor import OutputProcessor
from ostinato.request import Request, RequestStatus
from ostinato.runner import StepRunner

SCHEDULES = {"emulated": 300, "drawn": 100, "called": 1_000, "window": 900}
"""Per part: 10,000 in all. Recorded graphs are slow to replay here, and so is the sampler."""
WINDOW = 7
PARTS = [
    (kind, 10 * n + i)
    for n, (kind, parts) in enumerate({"emulated": 2, "drawn": 2, "called": 6, "window": 4}.items())
    for i in range(parts)
]
EOS = frozenset({1, 2})


class Engine:
    """One core on one deferred stream, and what each request must give."""

    def __init__(
        self,
        seed: int,
        *,
        emulate: bool = True,
        draws: float = 0.0,
        window: int | None = None,
        spoil: Callable[[CountingModel], None] = lambda model: None,
        **options: Any,
    ) -> None:
        """``draws``: the share of requests that are not greedy. ``spoil`` changes the model before it is captured."""
        self.rng, self.draws = random.Random(seed), draws
        self.model = CountingModel(window or 64)
        spoil(self.model)
        self.stream = DeferredStream(seed, eagerness=self.rng.choice([0.0, 0.3, 0.7]), emulate=emulate)
        plan = counting_plan(window=window, **options)
        self.runner = StepRunner(plan, self.model, self.stream)
        self.runner.warm_up()
        self.core = EngineCore(plan, self.runner)
        self.requests: list[Request] = []
        self.aborted: set[Request] = set()
        self.made = 0

    def submit(self) -> Request:
        rng = self.rng
        prompt = [rng.randrange(VOCABULARY) for _ in range(rng.choice([1, 1, 2, 5, 9, 17]))]
        if self.requests and rng.random() < 0.5:
            prompt = (self.requests[-1].token_ids + prompt)[:20]
        kind: dict[str, Any] = {"temperature": 0}
        if rng.random() < self.draws:
            kind = {"temperature": 1.0, "top_k": rng.choice([0, 5]), "top_p": rng.choice([1.0, 0.8])}
        params = SamplingParams(max_tokens=rng.randint(1, 12), ignore_eos=rng.random() < 0.4, **kind)
        request = Request(self.made, prompt, params, rng.randrange(1 << 64), EOS)
        self.made += 1
        self.core.add(request, OutputProcessor(None, request, None))
        self.requests.append(request)
        return request

    def schedule(self) -> None:
        """Some requests, submitted between steps, some aborted on the way; all of them run to their end."""
        self.requests, waiting = [], self.rng.randint(1, 6)
        while waiting or any(self.core.is_live(request) for request in self.requests):
            if waiting and self.rng.random() < 0.5:
                self.submit()
                waiting -= 1
            if self.rng.random() < 0.02 and self.requests:
                self.abort(self.rng.choice(self.requests))
            self.core.step()
            self.core.scheduler.check()
        for request in self.requests:
            self.check(request)

    def abort(self, request: Request) -> None:
        if request.status is not RequestStatus.FINISHED:
            self.aborted.add(request)
        self.core.scheduler.finish(request, "abort")

    def check(self, request: Request) -> None:
        want = self.expected(request)
        got = request.output_token_ids
        assert got == (want[: len(got)] if request in self.aborted else want), request

    def expected(self, request: Request) -> list[int]:
        tokens, params = list(request.prompt_token_ids), request.params
        generated: list[int] = []
        limit = min(params.max_tokens, 40 - len(tokens))
        while len(generated) < limit:
            token = next_token(self.model, tokens, params, request.seed, len(generated))
            tokens.append(token)
            generated.append(token)
            if token in EOS and not params.ignore_eos:
                break
        return generated


@pytest.mark.parametrize(("kind", "seed"), PARTS)
def test_random_schedules_with_delays_lose_and_repeat_no_token(kind: str, seed: int) -> None:
    assert sum(SCHEDULES[kind] for kind, _ in PARTS) >= 10_000
    draws, window = 0.5 if kind == "drawn" else 0.0, WINDOW if kind == "window" else None
    options: dict[str, Any] = {"enable_prefix_caching": seed % 3 > 0, "debug": seed % 2 == 0}
    engine = Engine(seed, emulate=kind in ("emulated", "drawn"), draws=draws, window=window, **options)
    for _ in range(SCHEDULES[kind]):
        engine.schedule()
    stats = engine.core.stats()
    assert engine.stream.lag >= 2
    assert stats.replays.keys() == {1, 2, 4}
    assert stats.prefill_replays.keys() == {4, 8}
    assert stats.mixed_steps > sum(stats.prefill_replays.values()) > 0
    assert stats.captures_after_warmup == 0
    assert stats.blocks_used == 0
    assert stats.preemptions > 0 or kind == "drawn"
    assert stats.prefix_hits > 0 or not engine.core.plan.config.enable_prefix_caching


def test_the_next_step_is_launched_before_the_last_has_run() -> None:
    engine = Engine(3, debug=True)
    engine.stream._eagerness = 0.0
    request = engine.submit()
    request.params = replace_tokens(request.params, 9)
    launched: list[int] = []
    launch = engine.runner.launch

    def noting(step: Any) -> Any:
        launched.append(request.num_generated)
        return launch(step)

    engine.runner.launch = noting  # type: ignore[method-assign]
    for _ in range(4):
        engine.core.step()
    assert launched[1:4] == [0, 1, 2]  # of token i + 1 nothing is known when the step that draws token i + 2 leaves


def replace_tokens(params: SamplingParams, count: int) -> SamplingParams:
    return SamplingParams(temperature=params.temperature, max_tokens=count, ignore_eos=True)


def test_a_fault_in_a_step_ends_its_requests_and_the_others_lose_nothing() -> None:
    engine, faults = Engine(11), 0
    for number in range(40):
        where = ("launch", "collect")[number % 2]
        whole, calls = getattr(engine.runner, where), [0]
        fails_at = engine.rng.randint(1, 8)

        def failing(*args: Any, whole: Any = whole, calls: Any = calls, fails_at: int = fails_at) -> Any:
            calls[0] += 1
            if calls[0] == fails_at:
                raise ZeroDivisionError("injected")
            return whole(*args)

        setattr(engine.runner, where, failing)
        try:
            engine.schedule()
        except StepFault:
            faults += 1
            failed = [request for request in engine.requests if request.finish_reason == "error"]
            while any(engine.core.is_live(request) for request in engine.requests):
                engine.core.step()
            engine.aborted |= set(failed)
            for request in engine.requests:
                engine.check(request)
        setattr(engine.runner, where, whole)
    assert faults > 20
    assert engine.core.stats().blocks_used == 0


class Interrupt:
    """Ctrl-C before the n-th line that the engine runs from now on, wherever that is."""

    def __init__(self, line: int) -> None:
        self.left = line

    def __enter__(self) -> None:
        sys.settrace(self._enter)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, arg: object) -> Any:
        return self._line if "/engine/" in frame.f_code.co_filename else None

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        self.left -= event == "line"
        if self.left == 0 and event == "line":
            raise KeyboardInterrupt
        return self._line


@pytest.mark.parametrize("seed", range(8))
def test_interrupts_anywhere_lose_and_repeat_no_token(seed: int) -> None:
    """In the midst of a launch, a commit, a recovery from the last interrupt: whoever goes on gets what is due."""
    engine, rng, struck = Engine(100 + seed, emulate=False), random.Random(seed), 0
    for _ in range(25):
        engine.requests = []
        for _ in range(rng.randint(2, 5)):
            engine.submit()
        steps = 0
        while any(engine.core.is_live(request) for request in engine.requests):
            interrupt = Interrupt(rng.randint(1, 1500) if rng.random() < 0.4 else 0)
            with contextlib.suppress(KeyboardInterrupt), interrupt:
                engine.core.step()
            struck += interrupt.left == 0
            steps += 1
            assert steps < 400, "it waits for something that never comes"
        for request in engine.requests:
            engine.check(request)
    assert struck > 10
    assert engine.core.stats().blocks_used == 0


def test_a_device_that_is_lost_ends_every_request_with_the_cause() -> None:
    engine = Engine(12)
    engine.stream._eagerness = 0.0
    requests = [engine.submit() for _ in range(3)]
    for request in requests:
        request.params = replace_tokens(request.params, 9)
    engine.core.step()

    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    engine.stream.run_until = engine.stream.synchronize = lost  # type: ignore[method-assign]
    with pytest.raises(EngineDead, match="the device is beyond use: RuntimeError: CUDA error: an illegal memory"):
        engine.core.step()
    assert [request.finish_reason for request in requests] == ["error"] * 3
    assert all(isinstance(request.error, EngineDead) for request in requests)
    assert not any(engine.core.is_live(request) for request in requests)
    with pytest.raises(EngineDead, match="beyond use"):
        engine.core.step()
    with pytest.raises(EngineDead, match="beyond use"):
        engine.submit()


def test_compiling_anew_waits_for_what_is_in_flight() -> None:
    """The host may reset Dynamo at any time; what is compiled again begins on padding, with nothing on its way."""
    engine = Engine(13)
    lost, flights = [False], list[int]()
    runner = type(engine.runner)

    class Pieces:
        lost = property(lambda self: lost[0])

        def __getattr__(self, name: str) -> Any:
            return getattr(pieces, name)

        def compile_again(self) -> None:
            flights.append(len(engine.core._flights))
            lost[0] = False

    pieces, engine.runner.pieces = engine.runner.pieces, Pieces()  # type: ignore[assignment]
    assert isinstance(engine.runner, runner)
    for _ in range(20):
        lost[0] = True
        engine.schedule()
    assert flights == [0] * 20


# Faults put in on purpose: each must change what comes out, or be named.


def run_and_compare(engine: Engine) -> bool:
    """Whether random work still gives what it must."""
    try:
        for _ in range(60):
            engine.schedule()
    except AssertionError:
        return False
    return True


def test_a_host_buffer_written_too_early_is_caught() -> None:
    """One turn instead of two: the next step is packed over what the last one's copy has yet to read."""
    engine = Engine(0)
    assert run_and_compare(engine)
    buffers = engine.runner.buffers
    engine.stream._eagerness = 0.0
    buffers._turns = [None]
    pack = buffers.pack

    def forgetful(step: Any, pad: int = 0) -> Any:
        buffers._turns = [None]
        return pack(step, pad)

    buffers.pack = forgetful  # type: ignore[method-assign]
    assert not run_and_compare(engine)


def test_a_result_read_too_early_is_caught() -> None:
    engine = Engine(1)
    engine.stream._eagerness = 0.0
    engine.runner.collect = lambda flight: flight.tokens.tolist()  # type: ignore[method-assign]
    assert not run_and_compare(engine)


def test_a_scalar_frozen_at_capture_is_caught() -> None:
    """A layer that takes its longest context from the host: right when captured, wrong in every replay after it."""

    def freeze(model: CountingModel) -> None:
        layer = model._layer

        def frozen(x: Any, keys: Any, values: Any, meta: Any) -> Any:
            longest = int(meta.context_lens.max())
            return layer(x, keys, values, meta._replace(context_lens=meta.context_lens.clamp_max(longest)))

        model.layers = [frozen]

    assert run_and_compare(Engine(2, emulate=False, spoil=freeze))  # called anew each time, it is right
    assert not run_and_compare(Engine(2, spoil=freeze))


@pytest.mark.parametrize("moved", ["weight", "kv cache", "input"])
def test_what_has_moved_since_the_capture_is_named_in_debug_mode(moved: str) -> None:
    engine = Engine(4, debug=True)
    engine.schedule()
    if moved == "weight":
        engine.model.logits.data = engine.model.logits.data.clone()
        want = "weights.logits has moved since the graphs were captured: from 0x"
    elif moved == "kv cache":
        keys, values = engine.runner.kv_cache[0]
        engine.runner.kv_cache[0] = (keys.clone(), values)
        want = "kv_cache.0.k has moved"
    else:
        arena = engine.runner.buffers._rows
        arena.device["positions"] = arena.device["positions"].clone()
        want = "inputs.rows.positions has moved"
    engine.submit()
    with pytest.raises(StepFault, match=want) as error:
        engine.core.step()
    assert isinstance(error.value.__cause__, CaptureError)


def test_padded_rows_that_write_a_real_block_are_caught() -> None:
    """Padding that points at a block somebody owns, instead of the null block."""
    engine = Engine(5)
    assert run_and_compare(engine)
    pad_rows = engine.runner.buffers._pad_rows

    def careless(turn: int, first: int, last: int) -> None:
        pad_rows(turn, first, last)
        engine.runner.buffers._rows.host[turn]["slot_mapping"][first:last] = range(6, 6 + last - first)

    engine.runner.buffers._pad_rows = careless  # type: ignore[method-assign]
    assert not run_and_compare(engine)


@pytest.mark.parametrize("value", [float("nan"), 1e4, 0.0])
def test_poison_where_padded_rows_read_and_write_harms_nobody(value: float) -> None:
    engine = Engine(6)
    step = engine.core.step

    def poison_and_step() -> None:
        engine.stream.synchronize()
        engine.runner.kv_cache[0][0][0].fill_(value)
        engine.runner.buffers.state.last_token[-1] = 11
        step()

    engine.core.step = poison_and_step  # type: ignore[method-assign]
    assert run_and_compare(engine)


# A real model on the same stream.


@pytest.mark.parametrize("variant", ["qwen3", "llama_bias"])
def test_a_model_on_a_deferred_stream_gives_the_reference_tokens(variant: str) -> None:
    folder = checkpoint(variant)[0]
    config = EngineConfig(
        folder,
        device="cpu",
        execution="emulate",
        max_num_seqs=4,
        max_model_len=128,
        prefill_capture_sizes=[32, 128],
        debug=True,
    )
    plan = replace(config.resolve(), num_blocks=24)
    decoder = load_decoder(plan, read_config(folder), lambda *_: None)
    stream = DeferredStream(7)
    runner = StepRunner(plan, decoder, stream)
    runner.warm_up()
    core = EngineCore(plan, runner)
    requests = []
    for number, prompt in enumerate(prompts(7, seed=5)):
        request = Request(number, prompt, SamplingParams(temperature=0, max_tokens=24), number, frozenset())
        core.add(request, OutputProcessor(None, request, None))
        requests.append(request)
    while any(core.is_live(request) for request in requests):
        core.step()
        core.scheduler.check()
    assert [r.output_token_ids for r in requests] == [
        reference_tokens(variant, r.prompt_token_ids, 24) for r in requests
    ]
    assert stream.lag >= 1
    assert core.stats().prefill_replays
