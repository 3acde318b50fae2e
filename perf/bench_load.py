"""Peak memory and speed of loading weights, by how the files hold them: each in a process of its own.

The peak is the kernel's high-water mark above what the process held before, over the bytes of the parameters: 1 is the
parameters alone. A flat copy, Conv1D weights that are transposed on the way, experts that are gathered from a tensor
each, and a ``pytorch_model.bin``. The checkpoints are random; transformers writes them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ostinato.perf.bench_memory import resident_bytes
from ostinato.perf.measure import run_child
from ostinato.perf.report import Figure
from ostinato.perf.workbench import Workbench

FORMS = {
    "flat": "safetensors, Llama",
    "transposed": "safetensors, GPT-2 (Conv1D)",
    "experts": "safetensors, Mixtral, a tensor per expert",
    "bin": "pytorch_model.bin, Llama",
}


def measure(bench: Workbench) -> list[Figure]:
    """Peak and rate of each form."""
    figures = []
    for form, what in FORMS.items():
        with tempfile.TemporaryDirectory(prefix="ostinato-perf-") as folder:
            bench.progress(f"writing a checkpoint: {what}")
            run_child(__name__, {"write": form, "folder": folder}, {})
            bench.progress("loading it")
            done = run_child(__name__, {"load": form, "folder": folder}, {})
        size = f"{done['bytes'] / 2**20:,.0f} MiB of parameters"
        target = 1.15 if form != "bin" else None
        figures += [
            Figure(
                f"load.peak_{form}", done["peak"], "x", target, "at most", note=f"peak / parameters: {what}, {size}"
            ),
            Figure(f"load.gb_per_second_{form}", done["rate"], "GB/s", note=what),
        ]
    return figures


def write(form: str, folder: Path) -> None:
    """A checkpoint of some hundred MiB in bf16."""
    import torch
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        MixtralConfig,
        MixtralForCausalLM,
    )

    torch.set_default_dtype(torch.bfloat16)
    common: dict[str, Any] = {
        "vocab_size": 32_000,
        "hidden_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    }
    if form == "transposed":
        model: Any = GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=16, n_head=16))
    elif form == "experts":
        model = MixtralForCausalLM(MixtralConfig(**common, intermediate_size=1792, num_local_experts=8))
    else:
        model = LlamaForCausalLM(LlamaConfig(**common, intermediate_size=8192))
    model.save_pretrained(folder)
    if form == "bin":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()


def load(folder: Path) -> dict[str, float]:
    """Load it into a new decoder; peak and parameters in bytes, rate in GB/s."""
    import torch

    from ostinato.models.checkpoint import read_config
    from ostinato.models.registry import family_for
    from ostinato.models.weights.load import load_weights

    raw = read_config(folder)
    family = family_for(raw)
    spec = family.spec(raw)
    with torch.device("meta"):
        decoder = family.build(spec)
    base, began = resident_bytes("VmRSS"), time.perf_counter()
    report = load_weights(decoder, family, spec, folder, "cpu", torch.bfloat16)
    seconds = time.perf_counter() - began
    size = report.parameter_bytes
    return {"peak": (resident_bytes("VmHWM") - base) / size, "bytes": size, "rate": size / seconds / 1e9}


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    place = Path(arguments["folder"])
    if "write" in arguments:
        write(arguments["write"], place)
        print("{}")
    else:
        print(json.dumps(load(place)))
