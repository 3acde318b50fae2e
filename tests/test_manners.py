"""An embedded engine leaves its host as it found it: a snapshot before, one after, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import torch

from engines import checkpoint

SCRIPT = """
    import gc, json, logging, os, random, signal, sys, threading, warnings
    import numpy, torch
    import torch._dynamo, torch._inductor.config

    def shown(value):
        return repr(sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value)

    def snapshot():
        return {
            "environment": dict(os.environ),
            "signals": [repr(signal.getsignal(s)) for s in signal.valid_signals()],
            "root handlers": [repr(handler) for handler in logging.getLogger().handlers],
            "root level": logging.getLogger().level,
            "threads": [repr(type(t)) + t.name for t in threading.enumerate()],
            "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
            "affinity": sorted(os.sched_getaffinity(0)),
            "torch random": torch.get_rng_state().sum().item(),
            "numpy random": repr(numpy.random.get_state()[1:3]),
            "random": hash(random.getstate()),
            "dtype": str(torch.get_default_dtype()),
            "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
            "gc": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
            "dynamo": {k: shown(v) for k, v in torch._dynamo.config.get_config_copy().items()},
            "inductor": {k: shown(v) for k, v in torch._inductor.config.get_config_copy().items()},
            "hooks": (repr(sys.excepthook), repr(threading.excepthook), sys.gettrace(), sys.getprofile()),
            "switch interval": sys.getswitchinterval(),
            "directory": os.getcwd(),
        }

    def difference(old, new):
        if isinstance(old, dict):
            return {key: [old.get(key), new.get(key)] for key in {*old, *new} if old.get(key) != new.get(key)}
        return [old, new]

    def children():
        return [pid for pid in os.listdir("/proc") if pid.isdigit() and parent(pid) == os.getpid()]

    def parent(pid):
        try:
            return int(open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[1])
        except OSError:
            return -1

    before = snapshot()
    import asyncio
    from ostinato import LLM, AsyncLLM, SamplingParams

    async def read(llm):
        return [delta async for delta in AsyncLLM.of(llm).stream([1, 2], SamplingParams(max_tokens=5))]

    with LLM(sys.argv[1], device="cpu", execution="graph", max_num_seqs=16, max_model_len=128, block_size=4) as llm:
        llm.generate([[1, 2, 3]] * 3, SamplingParams(max_tokens=5))
        stream = llm.stream([4, 5], SamplingParams(temperature=0, max_tokens=50))
        next(stream)
        handle = llm.submit([6], SamplingParams(max_tokens=50), priority=1, deadline=60)
        asyncio.run(read(llm))
        running = children()
    after = snapshot()
    changed = {name: difference(before[name], after[name]) for name in before if before[name] != after[name]}
    print(json.dumps([changed, running]))
"""


def test_nothing_of_the_host_changes_and_no_child_is_left(tmp_path: Path) -> None:
    from ostinato.graphs.compile_scope import cache_folder

    home = tmp_path / "ostinato"
    home.mkdir()
    compiled = home / f"inductor-{torch.__version__}"
    compiled.symlink_to(cache_folder().resolve())  # what other tests compiled serves here
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:ostinato", "-c", textwrap.dedent(SCRIPT), checkpoint("qwen3")[0]],
        env=environment | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[{}, []]\n"
    assert done.stderr == ""
