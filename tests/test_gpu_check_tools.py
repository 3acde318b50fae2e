"""What `make gpu-check` measures with, as far as it runs without a GPU: tiny sizes on the CPU, and made-up devices."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import math
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ostinato.graphs.inspect.capturing.ograph import Memory, Node, OGraph, Op, SizeGraph
from ostinato.perf.baselines.plain_graphs import PlainGraphs
from ostinato.perf.baselines.plain_qwen3 import PlainQwen3
from ostinato.perf.checkpoints import SIZES, write
from ostinato.perf.gpu import __main__ as command
from ostinato.perf.gpu import (
    context as contexts,
)
from ostinato.perf.gpu import (
    decoding,
    engine,
    graph_nodes,
    part_assumptions,
    part_attention,
    part_batch,
    part_correctness,
    part_decode,
    part_inspect,
    part_larger,
    part_prefix,
    part_sampling,
    part_startup,
    part_static_peer,
    part_steps,
    part_throughput,
    part_ttft,
    picture,
    report,
    supervisor,
)
from ostinato.perf.gpu.budget import Budget
from ostinato.perf.gpu.context import Context
from ostinato.perf.gpu.finding import Finding, NotMeasurable, outcome
from ostinato.perf.gpu.floors import Floors
from ostinato.perf.gpu.parts import PARTS, Part
from ostinato.perf.gpu.targets import TARGETS, Target, judge, verdicts
from ostinato.perf.gpu.weights import GPU_SIZES, prepare_on
from ostinato.perf.peer import TransformersPeer

ROOT = Path(__file__).resolve().parent.parent
TINY = SIZES["tiny"]
CPU = torch.device("cpu")
H200 = Floors(4.3e12, 790e12)


# targets


@pytest.mark.parametrize(
    ("bound", "value", "verdict"),
    [
        ("at most", 0.9, "met"),
        ("at most", 0.91, "missed"),
        ("at least", 0.9, "met"),
        ("at least", 0.89, "missed"),
        ("at most", math.nan, "missed"),
        ("at least", math.nan, "missed"),
        ("at most", None, "not measured"),
    ],
)
def test_a_target_is_met_missed_or_not_measured(bound: Any, value: float | None, verdict: str) -> None:
    target = Target("X", "a token", "part.ms", bound, 0.9, "ms")
    assert judge(target, {} if value is None else {"part.ms": value}) == verdict


def test_a_row_has_what_was_measured_the_target_and_the_floor() -> None:
    (row,) = verdicts(
        {"decode.ms_ostinato": 0.8, "decode.ms_floor": 0.28}, [t for t in TARGETS if t.figure == "decode.ms_ostinato"]
    )
    assert (row["value"], row["limit"], row["floor"], row["verdict"]) == (0.8, 0.9, 0.28, "met")


def test_every_target_belongs_to_a_part_and_every_promised_one_is_there() -> None:
    assert {target.part for target in TARGETS} <= {part.name for part in PARTS}
    ids = {target.id for target in TARGETS}
    assert ids >= {f"G{number}" for number in range(1, 10)} | {f"T{number}" for number in range(1, 7)}
    assert {target.id for target in TARGETS if target.correctness} == {"A1", "fp32", "bf16"}


# parts, their time and their failures


def test_every_part_has_a_module_that_imports_without_cuda() -> None:
    for part in PARTS:
        assert callable(importlib.import_module(part.module_name).measure)
    assert len({part.name for part in PARTS}) == len(PARTS)


def test_a_budget_grants_what_is_left_and_nothing_too_short() -> None:
    now = [100.0]
    budget = Budget(60, clock=lambda: now[0])
    assert budget.grant(20, 5) == 20
    now[0] += 50
    assert (budget.left, budget.grant(20, 5), budget.grant(20, 11)) == (10, 10, None)
    now[0] += 50
    assert budget.left == 0


FAKES = {
    "works": "def measure(context):\n    print('noise')\n    return Finding({'works.pid': os.getpid()})",
    "again": "def measure(context):\n    return Finding({'again.pid': os.getpid()}, notes=('a note',))",
    "raises": "def measure(context):\n    raise ValueError('no such luck')",
    "dies": "def measure(context):\n    os.kill(os.getpid(), 9)",
    "hangs": "def measure(context):\n    child = subprocess.Popen(['sleep', '600'])\n"
    "    open(os.environ['CHILD'], 'w').write(str(child.pid))\n    time.sleep(600)",
    "cannot": "def measure(context):\n    raise NotMeasurable('no such kernel')",
    "after": "def measure(context):\n    return Finding({'after.left': context.seconds_left})",
}
HEAD = "import os, subprocess, time\nfrom ostinato.perf.gpu.finding import Finding, NotMeasurable\n"


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("fakes")
    for name, code in FAKES.items():
        (folder / f"fake_{name}.py").write_text(HEAD + code + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("CHILD", str(folder / "child"))
        yield folder


def fake(name: str, seconds: float = 60.0, least: float = 0.0) -> Part:
    return Part(name, name, seconds, least, module=f"fake_{name}")


def run_fakes(*parts: Part, seconds: float = 120.0) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    supervisor.run_parts(parts, {}, Budget(seconds), lambda part, outcome: results.update({part.name: outcome}))
    return results


def test_a_part_that_fails_or_dies_is_recorded_and_the_others_go_on(fakes: Path) -> None:
    names = ("works", "again", "raises", "dies", "cannot", "after")
    results = run_fakes(*map(fake, names))
    assert {name: results[name]["status"] for name in results} == dict.fromkeys(names, "ok") | {
        "raises": "failed",
        "dies": "failed",
    }
    assert results["works"]["figures"]["works.pid"] == results["again"]["figures"]["again.pid"] != os.getpid()
    assert results["raises"]["error"] == "ValueError: no such luck"
    assert "fake_raises.py" in results["raises"]["detail"]["traceback"]
    assert results["dies"]["error"] == "its process ended with code -9"
    assert results["cannot"]["notes"] == ["not measured: no such kernel"]
    assert 0 < results["after"]["figures"]["after.left"] <= 60
    json.dumps(results)


def test_a_part_that_overruns_is_ended_with_its_children_and_the_others_go_on(fakes: Path) -> None:
    results = run_fakes(fake("hangs", seconds=3), fake("works"))
    assert (results["hangs"]["status"], results["hangs"]["error"]) == ("failed", "took more than its 3 s")
    assert results["works"]["status"] == "ok"
    child = int((fakes / "child").read_text())
    assert not is_running(child)


def test_a_part_is_cut_off_or_left_out_when_the_time_is_up(fakes: Path) -> None:
    results = run_fakes(fake("hangs"), fake("works", least=10), seconds=1)
    assert [results[name]["status"] for name in ("hangs", "works")] == ["skipped", "skipped"]
    assert "cut off" in results["hangs"]["error"]
    assert results["works"]["error"] == "0 s were left, it needs 10"


def is_running(pid: int) -> bool:
    """A moment is granted to a process that was killed."""
    for _ in range(50):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.02)
                continue
        return False
    return True


# the report


def made_up() -> dict[str, Any]:
    figures = {
        "decode.ms_ostinato": 0.81,
        "decode.ms_floor": 0.281,
        "decode.ms_plain_graph": 1.9,
        "decode.ms_transformers": 21.5,
        "decode.percent_of_floor": 34.7,
        "decode.vs_transformers": 26.5,
        "decode.vs_plain_graph": 2.3,
    }
    results = report.new_report("NVIDIA H200", "NVIDIA H200, torch 2.11.0", "qwen3-0.6b", "passed")
    report.add_part(results, "decode", outcome("ok", 12.3, **Finding(figures, notes=("a note",)).as_dict()))
    report.add_part(results, "ttft", outcome("failed", 3.0, "RuntimeError: broken\nin two lines"))
    report.add_part(results, "larger", outcome("skipped", 0.0, "10 s were left, it needs 50"))
    return results


def test_a_report_is_what_its_schema_says() -> None:
    results = json.loads(json.dumps(made_up()))
    assert set(results) == {"schema", "gpu", "machine", "size", "tests", "parts", "targets"}
    assert results["schema"] == report.SCHEMA
    part = {"status", "seconds", "error", "figures", "notes", "detail", "spreads"}
    assert all(set(entry) == part for entry in results["parts"].values())
    row = {"id", "what", "figure", "value", "bound", "limit", "unit", "floor", "asked", "correctness", "verdict"}
    assert len(results["targets"]) == len(TARGETS)
    assert all(set(entry) == row for entry in results["targets"])


def test_the_table_says_what_is_met_missed_and_not_measured() -> None:
    lines = report.render(made_up()).splitlines()

    def line(text: str) -> list[str]:
        (found,) = [line for line in lines if text in line]
        return found.split()

    assert line("T1  ")[-7:] == ["0.810", "ms", "≤", "0.900", "ms", "0.281", "ms", "met"][-7:]
    assert line("share of the floor, first")[-1] == "MISSED"
    assert line("first token of 128")[-1] == "-"
    assert line("ttft   ")[1:] == ["failed", "3.0", "s:", "RuntimeError:", "broken"]
    assert line("decode.ms_plain_graph")[-1] == "1.90"
    assert "2 met, 0 missed" in "\n".join(lines)


def test_speed_fails_nothing_but_tests_crashes_and_wrong_numbers_do() -> None:
    results = made_up()
    assert report.exit_status(results, ["decode"]) == 1  # ttft failed
    del results["parts"]["ttft"]
    assert report.exit_status(results, ["decode"]) == 0
    assert report.exit_status(results, ["decode", "correctness"]) == 1  # not measured
    for equal, status in ((100.0, 0), (75.0, 1)):
        figures = {"correctness.fp32_equal": equal, "correctness.bf16_error": 1.1}
        report.add_part(results, "correctness", outcome("ok", 1.0, **Finding(figures).as_dict()))
        assert report.exit_status(results, ["decode", "correctness"]) == status
    assert report.exit_status(results | {"tests": "failed", "parts": {}, "targets": []}, []) == 1


def test_absolute_times_are_said_to_be_of_another_card() -> None:
    results = made_up() | {"gpu": "NVIDIA L4"}
    assert "times in ms and µs are stated for an H200; this is NVIDIA L4" in report.render(results)
    assert "stated for" not in report.render(made_up())


def test_a_report_is_written_whole_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "gpu-x.json"
    report.write(made_up(), path)
    assert report.read(path) == json.loads(json.dumps(made_up()))
    with pytest.raises(TypeError):
        report.write({"schema": object()}, path)
    assert report.read(path)["gpu"] == "NVIDIA H200"
    assert [file.name for file in path.parent.iterdir()] == ["gpu-x.json"]
    path.write_text('{"schema": "another"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"'another', not 'ostinato\.perf\.gpu/1'"):
        report.read(path)


def test_a_device_names_its_file() -> None:
    assert report.slug("NVIDIA GeForce RTX 5090") == "nvidia-geforce-rtx-5090"


@pytest.mark.parametrize("empty", [False, True])
def test_a_picture_is_drawn(empty: bool, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = report.new_report("X", "X", "tiny", "not run") if empty else made_up()
    picture.draw(results, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_bar_is_as_long_as_a_target_is_met() -> None:
    row = {"value": 0.45, "limit": 0.9, "bound": "at most"}
    assert picture.ratio(row) == 2
    assert picture.ratio(row | {"bound": "at least"}) == 0.5
    assert picture.ratio(row | {"value": 0.0}) is None


# the command


def test_without_a_gpu_nothing_is_checked_and_that_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert command.main(["--out", str(tmp_path)]) == 1
    assert "no CUDA device: nothing was checked" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Part]]:
    """The command with a made-up device and parts that only say so; returns what was asked to run."""
    asked: list[Sequence[Part]] = []

    def run(parts: Sequence[Part], settings: Any, budget: Budget, done: Callable[..., None], begun: Any) -> None:
        asked.append(parts)
        for part in parts:
            begun(part)
            done(part, outcome("ok", 1.0, **Finding({f"{part.name}.figure": 1.0}).as_dict()))

    monkeypatch.setattr(command, "_device", lambda: ("NVIDIA Pretended", ""))
    monkeypatch.setattr(command, "run_parts", run)
    return asked


def test_results_are_kept_and_parts_can_be_added(
    pretended_gpu: list[Sequence[Part]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path)]
    path = tmp_path / "gpu-nvidia-pretended.json"
    assert command.main([*out, "--only", "decode,ttft", "--tests", "passed"]) == 0
    assert command.main([*out, "--only", "ttft,prefix", "--add"]) == 0
    assert list(report.read(path)["parts"]) == ["decode", "ttft", "prefix"]
    assert report.read(path)["tests"] == "passed"
    assert command.main([*out, "--only", "host", "--tests", "failed"]) == 1
    assert list(report.read(path)["parts"]) == ["host"]
    assert command.main(["--read", str(path)]) == 1
    assert "GPU tests: failed" in capsys.readouterr().out


def test_without_matplotlib_the_picture_is_left_out(
    pretended_gpu: list[Sequence[Part]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(picture, "can_draw", lambda: False)
    assert command.main(["--out", str(tmp_path), "--only", "decode", "--name", "x"]) == 0
    assert "no picture: this Python has no matplotlib" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["gpu-x.json"]


def test_a_misspelt_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--only", "decod"])
    assert "did you mean decode?" in capsys.readouterr().err


# the shell script, with a Python that pretends to see a device

PRETENDER = """#!/bin/sh
case "$*" in
  -) cat >/dev/null; echo "a made-up device" ;;
  "-m pip "*) [ "$PIP" = works ] ;;
  "-m pytest "*) exit "$PYTEST_CODE" ;;
  "-m ostinato.perf.gpu "*) echo "measure: $*"; exec "$REAL" -c 'import ostinato.perf.gpu as g; print(g.__file__)' ;;
esac
"""


def gpu_check(python: str, **environment: str) -> subprocess.CompletedProcess[str]:
    base = {name: value for name, value in os.environ.items() if not name.startswith("GPU_")}
    env = base | {"PYTHON": python, "VENV_PYTHON": "/nowhere/python", "REAL": sys.executable} | environment
    return subprocess.run([str(ROOT / "tests/gpu_check")], cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture
def pretender(tmp_path: Path) -> str:
    path = tmp_path / "python"
    path.write_text(PRETENDER, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_script_says_that_nothing_was_checked() -> None:
    done = gpu_check("/nowhere/python3")
    assert done.returncode == 1
    assert "no CUDA device: nothing checked" in done.stdout


def test_the_script_measures_after_the_tests_with_the_time_that_is_left(pretender: str) -> None:
    done = gpu_check(pretender, PIP="works", PYTEST_CODE="0", GPU_CHECK_ARGS="--only decode")
    assert done.returncode == 0, done.stderr
    assert "measure: -m ostinato.perf.gpu --tests passed --budget 5" in done.stdout
    assert "--out perf/results --only decode" in done.stdout


def test_the_script_writes_where_it_is_told(pretender: str, tmp_path: Path) -> None:
    done = gpu_check(pretender, PIP="works", PYTEST_CODE="0", GPU_CHECK_OUT=str(tmp_path), GPU_CHECK_TESTS="no")
    assert f"--out {tmp_path}" in done.stdout


def test_the_script_uses_links_where_pip_cannot_install(pretender: str) -> None:
    done = gpu_check(pretender, PIP="fails", PYTEST_CODE="1")
    assert "pip could not install the package" in done.stdout
    assert "--tests failed" in done.stdout
    used = Path(done.stdout.splitlines()[-1])
    assert used.parts[-4:] == ("ostinato", "perf", "gpu", "__init__.py")
    assert not used.is_relative_to(ROOT)
    assert not used.exists()  # removed at the end


def test_the_script_can_leave_the_tests_out(pretender: str) -> None:
    done = gpu_check(pretender, PIP="works", PYTEST_CODE="1", GPU_CHECK_TESTS="no")
    assert "--tests not run" in done.stdout


# floors and sizes


def test_floors_are_those_of_the_performance_page() -> None:
    """ms a token at batch 1, context 128 on an H200: 0.281, 0.576, 3.52; 14.4 at batch 256, 2k; 36.2k tokens/s."""
    for name, milliseconds in (("qwen3-0.6b", 0.281), ("llama-3.2-1b", 0.576), ("qwen3-8b", 3.52)):
        assert 1e3 * H200.decode_seconds(GPU_SIZES[name], 1, 128) == pytest.approx(milliseconds, rel=0.01)
    size = GPU_SIZES["qwen3-0.6b"]
    assert 1e3 * H200.decode_seconds(size, 256, 2048) == pytest.approx(14.4, rel=0.01)
    assert 1e3 * H200.prefill_seconds(size, 1024) == pytest.approx(1.55, rel=0.01)
    prompts, outputs = part_throughput.workload()
    assert (sum(map(len, prompts)), sum(outputs)) == (142_827, 133_966)
    lengths = [(len(prompt), out) for prompt, out in zip(prompts, outputs, strict=True)]
    assert sum(outputs) / H200.workload_seconds(size, lengths) == pytest.approx(36_200, rel=0.02)


def test_a_floor_counts_weights_or_arithmetic_and_the_tokens_of_those_that_still_run() -> None:
    """A second for the weights, a hundredth for a token's arithmetic and for a token of KV."""
    kv, parameters = TINY.kv_bytes_per_token, TINY.num_parameters
    flops = 2 * parameters * 100.0
    assert Floors(TINY.weight_bytes, flops).decode_seconds(TINY, 50, 0) == 1.0
    assert Floors(TINY.weight_bytes, flops).decode_seconds(TINY, 300, 0) == 3.0
    slow = Floors(100.0 * kv, flops)
    weights = TINY.weight_bytes / slow.bandwidth
    assert slow.decode_seconds(TINY, 4, 25) == pytest.approx(weights + 1.0)
    seconds = slow.workload_seconds(TINY, [(9, 1), (10, 2), (20, 3)])
    steps = (2 * 1 + 10 + 20) + (2 + 20)  # the first request's token comes with its prompt
    assert seconds == pytest.approx(0.39 + 2 * weights + steps / 100)


def test_sizes_are_those_of_the_models() -> None:
    """Weight bytes of a step and KV bytes of a token."""
    llama, qwen = GPU_SIZES["llama-3.2-1b"], GPU_SIZES["qwen3-8b"]
    assert (llama.weight_bytes / 1e9, llama.kv_bytes_per_token) == (pytest.approx(2.471, abs=1e-3), 32_768)
    assert (qwen.weight_bytes / 1e9, qwen.kv_bytes_per_token) == (pytest.approx(15.14, abs=1e-2), 147_456)


@pytest.mark.parametrize("name", ["tiny", "llama-3.2-1b", "qwen3-8b"])
def test_a_checkpoint_drawn_on_a_device_is_one_that_the_engine_loads(name: str, tmp_path: Path) -> None:
    size = replace(GPU_SIZES[name], **shrunk())
    folder = prepare_on("cpu", size, tmp_path)
    assert prepare_on("cpu", size, tmp_path) == folder
    llm = engine.open_engine(folder, {"execution": "eager", "kv_cache_memory": "2MiB", "device": "cpu"})
    with llm:
        (output,) = llm.generate([1, 2, 3], engine.greedy(6))
    assert output.outputs[0].token_ids == TransformersPeer(folder).generate([1, 2, 3], 6)


def shrunk() -> dict[str, Any]:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")
    return {name: getattr(TINY, name) for name in names} | {"max_positions": 256, "dtype": "float32"}


# the baseline


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in fp32."""
    folder = tmp_path_factory.mktemp("exact")
    write(replace(TINY, dtype="float32"), folder)
    return folder


def test_the_plain_decoder_generates_what_transformers_does(exact: Path) -> None:
    prompts = [list(range(3, 40)), [7, 8], list(range(100, 117))]
    plain = PlainGraphs(PlainQwen3(exact, CPU), (1, 4), cells=80)
    expected = [TransformersPeer(exact).generate(prompt, 24) for prompt in prompts]
    assert plain.generate(prompts, 24) == expected
    assert plain.generate(prompts[1:2], 24) == expected[1:2]  # in a cache that others used
    assert len(set(expected[0])) > 8


def test_the_plain_decoder_refuses_what_its_cache_cannot_hold(exact: Path) -> None:
    plain = PlainGraphs(PlainQwen3(exact, CPU), (1,), cells=16)
    with pytest.raises(ValueError, match="1 prompts, 17 tokens with their output; the cache holds 1 of 16"):
        plain.generate([[1] * 9], 8)


# the parts, on the CPU


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """Everything tiny and uncompiled; made-up floors and graphs whose replays take a millisecond."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for options in (contexts.LATENCY, contexts.WIDE, contexts.LONG):
            patch.setitem(options, "max_model_len", 512)
        patch.setitem(contexts.WIDE, "max_num_seqs", 4)
        patch.setitem(contexts.WIDE, "capture_sizes", (1, 2, 4))
        patch.setattr(decoding, "replay_clock", lambda: contextlib.nullcontext(MadeUpClock()))
        small = Context("tiny", rounds=2, device="cpu", execution="eager")
        vars(small)["floors"] = H200
        yield small
        small.close_engine()


class MadeUpClock:
    def seconds(self) -> list[float]:
        return [1e-3] * 1000


def figures(finding: Finding) -> set[str]:
    assert all(math.isfinite(value) for value in finding.figures.values())
    json.dumps(finding.as_dict())
    return set(finding.figures)


def judged(part: str) -> set[str]:
    return {target.figure for target in TARGETS if target.part == part}


def test_decode_measures_in_turns(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(part_decode, "STEPS", 4)
    monkeypatch.setattr(part_decode, "ms_per_step", lambda *_: order.append("ostinato") or 1.0)
    for kind, method in ((PlainGraphs, "seconds_per_step"), (part_decode.TransformersOnDevice, "seconds_per_token")):
        monkeypatch.setattr(kind, method, lambda self, *_: order.append(type(self).__name__) or 0.004)
    found = part_decode.measure(context)
    first = ["ostinato", "TransformersOnDevice", "PlainGraphs"]
    assert order == first * 2 + first[::-1]
    assert figures(found) >= judged("decode") | {"decode.ms_floor"}
    assert found.figures["decode.vs_transformers"] == pytest.approx(4.0)


def test_decode_measures_all_contenders(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_decode, "STEPS", 4)
    found = part_decode.measure(context)
    assert all(found.figures[f"decode.ms_{name}"] > 0 for name in ("ostinato", "transformers", "plain_graph", "floor"))
    assert "uncompiled" in found.notes[0]


CASES: dict[Any, dict[str, Any]] = {
    part_static_peer: {"STEPS": 3},
    part_steps: {"STEPS": 5},
    part_sampling: {"STEPS": 3},
    part_ttft: {"ROUNDS": 2, "LENGTHS": (128, 480)},
    part_prefix: {"SHARED_TOKENS": 256},
    part_batch: {"CONTEXT": 40, "BATCHES": (2, 4), "STEPS": 3, "ROUNDS": 2, "SIZE_STEPS": 3},
}


@pytest.mark.parametrize("module", CASES, ids=lambda module: module.__name__.rpartition("part_")[2])
def test_a_part_gives_its_figures(module: Any, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CASES[module].items():
        monkeypatch.setattr(module, name, value)
    context.begin(60)
    found = module.measure(context)
    part = module.__name__.rpartition("part_")[2]
    wanted = {"ttft": {"ttft.ms_128", "ttft.ms_480"}, "batch": {"batch.percent_of_floor_2", "batch.worst_size_ratio"}}
    assert figures(found) >= wanted.get(part, judged(part))
    assert all(name.startswith(f"{part}.") for name in found.figures)


def test_the_decode_step_is_looked_into(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU there are no nodes: the figures of kernels are left out, not made up."""
    monkeypatch.setattr(context, "out", tmp_path / "new")
    found = part_inspect.measure(context)
    assert figures(found) >= {"inspect.errors", "inspect.ops_1", "inspect.ops_8", "inspect.us_eager_8"}
    assert found.figures["inspect.nodes_8"] == found.figures["inspect.errors"] == 0
    assert "inspect.attributed_8" not in found.figures
    names = {"gpu-inspect.ograph.gz", "gpu-inspect-lint.json", "gpu-inspect.html"}
    assert {file.name for file in (tmp_path / "new").iterdir()} == names
    assert OGraph.load(tmp_path / "new" / "gpu-inspect.ograph.gz").target == "tiny decode step"
    monkeypatch.setattr(part_inspect, "MOST_BYTES", 1000)
    with pytest.raises(RuntimeError, match="bytes of reports, more than 1,000"):
        part_inspect.measure(context)


def test_what_a_graph_of_kernels_gives_for_figures() -> None:
    def node(index: int, kind: str, op: int | None, seconds: float | None) -> Node:
        return Node(index, kind, "k", None, None, None, (), op, seconds, None)

    def op(index: int, seconds: float | None, share: float | None) -> Op:
        return Op(index, "aten.mm.default", None, "", None, None, None, (), (), "", 8, 8, 0, seconds, share)

    nodes = (
        node(0, "kernel", 0, 2e-6),
        node(1, "memset", 1, None),
        node(2, "kernel", 1, None),
        node(3, "kernel", None, 1e-6),
    )
    ops = (op(0, 2e-6, 0.5), op(1, 4e-6, 0.25), op(2, None, None))
    graph = SizeGraph(8, "kernel", ops, nodes, (), {}, Memory(100, 0, 7, 0), 1e-5, None)
    found = part_inspect.figures_of(graph)
    assert found == {
        "ops": 3,
        "nodes": 4,
        "pool_bytes": 100,
        "exec_bytes": 7,
        "us_replay": pytest.approx(10),
        "attributed": 75,
        "timed": pytest.approx(200 / 3),
        "top_of_bandwidth": 37.5,
    }
    assert [each["of_bandwidth"] for each in part_inspect.top_kernels(graph)] == [0.25, 0.5]


def test_throughput_is_cut_to_the_time_there_is(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_throughput, "workload", lambda: ([[1, 2, 3]] * 3, [40, 80, 400]))
    monkeypatch.setattr(part_throughput, "PROBE_TOKENS", 3)
    monkeypatch.setattr(part_throughput, "_expected_seconds", lambda *_: 100.0)
    monkeypatch.setattr(part_throughput, "MOST_SECONDS", 5.0)
    context.begin(60)
    found = part_throughput.measure(context)
    assert "9 tokens in, 26 out" in found.notes[0]
    assert "outputs cut to 5 % (the whole would take 100 s)" in found.notes[0]
    assert figures(found) >= {"throughput.percent_of_floor"}


def test_larger_sizes_are_measured_or_said_to_be_left_out(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_larger, "STEPS", 3)
    for name in ("LLAMA_1B", "QWEN_8B"):
        monkeypatch.setattr(part_larger, name, replace(getattr(part_larger, name), **shrunk() | {"max_positions": 512}))
    context.begin(600)
    found = part_larger.measure(context)
    assert figures(found) == {f"larger.{x}_{n}b" for n in (1, 8) for x in ("percent_of_floor", "ms", "ms_floor")}
    monkeypatch.setattr(part_larger, "_of_size", lambda *_: Finding())
    context.begin(60)
    assert re.match(r"8B left out: (60|5\d) s were left", part_larger.measure(context).notes[0])
    context.begin(600)
    monkeypatch.setattr(part_larger, "QWEN_8B", replace(part_larger.QWEN_8B, vocab_size=10**12))
    assert "GB free, it needs" in part_larger.measure(context).notes[0]


def test_a_start_without_loading_is_what_is_left_of_its_phases() -> None:
    phases = {"reading the checkpoint": 1.0, "loading weights": 2.0, "capturing 12 batch sizes": 0.6, "compiling": 0.4}
    assert part_startup._beyond_loading({"seconds": 5.0, "phases": phases}) == 2.0
    assert engine.capture_seconds(phases | {"capturing 2 prompt sizes": 0.1}) == 0.6
    with pytest.raises(NotMeasurable, match="no phase of the start"):
        engine.capture_seconds({"compiling": 1.0})


def test_correctness_sees_equal_tokens_and_an_error_of_its_own_size(context: Context) -> None:
    context.begin(60)
    found = part_correctness.measure(context)
    assert found.figures["correctness.fp32_equal"] == 100
    assert 0.3 < found.figures["correctness.bf16_error"] < 2


def test_correctness_sees_another_token_and_lets_a_tie_pass() -> None:
    logits = torch.tensor([[3.0, 1.0], [0.5, 0.50001], [2.0, 4.0]])
    assert part_correctness.gap_at_difference([0, 1, 1], [0, 1, 1], logits) is None
    assert part_correctness.gap_at_difference([0, 0, 1], [0, 1, 1], logits) == pytest.approx(1e-5, rel=0.1)
    assert part_correctness.gap_at_difference([0, 1, 0], [0, 1, 1], logits) == 2.0
    with pytest.raises(RuntimeError, match="2 tokens were generated, 3 by transformers"):
        part_correctness.gap_at_difference([0, 1], [0, 1, 1], logits)


def test_attention_inputs_use_every_block_but_the_null_block(monkeypatch: pytest.MonkeyPatch) -> None:
    assert part_attention.READ_BYTES == 64 * 2048 * 4096
    monkeypatch.setattr(part_attention, "BATCH", 3)
    q, keys, values, table, lengths = part_attention.inputs(256, "cpu")
    assert keys.shape == values.shape == (25, 256, 8, 128)
    assert sorted(table.flatten().tolist()) == list(range(1, 25))
    assert (q.shape, table.shape, lengths.tolist()) == ((3, 16, 128), (3, 8), [2048] * 3)


# what is known of the engine


def test_options_that_the_engine_lacks_are_left_out() -> None:
    assert engine.known({"seed": 1, "no_such_option": 2}) == {"seed": 1}


def test_an_operator_without_a_kernel_is_not_measurable() -> None:
    with torch.library._scoped_library("ostinato", "FRAGMENT") as library:
        library.define("gpu_check_test(Tensor x) -> Tensor")
        with pytest.raises(NotMeasurable, match="ostinato::gpu_check_test has no kernel for CUDA"):
            engine.operator("gpu_check_test")
        library.impl("gpu_check_test", lambda x: x + 1, "CompositeExplicitAutograd")
        assert engine.operator("gpu_check_test")(torch.ones(1)).item() == 2
    with pytest.raises(NotMeasurable, match="ostinato::no_such_operator"):
        engine.operator("no_such_operator")


def test_the_lookup_finds_the_whole_prompt() -> None:
    assert 0 < engine.lookup_seconds(list(range(512)), 16) < 10


def test_a_batch_that_computes_a_prompt_meanwhile_is_no_measurement(context: Context) -> None:
    llm = context.engine(contexts.LATENCY)
    with decoding.Decoding(llm, [context.prompt(8)], 100) as batch:
        assert len(batch.step_seconds(3)) == 3
        other = llm.stream(context.prompt(8), engine.greedy(50))
        with pytest.raises(RuntimeError, match="1 of 4 steps computed prompts"):
            batch.step_seconds(4)
        other.close()
    assert llm.stats().requests_running == 0


def test_an_assumption_that_cannot_be_checked_is_a_note() -> None:
    def copied_bytes() -> Finding:
        raise ValueError("no such luck")

    assert part_assumptions.answer(copied_bytes).notes == ("copied_bytes: ValueError: no such luck",)
    assert part_assumptions.answer(lambda: Finding({"a.b": 1.0})).figures == {"a.b": 1.0}


# nodes of a graph, from a made-up libcuda


class MadeUpDriver:
    """Three kernels and a copy between them; ``CUresult`` 0 is success."""

    NODES = ((0, 50), (1, 0), (0, 10), (0, 70))  # type, grid

    def cuGraphGetNodes(self, graph: Any, nodes: Any, count: Any) -> int:
        count._obj.value = len(self.NODES)
        for index in range(len(self.NODES) if nodes is not None else 0):
            nodes[index] = index + 1
        return 0

    def cuGraphNodeGetType(self, node: Any, kind: Any) -> int:
        kind._obj.value = self.NODES[node.value - 1][0]
        return 0

    def cuGraphKernelNodeGetParams_v2(self, node: Any, params: Any) -> int:
        params._obj.grid_x = self.NODES[node.value - 1][1]
        return 0


def test_kernel_nodes_are_listed_with_their_grids() -> None:
    assert graph_nodes.kernel_grids(1, MadeUpDriver()) == [50, 10, 70]
    assert graph_nodes.same_ranks([50, 10, 70], [2, 1, 3])
    assert not graph_nodes.same_ranks([10, 50, 70], [2, 1, 3])
    assert not graph_nodes.same_ranks([50, 10], [2, 1, 3])


def test_a_driver_without_the_function_or_with_an_error_is_said() -> None:
    with pytest.raises(graph_nodes.CudaDriverError, match="this driver has no cuGraphGetNodes"):
        graph_nodes.kernel_grids(1, object())
    driver = MadeUpDriver()
    driver.cuGraphNodeGetType = lambda *_: 400  # type: ignore[method-assign]
    with pytest.raises(graph_nodes.CudaDriverError, match="cuGraphNodeGetType failed with CUresult 400"):
        graph_nodes.kernel_grids(1, driver)


def test_kernel_params_are_laid_out_as_the_driver_has_them() -> None:
    """cuda.h: a pointer, seven 32-bit integers (and four bytes of padding), four pointers."""
    assert ctypes.sizeof(graph_nodes.KernelParams) == 8 + 7 * 4 + 4 + 4 * 8
    assert graph_nodes.KernelParams.grid_x.offset == 8
