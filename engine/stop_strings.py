"""Finds stop strings in a text that comes in pieces, and says how much of its end may still become one.

However the text is split, the match is the one that a search of the whole text finds: the occurrence that is complete
first, and of several that end together the longest. Each character is looked at once for each stop string (Knuth,
Morris and Pratt, "Fast pattern matching in strings", 1977). Knows no token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache


class StopStrings:
    """The stop strings of one request, all of them not empty, over its one text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._matchers = [_Matcher(stop) for stop in stops]

    def feed(self, piece: str, armed: bool = True) -> tuple[str, int] | None:
        """Return (stop string, where in ``piece`` it ends) for the first match; no piece may follow one.

        While not ``armed``, stop strings that become complete are passed over.
        """
        found: list[tuple[int, int, str]] = []
        for matcher in self._matchers:
            end = matcher.feed(piece)
            while end >= 0 and not armed:
                end = matcher.feed(piece, end)
            if end >= 0:
                found.append((end, -len(matcher.stop), matcher.stop))
        if not found:
            return None
        end, _, stop = min(found)
        return stop, end

    @property
    def num_held(self) -> int:
        """Characters at the end of the text so far that begin a stop string."""
        return max((matcher.num_matched for matcher in self._matchers), default=0)


class _Matcher:
    """``num_matched``: length of the longest end of the text that begins ``stop`` without being all of it."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.num_matched = 0
        self._borders = _borders(stop)

    def feed(self, piece: str, start: int = 0) -> int:
        """Go on from ``piece[start]``; return where the next match ends, or -1 at the end of the piece."""
        stop, matched, at = self.stop, self.num_matched, start
        while at < len(piece):
            if matched == 0:
                at = piece.find(stop[0], at)
                if at < 0:
                    break
            elif piece[at] != stop[matched]:
                matched = self._borders[matched - 1]
                continue
            matched += 1
            at += 1
            if matched == len(stop):
                self.num_matched = self._borders[-1]
                return at
        self.num_matched = matched
        return -1


@lru_cache(maxsize=256)
def _borders(stop: str) -> tuple[int, ...]:
    """For each prefix of ``stop``, the length of its longest proper end that also begins it."""
    borders = [0]
    for char in stop[1:]:
        length = borders[-1]
        while length and stop[length] != char:
            length = borders[length - 1]
        borders.append(length + (stop[length] == char))
    return tuple(borders)
