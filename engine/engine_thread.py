"""One engine's thread: the only one that calls its ``EngineCore``.

Others hand it commands through an inbox that never blocks them, and that a finalizer may fill; it serves them in order,
between two steps. It starts with the first command, sleeps without polling while nothing runs, and ends with `close`,
or when the ``LLM`` it belongs to is forgotten: it knows no ``LLM``, and nothing that leads to one while it sleeps.

Changes nothing of the process but that: a daemon thread, and once one was started a hook that ends engines at exit.
In a forked child there is no such thread, and whoever would wait for it gets ``EngineDead``.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Protocol, TypeVar

import torch

from ostinato.core import EngineCore, StepFault
from ostinato.layers.errors import EngineDead, OstinatoError, QueueFull
from ostinato.ticket import Post, Ticket

EXIT_SECONDS = 1.5
"""How long the interpreter's exit waits for the steps that run, of all engines together."""
MOST_INTERRUPTS = 8
"""Steps in a row that may be interrupted before the engine gives up."""

T = TypeVar("T")


class Ticketed(Protocol):
    """What a client holds: its finalizer cancels the request."""

    ticket: Ticket


HandleT = TypeVar("HandleT", bound=Ticketed)


class EngineThread:
    """Runs steps for all requests that live, and whatever else is to be done to the engine between them.

    ``submit``, ``call``, ``cancel`` and ``close`` are for any thread; methods with an underscore run on the engine's,
    if they do not say otherwise.
    """

    def __init__(self, core: EngineCore) -> None:
        """The thread will have the gradient modes and the current GPU of the thread that calls this."""
        self.core = core
        self._modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self._device = torch.cuda.current_device() if core.plan.device.type == "cuda" else None
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._tickets: dict[int, Ticket] = {}  # of requests that were taken over and have not ended
        self._lock = threading.Lock()  # the order of submissions, starting and closing
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._closing = False  # nothing more is accepted
        self._closed = False  # nothing more is served
        self._close_error: BaseException | None = None
        self._accepted = self._ended = 0  # requests; the second is the engine thread's
        self._interrupts = 0  # steps in a row that did not end
        self._in_step = False
        self._cancels = self._cancels_served = 0  # the second is the engine thread's

    # For any thread.

    def submit(self, count: int, make: Callable[[], list[HandleT]]) -> list[HandleT]:
        """Queue the requests of ``count`` sequences that ``make`` makes, in this order, or none if it raises.

        ``QueueFull`` if more than ``max_waiting`` would be left beyond those that can run at once; ``EngineDead``.
        Waits for a step at most, where there is no room and cancelled requests are about to leave some.
        """
        self.check_process()
        if not self._has_room(count) and self._cancels > self._cancels_served:
            self.call(lambda: None)
        with self._lock:
            self._check_open()
            self.core.check_awake()
            self._check_room(count)
            handles = make()
            tickets = [handle.ticket for handle in handles]
            self._post(lambda: self._take_over(tickets))
            self._accepted += count
        return handles

    def call(self, function: Callable[[], T]) -> T:
        """What ``function`` returns or raises, called by the engine's thread between two steps.

        From within a step (a caller's logits processor) it would come too early: ``OstinatoError``.
        """
        if threading.current_thread() is self._thread and not self._in_step:
            return function()
        self.check_process()
        reply: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

        def command() -> None:
            try:
                reply.put((function(), None))
            except BaseException as error:  # the caller's, whatever it is
                reply.put((None, error))

        with self._lock:
            self._check_open()
            self._post(command)
        result, error = reply.get()
        if error is not None:
            try:
                raise error
            finally:
                del error  # it holds this frame
        return result  # type: ignore[return-value]  # None only where T is

    def cancel(self, ticket: Ticket) -> None:
        """End the request before the next step, if it has not ended. Takes no lock: a finalizer may call it."""
        if not ticket.ended:
            self._cancels += 1
            self._inbox.put(lambda: self._cancel(ticket))

    def check_process(self) -> None:
        """Raise ``EngineDead`` in a forked child, and on the engine's own thread: both would wait for ever."""
        if os.getpid() != self._process:
            raise EngineDead(
                f"the engine belongs to process {self._process}; this is process {os.getpid()}, forked from it, which "
                "has neither the engine's thread nor its device: make an LLM here, in a process that was spawned"
            )
        if threading.current_thread() is self._thread:
            raise OstinatoError("the engine's own thread would wait for itself")

    def close(self) -> None:
        """End all requests, free what the engine holds, and end the thread. Again, or in a forked child: no effect."""
        if os.getpid() != self._process:
            return
        alone = self._stop()
        if alone:
            self.core.close()
        elif self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        error, self._close_error = self._close_error, None
        if error is not None:
            raise error

    def forget(self) -> None:
        """The ``LLM`` is gone: end the thread, and wait for nothing. Called by a finalizer, on any thread."""
        if os.getpid() == self._process and self._thread is not None:
            self._stop()

    def await_end(self, seconds: float) -> None:
        """Wait until the thread has ended, that long at most."""
        if self._thread is not None and os.getpid() == self._process:
            self._thread.join(seconds)

    def _stop(self) -> bool:
        """Accept no more, and tell the thread; whether there is none to be told. Runs on any thread."""
        with self._lock:
            first, self._closing = not self._closing, True
            if first and self._thread is not None:
                self._inbox.put(self._end)
            return first and self._thread is None

    def _check_open(self) -> None:
        if self._closing:
            raise EngineDead("the engine is closed")
        self.core.check_alive()

    def _has_room(self, count: int) -> bool:
        config = self.core.plan.config
        most = math.inf if config.max_waiting is None else config.max_num_seqs + config.max_waiting
        return self._accepted - self._ended + count <= most

    def _check_room(self, count: int) -> None:
        config = self.core.plan.config
        if config.max_waiting is not None and not self._has_room(count):
            unfinished, most = self._accepted - self._ended, config.max_num_seqs + config.max_waiting
            raise QueueFull(
                f"{unfinished:,} requests have not ended, {count:,} more would be over {most:,}: "
                f"max_num_seqs = {config.max_num_seqs:,} run, max_waiting = {config.max_waiting:,} may wait"
            )

    def _post(self, command: Callable[[], None]) -> None:
        """Hand over a command, under the lock; the first one starts the thread. Runs on any thread."""
        self._inbox.put(command)
        if self._thread is None or self._thread.ident is None:  # an interrupt may have struck its start
            _end_at_exit(self)
            self._thread = threading.Thread(target=self._run, name="ostinato-engine", daemon=True)
            self._thread.start()

    # The thread.

    def _run(self) -> None:
        grad, inference = self._modes
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            if self._device is not None:
                torch.cuda.set_device(self._device)
            try:
                while not self._closed:
                    self._turn()
            finally:
                self._shut()

    def _shut(self) -> None:
        try:
            self.core.close()
        except BaseException as error:  # for whoever waits in ``close``
            self._close_error = error
        self._hand_out()

    def _turn(self) -> None:
        """Serve what was asked for, waiting for it if nothing runs; then one step. Raises nothing."""
        try:
            self._serve()
            if self.core.is_busy and not self._closed:
                self._step()
                self._hand_out()
        except BaseException as error:
            self._give_up(error)

    def _serve(self) -> None:
        if not self.core.is_busy:
            self._inbox.get()()
        for _ in range(self._inbox.qsize()):  # not those that come meanwhile: a step is due
            self._inbox.get()()
        if self._tickets and not self.core.is_busy:
            self._hand_out()  # what a command has ended, with no step to come

    def _step(self) -> None:
        self._in_step = True
        try:
            self.core.step()
            self._interrupts = 0
        except KeyboardInterrupt:  # nobody's: a signal strikes the main thread
            self._interrupts += 1
            if self._interrupts > MOST_INTERRUPTS:
                raise
        except (StepFault, EngineDead):
            self._interrupts = 0  # its requests have ended with it
        finally:
            self._in_step = False

    def _end(self) -> None:
        self._closed = True

    def _take_over(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            try:
                self.core.add(ticket.request, ticket.processor)
            except Exception as error:
                self._ended += ticket.num_sequences
                ticket.fail(error)
                self._ring({ticket.mailbox.post})
            else:
                self._tickets[ticket.request.request_id] = ticket

    def _cancel(self, ticket: Ticket) -> None:
        self._cancels_served += 1
        if ticket.request.request_id in self._tickets:
            self.core.end(ticket.request, "abort")
            self._hand_out_one(ticket)
            self._ring({ticket.mailbox.post})

    def _hand_out(self) -> None:
        """Everything new to where it is waited for; each place is woken once."""
        posts = {ticket.mailbox.post for ticket in list(self._tickets.values()) if self._hand_out_one(ticket)}
        self._ring(posts)

    def _hand_out_one(self, ticket: Ticket) -> bool:
        request = ticket.request
        if self.core.is_live(request):
            return ticket.deliver()
        del self._tickets[request.request_id]
        self._ended += ticket.num_sequences
        self.core.release(request)
        ticket.end()
        return True

    def _ring(self, posts: set[Post | None]) -> None:
        """Wake them; requests of those that nobody empties any more are cancelled."""
        gone = [post for post in posts if post is not None and not post.ring()]
        for ticket in [ticket for ticket in self._tickets.values() if ticket.mailbox.post in gone] if gone else ():
            self.core.end(ticket.request, "abort")
            self._hand_out_one(ticket)

    def _give_up(self, error: BaseException) -> None:
        """What no request can be blamed for: every request ends with it, and the engine serves no more."""
        dead = self.core.die(error)
        tickets = list(self._tickets.values())
        self._tickets.clear()
        for ticket in tickets:
            self._ended += ticket.num_sequences
            ticket.fail(dead)
        self._ring({ticket.mailbox.post for ticket in tickets})


_running: weakref.WeakSet[EngineThread] = weakref.WeakSet()


def _end_at_exit(engine: EngineThread) -> None:
    """One hook for all engines; it comes before whatever else was to happen at exit so far."""
    atexit.unregister(_end_all)
    atexit.register(_end_all)
    _running.add(engine)


def _end_all() -> None:
    """Before the interpreter takes itself apart: a thread that asks for its lock afterwards would not be let live."""
    engines, latest = list(_running), time.monotonic() + EXIT_SECONDS
    for engine in engines:
        engine.forget()
    for engine in engines:
        engine.await_end(max(0.0, latest - time.monotonic()))
