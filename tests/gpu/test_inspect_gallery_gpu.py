"""The whole gallery on a real GPU: captured and replayed, and every verdict of the CPU compared with what CUDA did.

Run by `make gpu-check`; skipped where torch sees no CUDA device. The table goes to gallery-on-cuda.json and .txt in
$GPU_CHECK_OUT (perf/results).
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gallery.index import steps
from gpu.gallery_comparison import Row, judged, summary, write
from gpu.gallery_processes import OF_TOOL, ON_CUDA, Results, not_run, run_all

pytestmark = pytest.mark.gpu

SECONDS = 90.0
"""For all of it."""
ROOT = Path(__file__).resolve().parents[2]
STEPS = {step.name: step for step in steps("faulty", "clean", "issues")}

DIFFERENT = {
    "issues/vllm_51119": "one split and four have the same sum: what is frozen costs time, not values",
}
"""Steps whose verdict does not come true, and why that is right."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results, Results]:
    """Of CUDA, of the tool without a GPU, of the tool on the GPU's tensors; the last in the time that is left."""
    folder, began, names = tmp_path_factory.mktemp("gallery"), time.monotonic(), list(STEPS)
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    few = max(1, min(4, (os.cpu_count() or 2) // 2))
    with ThreadPoolExecutor(2) as threads:
        of_cpu = threads.submit(
            run_all, OF_TOOL, names, SECONDS, arguments=("cpu",), folder=folder, at_once=few, environment=hidden
        )
        on_cuda = run_all(ON_CUDA, names, SECONDS, folder=folder)
        left = SECONDS - (time.monotonic() - began)
        of_gpu = run_all(OF_TOOL, names, left, arguments=("cuda",), folder=folder, at_once=few)
        return on_cuda, of_cpu.result(), of_gpu


@pytest.fixture(scope="module")
def rows(results: tuple[Results, Results, Results]) -> list[Row]:
    """The comparison, which is written down too."""
    on_cuda, of_cpu, of_gpu = results
    rows = [
        judged(
            step,
            of_cpu.by_step.get(name, not_run(name)),
            on_cuda.by_step.get(name, not_run(name)),
            on_cuda.machine,
            of_gpu.by_step.get(name),
        )
        for name, step in STEPS.items()
    ]
    write(rows, on_cuda.machine, Path(os.environ.get("GPU_CHECK_OUT") or ROOT / "perf" / "results"))
    print(summary(rows))
    return rows


def test_no_step_ends_the_process(results: tuple[Results, Results, Results]) -> None:
    on_cuda, _, _ = results
    lost = {name: result["error"] for name, result in on_cuda.by_step.items() if result["outcome"] == "lost"}
    assert not lost, on_cuda.errors


def test_every_step_is_captured_or_refused(results: tuple[Results, Results, Results]) -> None:
    on_cuda, of_cpu, _ = results
    assert set(on_cuda.by_step) == set(STEPS), on_cuda.errors
    assert set(of_cpu.by_step) == set(STEPS), of_cpu.errors


def test_verdicts_of_the_cpu_come_true(rows: list[Row]) -> None:
    different = {row.step: f"foretold: {row.foretold}; CUDA: {row.happened}" for row in rows if row.agree is False}
    assert not {step: what for step, what in different.items() if step not in DIFFERENT}
    assert set(DIFFERENT) <= set(different), "a step that was different has come true"


def test_most_steps_are_judged(rows: list[Row]) -> None:
    judged_steps = [row for row in rows if row.agree is not None]
    assert len(judged_steps) >= 100, [f"{row.step}: {row.why_not}" for row in rows if row.agree is None]


def test_the_tool_runs_on_tensors_that_lie_on_the_gpu(results: tuple[Results, Results, Results]) -> None:
    """Steps that raise on a GPU, for a tensor on the CPU, are named as such."""
    of_gpu = results[2]
    broken = {name: said["error"] for name, said in of_gpu.by_step.items() if said["error"]}
    if not of_gpu.by_step and not of_gpu.errors:
        pytest.skip("the time was up")
    assert of_gpu.by_step, of_gpu.errors
    assert not {name: error for name, error in broken.items() if not error.startswith("TargetError: ")}
