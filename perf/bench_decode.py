"""Decoding one request: against transformers with either attention, and against reading the weights once.

A time per token is the time between the arrivals of the first and the last of ``TOKENS`` tokens, by the ``TOKENS - 1``
steps between them; all contenders stream, so it is the same for all and no prompt is in it. The floor is the time of
summing a tensor as large as the weights with the same threads, measured in the same rounds. What else a step has to
read, the keys and values of some 150 tokens, is not in it (1.4 % of the weights at these sizes).
"""

from __future__ import annotations

from ostinato.perf.machine import ReadProbe
from ostinato.perf.measure import Summary, interleave
from ostinato.perf.report import Figure
from ostinato.perf.workbench import PROMPT_TOKENS, Workbench

TOKENS = 32
SDPA, EAGER = "transformers, sdpa", "transformers, eager attention"


def measure(bench: Workbench) -> list[Figure]:
    """Ratios first, then the milliseconds they are made of."""
    probe = ReadProbe(bench.size.weight_bytes)
    seconds = interleave(
        {
            "ostinato": lambda: bench.seconds_per_step([bench.prompt()], TOKENS),
            SDPA: lambda: bench.peer.seconds_per_token(bench.prompt(), TOKENS, "sdpa"),
            EAGER: lambda: bench.peer.seconds_per_token(bench.prompt(), TOKENS, "eager"),
            "floor": probe.seconds,
        },
        bench.rounds,
        bench.progress,
    )
    ours = seconds["ostinato"]
    what = f"batch 1, {PROMPT_TOKENS}-token prompt"
    rate = bench.size.weight_bytes / Summary.of(seconds["floor"]).median / 1e9
    times = {
        "decode.ms_ostinato": ("ostinato", f"ostinato, a token, {what}"),
        "decode.ms_sdpa": (SDPA, f"{SDPA}, a token"),
        "decode.ms_eager": (EAGER, f"{EAGER}, a token"),
        "decode.ms_floor": ("floor", f"reading the weights once at the {rate:.1f} GB/s measured beside"),
    }
    return [
        Figure.of(
            "decode.vs_transformers", Summary.of_ratio(seconds[SDPA], ours), "x", target=1.8, note=f"{SDPA} / ostinato"
        ),
        Figure.of(
            "decode.vs_eager_attention",
            Summary.of_ratio(seconds[EAGER], ours),
            "x",
            target=2.2,
            note=f"{EAGER} / ostinato",
        ),
        Figure.of(
            "decode.bandwidth_share",
            Summary.of_ratio(seconds["floor"], ours).scaled(100),
            "%",
            note="floor / ostinato: share of the read bandwidth",
            detail={"weight_bytes": bench.size.weight_bytes, "gigabytes_per_second": rate},
        ),
        *(
            Figure.of(name, (time := Summary.of(seconds[contender]).scaled(1e3)), "ms", note=_rated(note, time))
            for name, (contender, note) in times.items()
        ),
    ]


def _rated(note: str, milliseconds: Summary) -> str:
    return f"{note} ({1e3 / milliseconds.median:.1f} tokens/s)"
