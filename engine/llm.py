"""``LLM``: a checkpoint, loaded and ready, inside the caller's process.

Opens one, checks what callers ask for in their own threads, and hands it to the engine's thread, which runs the steps
of all requests together; then waits for what comes. Knows no step and no lock.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor
from tqdm import tqdm

from ostinato.config import EngineConfig
from ostinato.core import EngineCore
from ostinato.embedding import Pooling, check_pooling
from ostinato.engine_thread import EngineThread, HandleT
from ostinato.generation_defaults import GenerationDefaults
from ostinato.graphs.toolchain import toolchain_prepared
from ostinato.handle import RequestHandle, ThreadMailbox
from ostinato.layers.errors import EngineDead, PromptTooLong
from ostinato.load import load_decoder
from ostinato.memory import MemoryUse
from ostinato.metrics import Metrics
from ostinato.models.checkpoint import eos_token_ids, read_config, read_generation_config
from ostinato.output_processor import OutputProcessor
from ostinato.outputs import RequestOutput
from ostinato.plan import Plan
from ostinato.prompts import (
    Prompt,
    Prompts,
    as_list,
    as_messages,
    as_params,
    check_priority,
    check_prompt,
    ends_at,
    one_prompt,
)
from ostinato.request import Request
from ostinato.runner import StepRunner
from ostinato.sampling_params import SamplingParams
from ostinato.startup import StartupProgress
from ostinato.stats import Stats
from ostinato.step_timeline import StepTimeline
from ostinato.submission import RequestMaker
from ostinato.ticket import Ticket
from ostinato.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ostinato.graphs.inspect.report import Report

T = TypeVar("T")


class LLM:
    """A language model in this process. Options are those of ``EngineConfig``; use it in a ``with`` or ``close()`` it.

    ``plan`` is what the options came to, ``default_sampling_params`` what the checkpoint recommends, ``startup`` the
    seconds each part of making it took.

    Every method may be called from any thread. Prompts are tokenised and checked in the caller's, before anything is
    queued; steps run in the engine's own, which starts with the first call. ``close()`` ends it, and so does
    forgetting the ``LLM``. Wherever a prompt is asked for, it is a str, token ids, or the messages of a chat.
    ``priority``: lower goes first, ties in order of arrival. ``deadline``: seconds from now, after which the request
    ends with what it has and ``finish_reason`` "timeout". ``QueueFull`` where ``max_waiting`` requests wait already. In
    a forked child, ``EngineDead``.
    """

    def __init__(self, model: str | os.PathLike[str], **options: Any) -> None:
        """Resolve, load and warm up. ``ConfigError`` and ``ModelLoadError`` come before memory is taken."""
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
        self._engine = EngineThread(EngineCore(self.plan, runner))
        self._forgotten = weakref.finalize(self, self._engine.forget)
        self._forgotten.atexit = False  # the engine's thread sees to that

    # What callers ask for.

    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = False,
        *,
        priority: int = 0,
        deadline: float | None = None,
    ) -> list[RequestOutput]:
        """Complete one prompt or many; the outputs are in the prompts' order.

        ``prompts``: a prompt, or a list of them; ``sampling_params``: one for all, or one each. A bad one raises before
        any runs, and so does a queue that has no room for all. A request whose logits become non-finite ends alone,
        with ``finish_reason == "error"`` and its ``error``; a fault of a step raises. An interrupt cancels all of them.
        """
        items = as_list(prompts)
        handles = self._submit(items, as_params(sampling_params, len(items)), priority, deadline)
        try:
            waiting = tqdm(handles, desc="generating", unit="request") if use_tqdm else handles
            return [handle.result() for handle in waiting]
        finally:
            for handle in handles:
                handle.close()

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        deadline: float | None = None,
    ) -> RequestHandle:
        """Complete one prompt, a delta for each step that brings something new: a handle that is to be iterated.

        Closing it, or dropping it, cancels the request: it takes part in no further step.
        """
        params = as_params(sampling_params, 1)
        (handle,) = self._submit(one_prompt(prompt), params, priority, deadline, wants_deltas=True)
        return handle

    def submit(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        deadline: float | None = None,
    ) -> RequestHandle:
        """Queue one prompt and return at once. Hold the handle: dropping it cancels the request.

        Iterated late, its first delta holds all that came before.
        """
        (handle,) = self._submit(one_prompt(prompt), as_params(sampling_params, 1), priority, deadline)
        return handle

    def chat(
        self,
        messages: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        deadline: float | None = None,
    ) -> RequestOutput:
        """Answer a conversation of ``{"role": …, "content": …}``, rendered by the checkpoint's own template.

        A str is one message of the user; token ids are a conversation that was rendered.
        """
        (output,) = self.generate(
            one_prompt(as_messages(messages)), sampling_params, priority=priority, deadline=deadline
        )
        return output

    def stream_chat(
        self,
        messages: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        deadline: float | None = None,
    ) -> RequestHandle:
        """``chat``, a delta at a time."""
        return self.stream(as_messages(messages), sampling_params, priority=priority, deadline=deadline)

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
        return self._call(lambda core: core.runner.embed(ids, pooling, normalize))

    def stats(self) -> Stats:
        """The counters, as they are between two steps."""
        return self._call(EngineCore.stats)

    def metrics(self) -> Metrics:
        """Counters, gauges and histograms of requests and tokens, for monitoring; ``as_prometheus()`` exports them."""
        return self._call(EngineCore.metrics)

    @property
    def memory(self) -> MemoryUse:
        """What the engine holds on its device, in bytes, measured at start-up where the device counts them."""
        return self._call(lambda core: core.runner.memory)

    def explain(self) -> Report:
        """What was captured, how it served so far, and what to change: prints, and is the data of ``inspect.Report``.

        Sizes with and without a graph, replays, steps without a graph and why, late compilations, padding, advice.
        """
        from ostinato.explain import explain

        return self._call(explain)

    @contextlib.contextmanager
    def record_timeline(self) -> Iterator[StepTimeline]:
        """Within, note where the time of each step goes; ``save()`` it for ``ostinato graph timeline``, or print it.

        ``ConfigError`` if a timeline is being recorded already.
        """
        timeline = StepTimeline(self._core)
        self._call(lambda _: timeline.begin())
        try:
            yield timeline
        finally:
            with contextlib.suppress(EngineDead):  # closed meanwhile
                self._engine.call(timeline.end)

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix that no running request holds."""
        self._call(EngineCore.reset_prefix_cache)

    def sleep(self) -> None:
        """Give the KV memory back to the host until ``wake()``; graphs and weights stay, cached prefixes are forgotten.

        Requests that have not ended wait, and go on after ``wake`` with the same tokens; others are refused meanwhile
        (``EngineAsleep``). ``ConfigError`` where the device cannot give memory back in place.
        """
        self._call(EngineCore.sleep)

    def wake(self) -> None:
        """Take the KV memory again; nothing is compiled or captured. ``ConfigError`` if there is too little of it."""
        self._call(EngineCore.wake)

    def close(self) -> None:
        """End all requests, the engine's thread with them, and free graphs, KV cache and weights. Again: no effect.

        Waits for the step that runs.
        """
        self._engine.close()

    def __enter__(self) -> LLM:
        """The engine itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """``close()``."""
        self.close()

    # What the caller's thread does.

    def _submit(
        self,
        prompts: Sequence[Any],
        params: Sequence[SamplingParams],
        priority: int,
        deadline: float | None,
        wants_deltas: bool = False,
    ) -> list[RequestHandle]:
        def handle(request: Request, processor: OutputProcessor) -> RequestHandle:
            mailbox = ThreadMailbox()
            return RequestHandle(self, self._engine, Ticket(request, processor, mailbox, wants_deltas), mailbox)

        return self._queue(prompts, params, priority, deadline, handle)

    def _queue(
        self,
        prompts: Sequence[Any],
        params: Sequence[SamplingParams],
        priority: int,
        deadline: float | None,
        handle: Callable[[Request, OutputProcessor], HandleT],
    ) -> list[HandleT]:
        """Check all, then queue all, with what ``handle`` makes of each; if one is refused none is kept."""
        rank, ends = check_priority(priority), ends_at(deadline)
        checked = [check_prompt(prompt, self.tokenizer, self.plan.spec.vocab_size) for prompt in prompts]
        for param in params:
            self._maker.prepare(param)

        def make() -> list[HandleT]:
            made = [self._maker.make(prompt, param) for prompt, param in zip(checked, params, strict=True)]
            for request, _ in made:
                for member in request.group:
                    member.priority, member.deadline = rank, ends
                self._core.scheduler.check_fits(request)
            return [handle(request, processor) for request, processor in made]

        return self._engine.submit(sum(param.n for param in params), make)

    def _call(self, function: Callable[[EngineCore], T]) -> T:
        """``function`` of a living engine, between two steps."""

        def alive() -> T:
            self._core.check_alive()
            return function(self._core)

        return self._engine.call(alive)

    @property
    def _core(self) -> EngineCore:
        """Belongs to the engine's thread."""
        return self._engine.core
