"""``RequestHandle``: one request in the hands of its caller, to be iterated, awaited or cancelled from any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING

from ostinato.outputs import RequestOutput, StreamDelta
from ostinato.prompts import seconds_to_wait

if TYPE_CHECKING:
    from ostinato.engine_thread import EngineThread
    from ostinato.llm import LLM
    from ostinato.ticket import Post, Ticket

YIELD_SECONDS = 2e-5
"""What it costs to ask in vain: whoever asks in a loop would keep the interpreter from the engine's thread."""


class ThreadMailbox:
    """Deltas for threads that block until there are any."""

    post: Post | None = None

    def __init__(self) -> None:
        self.deltas: SimpleQueue[StreamDelta | None] = SimpleQueue()
        self.ended = threading.Event()

    def put(self, delta: StreamDelta) -> None:
        """Wakes one thread that waits for it."""
        self.deltas.put(delta)

    def end(self) -> None:
        """Wakes all that wait."""
        self.ended.set()
        self.deltas.put(None)


class RequestHandle(Iterator[StreamDelta]):
    """A submitted request. It runs whether or not anybody waits for it; who drops the handle cancels it.

    Iterating gives its deltas, the last of which has ``finished``; where the request failed, its error is raised after
    them. In a ``with``, or with `close`, it is cancelled on leaving. All methods are for any thread, but only one
    thread at a time should iterate. In a forked child they raise ``EngineDead``.
    """

    def __init__(self, llm: LLM, engine: EngineThread, ticket: Ticket, mailbox: ThreadMailbox) -> None:
        """Made by `LLM.submit`, which it keeps from being closed by forgetting it."""
        self.ticket = ticket
        self._llm: LLM | None = llm
        self._mailbox = mailbox
        self._over = False  # nobody iterates it to its end any more
        self._engine = engine

    @property
    def request_id(self) -> int:
        """Its number, in order of submission."""
        return self.ticket.request.request_id

    def done(self) -> bool:
        """Whether it has ended: `result` returns at once, and iterating waits for nothing."""
        if not self.ticket.ended:
            time.sleep(YIELD_SECONDS)
        return self.ticket.ended

    def result(self, timeout: float | None = None) -> RequestOutput:
        """The whole output, once it has ended, however that came: a cancelled request has what it had until then.

        ``TimeoutError`` after ``timeout`` seconds; the request goes on. Raises what the engine or its step failed with;
        an error of the request alone is in the output.
        """
        ended, timeout = self._mailbox.ended, seconds_to_wait(timeout)
        if not ended.is_set():
            self._engine.check_process()
            if not ended.wait(timeout if timeout is None else max(timeout, YIELD_SECONDS)):
                raise TimeoutError(f"request {self.request_id} has not ended after {timeout:g} seconds")
        self._llm = None
        return self.ticket.output()

    def cancel(self) -> None:
        """End it before the next step, with ``finish_reason`` "abort"; it takes part in none after. Returns at once.

        No effect once it has ended. Deltas that are there can still be read.
        """
        self._engine.cancel(self.ticket)

    def close(self) -> None:
        """`cancel`, and read no more: iterating ends."""
        self._over = True
        self._llm = None
        self.cancel()

    def __next__(self) -> StreamDelta:
        """The next delta; waits for it. An interrupt (Ctrl-C) cancels the request."""
        if self._over:
            raise StopIteration
        self.ticket.want_deltas()
        try:
            delta = self._next()
        except BaseException:
            self.cancel()
            raise
        if delta is not None:
            return delta
        self._over, self._llm = True, None
        if self.ticket.error is not None:
            raise self.ticket.error  # once, after the deltas that came before it
        raise StopIteration

    def _next(self) -> StreamDelta | None:
        deltas = self._mailbox.deltas
        if deltas.empty():
            self._engine.check_process()
        delta = deltas.get()
        if delta is None:
            deltas.put(None)  # for others that wait
        return delta

    def __enter__(self) -> RequestHandle:
        """The handle itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """`close`."""
        self.close()

    def __del__(self) -> None:
        """Nobody holds it: nobody wants what comes. May run on any thread, in the midst of anything."""
        if hasattr(self, "_engine"):  # an interrupt may have struck as it was made
            self._engine.cancel(self.ticket)
