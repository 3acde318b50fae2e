"""The benchmarks' own tools, on a tiny model and without compiling: they measure what they say. No time is judged."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ostinato import LLM, SamplingParams
from ostinato.models.weights.source import open_source
from ostinato.perf import (
    __main__ as command,
)
from ostinato.perf import (
    bench_batch,
    bench_compile,
    bench_decode,
    bench_host,
    bench_memory,
    bench_prefix,
    bench_ttft,
    plot,
)
from ostinato.perf.checkpoints import SIZES, prepare, write
from ostinato.perf.machine import ReadProbe, this_machine
from ostinato.perf.measure import Summary, interleave, run_child, turns
from ostinato.perf.peer import TransformersPeer
from ostinato.perf.report import Figure, make_report, print_table, read_report, shown
from ostinato.perf.workbench import KV_TOKENS, Workbench

TINY = SIZES["tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(TINY, tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def bench(folder: Path) -> Iterator[Workbench]:
    with Workbench(TINY, folder, execution="eager", rounds=2) as bench:
        yield bench


# measure


def test_contenders_change_places_every_round() -> None:
    assert list(turns("ABC", 3)) == [["A", "B", "C"], ["C", "B", "A"], ["A", "B", "C"]]


def test_interleaved_values_are_in_round_order_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def contender(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    values = interleave({"A": lambda: contender("A"), "B": lambda: contender("B")}, 2)
    assert "".join(calls) == "AB" + "AB" + "BA"
    assert values == {"A": [3.0, 6.0], "B": [4.0, 5.0]}


def test_summary_is_median_and_quartiles() -> None:
    assert Summary.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Summary(3.0, 2.0, 4.0, 5)
    assert Summary.of([7.0]) == Summary(7.0, 7.0, 7.0, 1)
    assert Summary.of([1.0, 2.0]).scaled(10) == Summary(15.0, 12.5, 17.5, 2)


def test_a_ratio_is_taken_within_each_round() -> None:
    """The machine is ten times slower in the second round, for both."""
    assert Summary.of_ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == Summary(2.0, 2.0, 2.0, 3)
    with pytest.raises(ValueError, match="zip"):
        Summary.of_ratio([1.0], [1.0, 2.0])


def test_a_child_gets_arguments_and_environment_and_answers_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import json, os, sys; print('noise'); print(json.dumps([json.loads(sys.argv[1]), os.environ['GIVEN']]))"
    (tmp_path / "echo_child.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_child("echo_child", {"a": 1}, {"GIVEN": "yes"}) == [{"a": 1}, "yes"]


def test_a_child_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad_child.py").write_text("raise SystemExit('no such luck')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"(?s)bad_child ended with code 1.*no such luck"):
        run_child("bad_child", {}, {})


# machine


def test_the_machine_is_named_with_its_threads() -> None:
    machine = this_machine()
    assert machine.threads == torch.get_num_threads()
    assert f"torch {torch.__version__}" in str(machine)
    assert json.loads(json.dumps(machine.as_dict()))["cpu"] == machine.cpu != ""


def test_the_read_probe_scales_to_the_bytes_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ostinato.perf.machine.LEAST_PROBE_BYTES", 1 << 20)
    probe = ReadProbe(1 << 18)
    monkeypatch.setattr(probe, "_once", lambda: 8.0)
    assert probe.seconds() == 2.0


# checkpoints


def test_a_checkpoint_gives_the_same_greedy_tokens_in_ostinato_and_transformers(tmp_path: Path) -> None:
    write(replace(TINY, dtype="float32"), tmp_path, shard_bytes=100_000)
    assert len(list(tmp_path.glob("model-*-of-00005.safetensors"))) == 5
    prompt = list(range(3, 40))
    with LLM(str(tmp_path), execution="eager", kv_cache_memory="1MiB") as llm:
        (output,) = llm.generate(prompt, SamplingParams(temperature=0.0, max_tokens=24))
    expected = TransformersPeer(tmp_path).generate(prompt, 24)
    assert output.outputs[0].token_ids == expected
    assert len(set(expected)) > 8


def test_the_largest_size_is_that_of_qwen3() -> None:
    """PERFORMANCE figures of the model: 0.596 B parameters, 1.192 GB in bf16, 114,688 bytes of KV a token."""
    size = SIZES["qwen3-0.6b"]
    assert (size.num_parameters, size.weight_bytes, size.kv_bytes_per_token) == (596_049_920, 1_192_099_840, 114_688)


def test_sizes_agree_with_the_plan_of_the_engine(bench: Workbench) -> None:
    plan = bench.llm.plan
    assert plan.weight_bytes == TINY.weight_bytes
    assert plan.kv_bytes_per_token == TINY.kv_bytes_per_token
    assert plan.kv_cache_bytes == KV_TOKENS * TINY.kv_bytes_per_token


def test_a_checkpoint_is_written_once(folder: Path) -> None:
    before = (folder / "config.json").stat().st_mtime_ns
    assert prepare(TINY, folder.parent) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before
    assert prepare(replace(TINY, num_layers=1), folder.parent) != folder


def test_an_interrupted_checkpoint_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ostinato.perf.checkpoints._write_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(TINY, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_tensor_is_where_the_index_says(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert set(index["weight_map"]) == {name for name, _ in TINY.tensors()}
    assert index["metadata"]["total_size"] == TINY.weight_bytes
    assert len(open_source(folder).files) == len(set(index["weight_map"].values()))


# the benchmarks

EXPECTED = {
    bench_decode: {
        *("decode.vs_transformers", "decode.vs_eager_attention", "decode.bandwidth_share"),
        *("decode.ms_ostinato", "decode.ms_sdpa", "decode.ms_eager", "decode.ms_floor"),
    },
    bench_ttft: {"ttft.vs_transformers", "ttft.ms_ostinato", "ttft.ms_transformers"},
    bench_prefix: {"prefix.speedup", "prefix.ms_cold", "prefix.ms_warm"},
    bench_batch: {f"batch.tokens_per_second_{batch}" for batch in (1, 2, 4, 8, 16)},
}


@pytest.mark.parametrize("module", EXPECTED, ids=lambda module: module.__name__.rpartition("_")[2])
def test_a_benchmark_gives_its_figures(module: Any, bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ostinato.perf.machine.LEAST_PROBE_BYTES", 1 << 20)
    for constant in {"TOKENS"} & set(vars(module)):
        monkeypatch.setattr(module, constant, 3)
    figures = module.measure(bench)
    assert {figure.name for figure in figures} == EXPECTED[module]
    assert all(figure.value > 0 and figure.rounds == 2 for figure in figures)


def test_host_work_is_measured_with_all_requests_running(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_host, "STEPS", 40)
    monkeypatch.setattr(bench_host, "WARM_UP_STEPS", 4)
    work = bench_host.HostWork(16)
    assert work.decode(1) > (0.0, 0.0, 0.0)
    assert work.scheduler.num_running == 16
    work.scheduler.check()
    figures = bench_host.measure(bench)
    assert [(figure.name, figure.target, figure.bound) for figure in figures] == [
        ("host.us_1", 40.0, "at most"),
        ("host.us_16", 120.0, "at most"),
    ]


def test_a_wrong_number_of_cached_tokens_is_no_measurement(bench: Workbench) -> None:
    prompt = bench.prompt(40)
    bench.seconds_to_first_token(prompt)
    assert bench.seconds_to_first_token(prompt, cached=32) > 0
    with pytest.raises(RuntimeError, match="32 prompt tokens came from the prefix index, not 0"):
        bench.seconds_to_first_token(prompt)


def test_requests_of_a_batch_decode_together(bench: Workbench) -> None:
    before = bench.llm.stats()
    bench.seconds_per_step([bench.prompt(), bench.prompt(), bench.prompt()], 5)
    after = bench.llm.stats()
    assert (after.steps - before.steps, after.mixed_steps - before.mixed_steps) == (5, 1)
    assert after.requests_running == 0


def test_a_start_reports_its_seconds_by_phase(bench: Workbench) -> None:
    start = bench_compile.start(str(bench.folder), {**bench.engine_options, "execution": "eager"})
    assert sum(start["phases"].values()) <= start["seconds"]
    assert start["cpu_seconds"] > 0


def test_resident_memory_is_the_kernels_count() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    before = bench_memory.resident_bytes("VmRSS")
    block = torch.ones(8 << 20)
    assert bench_memory.resident_bytes("VmRSS") - before > 0.9 * block.nbytes
    assert bench_memory.resident_bytes("VmHWM") >= bench_memory.resident_bytes("VmRSS")
    with pytest.raises(RuntimeError, match="VmNothing"):
        bench_memory.resident_bytes("VmNothing")


# report


@pytest.mark.parametrize(
    ("value", "target", "bound", "met"),
    [
        (2.0, 1.8, "at least", True),
        (1.7, 1.8, "at least", False),
        (8.0, 8.0, "at most", True),
        (9.0, 8.0, "at most", False),
    ],
)
def test_a_target_is_met_on_its_side(value: float, target: float, bound: Any, met: bool) -> None:
    assert Figure("x", value, "x", target, bound).met is met


def test_targets_count_for_the_size_they_were_stated_for() -> None:
    figure = Figure("x", 2.0, "x", 1.8)
    (row,) = make_report("qwen3-0.6b", {}, "a machine", [figure])["figures"]
    assert (row["target"], row["met"], row["machine"]) == (1.8, True, "a machine")
    (row,) = make_report("tiny", {}, "a machine", [figure])["figures"]
    assert (row["target"], row["met"]) == (None, None)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0218, "0.0218"), (1.8, "1.80"), (35.0, "35"), (33.449, "33.4"), (912.3, "912"), (45797.4, "45,797")],
)
def test_numbers_are_shown_with_three_digits(value: float, text: str) -> None:
    assert shown(value) == text


def test_the_table_shows_value_target_and_a_missed_one(capsys: pytest.CaptureFixture[str]) -> None:
    figures = [
        Figure.of("decode.x", Summary(1.5, 1.4, 1.6, 6), "x", target=1.8, note="what"),
        Figure("y", 3, "s", 8, "at most"),
    ]
    print_table(make_report("qwen3-0.6b", {}, "a machine", figures))
    out = capsys.readouterr().out
    first, second = (next(line for line in out.splitlines() if name in line).split() for name in ("decode.x", " y "))
    assert first == ["decode.x", "1.50", "x", "1.40", "…", "1.60", "≥", "1.80", "no", "what"]
    assert second == ["y", "3", "s", "≤", "8", "yes"]
    assert "a machine" in out


# the command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--only decod", "no benchmark is called 'decod'; did you mean decode?"),
        ("--only decode,x", "no benchmark is called 'x': there are compile"),
        ("--rounds 0", "a number of rounds from 1 to 1,000, got '0'"),
        ("--size huge", "invalid choice: 'huge'"),
        ("--json nowhere/report.json", "--json: cannot write nowhere/report.json"),
        ("--plot picture.gif", "ends in .png or .svg"),
        ("--plot picture.png --only host", "--only leaves it out"),
        ("--read missing.json", "missing.json: No such file"),
    ],
)
def test_a_wrong_argument_is_one_line_and_code_2(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        command.main(arguments.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_names_in_the_command_are_those_of_the_parts() -> None:
    assert set(command.SIZE_NAMES) == set(SIZES)
    for name in command.BENCHES:
        assert (Path(bench_host.__file__).parent / f"bench_{name}.py").is_file()


def test_a_run_ends_in_one_json_object_which_can_be_read_and_plotted_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(bench_decode, "TOKENS", 3)
    file = tmp_path / "report.json"
    options = ["--size", "tiny", "--execution", "eager", "--rounds", "1", "--only", "decode,host", "--json"]
    assert command.main([*options, str(file)]) == 0
    table, last = capsys.readouterr().out.rstrip("\n").rsplit("\n", 1)
    report = json.loads(last)
    assert report == read_report(file)
    assert {"schema", "size", "machine", "machine_label", "figures", "execution", "seconds", "load_before"} == set(
        report
    )
    for row in report["figures"]:
        keys = "name value unit target bound note low high rounds met detail machine"
        assert set(row) == set(keys.split())
        assert row["name"] in table
        assert row["machine"] == report["machine_label"]
    assert [row["value"] for row in report["figures"] if row["name"].startswith("engine.")] == [0, 0]

    pytest.importorskip("matplotlib")
    picture = tmp_path / "latency.png"
    assert command.main(["--read", str(file), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert picture.stat().st_size > 10_000


def test_a_report_without_decode_cannot_be_plotted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps(make_report("tiny", {}, "a machine", [Figure("x", 1, "x")])), encoding="utf-8")
    with pytest.raises(SystemExit):
        command.main(["--read", str(file), "--plot", str(tmp_path / "p.png")])
    assert "has no decode.ms_eager, decode.ms_floor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is no JSON file"), ("[]", "schema is None"), ('{"schema": 1}', "is 1")]
)
def test_a_foreign_file_is_no_report(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_report(file)


def test_plotting_needs_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(plot, "can_plot", lambda: False)
    with pytest.raises(SystemExit):
        command.main(["--plot", "picture.png"])
    assert "pip install 'ostinato[perf]'" in capsys.readouterr().err


def test_arguments_are_checked_without_torch() -> None:
    import subprocess

    code = "import sys, ostinato.perf.__main__ as m; m._parser(); print('torch' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
