"""One request: ostinato beside transformers' default generate, a plain CUDA graph of torch operations and the floor."""

from __future__ import annotations

import torch

from ostinato.perf.baselines.plain_graphs import PlainGraphs
from ostinato.perf.baselines.plain_qwen3 import PlainQwen3
from ostinato.perf.gpu.context import LATENCY, PROMPT_TOKENS, Context
from ostinato.perf.gpu.decoding import ms_per_step
from ostinato.perf.gpu.engine import broken_promises, describe
from ostinato.perf.gpu.finding import Finding
from ostinato.perf.gpu.peers import TransformersOnDevice
from ostinato.perf.measure import Summary, interleave

STEPS = 64
CELLS = 256  # of the plain graph's cache: it reads all of them in every step


def measure(context: Context) -> Finding:
    """Times of a token, and their ratios round by round."""
    device = torch.device(context.device)
    peer = TransformersOnDevice(context.folder, context.device)
    plain = PlainGraphs(PlainQwen3(context.folder, device, fused=device.type == "cuda"), (1,), CELLS)
    llm = context.engine(LATENCY)
    values = interleave(
        {
            "ostinato": lambda: ms_per_step(llm, [context.prompt()], STEPS),
            "transformers": lambda: 1e3 * peer.seconds_per_token(context.prompt(), STEPS),
            "plain": lambda: 1e3 * plain.seconds_per_step([context.prompt()], STEPS),
        },
        context.rounds,
        context.progress,
    )
    ours = values["ostinato"]
    floor = 1e3 * context.floors.decode_seconds(context.size, 1, PROMPT_TOKENS + STEPS / 2)
    summaries = {
        "decode.ms_ostinato": Summary.of(ours),
        "decode.ms_transformers": Summary.of(values["transformers"]),
        "decode.ms_plain_graph": Summary.of(values["plain"]),
        "decode.ms_floor": Summary.of([floor]),
        "decode.percent_of_floor": Summary.of([100 * floor / value for value in ours]),
        "decode.vs_transformers": Summary.of_ratio(values["transformers"], ours),
        "decode.vs_plain_graph": Summary.of_ratio(values["plain"], ours),
    }
    notes = (
        "transformers: generate as it comes, uncompiled, sdpa, dynamic cache",
        f"plain graph: fused QKV and gate-up, compiled elementwise functions, a contiguous cache of {CELLS} tokens",
        *(f"{count} {what}" for what, count in broken_promises(llm).items()),
    )
    return Finding.of(summaries, notes, plan=describe(llm), floors=context.floors.as_dict())
