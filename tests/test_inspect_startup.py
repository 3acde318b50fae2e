"""The start-up waterfall: every phase once, what the caches held, and a sum that is the whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor_config
from torch import Tensor

from ostinato.graphs.inspect.dynamo.dynamo_log import DynamoLog, Record
from ostinato.graphs.inspect.dynamo.startup import startup, startup_text
from ostinato.graphs.inspect.dynamo.waterfall import covered, phases_of
from ostinato.graphs.inspect.target import TargetError

PHASES = ["dynamo", "aot", "inductor", "triton", "other", "capture"]


@pytest.fixture
def no_vector_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache, and no C++ compiler asked about the processor, which would take most of a minute."""
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    valid_vec_isa_list.cache_clear()
    with inductor_config.patch({"cpp.vec_isa_ok": False}):
        yield
    valid_vec_isa_list.cache_clear()


def _inputs(batch_size: int) -> tuple[Any, ...]:
    return (torch.ones(batch_size, 4),)


def _scores(x: Tensor) -> Tensor:
    return x @ x.T


@pytest.mark.usefixtures("no_vector_instructions")
def test_a_second_start_finds_in_the_cache_what_the_first_put_there() -> None:
    before = dict(os.environ)
    cold, warm = (startup(_scores, _inputs, batch_sizes=(2, 3), name="scores") for _ in range(2))
    assert dict(os.environ) == before
    for result in (cold, warm):
        assert [phase["name"] for phase in result["phases"]] == [*PHASES, *PHASES]
        assert result["seconds"] == pytest.approx(sum(phase["seconds"] for phase in result["phases"]), abs=1e-5)
        json.dumps(result, allow_nan=False)
    assert (cold["schema"], cold["kind"], cold["target"]) == (1, "ostinato-startup", "scores")
    assert _caches(cold) == {"aot": ["miss"] * 2, "inductor": ["miss"] * 2}
    assert _caches(warm) == {"aot": ["hit"] * 2, "inductor": ["hit"] * 2}
    again = next(p for p in cold["phases"] if (p["name"], p["batch_size"]) == ("dynamo", 3))
    assert "size mismatch at index 0. expected 2, actual 3" in again["why"]
    assert (
        "example_inputs[0]" in next(p for p in cold["phases"] if (p["name"], p["batch_size"]) == ("inductor", 3))["why"]
    )


def _caches(result: dict[str, Any]) -> dict[str, list[str]]:
    return {name: [p["cache"] for p in result["phases"] if p["name"] == name] for name in ("aot", "inductor")}


def test_a_step_that_raises_is_a_target_error() -> None:
    def step(x: Tensor) -> Tensor:
        raise ValueError("no such model")

    with pytest.raises(TargetError, match=r"compiling batch size 2 raised ValueError: no such model at .*startup.py"):
        startup(step, _inputs, batch_sizes=(2,))


def _events(*events: tuple[str, str, float]) -> DynamoLog:
    texts = [json.dumps({"ph": ph, "name": name, "ts": at * 1e6}) for ph, name, at in events]
    return DynamoLog(records=[Record("chromium_event", 0, 0, 0, {}, text) for text in texts])


def test_each_moment_belongs_to_the_innermost_phase() -> None:
    log = _events(
        ("B", "entire_frame_compile", 1),
        ("B", "backend_compile", 3),
        ("B", "inductor_compile", 4),
        ("B", "Scheduler.codegen", 5),
        ("B", "compile_file", 5),
        ("E", "compile_file", 6),
        ("E", "Scheduler.codegen", 6),
        ("B", "compile_file", 6),
        ("B", "compile_file", 7),
        ("E", "compile_file", 8),
        ("E", "compile_file", 9),
        ("E", "inductor_compile", 10),
        ("E", "backend_compile", 12),
        ("E", "entire_frame_compile", 12),
    )
    phases = {phase.name: phase for phase in phases_of(log, 0, 0, 20)}
    seconds = {name: phase.seconds for name, phase in phases.items()}
    assert seconds == {"dynamo": 2, "aot": 3, "inductor": 2, "triton": 4, "other": 9}
    assert "ran 3 times, 1 of them to ask" in phases["triton"].why


def test_a_cache_that_was_not_asked_is_a_miss_with_its_reason() -> None:
    log = _events(("B", "inductor_compile", 1), ("E", "inductor_compile", 2))
    (inductor, _) = phases_of(log, 0, 0, 3)
    assert (inductor.cache, inductor.why) == ("miss", "the cache is off")
    said = json.dumps({"cache_bypass_reason": "frozen parameters"})
    log.records.append(Record("fx_graph_cache_bypass", 0, 0, 0, {}, said))
    (inductor, _) = phases_of(log, 0, 0, 3)
    assert (inductor.cache, inductor.why) == ("miss", "not cached: frozen parameters")


def test_covered_counts_what_overlaps_once() -> None:
    assert covered([(3, 4), (0, 2), (1, 2.5), (1, 1.5)]) == 3.5


def test_the_text_has_a_bar_and_a_reason_for_each_phase() -> None:
    phase = {"name": "dynamo", "batch_size": 1, "start": 0.0, "seconds": 1.0, "cache": None, "why": "1 function traced"}
    capture = {"name": "capture", "batch_size": 1, "start": 1.0, "seconds": 0.0, "cache": None, "why": "emulated"}
    text = startup_text({"target": "step", "phases": [phase, capture], "seconds": 1.0})
    assert text.splitlines()[0] == "step: 1.00 s to start"
    assert "█" in text and "1 function traced" in text and "▏" in text
