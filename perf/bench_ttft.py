"""Time to the first token of a prompt that nobody sent before: ``generate`` with one token, ours and transformers'."""

from __future__ import annotations

from ostinato.perf.measure import Summary, interleave
from ostinato.perf.report import Figure
from ostinato.perf.workbench import PROMPT_TOKENS, Workbench


def measure(bench: Workbench) -> list[Figure]:
    """The ratio, then both times."""
    seconds = interleave(
        {
            "ostinato": lambda: bench.seconds_to_first_token(bench.prompt()),
            "transformers": lambda: bench.peer.seconds_to_first_token(bench.prompt()),
        },
        bench.rounds,
        bench.progress,
    )
    ratio = Summary.of_ratio(seconds["transformers"], seconds["ostinato"])
    note = f"first token of {PROMPT_TOKENS}, transformers (sdpa) / ostinato"
    return [
        Figure.of("ttft.vs_transformers", ratio, "x", target=1.0, note=note),
        *(
            Figure.of(f"ttft.ms_{name}", Summary.of(seconds[name]).scaled(1e3), "ms", note=f"{name}, first token")
            for name in ("ostinato", "transformers")
        ),
    ]
