"""The timeline: a profiler's trace taken apart, recorded timelines summed up, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ostinato.graphs.inspect.numbers.chrome_trace import from_trace
from ostinato.graphs.inspect.numbers.timeline import read_timeline, summary, timeline_text
from ostinato.layers.errors import ConfigError

HOST, DEVICE = {"pid": 4711, "tid": 4711}, {"pid": 0, "tid": 7}


class Trace:
    """What ``export_chrome_trace`` writes of a loop of copy, replay, sampling kernel, synchronise; microseconds."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.correlation = 100
        self.device_free = 0.0
        self.events: list[dict[str, Any]] = [
            {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "python"}},
            {"ph": "X", "cat": "user_annotation", "name": "step", "ts": 990.0, "dur": 9.0, **HOST},
            {"ph": "s", "cat": "ac2g", "name": "ac2g", "id": 100, "ts": 1000.0, **HOST},
        ]

    def call(self, name: str, micros: float, cat: str = "cuda_runtime") -> int:
        """A call on the host."""
        self.correlation += 1
        args = {"External id": 5, "cbid": 311, "correlation": self.correlation}
        self.events.append({"ph": "X", "cat": cat, "name": name, "ts": self.now, "dur": micros, "args": args} | HOST)
        self.now += micros
        return self.correlation

    def runs(self, correlation: int, name: str, micros: float, cat: str = "kernel", graph: int | None = None) -> None:
        """Something on the device, after what was there before."""
        start = max(self.device_free, self.now)
        args: dict[str, Any] = {"stream": 7, "correlation": correlation, "device": 0, "context": 1}
        args |= {} if graph is None else {"graph id": graph, "graph node id": 42}
        self.events.append({"ph": "X", "cat": cat, "name": name, "ts": start, "dur": micros, "args": args} | DEVICE)
        self.device_free = start + micros

    def step(self, *, prepare: float, sample: float, kernels: int = 3) -> None:
        """Prepare 1/2, copy 4, prepare 1/2, launch 10, replay 30 a kernel, one kernel more of 5, wait, sample."""
        self.now += prepare / 2
        self.runs(self.call("cudaMemcpyAsync", 4), "Memcpy HtoD (Pinned -> Device)", 2, "gpu_memcpy")
        self.now += prepare / 2
        graph = self.call("cudaGraphLaunch", 10)
        for _ in range(kernels):
            self.runs(graph, "void gemm", 30, graph=5)
        self.runs(self.call("cudaLaunchKernel", 3), "argmax", 5)
        self.call("cudaStreamSynchronize", self.device_free - self.now + 1)
        self.now += sample

    def data(self) -> dict[str, Any]:
        return {"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "NVIDIA H200"}], "traceEvents": self.events}


def traced(*steps: tuple[float, float]) -> dict[str, Any]:
    trace = Trace()
    for prepare, sample in steps:
        trace.step(prepare=prepare, sample=sample)
    return trace.data()


def micros(step: dict[str, Any]) -> dict[str, float]:
    """The times of a step in whole microseconds."""
    names = ("prepare", "launch", "sample", "wait", "gap", "replay", "other")
    return {name: round(step[name] * 1e6, 3) for name in names}


def test_a_trace_is_taken_apart_exactly() -> None:
    data = from_trace(traced((40, 20), (60, 16), (80, 8)), "run.json")
    first, second, third = data["steps"]
    assert micros(first) == {
        "prepare": 0,  # what was before the first launch is not known to be preparation
        "launch": 10,
        "sample": 20 + 60 / 2,  # until the first copy to the device
        "wait": 93,  # 90 of the graph and 5 of the kernel behind it, less the call that launched it, and 1 to wake up
        "gap": 0,
        "replay": 90,
        "other": 0,
    }
    assert micros(second)["prepare"] == 3 + 4 + 60 / 2  # the sampling kernel's launch, the copy, the second half
    # device: the argmax, waking up, tokens, preparation, launch
    assert micros(second)["gap"] == 5 + 1 + 20 + 60 + 4 + 10
    assert micros(second)["other"] == 5 + 2  # the argmax, and the copy
    assert micros(third)["gap"] == 5 + 1 + 16 + 80 + 4 + 10
    assert micros(third)["sample"] == 0
    assert [(step["kernels"], step["graph"], step["batch_size"]) for step in data["steps"]] == [(3, 5, None)] * 3
    assert data["environment"]["device"] == "NVIDIA H200"


def test_events_in_any_order_and_of_other_threads_change_nothing() -> None:
    data = traced((40, 20), (60, 16))
    wanted = from_trace(data, "run.json")["steps"]
    events = list(reversed(data["traceEvents"]))
    other = {"pid": 4711, "tid": 9, "args": {"correlation": 1}}
    events.append({"ph": "X", "cat": "cuda_runtime", "name": "cudaStreamSynchronize", "ts": 1100, "dur": 90} | other)
    events.append({"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 1100, "dur": 9} | other)
    found = from_trace(events, "run.json")  # a bare list of events is a trace too
    assert found["steps"] == wanted
    assert found["not_checked"] == ["1 replays launched by other threads"]


def test_a_launch_that_is_traced_twice_counts_once() -> None:
    data = traced((40, 20), (60, 16))
    launches = [event for event in data["traceEvents"] if event["name"] == "cudaGraphLaunch"]
    inner = [{**each, "cat": "cuda_driver", "name": "cuGraphLaunch", "args": {"correlation": 0}} for each in launches]
    data["traceEvents"] += inner
    assert len(from_trace(data, "run.json")["steps"]) == 2


def test_without_copies_to_the_device_all_is_preparation() -> None:
    data = traced((40, 20), (60, 16))
    data["traceEvents"] = [event for event in data["traceEvents"] if "Memcpy" not in event["name"]]
    first, second = from_trace(data, "run.json")["steps"]
    assert micros(first)["sample"] == 0
    assert micros(second)["prepare"] == 3 + 20 + 60 + 4


def test_a_trace_without_replays_is_refused_with_what_it_has() -> None:
    data = traced((40, 20))
    data["traceEvents"] = [event for event in data["traceEvents"] if event["name"] != "cudaGraphLaunch"]
    with pytest.raises(ConfigError, match="no replay of a CUDA graph in it: 5 device events, 1 eager launches"):
        from_trace(data, "run.json")
    with pytest.raises(ConfigError, match="neither a timeline nor a Chrome trace"):
        from_trace({"events": []}, "run.json")


def recorded(*steps: dict[str, Any]) -> dict[str, Any]:
    base = {"start": 0.0, "batch_size": 4, "rows": 3, "kind": "decode"}
    times = dict.fromkeys(("prepare", "launch", "sample", "wait", "gap"), 0.0)
    return {"schema": 1, "kind": "ostinato-timeline", "target": "demo", "environment": {}} | {
        "steps": [base | times | {"start": float(n)} | step for n, step in enumerate(steps)]
    }


def test_a_gap_is_split_into_what_the_host_did_in_it() -> None:
    data = recorded(
        {"sample": 0.002, "replay": 0.01},
        {"gap": 0.010, "prepare": 0.003, "launch": 0.001, "replay": 0.01},
        {"gap": 0.001, "prepare": 0.005, "replay": 0.019},  # prepared while the device worked, mostly
    )
    found = summary(data)
    first, second = found["largest_gaps"]
    assert (first["step"], first["sample"], first["prepare"], first["launch"]) == (1, 0.002, 0.003, 0.001)
    assert first["elsewhere"] == pytest.approx(0.004)
    assert (second["step"], second["prepare"], second["elsewhere"]) == (2, 0.001, 0)
    assert found["elsewhere"]["total"] == pytest.approx(0.004)
    assert found["gap"]["total"] == pytest.approx(0.011)
    assert found["device_busy"] == pytest.approx(0.039 / 0.050)


def test_medians_and_percentiles_of_a_hundred_steps() -> None:
    found = summary(recorded(*({"wait": n / 1000} for n in range(1, 101))))
    assert found["wait"] == {
        "total": pytest.approx(5.05),
        "median": pytest.approx(0.0505),
        "p99": pytest.approx(0.099),
        "largest": pytest.approx(0.1),
    }
    assert found["device_busy"] is None  # nothing says how long the replays took
    assert found["kinds"] == {"decode": 100}


@pytest.mark.parametrize("packed", [False, True])
def test_files_of_both_kinds_are_read(packed: bool, tmp_path: Path) -> None:
    for name, data in {"timeline.json": recorded({}), "trace.json": traced((40, 20), (60, 16))}.items():
        content = json.dumps(data).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    assert read_timeline(tmp_path / "timeline.json") == recorded({})
    assert len(read_timeline(tmp_path / "trace.json")["steps"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": [{}]}, r"steps\[0\].start: expected seconds, got None"),
        ({"steps": {}}, "steps: expected a list, got dict"),
        ({"steps": [recorded({"gap": -1})["steps"][0]]}, r"steps\[0\].gap: expected seconds, got -1"),
        ({"steps": [recorded({"kind": "?"})["steps"][0]]}, "kind: expected 'decode' or 'mixed', got '?'"),
        ({"schema": 2}, "schema is 2; this version reads 1"),
        ({"kind": "ostinato-sizes"}, "kind is 'ostinato-sizes'; expected 'ostinato-timeline' or a Chrome trace"),
    ],
)
def test_a_bad_timeline_names_the_field(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "timeline.json"
    file.write_text(json.dumps(recorded({}) | change))
    with pytest.raises(ConfigError, match=message) as raised:
        read_timeline(file)
    assert str(file) in str(raised.value)


def test_the_text_names_the_largest_gap_and_its_largest_part() -> None:
    text = timeline_text(from_trace(traced((40, 20), (60, 16), (80, 8), (80, 300), (90, 0)), "run.json"))
    assert max(map(len, text.splitlines())) <= 100
    row = text.splitlines()[text.splitlines().index("largest gaps") + 2]
    assert row.split()[0] == "4"
    assert row.split("  ")[-1].startswith("sample 0.3")
    assert timeline_text(recorded()) == "demo: no steps were recorded"
