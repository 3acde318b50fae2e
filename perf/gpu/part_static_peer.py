"""One request: ostinato beside transformers with a static cache, whose decode step generate compiles and graphs."""

from __future__ import annotations

from ostinato.perf.gpu.context import LATENCY, Context
from ostinato.perf.gpu.decoding import ms_per_step
from ostinato.perf.gpu.finding import Finding
from ostinato.perf.gpu.peers import TransformersOnDevice
from ostinato.perf.measure import Summary, interleave

STEPS = 64


def measure(context: Context) -> Finding:
    """Both times of a token and their ratio."""
    peer = TransformersOnDevice(context.folder, context.device, cache="static")
    llm = context.engine(LATENCY)
    context.progress("transformers compiles its decode step")
    peer.seconds_per_token(context.prompt(), STEPS)
    values = interleave(
        {
            "ostinato": lambda: ms_per_step(llm, [context.prompt()], STEPS),
            "static": lambda: 1e3 * peer.seconds_per_token(context.prompt(), STEPS),
        },
        context.rounds,
        context.progress,
    )
    return Finding.of(
        {
            "static_peer.ms_transformers": Summary.of(values["static"]),
            "static_peer.ms_ostinato": Summary.of(values["ostinato"]),
            "static_peer.vs_transformers": Summary.of_ratio(values["static"], values["ostinato"]),
        },
        ("transformers: generate with cache_implementation='static', which compiles the decode step on a GPU",),
    )
