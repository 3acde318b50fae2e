"""``AsyncRequestHandle``: one request in the hands of asyncio tasks, all of the loop that it was submitted in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from ostinato.layers.errors import OstinatoError
from ostinato.outputs import RequestOutput, StreamDelta
from ostinato.prompts import seconds_to_wait

if TYPE_CHECKING:
    from ostinato.engine_thread import EngineThread
    from ostinato.llm import LLM
    from ostinato.loop_mail import LoopMailbox
    from ostinato.ticket import Ticket


class AsyncRequestHandle(AsyncIterator[StreamDelta]):
    """A submitted request. It runs whether or not anybody waits for it; who drops the handle cancels it.

    ``async for`` gives its deltas, the last of which has ``finished``; where the request failed, its error is raised
    after them. A task that is cancelled while it reads, or waits for the result, cancels the request. `cancel`, `close`
    and `done` are for any thread; what is awaited, for the loop of its submission.
    """

    def __init__(self, llm: LLM, engine: EngineThread, ticket: Ticket, mailbox: LoopMailbox) -> None:
        """Made by ``AsyncLLM``; keeps its engine from being closed by forgetting it."""
        self.ticket = ticket
        self._llm: LLM | None = llm
        self._mailbox = mailbox
        self._over = False
        self._engine = engine

    @property
    def request_id(self) -> int:
        """Its number, in order of submission."""
        return self.ticket.request.request_id

    def done(self) -> bool:
        """Whether it has ended: `result` returns at once."""
        return self.ticket.ended

    async def result(self, timeout: float | None = None) -> RequestOutput:
        """The whole output, once it has ended, however that came: a cancelled request has what it had until then.

        ``TimeoutError`` after ``timeout`` seconds; the request goes on. Raises what the engine or its step failed with.
        """
        loop, mailbox, timeout = asyncio.get_running_loop(), self._mailbox, seconds_to_wait(timeout)
        if loop is not mailbox.post.loop:
            raise OstinatoError(
                "result: the request was submitted in another event loop, which alone is told of its end"
            )
        mailbox.read_by(asyncio.current_task())
        latest = None if timeout is None else loop.time() + timeout
        self._engine.check_process()
        try:
            while not mailbox.ended:
                left = None if latest is None else latest - loop.time()
                if left is not None and left <= 0:
                    raise TimeoutError(f"request {self.request_id} has not ended after {timeout:g} seconds")
                await mailbox.more(left)
        except asyncio.CancelledError:
            self.cancel()
            raise
        self._llm = None
        return self.ticket.output()

    def cancel(self) -> None:
        """End it before the next step, with ``finish_reason`` "abort"; it takes part in none after. Returns at once."""
        self._engine.cancel(self.ticket)

    def close(self) -> None:
        """`cancel`, and read no more: iterating ends."""
        self._over = True
        self._llm = None
        self.cancel()

    async def aclose(self) -> None:
        """`close`, as asynchronous iterators call it."""
        self.close()

    async def __anext__(self) -> StreamDelta:
        """The next delta; waits for it."""
        mailbox = self._mailbox
        self.ticket.want_deltas()
        while not mailbox.deltas and not mailbox.ended and not self._over:
            self._engine.check_process()
            mailbox.read_by(asyncio.current_task())
            try:
                await mailbox.more()
            except asyncio.CancelledError:
                self.cancel()
                raise
        if mailbox.deltas and not self._over:
            return mailbox.deltas.popleft()
        over, self._over, self._llm = self._over, True, None
        if not over and self.ticket.error is not None:
            raise self.ticket.error  # once, after the deltas that came before it
        raise StopAsyncIteration

    async def __aenter__(self) -> AsyncRequestHandle:
        """The handle itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """`close`."""
        self.close()

    def __del__(self) -> None:
        """Nobody holds it: nobody wants what comes. May run on any thread, in the midst of anything."""
        if hasattr(self, "_engine"):  # an interrupt may have struck as it was made
            self._engine.cancel(self.ticket)
