"""From a wrong result back to the call where the difference came in, along what each call reads."""

from __future__ import annotations

from ostinato.graphs.inspect.tracing.trace import Call, Trace

_MIXES = ("softmax", "attention", "logsumexp")


class LeakPath:
    """The tainted calls that a wrong result depends on, in order."""

    def __init__(self, trace: Trace, tainted: set[int], ends: set[int | None]) -> None:
        """``tainted``: calls with wrong results; ``ends``: storages in which the final wrong results lie."""
        self._trace = trace
        self._tainted = tainted
        self.calls = self._follow({n for n, storage in enumerate(trace.storages) if storage.key in ends})

    def _follow(self, wanted: set[int]) -> list[Call]:
        """Walk backwards: of a tainted call that gives what is wanted, what it reads is wanted too."""
        path: list[Call] = []
        for call in reversed(self._trace.calls):
            gives = {ref.storage for ref in call.outputs} | set(call.writes)
            if call.number in self._tainted and gives & wanted:
                path.append(call)
                wanted |= {ref.storage for ref in call.inputs}
        return path[::-1]

    @property
    def origin(self) -> Call | None:
        """The first of them: nothing that it reads is wrong for real rows."""
        return self.calls[0] if self.calls else None

    def first_after(self, harmless: set[int]) -> Call | None:
        """The first that a harmless poison does not taint: where it is read is not yet where it does harm."""
        worse = [call for call in self.calls if call.number not in harmless]
        mixing = [call for call in self.calls if any(word in call.name for word in _MIXES)]
        return next(iter(worse if harmless and worse else mixing), self.origin)
