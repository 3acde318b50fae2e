"""One request between the engine's thread, which runs it, and the client that waits for it.

The engine's thread alone writes here, and alone touches the output processor, until ``ended`` is set: from then on the
processor is the client's. The client only sets ``wants_deltas``. How a client is woken is its mailbox' business.
"""

from __future__ import annotations

from typing import Protocol

from ostinato.core import StepFault
from ostinato.layers.errors import EngineDead, ParamError
from ostinato.output_processor import OutputProcessor
from ostinato.outputs import RequestOutput, StreamDelta
from ostinato.request import Request


class Post(Protocol):
    """The way to several mailboxes of one place, which is woken once for all that a step brought."""

    def ring(self) -> bool:
        """Wake whoever empties it; False if nobody ever will. Called by the engine's thread, after it put things in."""


class Mailbox(Protocol):
    """Where the engine's thread leaves what a request brings; it alone calls ``put`` and ``end``."""

    @property
    def post(self) -> Post | None:
        """What to ring afterwards; None where the mailbox wakes its client itself."""

    def put(self, delta: StreamDelta) -> None:
        """What is new."""

    def end(self) -> None:
        """Nothing follows."""


class Ticket:
    """A request, what makes its text, and where that goes."""

    __slots__ = ("ended", "error", "failed", "mailbox", "processor", "request", "wants_deltas")

    def __init__(self, request: Request, processor: OutputProcessor, mailbox: Mailbox, wants_deltas: bool) -> None:
        """``wants_deltas``: after each step; as long as nobody does, all goes into one, in the end."""
        self.request = request
        self.processor = processor
        self.mailbox = mailbox
        self.wants_deltas = False
        self.ended = False
        self.error: Exception | None = None
        self.failed = False  # with the engine, or with its step: there is no output
        if wants_deltas:
            self.want_deltas()

    @property
    def num_sequences(self) -> int:
        """How many run for it."""
        return len(self.request.group)

    def want_deltas(self) -> None:
        """Deliver after each step from now on; ``ParamError`` for several sequences, whose deltas have no order."""
        if self.request.followers:
            raise ParamError(f"n: a stream has one sequence, got {self.request.params.n}; result() has all of them")
        self.wants_deltas = True

    def deliver(self) -> bool:
        """Put what is new into the mailbox if it is wanted; whether there was anything. For the engine's thread."""
        delta = self.processor.take_delta() if self.wants_deltas else None
        if delta is not None:
            self.mailbox.put(delta)
        return delta is not None

    def end(self) -> None:
        """Its request has ended: the last delta, and the end. For the engine's thread."""
        errors = [member.error for member in self.request.group]
        self.error = next((error for error in errors if error is not None), None)
        self.wants_deltas = True
        self.deliver()
        self.failed = isinstance(self.error, StepFault | EngineDead)
        self._close()

    def fail(self, error: Exception) -> None:
        """It ends without another delta. For the engine's thread."""
        self.error, self.failed = error, True
        self._close()

    def _close(self) -> None:
        self.ended = True
        self.mailbox.end()

    def output(self) -> RequestOutput:
        """The whole, once it has ended; raises what the engine or its step failed with."""
        if self.failed and self.error is not None:
            raise self.error
        return self.processor.output()
