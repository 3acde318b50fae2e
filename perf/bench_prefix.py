"""Time to the first token of a prompt whose first 2,048 tokens are cached, against one where nothing is.

Both prompts have 2,048 + 16 tokens. The cold one begins with tokens never seen before and leaves them in the prefix
index; the warm one begins with the same and ends with others. The tokens found there are counted in every round.
"""

from __future__ import annotations

from ostinato.perf.measure import Summary, interleave
from ostinato.perf.report import Figure
from ostinato.perf.workbench import Workbench

SHARED_TOKENS, OWN_TOKENS = 2048, 16


def measure(bench: Workbench) -> list[Figure]:
    """The ratio, then both times."""
    shared: list[int] = []

    def cold() -> float:
        shared[:] = bench.prompt(SHARED_TOKENS)
        return bench.seconds_to_first_token(shared + bench.prompt(OWN_TOKENS))

    def warm() -> float:
        return bench.seconds_to_first_token(shared + bench.prompt(OWN_TOKENS), cached=SHARED_TOKENS)

    seconds = interleave({"cold": cold, "warm": warm}, bench.rounds, bench.progress)
    ratio = Summary.of_ratio(seconds["cold"], seconds["warm"])
    note = f"first token of {SHARED_TOKENS:,} + {OWN_TOKENS}: cold / {SHARED_TOKENS:,} cached"
    return [
        Figure.of("prefix.speedup", ratio, "x", target=15.0, note=note),
        Figure.of("prefix.ms_cold", Summary.of(seconds["cold"]).scaled(1e3), "ms", note="nothing cached"),
        Figure.of("prefix.ms_warm", Summary.of(seconds["warm"]).scaled(1e3), "ms", note=f"{SHARED_TOKENS:,} cached"),
    ]
