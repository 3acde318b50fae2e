"""What `make gpu-check` does with the gallery, as far as it runs without a GPU: emulated graphs, made-up processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from gallery.index import Step, steps
from gpu import gallery_on_cuda as on_cuda
from gpu.gallery_comparison import COMPILED, as_text, foretold, happened, judged, write
from gpu.gallery_of_tool import said
from gpu.gallery_processes import OF_TOOL, ON_CUDA, not_run, read, run_all
from ostinato.graphs.emulated_graph import EmulatedGraph
from ostinato.graphs.inspect import Finding
from ostinato.graphs.inspect.tracing.dispatch_mode import DispatchMode
from ostinato.graphs.inspect.tracing.residency import Residency, Where
from ostinato.graphs.inspect.tracing.surroundings import watched
from ostinato.graphs.inspect.tracing.trace import Calling, Recording, record

ROOT = Path(__file__).resolve().parent.parent
ALL = {step.name: step for step in steps("faulty", "clean", "issues")}
MACHINE = {"registers_generators": False}
REFUSED = {"device-sync", "data-dependent-shape", "host-to-device", "cpu-tensor", "rng"}


class EmulatedGraphs:
    """Graphs of the CPU, which refuse nothing."""

    device = "cpu"
    runs_at_capture = True
    lost_after: int | None = None

    def __init__(self) -> None:
        self.mended = 0

    def warm_up(self, work: Callable[[], Any]) -> None:
        work()

    def capture(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        kept: list[Any] = []
        graph = EmulatedGraph()
        with torch.compiler.set_stance("force_eager"):
            graph.capture(lambda: kept.append(work()))

        def replay() -> None:
            with torch.no_grad():
                graph.replay()

        return kept[0], replay

    def mend(self) -> None:
        self.mended += 1
        if self.lost_after is not None and self.mended > self.lost_after:
            raise on_cuda.ContextLost("CUDA error: device-side assert triggered")


class RefusingGraphs(EmulatedGraphs):
    """Refuse everything, as CUDA does."""

    def capture(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        work()
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nSearch for `cudaError…'")


def from_marks(step: Step) -> dict[str, Any]:
    """What the tool says, as the step's marks have it."""
    warnings = {"warmup-dependent", "python-side-effect"} | (
        {"rng"} if "generator=" not in step.path.read_text() else set()
    )
    codes = {fault.codes[-1] if "cpu-tensor" in fault.codes else fault.code for fault in step.faults}
    found = [(code, "warning" if code in warnings else "error", 1) for code in codes]
    return {"step": step.name, "found": found, "error": "", "seconds": 0.0}


def row_of(name: str, graphs: on_cuda.Graphs) -> Any:
    result = json.loads(json.dumps(on_cuda.look(ALL[name], graphs).as_dict()))
    return judged(ALL[name], from_marks(ALL[name]), result, MACHINE)


# the history of a step


def test_what_is_foretold_of_captured_steps_comes_true_on_emulated_graphs() -> None:
    """All but those that CUDA refuses: frozen values, moved addresses, padding, warm-ups, and the clean ones."""
    graphs = EmulatedGraphs()
    captured = [
        name for name, step in ALL.items() if not {code for f in step.faults for code in f.codes} & (REFUSED | COMPILED)
    ]
    rows = [row_of(name, graphs) for name in captured]
    assert len(rows) >= 80
    assert [row.step for row in rows if not row.agree] == ["issues/vllm_51119"]
    assert graphs.mended == 0


def test_a_refused_capture_is_noted_and_the_next_step_goes_on() -> None:
    graphs = RefusingGraphs()
    row = row_of("faulty/device_sync_tolist", graphs)
    assert (row.foretold, row.agree) == ("refused", True)
    error = "RuntimeError: CUDA error: operation not permitted when stream is capturing"
    assert row.happened == f"refused: {error}"
    row = row_of("clean/rms_norm", graphs)
    assert (row.foretold, row.agree) == ("equal", False)
    assert graphs.mended == 2


def test_a_step_that_raises_at_once_is_told_from_a_refused_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: on_cuda.Copy, inputs: Any) -> Any:
        raise RuntimeError("Expected all tensors to be on the same device")

    monkeypatch.setattr(on_cuda.Copy, "run", run)
    row = row_of("faulty/cpu_tensor_zeros", EmulatedGraphs())
    assert row.happened.startswith("raised before any capture: RuntimeError: Expected all tensors")
    assert row.agree is True


def test_a_lost_context_is_noted() -> None:
    graphs = RefusingGraphs()
    graphs.lost_after = 0
    happened_ = on_cuda.look(ALL["faulty/device_sync_tolist"], graphs)
    assert (happened_.outcome, happened_.error) == ("lost", "CUDA error: device-side assert triggered")


def test_inputs_that_die_are_captured_and_not_replayed_on_others() -> None:
    result = on_cuda.look(ALL["faulty/freed_input_metadata_object"], EmulatedGraphs())
    assert (result.outcome, result.apart, result.leak) == ("captured", [0.0], None)


def test_both_copies_of_a_step_have_the_same_weights_and_history() -> None:
    one, other = (on_cuda.Copy(ALL["clean/transformer_layer"], "cpu", number) for number in (1, 2))
    assert on_cuda.apart([*one.module.step.parameters()], [*other.module.step.parameters()], exactly=True) == 0.0
    assert one.module.step is not other.module.step


def test_differences_are_measured_within_the_tolerance_of_the_dtype() -> None:
    nan = float("nan")
    assert on_cuda.apart([torch.tensor([1.0, nan])], [torch.tensor([1.00001, nan])]) == 0.0
    assert on_cuda.apart([torch.tensor([1.0])], [torch.tensor([1.00001])], exactly=True) == pytest.approx(1e-5, rel=0.1)
    assert on_cuda.apart([torch.tensor([1.0])], [torch.tensor([nan])]) == float("inf")
    assert on_cuda.apart([torch.tensor([3])], [torch.tensor([5])]) == 2.0
    assert on_cuda.apart([torch.zeros(2)], [torch.zeros(3)]) is None
    assert on_cuda.apart([], []) == 0.0


def test_static_inputs_are_filled_or_have_another_form() -> None:
    static = (torch.zeros(2), [torch.zeros(1), 3])
    assert on_cuda.fill(static, (torch.ones(2), [torch.full((1,), 5.0), 4]))
    assert (static[0].tolist(), static[1][0].tolist()) == ([1.0, 1.0], [5.0])
    assert not on_cuda.fill(static, (torch.ones(3), [torch.ones(1), 4]))
    assert not on_cuda.fill(static, (torch.ones(2), [torch.ones(1)]))


def test_steps_that_pin_memory_come_last_and_refused_ones_late() -> None:
    names = [step.name for step in on_cuda.in_order(list(ALL.values()))]
    assert names[-1] == "faulty/host_to_device_pinned_temporary"
    assert names.index("clean/rms_norm") < names.index("faulty/device_sync_tolist")
    assert sorted(names) == sorted(ALL)


# capturing for real, with a made-up device


class MadeUpGraph:
    """Behaves as torch 2.11's: an invalid capture raises before it lets go of anything."""

    log: ClassVar[list[str]] = []
    invalid = False

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        self.log.append(f"begin {pool} {capture_error_mode}")

    def capture_end(self) -> None:
        self.log.append("end")
        if type(self).invalid:
            type(self).invalid = False
            raise RuntimeError("operation failed due to a previous error during capture")

    def reset(self) -> None:
        self.log.append("reset")

    def replay(self) -> None:
        self.log.append("replay")


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """``CudaGraphs`` on nothing: what it calls is logged."""

    class Stream:
        device_index = 0

        def wait_stream(self, other: Any) -> None:
            pass

    log: list[str] = []
    monkeypatch.setattr(MadeUpGraph, "log", log)
    monkeypatch.setattr(MadeUpGraph, "invalid", False)
    on_cpu = {name: getattr(torch, name) for name in ("ones", "zeros", "rand")}
    for name, make in on_cpu.items():
        monkeypatch.setattr(torch, name, lambda *size, make=make, device=None, **options: make(*size, **options))
    for name, value in {
        "CUDAGraph": MadeUpGraph,
        "Stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": Stream,
        "graph_pool_handle": lambda: "pool",
        "synchronize": lambda: log.append("synchronize"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda device, pool, name=name: log.append(f"{name} {pool}"), raising=False)
    return log


def test_a_refused_capture_leaves_the_capture_and_the_pool(made_up: list[str]) -> None:
    graphs = on_cuda.CudaGraphs()

    def refused() -> None:
        MadeUpGraph.invalid = True
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    made_up.clear()
    with pytest.raises(RuntimeError, match="not permitted"):
        graphs.capture(refused)
    assert made_up == [
        "synchronize",
        "begin pool thread_local",
        "end",
        "reset",
    ] or made_up == [
        "synchronize",
        "begin pool thread_local",
        "end",
        "_cuda_endAllocateToPool pool",
        "_cuda_releasePool pool",
        "reset",
    ]
    made_up.clear()
    graphs.mend()  # a capture that succeeds, and is replayed
    assert made_up == ["synchronize", "synchronize", "begin pool thread_local", "end", "replay", "synchronize"]


def test_a_process_that_cannot_be_mended_is_lost(made_up: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = on_cuda.CudaGraphs()

    def rand(*_: Any, **__: Any) -> None:
        raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")

    monkeypatch.setattr(torch, "rand", rand)
    with pytest.raises(on_cuda.ContextLost, match="Offset increment"):
        graphs.mend()


# verdicts


@pytest.mark.parametrize(
    ("found", "what"),
    [
        ([], "equal"),
        ([("python-side-effect", "warning"), ("output-overwritten", "error")], "equal"),
        ([("frozen-value", "error"), ("device-sync", "error")], "refused"),
        ([("frozen-value", "error"), ("host-to-device", "error")], "refused or wrong"),
        ([("cpu-tensor", "info")], "equal"),
        ([("freed-input", "error"), ("frozen-value", "error")], "captured"),
        ([("warmup-dependent", "warning")], "depends on the warm-up"),
        ([("warmup-dependent", "warning"), ("frozen-value", "error")], "wrong"),
        ([("rng", "error")], "refused"),
        ([("padding-leak", "error")], "leaks"),
    ],
)
def test_findings_foretell(found: list[tuple[str, str]], what: str) -> None:
    assert foretold(found) == what


def result(name: str, **fields: Any) -> dict[str, Any]:
    return {**not_run(name), "error": "", "outcome": "replayed", "apart": [0.0, 0.0], **fields}


def test_a_wrong_verdict_does_not_come_true() -> None:
    def agree(name: str, **fields: Any) -> bool | None:
        agreed: bool | None = judged(ALL[name], from_marks(ALL[name]), result(name, **fields), MACHINE).agree
        return agreed

    assert agree("clean/rms_norm") is True
    assert agree("clean/rms_norm", leak=0.5) is False
    assert agree("clean/rms_norm", apart=[0.0, None]) is False
    assert agree("faulty/frozen_fill") is False
    assert agree("faulty/frozen_fill", apart=[0.0, 0.1]) is True
    assert agree("faulty/frozen_fill", outcome="refused") is False
    assert agree("faulty/device_sync_tolist") is False
    assert agree("faulty/padding_leak_mean_of_tokens", leak=0.0) is False
    assert agree("faulty/padding_leak_mean_of_tokens", leak=float("inf")) is True
    assert agree("faulty/warmup_dependent_first_call", cold=[0.0, 0.0]) is False
    assert agree("faulty/warmup_dependent_first_call", cold=[0.0, 0.1]) is True
    assert agree("faulty/output_overwritten_history", overwritten=False) is False
    assert agree("faulty/output_overwritten_history", overwritten=True) is True


def test_what_is_not_judged_says_why() -> None:
    def why(name: str, machine: dict[str, Any] = MACHINE, **fields: Any) -> str:
        row = judged(ALL[name], from_marks(ALL[name]), result(name, **fields), machine)
        assert row.agree is None
        text: str = row.why_not
        return text

    assert why("faulty/graph_break_item") == "its fault concerns torch.compile"
    assert why("faulty/rng_gumbel") == "random numbers of the process's own generator"
    assert (
        why("faulty/rng_own_generator", {"registers_generators": True}) == "this torch registers generators by itself"
    )
    assert why("clean/rms_norm", outcome="lost", error="code -6") == "lost its context: code -6"
    silent = judged(ALL["clean/rms_norm"], {**from_marks(ALL["clean/rms_norm"]), "error": "x"}, result("r"), MACHINE)
    assert silent.why_not == "the tool did not run: x"


def test_the_table_and_the_file_have_every_step(tmp_path: Path) -> None:
    names = ("clean/rms_norm", "faulty/frozen_fill", "faulty/graph_break_item")
    on_gpu = {"step": "clean/rms_norm", "found": [("device-sync", "error", 12)], "error": ""}
    rows = [judged(ALL[name], from_marks(ALL[name]), result(name), MACHINE, on_gpu) for name in names]
    text = as_text(rows, {"torch": "2.11.0"})
    assert "3 steps: 1 verdicts came true, 1 did not, 1 not judged" in text
    assert "clean/rms_norm: device-sync in line 12" in text
    write(rows, MACHINE, tmp_path / "new")
    data = json.loads((tmp_path / "new" / "gallery-on-cuda.json").read_text())
    assert (data["schema"], [row["step"] for row in data["rows"]]) == (1, list(names))
    assert happened(result("x", apart=[0.0, None])) == "replays differ: 0, another shape"


def test_what_the_tool_says_is_data() -> None:
    entry = said(ALL["faulty/device_sync_tolist"], "cpu")
    assert json.loads(json.dumps(entry))["found"][0][:2] == ["device-sync", "error"]
    assert entry["error"] == ""


# processes

SCRIPT = """
import json, os, sys
out = open(sys.argv[1], "a")
for name in sys.argv[2:]:
    print(json.dumps({"begun": name}), file=out, flush=True)
    if name == "dies":
        os.kill(os.getpid(), 9)
    if name == "hangs":
        import time; time.sleep(60)
    print(json.dumps({"happened": {"step": name, "outcome": "replayed"}}), file=out, flush=True)
    if name == "loses":
        sys.exit(3)
print(json.dumps({"machine": {"torch": "x"}}), file=out)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_a_process_that_dies_takes_one_step_with_it(script: Path, tmp_path: Path) -> None:
    found = run_all(script, ["a", "dies", "b", "loses", "c", "d"], 60, folder=tmp_path)
    assert set(found.by_step) == {"a", "dies", "b", "loses", "c", "d"}
    assert found.by_step["dies"]["outcome"] == "lost"
    assert found.by_step["dies"]["error"] == "its process ended with code -9"
    assert found.machine == {"torch": "x"}
    assert len(found.errors) == 2


def test_a_process_that_hangs_is_ended_in_time(script: Path, tmp_path: Path) -> None:
    found = run_all(script, ["a", "hangs", "b"], 2, folder=tmp_path)
    assert set(found.by_step) == {"a"}
    assert "the time was up" in found.errors[0]


def test_a_process_that_never_begins_is_not_tried_again(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise ImportError('no such module')")
    found = run_all(broken, ["a"], 60, folder=tmp_path)
    assert found.by_step == {} and "no such module" in found.errors[0]
    assert len(found.errors) == 1


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"begun": "a"}\n{"happened": {"step": "a"}}\n{"begun": "b"}\n{"happ')
    results, begun = read(file)
    assert (list(results.by_step), begun) == (["a"], "b")
    assert read(tmp_path / "nothing")[1] is None


def test_the_scripts_import_in_a_fresh_python() -> None:
    for script in (OF_TOOL, ON_CUDA):
        command = [sys.executable, "-c", f"import runpy; runpy.run_path({str(script)!r})"]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": "tests"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


# the tool where the device is real


class OnDevice(Recording):
    """A recording on a machine with a device; tensors with eight rows lie on it."""

    def where(self, tensor: torch.Tensor) -> Where:
        return Where.DEVICE if tensor.dim() and tensor.shape[0] == 8 else Where.HOST


def test_values_from_the_host_are_seen_where_the_device_is_real() -> None:
    """torch moves them before any operator is called; what is left to see is the finished tensor."""
    recording = OnDevice(Residency(), "cuda", {}, is_real=True)
    with DispatchMode(recording):
        recording.calling = Calling("torch.Tensor.__getitem__")
        torch.tensor(list(range(8)))
        torch.tensor([1, 2])
        recording.calling = Calling("torch.as_tensor", Where.DEVICE, from_data=True)
        torch.tensor([3])
    assert [(f.code, f.op) for f in recording.trace.findings] == [
        ("host-to-device", "Tensor.__getitem__"),
        ("host-to-device", "torch.as_tensor"),
    ]
    assert not recording.residency._marks


def test_cpu_tensors_are_on_the_host_where_the_device_is_real() -> None:
    recording = Recording(Residency(), "cuda", {}, is_real=True)
    assert recording.where(torch.zeros(2)) is Where.HOST
    assert Recording(Residency(), "cuda", {}, is_real=False).where(torch.zeros(2)) is Where.DEVICE
    assert Recording(Residency(), "cpu", {}, is_real=True).where(torch.zeros(2)) is Where.DEVICE


def test_waiting_is_noted_and_done_where_the_device_is_real(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("device"))
    monkeypatch.setattr(torch.cuda.Event, "synchronize", lambda self: done.append("event"))
    event = object.__new__(torch.cuda.Event)  # one of its own needs a device
    recording = Recording(Residency(), "cuda", {}, is_real=True)
    before = torch.cuda.Stream
    with watched(recording):
        torch.cuda.synchronize()
        event.synchronize()
        assert torch.cuda.Stream is before and torch.Generator().device.type == "cpu"
    found: list[Finding] = recording.trace.findings
    assert done == ["device", "event"]
    assert [f.op for f in found] == ["torch.cuda.synchronize", "torch.cuda.Event.synchronize"]
    assert {Path(f.file or "").name for f in found} == {Path(__file__).name}


def test_moves_are_real_where_the_device_is_real() -> None:
    """Nothing is copied for show, and what lies where is read off the tensors."""
    with record(is_real=True) as recording:
        x = torch.zeros(3)
        assert x.to("cpu") is x and x.cpu() is x
        assert x.device.type == "cpu" and not x.is_cuda and not x.is_pinned()
    assert recording.trace.findings == []
    assert not any(ref.on_device for call in recording.trace.calls for ref in call.outputs)
