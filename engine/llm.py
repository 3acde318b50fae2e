"""``LLM``: a checkpoint, loaded and ready, inside the caller's process.

Owns one of each part (plan, tokenizer, runner, scheduler) and the lock that lets one caller in at a time. Decides
nothing itself: the scheduler says what runs, the runner runs it, an output processor per request makes text of it. Any
caller's turn advances every running request, so streams and batches of several threads share their steps.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from ostinato.block_pool import BlockPool
from ostinato.config import EngineConfig
from ostinato.generation_defaults import GenerationDefaults
from ostinato.graphs.ambient import neutral_state
from ostinato.graphs.compiled import toolchain_prepared
from ostinato.layers.errors import EngineDead, OstinatoError, ParamError
from ostinato.models.checkpoint import eos_token_ids, read_config, read_generation_config
from ostinato.models.decoder import Decoder
from ostinato.models.registry import family_for
from ostinato.models.weights.load import load_weights
from ostinato.output_processor import OutputProcessor
from ostinato.outputs import RequestOutput, StreamDelta
from ostinato.plan import Plan
from ostinato.prompts import Prompt, Prompts, as_list, as_params, check_prompt
from ostinato.request import Request, RequestStatus
from ostinato.runner import ModelRunner
from ostinato.sampling_params import SamplingParams
from ostinato.scheduler import Scheduler
from ostinato.startup import StartupProgress
from ostinato.stats import Stats
from ostinato.step_buffers import MAX_BLOCKED_IDS, stop_ids
from ostinato.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]


class StepFault(OstinatoError):
    """A step raised; every request that took part in it has ended, and the cause is chained."""


class LLM:
    """A language model in this process. Options are those of ``EngineConfig``; use it in a ``with`` or ``close()`` it.

    ``plan`` is what the options came to, ``default_sampling_params`` what the checkpoint recommends, ``startup`` the
    seconds each part of making it took. Methods may be called from any thread; they take turns.
    """

    def __init__(self, model: str | os.PathLike[str], **options: Any) -> None:
        """Resolve, load and warm up. ``ConfigError`` and ``ModelLoadError`` come before memory is taken."""
        self._lock = threading.RLock()
        self._closed = False
        self._submitted = 0
        self._live: dict[int, Request] = {}  # requests that have not ended, or whose end was not delivered yet
        self._processors: dict[int, OutputProcessor] = {}
        self._dropped: deque[Request] = deque()  # of streams that nobody holds any more; ended before the next step
        with contextlib.ExitStack() as startup:
            progress = startup.enter_context(StartupProgress())
            progress("reading the checkpoint")
            self.plan: Plan = EngineConfig(model, **options).resolve()
            folder = self.plan.folder
            if self.plan.compiles and self.plan.device.type == "cpu":
                startup.enter_context(toolchain_prepared())
            raw, generation = read_config(folder), read_generation_config(folder)
            self.default_sampling_params = GenerationDefaults.from_json(generation)
            self._eos = frozenset(t for t in eos_token_ids(raw, generation) if t < self.plan.spec.vocab_size)
            self.tokenizer: Tokenizer | None = Tokenizer.load(folder)
            decoder = _load(self.plan, raw, progress)
            progress("starting the compiler" if self.plan.compiles else "allocating the KV cache")
            self._runner = ModelRunner(self.plan, decoder)
            self._runner.warm_up(progress)
        self.startup = progress.seconds
        self._new_scheduler()

    # What callers ask for.

    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Complete one prompt or many; the outputs are in the prompts' order.

        ``prompts``: str, list of str, token ids, or list of token ids; ``sampling_params``: one for all, or one each.
        A bad one raises before any runs. A request whose logits become non-finite ends alone, with
        ``finish_reason == "error"`` and its ``error``; a fault of a step raises.
        """
        items = as_list(prompts)
        params = as_params(sampling_params, len(items))
        with self._lock:
            requests = self._submit_all(items, params)
        try:
            return self._run(requests, use_tqdm)
        finally:
            self._abort(requests)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> TokenStream:
        """Complete one prompt, a delta at a time. Checked and submitted now; runs as it is iterated.

        Closing the stream, or dropping it, cancels the request: it takes part in no further step.
        """
        items = as_list(prompt)
        if len(items) != 1:
            raise ParamError(f"stream takes one prompt, got {len(items)}")
        with self._lock:
            (request,) = self._submit_all(items, as_params(sampling_params, 1))
        return TokenStream(self, request)

    def chat(self, messages: Messages, sampling_params: SamplingParams | None = None) -> RequestOutput:
        """Answer a conversation of ``{"role": …, "content": …}``, rendered by the checkpoint's own template."""
        return self.generate(self._render(messages), sampling_params)[0]

    def stream_chat(self, messages: Messages, sampling_params: SamplingParams | None = None) -> TokenStream:
        """``chat``, a delta at a time."""
        return self.stream(self._render(messages), sampling_params)

    def stats(self) -> Stats:
        """The counters now."""
        with self._lock:
            self._check_alive()
            self._end_dropped()
            return self._stats()

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix that no running request holds."""
        with self._lock:
            self._check_alive()
            self._pool.reset_prefix_cache()

    def close(self) -> None:
        """End all requests and free graphs, KV cache and weights. Again: no effect."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                self._abort_all()
            finally:
                self._runner.close()

    def __enter__(self) -> LLM:
        """The engine itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """``close()``."""
        self.close()

    # Submission.

    def _submit_all(self, prompts: Sequence[Any], params: Sequence[SamplingParams]) -> list[Request]:
        """Check all, then queue all; if one is refused none is kept."""
        self._check_alive()
        vocab_size = self.plan.spec.vocab_size
        checked = [check_prompt(prompt, self.tokenizer, vocab_size) for prompt in prompts]
        requests: list[Request] = []
        try:
            for prompt, param in zip(checked, params, strict=True):
                request = self._new_request(prompt.token_ids, param)
                self._scheduler.add(request)
                requests.append(request)
                self._processors[request.request_id] = OutputProcessor(self.tokenizer, request, prompt.text)
                self._live[request.request_id] = request
        except BaseException:
            self._abort(requests)
            raise
        return requests

    def _new_request(self, token_ids: list[int], params: SamplingParams) -> Request:
        number = self._submitted
        self._submitted += 1
        seed = params.seed
        if seed is None:
            drawn = hashlib.blake2b(f"{self.plan.config.seed}:{number}".encode(), digest_size=8)
            seed = int.from_bytes(drawn.digest(), "little")
        request = Request(number, token_ids, params, seed % (1 << 64), self._eos)
        self._check_stops(request)
        return request

    def _check_stops(self, request: Request) -> None:
        vocab_size = self.plan.spec.vocab_size
        if request.params.stop and self.tokenizer is None:
            raise ParamError("stop: this checkpoint has no tokenizer, so there is no text to look in")
        for token in request.params.stop_token_ids:
            if token >= vocab_size:
                raise ParamError(
                    f"stop_token_ids: {token} is no token; the model's vocabulary is 0 to {vocab_size - 1}"
                )
        held_back = len(stop_ids(request))
        if request.params.min_tokens and held_back > MAX_BLOCKED_IDS:
            raise ParamError(f"min_tokens: can hold back {MAX_BLOCKED_IDS} stop ids, the request has {held_back}")

    def _render(self, messages: Messages) -> list[int]:
        if self.tokenizer is None:
            raise ParamError("chat: this checkpoint has no tokenizer")
        text = self.tokenizer.render_chat(messages, add_generation_prompt=True)
        return self.tokenizer.encode(text, add_special_tokens=False)

    # Running.

    def _run(self, requests: Sequence[Request], use_tqdm: bool) -> list[RequestOutput]:
        bar = tqdm(total=len(requests), desc="generating", unit="request") if use_tqdm else None
        try:
            while (done := sum(request.request_id not in self._live for request in requests)) < len(requests):
                with self._lock:
                    self._check_alive()
                    self._step()
                if bar is not None:
                    bar.update(done - bar.n)
        finally:
            if bar is not None:
                bar.update(sum(request.request_id not in self._live for request in requests) - bar.n)
                bar.close()
        for request in requests:
            if isinstance(request.error, StepFault):
                raise request.error
        with self._lock:
            return [self._processors.pop(request.request_id).output() for request in requests]

    def _step(self) -> None:
        """One step of everything that runs. A fault in it ends the requests of that step and is raised."""
        self._end_dropped()
        self._deliver()  # what an interrupted step left
        step = None
        try:
            step = self._scheduler.next_step()
            if step is None:
                return
            self._scheduler.commit(step, self._runner.execute(step))
        except BaseException as error:
            self._recover()
            if step is None or not isinstance(error, Exception):
                raise  # an interrupt ends its caller's requests; those of others go on
            fault = StepFault(f"a step of {len(step.requests)} requests failed: {type(error).__name__}: {error}")
            fault.__cause__ = error
            for request in step.requests:
                self._scheduler.finish(request, "error", error=fault)
            self._deliver()
            raise fault from error
        self._deliver()

    def _recover(self) -> None:
        """After a step that did not end: nothing on the device counts, and the books must balance.

        An interrupt may strike between any two lines of the scheduler, so books that do not balance are written anew:
        every request that has not ended goes back to waiting, in order, and its blocks are computed again.
        """
        self._runner.drop_step()
        try:
            self._scheduler.check()
        except RuntimeError:
            self._new_scheduler()
            for request in sorted(self._live.values(), key=lambda request: request.request_id):
                if request.status is not RequestStatus.FINISHED:
                    request.restart()
                    self._scheduler.add(request)

    def _new_scheduler(self) -> None:
        config, plan = self.plan.config, self.plan
        self._pool = BlockPool(plan.num_blocks, config.block_size, config.enable_prefix_caching)
        self._scheduler = Scheduler(self._pool, config.max_num_seqs, config.max_num_batched_tokens, plan.max_model_len)

    def _deliver(self) -> None:
        """Bring every generated token to its output processor, and finish those whose request has ended."""
        for request in list(self._live.values()):
            processor = self._processors[request.request_id]
            try:
                for token in processor.unpushed:
                    stop_string = processor.push(token)
                    if stop_string is not None:
                        self._scheduler.finish(request, "stop", stop_string)
                        break
            except Exception as error:  # a tokenizer's fault is that request's alone
                fault = OstinatoError(f"request {request.request_id}: its text could not be made: {error!r}")
                fault.__cause__ = error
                self._scheduler.finish(request, "error", error=fault)
            if request.status is RequestStatus.FINISHED:
                processor.finish()
                del self._live[request.request_id]

    def _next_delta(self, request: Request) -> StreamDelta | None:
        """The next delta of a stream, running steps until there is one; None after its last.

        The lock is free between steps, so that other callers have their turns.
        """
        while True:
            with self._lock:
                processor = self._processors.get(request.request_id)
                if processor is None:
                    return None
                delta = processor.take_delta()
                if delta is None:
                    self._check_alive()
                    self._step()
                elif delta.finished:
                    del self._processors[request.request_id]
            if delta is not None:
                return delta

    def _abort(self, requests: Sequence[Request]) -> None:
        """End requests that have not ended, and let go of all of them."""
        with self._lock:
            for request in requests:
                self._scheduler.finish(request, "abort")
                self._live.pop(request.request_id, None)
                self._processors.pop(request.request_id, None)

    def _end_dropped(self) -> None:
        while self._dropped:
            self._abort([self._dropped.popleft()])

    def _abort_all(self) -> None:
        for request in list(self._live.values()):
            self._scheduler.finish(request, "abort")
        self._deliver()

    def _check_alive(self) -> None:
        if self._closed:
            raise EngineDead("the engine is closed")

    def _stats(self) -> Stats:
        runner, pool, scheduler = self._runner, self._pool, self._scheduler
        counts = runner.counts
        replays = runner.graphs.replays if runner.graphs is not None else {}
        reason = runner.fallback_reason
        return Stats(
            steps=counts["steps"],
            mixed_steps=counts["mixed_steps"],
            tokens_computed=counts["tokens_computed"],
            tokens_generated=counts["tokens_generated"],
            replays={size: count for size, count in replays.items() if count},
            padding_rows=counts["padding_rows"],
            eager_fallbacks={reason: counts["eager_fallbacks"]} if reason else {},
            preemptions=scheduler.num_preemptions,
            prefix_queries=pool.queries,
            prefix_hits=pool.hits,
            evictions=pool.evictions,
            blocks_free=pool.num_free,
            blocks_cached=pool.num_cached,
            blocks_used=pool.num_used,
            requests_running=scheduler.num_running,
            requests_waiting=scheduler.num_waiting,
            compiles=runner.pieces.compiles,
            captures=runner.graphs.captures if runner.graphs is not None else 0,
            compiles_after_warmup=runner.late_compiles,
            captures_after_warmup=runner.late_captures,
        )


class TokenStream(Iterator[StreamDelta]):
    """The deltas of one request, in order; the last has ``finished``. Close it, or drop it, to cancel the request.

    Where the request failed, its error is raised after the last delta.
    """

    def __init__(self, llm: LLM, request: Request) -> None:
        self._llm: LLM | None = llm
        self._request = request

    def __next__(self) -> StreamDelta:
        """The next delta; runs steps until there is one."""
        delta = self._llm._next_delta(self._request) if self._llm is not None else None
        if delta is not None:
            return delta
        ended, self._llm = self._llm, None
        if ended is not None and self._request.error is not None:
            raise self._request.error  # once, after the deltas that came before it
        raise StopIteration

    def close(self) -> None:
        """Cancel the request if it has not ended. Again: no effect."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm._abort([self._request])

    def __enter__(self) -> TokenStream:
        """The stream itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """``close()``."""
        self.close()

    def __del__(self) -> None:
        """A stream that nobody holds cancels its request before the next step; this may run in the midst of one."""
        if self._llm is not None:
            self._llm._dropped.append(self._request)


def _load(plan: Plan, raw: Mapping[str, object], progress: StartupProgress) -> Decoder:
    """The model with its weights on the plan's device."""
    progress("loading weights")
    with neutral_state(plan.device.type), torch.device("meta"):
        decoder = Decoder(plan.spec)

    def loaded(done: int, total: int) -> None:
        progress("loading weights", done / max(1, total))

    with neutral_state(plan.device.type):
        load_weights(decoder, family_for(raw), plan.spec, plan.folder, plan.device, plan.dtype, loaded)
    return decoder.eval()
