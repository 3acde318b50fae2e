"""Generated text on stdout as it comes, and the conversation loop around it. Knows deltas and messages, no engine."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias

from ostinato.layers.errors import ParamError
from ostinato.outputs import StreamDelta

Message: TypeAlias = dict[str, str]


class Deltas(Iterator[StreamDelta], Protocol):
    """What ``LLM.stream`` returns."""

    def close(self) -> None:
        """Cancel the request."""


class ReaderGone(Exception):
    """Nobody reads stdout any more (``| head -1``)."""


def put(text: str) -> None:
    """Write to stdout now. Raises ReaderGone."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise ReaderGone from error


def show_stream(deltas: Deltas, shown: list[str], as_text: bool = True) -> None:
    """Write each delta's text, or its token ids; ``shown`` gets every piece, also when this raises.

    Closes the stream however it ends: a request whose text nobody sees is cancelled.
    """
    with contextlib.closing(deltas):
        for delta in deltas:
            piece = delta.text if as_text else "".join(f"{token_id} " for token_id in delta.token_ids)
            shown.append(piece)
            put(piece)
    end_line(shown)


def end_line(shown: list[str]) -> None:
    """End the line that was begun, if one was."""
    text = "".join(shown)
    if text and not text.endswith("\n"):
        put("\n")


def converse(answer: Callable[[list[Message]], Deltas], system: str | None) -> None:
    """Answer lines from stdin until ``/exit`` or its end, each in the light of those before.

    Ctrl-C stops an answer, and what was shown of it counts; at the prompt it raises KeyboardInterrupt. On a terminal a
    line that is refused (too long, by now) is reported and forgotten; elsewhere it raises.
    """
    interactive = sys.stdin.isatty()
    messages: list[Message] = [{"role": "system", "content": system}] if system is not None else []
    while (line := _read_line(interactive)) is not None and line.strip() != "/exit":
        if not line.strip():
            continue
        shown: list[str] = []
        messages.append({"role": "user", "content": line})
        try:
            show_stream(answer(list(messages)), shown)
        except KeyboardInterrupt:
            end_line(shown)
        except ParamError as error:
            if not interactive:
                raise
            print(f"error: {error}", file=sys.stderr)
        if any(shown):
            messages.append({"role": "assistant", "content": "".join(shown)})
        else:
            messages.pop()


def _read_line(interactive: bool) -> str | None:
    """The next line without its end; None when there is none. A prompt is shown to people only, never in the output."""
    if interactive and sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - input() then edits lines and remembers them
        try:
            return input("> ")
        except EOFError:
            put("\n")
            return None
    if interactive:
        print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None
