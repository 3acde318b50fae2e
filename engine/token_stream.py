"""What ``LLM.stream`` returns: one request, a delta at a time, cancelled where nobody reads on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ostinato.outputs import StreamDelta
from ostinato.request import Request

if TYPE_CHECKING:
    from ostinato.llm import LLM


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
            llm._cancel([self._request])

    def __enter__(self) -> TokenStream:
        """The stream itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """``close()``."""
        self.close()

    def __del__(self) -> None:
        """A stream that nobody holds cancels its request before the next step; this may run in the midst of one."""
        if self._llm is not None:
            self._llm._core.drop(self._request)
