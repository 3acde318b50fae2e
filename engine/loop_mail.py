"""How deltas get from the engine's thread into asyncio event loops: one wake-up of a loop for all that a step brought.

A ``LoopPost`` belongs to one loop, a ``LoopMailbox`` to one request. The engine's thread calls ``put``, ``end`` and
``ring``; everything else runs in the loop, in its thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from ostinato.outputs import StreamDelta


class LoopPost:
    """What is on its way to the mailboxes of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.bag: deque[tuple[LoopMailbox, StreamDelta | None]] = deque()
        self._rung = False

    def ring(self) -> bool:
        """Let the loop empty the bag, if it was not told already; False once the loop is closed."""
        if self._rung:
            return not self.loop.is_closed()
        self._rung = True
        try:
            self.loop.call_soon_threadsafe(self._empty)
        except RuntimeError:  # what a closed loop raises
            return False
        return True

    def _empty(self) -> None:
        self._rung = False  # before looking: what comes from now on rings again
        while self.bag:
            mailbox, delta = self.bag.popleft()
            mailbox.receive(delta)


class LoopMailbox:
    """Deltas for tasks of one loop."""

    def __init__(self, post: LoopPost) -> None:
        self.post = post
        self.cancel: Callable[[], None] | None = None  # ends the request; holds no handle
        self.deltas: deque[StreamDelta] = deque()
        self.ended = False
        self._waiting: set[asyncio.Future[None]] = set()
        self._reader: asyncio.Task[Any] | None = None

    def put(self, delta: StreamDelta) -> None:
        """Leave it at the post."""
        self.post.bag.append((self, delta))

    def end(self) -> None:
        """The same for the end."""
        self.post.bag.append((self, None))

    def receive(self, delta: StreamDelta | None) -> None:
        """Wake whoever waits."""
        if delta is not None:
            self.deltas.append(delta)
        else:
            self.ended = True
            self.read_by(None)
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def more(self, timeout: float | None = None) -> None:
        """Until something came, or ``timeout`` seconds are over."""
        future = self.post.loop.create_future()
        self._waiting.add(future)
        try:
            await asyncio.wait([future], timeout=timeout) if timeout is not None else await future
        finally:
            self._waiting.discard(future)

    def read_by(self, task: asyncio.Task[Any] | None) -> None:
        """Whose cancellation is the request's, wherever that task waits just then; in place of another one."""
        if task is self._reader:
            return
        if self._reader is not None:
            self._reader.remove_done_callback(self._read)
        self._reader = task
        if task is not None:
            task.add_done_callback(self._read)

    def _read(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled() and self.cancel is not None:
            self.cancel()
