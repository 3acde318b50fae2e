"""``LLM``: a checkpoint, loaded and ready, inside the caller's process.

Opens one, and owns the lock that lets one caller at a time into its ``EngineCore``. Any caller's turn advances every
running request, so streams and batches of several threads share their steps.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tqdm import tqdm

from ostinato.config import EngineConfig
from ostinato.core import EngineCore, StepFault
from ostinato.embedding import Pooling, check_pooling
from ostinato.generation_defaults import GenerationDefaults
from ostinato.graphs.toolchain import toolchain_prepared
from ostinato.layers.errors import EngineDead, ParamError, PromptTooLong
from ostinato.load import load_decoder
from ostinato.memory import MemoryUse
from ostinato.models.checkpoint import eos_token_ids, read_config, read_generation_config
from ostinato.outputs import RequestOutput, StreamDelta
from ostinato.plan import Plan
from ostinato.prompts import Prompt, Prompts, as_list, as_params, check_prompt
from ostinato.request import Request
from ostinato.runner import StepRunner
from ostinato.sampling_params import SamplingParams
from ostinato.startup import StartupProgress
from ostinato.stats import Stats
from ostinato.step_timeline import StepTimeline
from ostinato.submission import RequestMaker
from ostinato.token_stream import TokenStream
from ostinato.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ostinato.graphs.inspect.report import Report

Messages = Sequence[Mapping[str, Any]]


class LLM:
    """A language model in this process. Options are those of ``EngineConfig``; use it in a ``with`` or ``close()`` it.

    ``plan`` is what the options came to, ``default_sampling_params`` what the checkpoint recommends, ``startup`` the
    seconds each part of making it took. Methods may be called from any thread; they take turns.
    """

    def __init__(self, model: str | os.PathLike[str], **options: Any) -> None:
        """Resolve, load and warm up. ``ConfigError`` and ``ModelLoadError`` come before memory is taken."""
        self._lock = threading.RLock()
        with contextlib.ExitStack() as startup:
            progress = startup.enter_context(StartupProgress())
            progress("reading the checkpoint")
            self.plan: Plan = EngineConfig(model, **options).resolve()
            on_cpu = self.plan.device.type == "cpu"
            toolchain = startup.enter_context(toolchain_prepared(self.plan.compiles and on_cpu))
            folder = self.plan.folder
            raw, generation = read_config(folder), read_generation_config(folder)
            self.default_sampling_params = GenerationDefaults.from_json(generation)
            eos = frozenset(token for token in eos_token_ids(raw, generation) if token < self.plan.spec.vocab_size)
            self.tokenizer: Tokenizer | None = Tokenizer.load(folder)
            self._maker = RequestMaker(self.plan, self.tokenizer, eos)
            decoder = load_decoder(self.plan, raw, progress)
            progress("starting the compiler" if self.plan.compiles else "allocating the KV cache")
            runner = StepRunner(self.plan, decoder)
            try:
                runner.warm_up(progress, toolchain)
            except BaseException:
                runner.close()  # whoever tries again with less finds its memory free
                raise
        self.startup = progress.seconds
        self._core = EngineCore(self.plan, runner)

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
            self._cancel(requests)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> TokenStream:
        """Complete one prompt, a delta at a time. Checked and submitted now; runs as it is iterated.

        Closing the stream, or dropping it, cancels the request: it takes part in no further step.
        """
        items = as_list(prompt)
        if len(items) != 1:
            raise ParamError(f"stream takes one prompt, got {len(items)}")
        if sampling_params is not None and sampling_params.n > 1:
            raise ParamError(f"n: a stream has one sequence, got {sampling_params.n}; generate() takes n")
        with self._lock:
            (request,) = self._submit_all(items, as_params(sampling_params, 1))
        return TokenStream(self, request)

    def chat(self, messages: Messages, sampling_params: SamplingParams | None = None) -> RequestOutput:
        """Answer a conversation of ``{"role": …, "content": …}``, rendered by the checkpoint's own template."""
        return self.generate(self._render(messages), sampling_params)[0]

    def stream_chat(self, messages: Messages, sampling_params: SamplingParams | None = None) -> TokenStream:
        """``chat``, a delta at a time."""
        return self.stream(self._render(messages), sampling_params)

    def embed(self, prompts: Prompts, pooling: Pooling = "last", normalize: bool = True) -> Tensor:
        """A vector per prompt, ``[prompts, hidden_size] float32`` on the CPU: final hidden states, pooled.

        ``pooling``: the "last" token's, the first one's ("cls"), or the "mean" of all; ``normalize``: of length 1.
        Runs whole prompts between the engine's steps, apart from its cache.
        """
        check_pooling(pooling)
        vocab_size, longest = self.plan.spec.vocab_size, self.plan.max_model_len
        ids = [check_prompt(prompt, self.tokenizer, vocab_size).token_ids for prompt in as_list(prompts)]
        for prompt in ids:
            if not 0 < len(prompt) <= longest:
                raise PromptTooLong(f"the prompt has {len(prompt):,} tokens; expected 1 to {longest:,} (max_model_len)")
        with self._lock:
            self._core.check_alive()
            return self._core.runner.embed(ids, pooling, normalize)

    def stats(self) -> Stats:
        """The counters now."""
        with self._lock:
            return self._core.stats()

    @property
    def memory(self) -> MemoryUse:
        """What the engine holds on its device, in bytes, measured at start-up where the device counts them."""
        with self._lock:
            self._core.check_alive()
            return self._core.runner.memory

    def explain(self) -> Report:
        """What was captured, how it served so far, and what to change: prints, and is the data of ``inspect.Report``.

        Sizes with and without a graph, replays, steps without a graph and why, late compilations, padding, advice.
        """
        from ostinato.explain import explain

        with self._lock:
            return explain(self._core)

    @contextlib.contextmanager
    def record_timeline(self) -> Iterator[StepTimeline]:
        """Within, note where the time of each step goes; ``save()`` it for ``ostinato graph timeline``, or print it.

        ``ConfigError`` if a timeline is being recorded already.
        """
        timeline = StepTimeline(self._core)
        with self._lock:
            timeline.begin()
        try:
            yield timeline
        finally:
            with self._lock:
                timeline.end()

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix that no running request holds."""
        with self._lock:
            self._core.reset_prefix_cache()

    def sleep(self) -> None:
        """Give the KV memory back to the host until ``wake()``; graphs and weights stay, cached prefixes are forgotten.

        Requests that have not ended wait, and go on after ``wake`` with the same tokens; others are refused meanwhile
        (``EngineAsleep``). ``ConfigError`` where the device cannot give memory back in place.
        """
        with self._lock:
            self._core.sleep()

    def wake(self) -> None:
        """Take the KV memory again; nothing is compiled or captured. ``ConfigError`` if there is too little of it."""
        with self._lock:
            self._core.wake()

    def close(self) -> None:
        """End all requests and free graphs, KV cache and weights. Again: no effect."""
        with self._lock:
            self._core.close()

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
        core = self._core
        core.check_alive()
        checked = [check_prompt(prompt, self.tokenizer, self.plan.spec.vocab_size) for prompt in prompts]
        requests: list[Request] = []
        try:
            for prompt, param in zip(checked, params, strict=True):
                request, processor = self._maker.make(prompt, param)
                core.add(request, processor)
                requests.append(request)
        except BaseException:
            core.abort(requests)
            raise
        return requests

    def _render(self, messages: Messages) -> list[int]:
        if self.tokenizer is None:
            raise ParamError("chat: this checkpoint has no tokenizer")
        text = self.tokenizer.render_chat(messages, add_generation_prompt=True)
        return self.tokenizer.encode(text, add_special_tokens=False)

    # Running.

    def _run(self, requests: Sequence[Request], use_tqdm: bool) -> list[RequestOutput]:
        core = self._core
        bar = tqdm(total=len(requests), desc="generating", unit="request") if use_tqdm else None
        try:
            while (done := sum(not core.is_live(request) for request in requests)) < len(requests):
                with self._lock:
                    core.step()
                if bar is not None:
                    bar.update(done - bar.n)
        finally:
            if bar is not None:
                bar.update(sum(not core.is_live(request) for request in requests) - bar.n)
                bar.close()
        for request in requests:
            if isinstance(request.error, StepFault | EngineDead):
                raise request.error
        with self._lock:
            return [core.release(request).output() for request in requests]

    def _next_delta(self, request: Request) -> StreamDelta | None:
        """The next delta of a stream, running steps until there is one; None after its last.

        The lock is free between steps, so that other callers have their turns.
        """
        while True:
            with self._lock:
                processor = self._core.processor(request)
                if processor is None:
                    return None
                delta = processor.take_delta()
                if delta is None:
                    self._core.step()
                elif delta.finished:
                    self._core.release(request)
            if delta is not None:
                return delta

    def _cancel(self, requests: Sequence[Request]) -> None:
        with self._lock:
            self._core.abort(requests)
