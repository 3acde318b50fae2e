"""``ostinato graph``: what goes where, exit codes, and how each way to end ends."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ostinato.cli import app
from ostinato.graphs.inspect.report import validate
from ostinato.graphs.inspect.target import Target

COMMANDS = (
    *("lint", "breaks", "emulate", "verify", "capture", "show", "diff"),
    *("memory", "timeline", "startup", "sizes", "report", "check"),
)
INPUTS = """
import torch

def make_inputs(batch_size, variant=0):
    return (torch.arange(batch_size * 4).view(batch_size, 4) + float(variant),)
"""
STEPS = {
    "clean": "def step(x):\n    return torch.relu(x) * 2",
    "faulty": "def step(x):\n    return x * x.sum().item()",
    "slow": "def step(x):\n    print('the side')\n    return x + 1",
    "breaking": "def step(x):\n    torch._dynamo.graph_break()\n    return x + x.sum().item()",
    "frozen": "count = 0\ndef step(x):\n    global count\n    count += 1\n    return x + count",
    "raising": "def step(x):\n    raise ValueError('no good')",
    "endless": "def step(x):\n    while True:\n        x = x + 1",
    "quitting": "import sys\ndef step(x):\n    sys.exit(0)",
    "no_tuple": "step = abs\ndef make_inputs(batch_size, variant=0):\n    return torch.zeros(batch_size)",
    "no_inputs": "step = abs\ndef make_inputs(batch_size, variant=0):\n    raise OSError('no disk')",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current one: a file for each of the steps."""
    for name, code in STEPS.items():
        (tmp_path / f"{name}.py").write_text(INPUTS + code + "\n")
    (tmp_path / "plain.py").write_text("def step(x):\n    return x\n")
    (tmp_path / "broken.py").write_text("def step(:\n")
    (tmp_path / "traffic.json").write_text('{"1": 400, "3": 100, "8": 10}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def graph(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ("graph", *arguments))
    return result.exit_code, result.stdout, result.stderr


def data(*arguments: str) -> Any:
    """What the command writes as JSON."""
    return json.loads(graph(*arguments, "--json", "-")[1])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of the faulty step at two sizes, linted."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "faulty.py").write_text(INPUTS + STEPS["faulty"] + "\n")
    command = [sys.executable, "-m", "ostinato.graphs.inspect", "capture", "faulty.py:step"]
    done = subprocess.run(
        [*command, "--batch-sizes", "2,4", "-o", "run.ograph"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "batch size 4: " in done.stdout and "saved as run.ograph" in done.stdout
    assert "device-sync" in done.stdout
    return folder / "run.ograph"


# ------------------------------------------------------------------------------------------------------- what is there


def test_every_command_is_listed_and_takes_json() -> None:
    code, help_text, _ = graph("--help")
    assert code == 0
    for name in COMMANDS:
        assert f" {name} " in help_text
        assert "--json" in graph(name, "--help")[1]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["graph", "--help"], ["graph", "sizes", "traffic.json", "--max-graphs", "2"]]
)
def test_no_torch_is_imported_where_no_step_runs(arguments: list[str]) -> None:
    assert imported(arguments, "torch") == []


def test_lint_imports_no_engine() -> None:
    engine = ("llm", "runner", "scheduler", "core", "config", "plan", "models", "layers.sampler", "block_pool")
    arguments = ["graph", "lint", "clean.py:step", "--batch-sizes", "2"]
    assert imported(arguments, *(f"ostinato.{name}" for name in engine)) == []


def imported(arguments: list[str], *names: str) -> list[str]:
    """Which of ``names`` a command imports, run in a process of its own."""
    code = """
import json, sys
names, sys.argv[1:] = json.loads(sys.argv[1]), json.loads(sys.argv[2])
from ostinato.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps([name for name in names if name in sys.modules]))
"""
    command = [sys.executable, "-c", code, json.dumps(names), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


# --------------------------------------------------------------------------------------------------- steps and reports


@pytest.mark.parametrize(
    ("arguments", "code", "finding"),
    [
        ("lint clean.py:step --batch-sizes 1,2", 0, None),
        ("lint faulty.py:step --batch-sizes 2 --variants 2", 1, ("device-sync", 7)),
        ("lint slow.py:step --batch-sizes 2", 0, ("python-side-effect", 7)),
        ("breaks clean.py:step --batch-sizes 2", 0, None),
        ("breaks breaking.py:step --batch-sizes 2 --variants 2", 1, ("graph-break", 7)),
        ("emulate clean.py:step --batch-size 2 --steps 2 --poison-padding --shuffle-slots", 0, None),
        ("emulate clean.py:step --batch-size 2 --steps 1 --move-inputs", 0, ("address-change", 7)),
        ("emulate faulty.py:step --batch-size 2 --steps 2 --time-limit 30", 1, ("frozen-value", 7)),
        ("verify clean.py:step --batch-size 2", 0, None),
    ],
)
def test_reports_are_clean_or_name_code_and_line(arguments: str, code: int, finding: tuple[str, int] | None) -> None:
    ended, text, _ = graph(*arguments.split(), "--json", "report.json")
    found = json.loads(Path("report.json").read_text())
    validate(found)
    assert (ended, found["target"]) == (code, arguments.split()[1])
    places = {(each["code"], each["line"]) for each in found["findings"]}
    if finding is None:
        assert not {each["severity"] for each in found["findings"]} & {"error", "warning"}
    else:
        assert finding in places
        assert f"{arguments.split()[1].partition(':')[0]}:{finding[1]}  {finding[0]}" in text


def test_metrics_follow_the_options() -> None:
    found = data("emulate", "clean.py:step", "--batch-size", "3", "--steps", "2")["metrics"]
    assert (found["batch_size"], found["steps"]) == (3, 2)
    assert data("lint", "clean.py:step", "--batch-sizes", "3,5")["metrics"]["batch_sizes"] == [3, 5]


def test_package_module_and_checkpoint_are_targets(folder: Path) -> None:
    (folder / "steps").mkdir()
    (folder / "steps" / "decode.py").write_text(INPUTS + STEPS["clean"])
    assert graph("lint", "steps.decode:step", "--batch-sizes", "2")[0] == 0
    found = data("lint", "demo", "--batch-sizes", "2", "--variants", "2")
    assert found["target"] == "demo"
    assert found["metrics"]["by_batch_size"]["2"]["calls"] > 50


def test_what_the_step_prints_goes_to_stderr(folder: Path) -> None:
    step = "    os.system('echo of a child')\n    print('of Python')\n    return x\n"
    (folder / "noisy.py").write_text(f"import os\nprint('at import')\n{INPUTS}def step(x):\n{step}")
    command = [sys.executable, "-m", "ostinato.graphs.inspect", "capture", "noisy.py:step", "--no-lint"]
    done = subprocess.run([*command, "--batch-sizes", "2", "--json", "-"], capture_output=True, text=True)
    assert json.loads(done.stdout)["kind"] == "ostinato-graph"
    assert all(each in done.stderr for each in ("at import", "of a child", "of Python"))


def test_startup_compiles_the_sizes_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from ostinato.graphs.inspect.dynamo import startup

    def compiled(target: Target, *, batch_sizes: tuple[int, ...]) -> dict[str, Any]:
        phases = [
            {"name": "dynamo", "batch_size": size, "start": 0.0, "seconds": 2.0, "cache": None, "why": "traced"}
            for size in batch_sizes
        ]
        return {"schema": 1, "kind": "ostinato-startup", "target": target.name, "phases": phases, "seconds": 4.0}

    monkeypatch.setattr(startup, "startup_target", compiled)
    code, text, _ = graph("startup", "clean.py:step", "--batch-sizes", "2,5")
    assert (code, text.splitlines()[0]) == (0, "clean.py:step: 4.00 s to start")
    found = data("startup", "clean.py:step", "--batch-sizes", "2,5")
    assert [phase["batch_size"] for phase in found["phases"]] == [2, 5]


# ------------------------------------------------------------------------------------------------------------- capture


def test_capture_holds_the_findings_of_lint(saved: Path) -> None:
    found = json.loads(saved.read_text())
    assert list(found["graphs"]) == ["2", "4"]
    assert {(each["code"], each["line"]) for each in found["findings"]} >= {("device-sync", 7), ("frozen-value", 7)}
    assert any(line.startswith("streams") for line in found["not_checked"])


def test_capture_without_lint_has_no_findings() -> None:
    code, text, _ = graph("capture", "faulty.py:step", "--batch-sizes", "2", "--no-lint", "-o", "a.ograph.gz")
    assert (code, "not linted" in text) == (0, True)
    assert data("show", "a.ograph.gz")["rows"]
    assert data("capture", "faulty.py:step", "--batch-sizes", "2", "--no-lint")["findings"] == []


def test_capture_and_its_dry_run_are_different_processes(folder: Path) -> None:
    """What a library keeps of a pretended device must not be there at the capture."""
    note = "import os\nwith open('processes', 'a') as file:\n    print(os.getpid(), file=file)\n"
    (folder / "noted.py").write_text(note + INPUTS + STEPS["clean"])
    (folder / "inspect.py").write_text("raise RuntimeError('a neighbour hides a module of Python')")
    code, _, err = graph("capture", "noted.py:step", "--batch-sizes", "2", "-o", "noted.ograph")
    assert (code, err) == (0, "")
    of_lint, of_capture = (folder / "processes").read_text().split()
    assert of_lint != of_capture == str(os.getpid())


# --------------------------------------------------------------------------------------------------------- saved files


def test_saved_capture_is_shown_compared_and_measured(saved: Path) -> None:
    code, text, _ = graph("show", str(saved), "--batch-size", "2")
    assert code == 0
    assert "batch size 2:" in text and "faulty.py:7" in text
    for by, first in (("module", "(outside of modules)"), ("line", "faulty.py:7 step"), ("kernel", "mul.Tensor")):
        assert first in graph("show", str(saved), "--by", by)[1]
        assert first in {row["name"] for row in data("show", str(saved), "--by", by)["rows"]}
    assert "run.ograph@2" in graph("diff", f"{saved}@2", f"{saved}@4")[1]
    assert data("diff", f"{saved}@2", f"{saved}@4")["totals"]["batch size"] == [2, 4]
    assert "external" in graph("memory", str(saved))[1]
    assert list(data("memory", str(saved))["graphs"]) == ["2", "4"]


def test_sizes_take_a_histogram_a_cost_and_the_sizes_of_now(saved: Path) -> None:
    assert "capture_sizes=[1, 8]" in graph("sizes", "traffic.json", "--max-graphs", "2")[1]
    options = ("--memory-limit", "15MiB", "--cost", str(saved), "--current", "2,8")
    found = data("sizes", "traffic.json", "--max-graphs", "3", *options)
    assert (found["kind"], found["current"], found["unit"]) == ("ostinato-sizes", [2, 8], "seconds")
    assert found["memory_limit"] == 15 << 20


def test_timeline_splits_the_gaps(folder: Path) -> None:
    parts = {"prepare": 0.001, "launch": 0.001, "sample": 0.0, "wait": 0.0, "gap": 0.002}
    steps = [{"start": 0.01 * n, "batch_size": 2, "rows": 2, "kind": "decode", **parts} for n in range(3)]
    head = {"schema": 1, "kind": "ostinato-timeline", "target": "decode", "environment": {}}
    (folder / "timeline.json").write_text(json.dumps({**head, "steps": steps}))
    assert "largest gaps" in graph("timeline", "timeline.json")[1]
    assert data("timeline", "timeline.json")["summary"]["gap"]["median"] == 0.002


def test_profilers_trace_becomes_a_timeline_that_other_commands_read(folder: Path) -> None:
    def event(kind: str, name: str, at: int, replay: int) -> dict[str, Any]:
        place = {"pid": 1, "tid": 1, "ts": at, "dur": 10}
        return {"ph": "X", "cat": kind, "name": name, **place, "args": {"correlation": replay}}

    names = (("cuda_runtime", "cudaGraphLaunch", 0), ("kernel", "mm", 5))
    events = [event(kind, name, at + 100 * replay, replay) for replay in range(3) for kind, name, at in names]
    (folder / "trace.json").write_text(json.dumps({"traceEvents": events}))
    assert graph("timeline", "trace.json", "--json", "timeline.json")[0] == 0
    assert graph("report", "timeline.json", "-o", "page.html")[::2] == (0, "")
    assert graph("check", "timeline.json", "--write", "gates.toml")[::2] == (0, "")


def test_page_holds_all_files_and_compares_two(saved: Path) -> None:
    graph("sizes", "traffic.json", "--max-graphs", "2", "--json", "sizes.json")
    assert graph("report", str(saved), "sizes.json", "-o", "page.html")[0] == 0
    page = Path("page.html").read_text()
    assert "Batch sizes" in page and "device-sync" in page
    assert graph("report", str(saved), str(saved), "-o", "page.html", "--diff")[0] == 0
    assert "What changed" in Path("page.html").read_text()
    assert graph("report", "sizes.json", "-o", "page.html", "--diff")[0] == 2


def test_written_gates_hold_until_a_number_moves(saved: Path, folder: Path) -> None:
    assert graph("check", str(saved), "--write", "gates.toml")[0] == 0
    assert graph("check", str(saved), "--gate", "gates.toml")[0] == 0
    moved = json.loads(saved.read_text())
    moved["findings"].append(moved["findings"][0])
    (folder / "moved.ograph").write_text(json.dumps(moved))
    code, text, _ = graph("check", "moved.ograph", "--gate", "gates.toml")
    assert code == 1
    assert "findings.error: 2 -> 3" in text
    assert data("check", "moved.ograph", "--gate", "gates.toml")["broken"][0]["new"] == 3


# -------------------------------------------------------------------------------------------- what the tool cannot run

WRONG = [
    ("lint", "Missing argument"),
    ("lint nowhere.py:step", "no file nowhere.py"),
    ("lint clean.py:nope", "no function 'nope' there; it has make_inputs, step"),
    ("lint clean.py", "expected file.py:function"),
    ("lint no.such:step", "no module 'no'"),
    ("lint nosuchmodel", "nosuchmodel"),
    ("lint plain.py:step", "plain.py has no function make_inputs"),
    ("lint broken.py:step", "SyntaxError"),
    ("lint no_tuple.py:step", "make_inputs returned Tensor"),
    ("lint no_inputs.py:step", "raised OSError: no disk"),
    ("lint raising.py:step", "raised ValueError: no good"),
    ("emulate raising.py:step", "raised ValueError: no good"),
    ("verify raising.py:step", "raised ValueError: no good"),
    ("breaks raising.py:step", "raised ValueError: no good"),
    ("startup raising.py:step", "raised ValueError: no good"),
    ("capture raising.py:step --no-lint -o x.ograph", "ValueError: no good"),
    ("lint quitting.py:step", "sys.exit(0)"),
    ("lint endless.py:step --time-limit 0.3", "endless.py:8"),
    ("capture endless.py:step --no-lint --time-limit 0.3 -o x.ograph", "ran for more than 0.3 s"),
    ("lint clean.py:step --batch-sizes 0", "--batch-sizes: expected sizes from 1 up"),
    ("lint clean.py:step --batch-sizes 2,x", "got '2,x'"),
    ("emulate clean.py:step --batch-size 0", "--batch-size: expected more than 0"),
    ("emulate clean.py:step --steps none", "--steps"),
    ("lint endless.py:step --time-limit 0", "--time-limit: expected more than 0"),
    ("lint endless.py:step --json .", "cannot write '.'"),
    ("lint endless.py:step --json nowhere/x.json", "a folder that exists"),
    ("capture endless.py:step", "give -o run.ograph"),
    ("capture endless.py:step -o .", "cannot write '.'"),
    ("show nowhere.ograph", "nowhere.ograph: cannot be read"),
    ("show clean.py", "clean.py: not JSON: line 2"),
    ("show traffic.json", "not a saved capture"),
    ("show {saved} --batch-size 3", "there are 2, 4"),
    ("show {saved} --by colour", "'colour' is none of"),
    ("diff {saved}@2 {saved}@3", "there are 2, 4"),
    ("memory foreign.ograph", "schema is 2; this version reads 1; a newer ostinato wrote it"),
    ("timeline {saved}", "kind is 'ostinato-graph'"),
    ("sizes traffic.json", "--max-graphs"),
    ("sizes traffic.json --max-graphs 0", "--max-graphs: expected more than 0"),
    ("sizes traffic.json --max-graphs 2 --memory-limit much", "memory limit: expected bytes"),
    ("sizes traffic.json --max-graphs 2 --current a", "--current: expected sizes"),
    ("report {saved}", "-o"),
    ("report {saved} -o .", "cannot write '.'"),
    ("report traffic.json -o page.html", "traffic.json"),
    ("report traffic.json -o traffic.json", "is one of the files to read"),
    ("check {saved}", "one of the two"),
    ("check {saved} --gate nowhere.toml", "nowhere.toml: cannot be read"),
    ("check {saved} --gate empty.toml", "no gate in it"),
    ("check traffic.json --gate one.toml", "not a file of this tool"),
    ("check traffic.json --write gates.toml", "traffic.json"),
    ("nosuch", "nosuch"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[arguments for arguments, _ in WRONG])
def test_mistake_is_one_line_and_exit_code_2(arguments: str, message: str, saved: Path, folder: Path) -> None:
    (folder / "foreign.ograph").write_text('{"schema": 2, "kind": "ostinato-graph"}')
    (folder / "empty.toml").write_text("")
    (folder / "one.toml").write_text("[findings]\nerror = 0\n")
    before = set(folder.iterdir())
    code, out, err = graph(*arguments.format(saved=saved).split())
    *_, last = err.splitlines()
    assert (code, out) == (2, "")
    assert last.startswith("error: ") and message in last
    assert "Traceback" not in err
    assert {path for path in set(folder.iterdir()) - before if path.name != "__pycache__"} == set()


def test_what_is_not_foreseen_is_an_error_of_the_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    from ostinato.graphs.inspect.numbers import sizes_file
    from ostinato.layers.errors import CaptureError

    def fails(error: Exception) -> Callable[..., None]:
        def advise(*_: object, **__: object) -> None:
            raise error

        return advise

    monkeypatch.setattr(sizes_file, "advise_files", fails(KeyError("x")))
    code, _, err = graph("sizes", "traffic.json", "--max-graphs", "2")
    assert (code, err) == (2, "error: KeyError: 'x' (unexpected: --debug shows where)\n")
    code, _, err = graph("sizes", "traffic.json", "--max-graphs", "2", "--debug")
    assert code == 2
    assert "Traceback" in err and "in advise" in err
    monkeypatch.setattr(sizes_file, "advise_files", fails(CaptureError("refused")))
    assert graph("sizes", "traffic.json", "--max-graphs", "2")[::2] == (2, "error: refused\n")


def test_module_runs_as_the_command_does(saved: Path) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "ostinato.graphs.inspect", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    assert run("memory", str(saved)) == graph("memory", str(saved))
    assert run("lint", "demo") == (
        2,
        "",
        "error: target 'demo': expected file.py:function or package.module:function\n",
    )
    assert run("memory")[::2] == graph("memory")[::2]
    assert "Traceback" in run("memory", "nowhere", "--debug")[2]


def test_ctrl_c_ends_with_130_and_no_traceback(folder: Path) -> None:
    step = "import pathlib\ndef step(x):\n    pathlib.Path('runs').touch()\n    while True:\n        x = x + 1"
    (folder / "waits.py").write_text(INPUTS + step)
    command = [sys.executable, "-m", "ostinato.graphs.inspect", "lint", "waits.py:step"]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    while not Path("runs").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "")


def test_reader_that_goes_away_changes_no_exit_code(saved: Path, folder: Path) -> None:
    (folder / "gates.toml").write_text("[findings]\nerror = 0\n")
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "ostinato.graphs.inspect", "check", str(saved), "--gate", "gates.toml"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
