"""The dry run: what it sees of single calls, what it says of a step, and that it leaves nothing behind."""

from __future__ import annotations

import builtins
import logging
import subprocess
import sys
import textwrap
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostinato.graphs.inspect.dry_runs.lint import lint
from ostinato.graphs.inspect.report import Report, validate
from ostinato.graphs.inspect.target import TargetError
from ostinato.graphs.inspect.tracing.residency import Where
from ostinato.graphs.inspect.tracing.trace import record

X = torch.randn(4, 3)
LENS = torch.tensor([1, 2, 3, 4])


def codes_of(call: Callable[[], object]) -> list[tuple[str, str]]:
    """(code, severity) of what ``call`` alone is blamed for."""
    with record() as recording:
        call()
    return [(finding.code, finding.severity) for finding in recording.trace.findings]


REFUSED = {
    "item": (lambda: LENS.max().item(), "device-sync"),
    "int": (lambda: int(LENS.max()), "device-sync"),
    "bool": (lambda: bool((X > 0).all()), "device-sync"),
    "tolist": (lambda: X.tolist(), "device-sync"),
    "numpy": (lambda: X.numpy(), "device-sync"),
    "asarray": (lambda: np.asarray(X), "device-sync"),
    "cpu": (lambda: X.cpu(), "device-sync"),
    "to cpu": (lambda: X.to("cpu", torch.float16), "device-sync"),
    "repr": (lambda: repr(X), "device-sync"),
    "format": (lambda: f"{X[0, 0]:.2f}", "device-sync"),
    "in": (lambda: 3 in LENS, "device-sync"),
    "equal": (lambda: torch.equal(X, X), "device-sync"),
    "slice bound": (lambda: X[: LENS[0]], "device-sync"),
    "range": (lambda: list(range(LENS[0])), "device-sync"),
    "index with a tensor of no dimension": (lambda: X[LENS[0]], "device-sync"),
    "inv": (lambda: torch.linalg.inv(X[:3]), "device-sync"),
    "copy to the host": (lambda: torch.zeros(4, 3).copy_(X), "device-sync"),
    "synchronize": (lambda: torch.cuda.synchronize(), "device-sync"),
    "event": (lambda: torch.cuda.Event().synchronize(), "device-sync"),
    "nonzero": (lambda: LENS.nonzero(), "data-dependent-shape"),
    "where of one": (lambda: torch.where(X > 0), "data-dependent-shape"),
    "mask": (lambda: X[X > 0], "data-dependent-shape"),
    "values at a mask": (lambda: X.clone().__setitem__(X > -9, X[X > -9]), "data-dependent-shape"),
    "unique": (lambda: LENS.unique(), "data-dependent-shape"),
    "masked_select": (lambda: X.masked_select(X > 0), "data-dependent-shape"),
    "bincount": (lambda: LENS.bincount(), "data-dependent-shape"),
    "one_hot": (lambda: F.one_hot(LENS), "data-dependent-shape"),
    "repeat_interleave": (lambda: torch.repeat_interleave(X, LENS, dim=0), "data-dependent-shape"),
    "tensor of a list": (lambda: torch.tensor([1, 2], device=X.device), "host-to-device"),
    "tensor to the device": (lambda: torch.tensor([1, 2]).to(X.device), "host-to-device"),
    "cuda": (lambda: torch.zeros(2).cuda(), "host-to-device"),
    "as the other": (lambda: torch.zeros(2).to(X), "host-to-device"),
    "index with a list": (lambda: X[[0, 1]], "host-to-device"),
    "from numpy": (lambda: torch.from_numpy(np.ones(3)).to(X.device), "host-to-device"),
    "copy from the host": (lambda: X.clone().copy_(torch.ones(4, 3)), "host-to-device"),
    "pinned temporary": (lambda: torch.ones(3).pin_memory().to(X.device, non_blocking=True), "host-to-device"),
    "new_tensor": (lambda: X.new_tensor([1.0, 2.0]), "host-to-device"),
    "made on the CPU": (lambda: X + torch.zeros(3), "cpu-tensor"),
    "cat with the CPU": (lambda: torch.cat([X, torch.zeros(1, 3)]), "cpu-tensor"),
    "to a type of the CPU": (lambda: X.type("torch.LongTensor"), "device-sync"),
    "to a type of the device": (lambda: torch.ones(2).type("torch.cuda.FloatTensor"), "host-to-device"),
    "to the type of another": (lambda: torch.ones(3).type_as(X), "host-to-device"),
    "eigh": (lambda: torch.linalg.eigh(X[:3] + X[:3].T), "device-sync"),
    "cond": (lambda: torch.cond(LENS.sum() > 3, lambda x: x + 1, lambda x: x * 2, (X,)), "device-sync"),
    "drawn on the host": (lambda: torch.rand(3), "rng"),
    "own generator": (lambda: torch.randn(3, generator=torch.Generator("cuda"), device=X.device), "rng"),
}

ALLOWED = {
    "zeros on the device": lambda: X + torch.zeros(3, device=X.device),
    "zeros_like": lambda: X + torch.zeros_like(X),
    "new_zeros": lambda: X + X.new_zeros(3),
    "full": lambda: X * torch.full((), 2.0, device="cuda"),
    "under a device": lambda: _under_device(),
    "scalar at a mask": lambda: X.clone().__setitem__(X > 0, 0.0),
    "scalar at an index": lambda: X.clone().__setitem__(0, 5.0),
    "where of three": lambda: torch.where(X > 0, X, 0.0),
    "masked_fill": lambda: X.masked_fill(X > 0, -1e9),
    "one_hot with classes": lambda: F.one_hot(LENS, 5),
    "repeat_interleave with output_size": lambda: torch.repeat_interleave(X, LENS, dim=0, output_size=10),
    "index with a tensor": lambda: X[LENS - 1],
    "shape arithmetic": lambda: X.view(X.shape[0] * 3 // 3, -1),
    "arange on the device": lambda: torch.arange(4, device=X.device) < LENS,
    "the same device": lambda: X.to(X.device) + X.to("cuda") + X.cuda(),
    "another dtype": lambda: X.to(torch.float16),
    "attention": lambda: F.scaled_dot_product_attention(X[None, None], X[None, None], X[None, None]),
    "dropout that is off": lambda: F.dropout(X, 0.1, training=False),
    "cholesky_ex": lambda: torch.linalg.cholesky_ex(X @ X.T + 9 * torch.eye(4, device=X.device)),
    "argmax": lambda: X.argmax(-1),
    "item of a host tensor": lambda: torch.tensor(3).item(),
    "list of a host tensor": lambda: torch.zeros(3).tolist(),
}


def _under_device() -> Tensor:
    with torch.device(X.device):
        return X + torch.zeros(3)


@pytest.mark.parametrize("name", REFUSED)
def test_a_call_that_a_capture_refuses_is_named_by_its_code(name: str) -> None:
    call, code = REFUSED[name]
    assert (code, "error") in codes_of(call)


@pytest.mark.parametrize("name", ALLOWED)
def test_a_call_that_a_capture_takes_is_not_named(name: str) -> None:
    assert codes_of(ALLOWED[name]) == []


@pytest.mark.parametrize("name", REFUSED)
def test_inference_mode_hides_nothing(name: str) -> None:
    call, code = REFUSED[name]
    assert (code, "error") in codes_of(torch.inference_mode()(call))


@pytest.mark.parametrize("name", ALLOWED)
def test_inference_mode_adds_nothing(name: str) -> None:
    assert codes_of(torch.inference_mode()(ALLOWED[name])) == []


def test_a_dropout_that_is_off_is_clean_in_inference_mode() -> None:
    layer = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1)).eval()
    assert codes_of(lambda: torch.inference_mode()(layer)(X)) == []


def test_a_constant_of_no_dimension_on_the_host_is_only_mentioned() -> None:
    assert codes_of(lambda: X * torch.tensor(0.5)) == [("cpu-tensor", "info")]


def test_random_numbers_of_the_default_generator_are_a_warning() -> None:
    assert codes_of(lambda: F.dropout(X, 0.5)) == [("rng", "warning")]


def test_a_tensor_says_that_it_is_on_the_imagined_device_and_lies_on_the_cpu_again_afterwards() -> None:
    with record() as recording:
        assert X.device == torch.device("cuda", 0) and X.is_cuda and not X.is_cpu and X.get_device() == 0
        made = torch.zeros(2)
        assert made.device.type == "cpu" and recording.where(made) is Where.HOST
        moved = made.cuda()
        assert moved.is_cuda and made.device.type == "cpu"
    assert X.device.type == moved.device.type == "cpu"


def test_all_hazards_are_found_not_only_the_first() -> None:
    def step(x: Tensor) -> float:
        total = x.sum().item()
        x[x > 0].mean()
        return total + x.cpu()[0].item()

    report = lint(step, lambda size, variant=0: (torch.ones(size),), batch_sizes=(2,))
    first = step.__code__.co_firstlineno
    assert [(f.code, f.line) for f in report.errors if f.code != "frozen-value"] == [
        ("device-sync", first + 1),
        ("data-dependent-shape", first + 2),
        ("device-sync", first + 3),
    ]


def test_a_report_is_valid_and_comes_back_from_its_json() -> None:
    report = lint(lambda x: x + torch.zeros(3), lambda size, variant=0: (torch.ones(size, 3),), batch_sizes=(1, 2))
    data = report.as_dict()
    validate(data)
    assert Report.from_dict(data) == report and report.verdict == "findings"


def test_a_finding_at_some_batch_sizes_only_says_which() -> None:
    def step(x: Tensor) -> Tensor:
        return x * x.max().item() if x.shape[0] > 2 else x

    (finding,) = {f.line: f for f in lint(step, lambda n, variant=0: (torch.ones(n),)).errors}.values()
    assert "at batch size 4, 8" in finding.evidence


def test_a_batch_size_that_goes_the_way_of_a_larger_one_has_its_findings() -> None:
    runs: list[tuple[int, int]] = []

    def make_inputs(size: int, variant: int = 0) -> tuple[Tensor, int]:
        runs.append((size, variant))
        return torch.ones(size, 8), 3 + variant

    def step(x: Tensor, length: int) -> Tensor:
        if x.shape[0] == 2:
            x = x * length
        return x + torch.zeros(8)

    report = lint(step, make_inputs)
    first = step.__code__.co_firstlineno
    assert {(f.line or 0) - first: f.evidence.count("at batch size 2") for f in report.errors} == {2: 1, 3: 0}
    looked = {size: [variant for each, variant in runs if each == size] for size in (1, 2, 4)}
    assert looked[1] == looked[4] == [0, 1, 2]
    assert looked[2][:5] == [0, 0, 0, 1, 2]
    assert report.metrics["by_batch_size"]["4"]["outputs"] == ["float32[4, 8]"]


def test_a_number_that_varies_at_a_small_batch_size_alone_is_found() -> None:
    def step(x: Tensor, length: int) -> Tensor:
        return x[:, : min(length, 16 // x.shape[0])]

    report = lint(step, lambda n, variant=0: (torch.ones(n, 16), 3 + variant), batch_sizes=(1, 8))
    (finding,) = report.errors
    assert finding.code == "frozen-value" and "end 3 -> 4" in finding.evidence
    assert "at batch size 1" in finding.evidence


def test_what_only_python_does_at_one_batch_size_is_found() -> None:
    seen: list[int] = []

    def step(x: Tensor) -> Tensor:
        if x.shape[0] == 4:
            seen.append(x.shape[0])
        return x + 1

    (finding,) = lint(step, lambda n, variant=0: (torch.ones(n),)).findings
    assert finding.code == "python-side-effect" and finding.line == step.__code__.co_firstlineno + 2
    assert "at batch size 4" in finding.evidence


def test_a_frozen_value_names_the_argument_and_both_values() -> None:
    def step(x: Tensor, length: int) -> Tensor:
        return x[:, :length].sum(1)

    report = lint(step, lambda n, variant=0: (torch.ones(n, 8), 3 + variant), batch_sizes=(2,))
    (finding,) = report.findings
    assert (finding.code, finding.op) == ("frozen-value", "aten.slice.Tensor")
    assert "end 3 -> 4" in finding.evidence and "length 3 -> 4" in finding.evidence


def test_a_tensor_that_follows_from_a_frozen_value_is_not_named_again() -> None:
    def step(x: Tensor, length: int) -> Tensor:
        part = x[:, :length]
        return part.view(x.shape[0], length, 1).sum(1) * length

    report = lint(step, lambda n, variant=0: (torch.ones(n, 8), 3 + variant), batch_sizes=(2,))
    first = step.__code__.co_firstlineno
    assert [f.line - first for f in report.findings] == [1, 2]  # the slice, and the product; not the view


def test_an_input_of_another_shape_for_one_batch_size_is_a_finding() -> None:
    report = lint(lambda x: x.sum(1), lambda n, variant=0: (torch.ones(n, 3 + variant),), batch_sizes=(2,))
    assert any(f.code == "frozen-value" and "[2, 3] at capture, float32[2, 4]" in f.evidence for f in report.errors)


class Counter(nn.Module):
    """Counts in Python, and keeps what it made."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.history: list[Tensor] = []
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        out = x * self.weight
        self.history.append(out)
        return out.sum(-1)


def test_state_that_python_changes_is_found_and_put_back() -> None:
    module = Counter()
    first = Counter.forward.__code__.co_firstlineno
    report = lint(module, lambda n, variant=0: (torch.ones(n, 3),), batch_sizes=(2,))
    found = {(f.code, (f.line or 0) - first) for f in report.findings}
    assert {("python-side-effect", 1), ("output-overwritten", 3)} <= found
    assert module.steps == 0 and module.history == []
    names = [each["name"] for each in report.metrics["by_batch_size"]["2"]["external_inputs"]]
    assert names == ["x", "weight"]


def test_print_and_logging_are_named_and_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def step(x: Tensor) -> Tensor:
        print("token", x.shape)
        logging.getLogger("app").warning("slow")
        return x

    report = lint(step, lambda n, variant=0: (torch.ones(n),), batch_sizes=(1,))
    assert [f.code for f in report.findings] == ["python-side-effect"] * 2
    assert capsys.readouterr() == ("", "")


def test_a_printed_tensor_is_a_wait() -> None:
    def step(x: Tensor) -> Tensor:
        print("token", x)
        return x

    report = lint(step, lambda n, variant=0: (torch.ones(n),), batch_sizes=(1,))
    assert [f.code for f in report.findings] == ["device-sync"]


def test_a_compiled_function_runs_as_written_and_is_listed() -> None:
    compiled = torch.compile(lambda x: x * 2, backend="eager")
    report = lint(lambda x: compiled(x), lambda n, variant=0: (torch.ones(n),), batch_sizes=(1,))
    assert report.verdict == "clean" and report.metrics["by_batch_size"]["1"]["calls"] == 1
    assert any("compiled regions" in line for line in report.not_checked)


def test_an_operator_with_an_unknown_inside_is_listed() -> None:
    @torch.library.custom_op("inspect_lint::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return x * 2

    report = lint(lambda x: twice(x), lambda n, variant=0: (torch.ones(n),), batch_sizes=(1,))
    assert any("inspect_lint.twice" in line for line in report.not_checked)


def test_without_variants_frozen_values_are_said_not_to_be_checked() -> None:
    report = lint(lambda x: x, lambda n: (torch.ones(n),), batch_sizes=(1,))
    assert any("takes no variant" in line for line in report.not_checked)


def test_nothing_of_the_process_is_left_changed() -> None:
    before = (builtins.print, logging.Logger.handle, torch.compile, torch.cuda.synchronize, torch.Generator)
    hooks = len(torch.nn.modules.module._global_forward_pre_hooks)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    lint(lambda x: x + torch.rand(3), lambda n, variant=0: (torch.ones(n, 3),), batch_sizes=(1,))
    assert (builtins.print, logging.Logger.handle, torch.compile, torch.cuda.synchronize, torch.Generator) == before
    assert len(torch.nn.modules.module._global_forward_pre_hooks) == hooks
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1, device="cuda") if not torch.cuda.is_available() else pytest.skip("there is a GPU")


def test_a_step_that_raises_is_named_with_its_line() -> None:
    def step(x: Tensor) -> Tensor:
        return x @ x

    with pytest.raises(
        TargetError, match=rf"step\(batch_size=2\) raised RuntimeError: .*{step.__code__.co_firstlineno + 1}"
    ):
        lint(step, lambda n, variant=0: (torch.ones(n, 3),), batch_sizes=(2,))


def test_a_step_that_does_not_end_is_stopped() -> None:
    def step(x: Tensor) -> Tensor:
        while True:
            x = x + 1

    with pytest.raises(TargetError, match="ran for more than 1 s"):
        lint(step, lambda n, variant=0: (torch.ones(n, 3),), batch_sizes=(2,), time_limit=1)


@pytest.mark.parametrize(
    ("make_inputs", "says"),
    [
        (lambda n, variant=0: [torch.ones(n)], "returned list; expected a tuple"),
        (lambda n, variant=0: 1 / 0, "raised ZeroDivisionError"),
    ],
)
def test_a_bad_make_inputs_is_named(make_inputs: Callable[..., object], says: str) -> None:
    with pytest.raises(TargetError, match=says):
        lint(lambda x: x, make_inputs, batch_sizes=(2,))  # type: ignore[arg-type]


def test_inputs_made_for_cuda_are_made_on_the_cpu() -> None:
    def make_inputs(n: int, variant: int = 0) -> tuple[Tensor, Tensor]:
        return torch.ones(n, device="cuda"), torch.ones(n)

    report = lint(lambda x, host: x + host, make_inputs, batch_sizes=(2,))
    assert [f.code for f in report.errors] == ["cpu-tensor"]


def test_the_tool_imports_no_engine(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(
        textwrap.dedent(
            """
            import sys
            import torch
            from ostinato.graphs import inspect

            report = inspect.lint(lambda x: x.item(), lambda n, variant=0: (torch.ones(1),), batch_sizes=(1,))
            assert [f.code for f in report.findings][0] == "device-sync"
            engine = [n for n in sys.modules if n.startswith("ostinato.") and not n.startswith(
                ("ostinato.graphs", "ostinato.layers"))]
            print(engine)
            """
        )
    )
    run = subprocess.run([sys.executable, tmp_path / "user.py"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


def test_inputs_drawn_without_a_seed_are_the_same_for_each_run_of_a_variant() -> None:
    def step(x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x

    report = lint(step, lambda n, variant=0: (torch.randn(n, 16),), batch_sizes=(2, 4))
    assert "warmup-dependent" not in {finding.code for finding in report.findings}


class Counts:
    """Keeps a number in the class."""

    steps = 0


def test_state_of_classes_functions_and_full_queues_is_seen_and_put_back() -> None:
    recent: deque[int] = deque([7, 7], maxlen=2)

    def step(x: Tensor) -> Tensor:
        Counts.steps += 1
        vars(step)["calls"] = vars(step).get("calls", 0) + 1
        recent.append(Counts.steps)
        return x

    report = lint(step, lambda n, variant=0: (torch.ones(n),), batch_sizes=(2,))
    first = step.__code__.co_firstlineno
    assert {1, 2, 3} <= {(f.line or 0) - first for f in report.findings if f.code == "python-side-effect"}
    assert Counts.steps == 0 and not vars(step) and list(recent) == [7, 7]


def test_a_batch_size_that_fails_is_listed_and_the_others_are_looked_at() -> None:
    def step(x: Tensor) -> float:
        return x[1].item()

    report = lint(step, lambda n, variant=0: (torch.ones(n),), batch_sizes=(1, 2))
    assert [f.code for f in report.errors] == ["device-sync"]
    assert any("step(batch_size=1) raised IndexError" in line for line in report.not_checked)


def test_a_step_that_waits_for_a_lock_is_stopped() -> None:
    lock = threading.Lock()
    lock.acquire()

    def step(x: Tensor) -> Tensor:
        with lock:
            return x

    with pytest.raises(TargetError, match="ran for more than 1 s"):
        lint(step, lambda n, variant=0: (torch.ones(n),), batch_sizes=(2,), time_limit=1)


def test_a_branch_inside_of_a_called_function_is_named_there() -> None:
    def branch(x: Tensor, length: int) -> Tensor:
        if length > 3:
            x = x * 2
        return x

    def step(x: Tensor, length: int) -> Tensor:
        x = branch(x, length)
        return x + 1

    report = lint(step, lambda n, variant=0: (torch.ones(n), 3 + variant), batch_sizes=(2,))
    assert [f.line for f in report.errors] == [branch.__code__.co_firstlineno + 1]
