"""What Dynamo writes about a graph break, taken apart: its type, explanation, hints, and the lines that led there.

    Graph break in user code at FILE:LINE
    Graph Break Reason: Encountered graph break when attempting to trace CALL: ...
                                                     (may be missing)
    Failed to trace builtin operator                 the type
      Explanation: ...
      Hint: ...
      Developer debug context: ...
    User code traceback:
      File "...", line N, in function

The wording around the type differs between versions of torch; the labels are the same from 2.7 on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ostinato.graphs.inspect.source import Place, is_users

_FRAME = re.compile(r'^ +File "(.+?)", line (\d+), in (\S+)', re.MULTILINE)
_AT = re.compile(r"Graph break in user code at (.+?):(\d+)")
_LABEL = re.compile(r"^ *(Explanation|Hint|Developer debug context): ?", re.MULTILINE)
_RESUMED = re.compile(r"torch_dynamo_resume_in_(.+)_at_\d+")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_DROPPED = ("Skipping the function", "results in a skip", "then skipping the rest")
_OFFERS_NOTHING = (
    "This graph break",
    "Please",
    "File an",
    "It may be possible",
    "Avoid",
    "If ",
    "Your code",
    "This is likely",
)


@dataclass(frozen=True)
class BreakText:
    """One graph break, in Dynamo's words."""

    kind: str
    explanation: str
    hints: tuple[str, ...]
    context: str
    drops_function: bool
    """Whether nothing of the function is compiled, or nothing of what follows."""
    stack: tuple[Place, ...]
    """Lines of every file, outermost first, from the target's own on."""

    @property
    def place(self) -> Place | None:
        """The innermost line of the user's."""
        return next((place for place in reversed(self.stack) if is_users(place.file)), None)

    @property
    def within(self) -> Place | None:
        """The line that breaks, where it is not the user's: inside torch or the standard library."""
        return self.stack[-1] if self.stack and not is_users(self.stack[-1].file) else None

    @property
    def text(self) -> str:
        """All that tells what it is about, in one string."""
        within = f" {self.within.file}" if self.within else ""
        return f"{self.kind}\n{self.explanation}\n{self.context}{within}"


def parse_break(text: str, tool: str) -> BreakText:
    """``text`` of an artifact ``dynamo_graph_break_reason`` or ``dynamo_error``; ``tool`` is the file that called."""
    reason, _, after = text.partition("User code traceback:")
    if not after:
        reason, _, after = text.partition("from user code:")
    reason = reason.split("\nStack variable source attribution")[0].split("*** While handling this graph break")[0]
    kind = _kind(reason)
    labels = _labelled(reason)
    hints = tuple(hint for hint in labels["Hint"] if not hint.startswith(_OFFERS_NOTHING))
    return BreakText(
        kind,
        " ".join(labels["Explanation"][:1]),
        hints,
        " ".join(labels["Developer debug context"][:1]),
        any(words in text for words in _DROPPED),
        _stack(after.split("Traceback (most recent call last)")[0], tool) or _header(text),
    )


def unresumed(function: str) -> str:
    """The name of a function, if ``function`` is what Dynamo calls its rest after a break."""
    match = _RESUMED.search(function)
    return unresumed(match[1]) if match else function


def _kind(reason: str) -> str:
    before = reason.partition("\n  Explanation:")[0].rstrip()
    last = before.rsplit("\n", 1)[-1].strip()
    return re.sub(r"^(Graph Break Reason|torch\._dynamo\.exc\.\w+): *", "", last) or "unknown"


def _labelled(reason: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"Explanation": [], "Hint": [], "Developer debug context": []}
    parts = _LABEL.split(reason)
    for label, body in zip(parts[1::2], parts[2::2], strict=True):
        found[label].append(_ADDRESS.sub("", " ".join(body.split("\n For more details")[0].split())))
    return found


def _stack(lines: str, tool: str) -> tuple[Place, ...]:
    places = [Place(file, int(line), unresumed(name)) for file, line, name in _FRAME.findall(lines)]
    ours = [index for index, place in enumerate(places) if place.file == tool]
    return tuple(places[ours[-1] + 1 :] if ours else places)


def _header(text: str) -> tuple[Place, ...]:
    match = _AT.search(text)
    return (Place(match[1], int(match[2]), ""),) if match else ()
