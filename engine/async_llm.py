"""``AsyncLLM``: an ``LLM`` for asyncio. The same engine, the same thread, the same requests; only waiting differs.

Nothing here blocks a loop but checking a request: tokenising its prompt, and compiling the form of its text the first
time. Several loops in several threads may share one.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

from ostinato.async_handle import AsyncRequestHandle
from ostinato.llm import LLM
from ostinato.loop_mail import LoopMailbox, LoopPost
from ostinato.output_processor import OutputProcessor
from ostinato.outputs import RequestOutput
from ostinato.prompts import Prompt, Prompts, as_list, as_messages, as_params, one_prompt
from ostinato.request import Request
from ostinato.sampling_params import SamplingParams
from ostinato.ticket import Ticket


class AsyncLLM:
    """An ``LLM`` whose answers are awaited. Use it in an ``async with``, or ``await aclose()`` it.

    ``llm`` is the ``LLM`` itself, for everything that does not wait for tokens (``stats()``, ``embed``, ``plan``), and
    for other threads. Methods mean what those of ``LLM`` mean. They submit at once, in the running loop; the deltas of
    a step reach a loop with one wake-up. A loop that was closed has its requests cancelled.
    """

    def __init__(self, model: str | os.PathLike[str], **options: Any) -> None:
        """Load in this thread, as ``LLM`` does: seconds. In a running loop, ``await AsyncLLM.create(...)``."""
        self._own(LLM(model, **options), owned=True)

    @classmethod
    async def create(cls, model: str | os.PathLike[str], **options: Any) -> AsyncLLM:
        """The same, loaded in another thread while the loop goes on."""
        made = cls.__new__(cls)
        made._own(await asyncio.to_thread(LLM, model, **options), owned=True)
        return made

    @classmethod
    def of(cls, llm: LLM) -> AsyncLLM:
        """Another way into an engine that is there; ``aclose`` leaves it open."""
        made = cls.__new__(cls)
        made._own(llm, owned=False)
        return made

    def _own(self, llm: LLM, owned: bool) -> None:
        self.llm = llm
        self._owned = owned
        self._posts: weakref.WeakValueDictionary[int, LoopPost] = weakref.WeakValueDictionary()  # by their loop's id

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        deadline: float | None = None,
    ) -> AsyncRequestHandle:
        """Complete one prompt, for ``async for``: a delta for each step that brings something new.

        Closing it, dropping it, or cancelling the task that reads it, cancels the request.
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
    ) -> AsyncRequestHandle:
        """Queue one prompt and return at once. Hold the handle: dropping it cancels the request."""
        (handle,) = self._submit(one_prompt(prompt), as_params(sampling_params, 1), priority, deadline)
        return handle

    async def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int = 0,
        deadline: float | None = None,
    ) -> list[RequestOutput]:
        """Complete one prompt or many; the outputs are in the prompts' order."""
        items = as_list(prompts)
        handles = self._submit(items, as_params(sampling_params, len(items)), priority, deadline)
        try:
            return [await handle.result() for handle in handles]
        finally:
            for handle in handles:
                handle.close()

    async def chat(
        self,
        messages: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        deadline: float | None = None,
    ) -> RequestOutput:
        """Answer a conversation."""
        prompt = one_prompt(as_messages(messages))
        (output,) = await self.generate(prompt, sampling_params, priority=priority, deadline=deadline)
        return output

    def stream_chat(
        self,
        messages: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        deadline: float | None = None,
    ) -> AsyncRequestHandle:
        """``chat``, a delta at a time."""
        return self.stream(as_messages(messages), sampling_params, priority=priority, deadline=deadline)

    async def aclose(self) -> None:
        """Close the engine, if this object opened it; its last step is waited for in another thread."""
        if self._owned:
            await asyncio.to_thread(self.llm.close)

    async def __aenter__(self) -> AsyncLLM:
        """The engine itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """``aclose()``."""
        await self.aclose()

    def _submit(
        self,
        prompts: Sequence[Any],
        params: Sequence[SamplingParams],
        priority: int,
        deadline: float | None,
        wants_deltas: bool = False,
    ) -> list[AsyncRequestHandle]:
        post = self._post()

        def handle(request: Request, processor: OutputProcessor) -> AsyncRequestHandle:
            mailbox = LoopMailbox(post)
            ticket = Ticket(request, processor, mailbox, wants_deltas)
            mailbox.cancel = partial(self.llm._engine.cancel, ticket)
            return AsyncRequestHandle(self.llm, self.llm._engine, ticket, mailbox)

        return self.llm._queue(prompts, params, priority, deadline, handle)

    def _post(self) -> LoopPost:
        """The running loop's; it lives as long as one of its mailboxes, so that no loop is kept."""
        loop = asyncio.get_running_loop()
        post = self._posts.get(id(loop))
        if post is None:
            post = self._posts[id(loop)] = LoopPost(loop)
        return post
