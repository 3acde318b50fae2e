"""Gates: what breaks them, what they say then, and that a file written from the truth passes."""

from __future__ import annotations

import copy
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ostinato.graphs.inspect.capturing.ograph import Buffer, LineBytes, Memory, Node, OGraph, Op, SizeGraph
from ostinato.graphs.inspect.numbers.gates import check, read_gates
from ostinato.graphs.inspect.numbers.gates_writer import write_gates
from ostinato.graphs.inspect.numbers.sizes import advise
from ostinato.graphs.inspect.report import Finding, Report
from ostinato.layers.errors import ConfigError


def op(index: int, name: str, line: int, function: str = "step") -> Op:
    return Op(index, name, None, "", "/home/x/step.py", line, function, (), (), "", 0, 0, 0, None, None, (index, 1))


def capture(*ops: tuple[str, int]) -> dict[str, Any]:
    """A capture of one size with these ops, a node for each, and 100 bytes of each line."""
    found = tuple(op(index, name, line) for index, (name, line) in enumerate(ops))
    nodes = tuple(Node(index, "kernel", f"k_{each.op}", op=index) for index, each in enumerate(found))
    memory = Memory(100 * len(ops), 0, None, 0, tuple(LineBytes("/home/x/step.py", line, 100) for _, line in ops))
    graph = SizeGraph(8, "kernel", found, nodes, (), {"x": Buffer("input", 4, (1,), "float32")}, memory, 0.5)
    return json.loads(json.dumps(OGraph("step.py:step", {}, {8: graph}).as_dict()))


OLD = capture(("aten.mm.default", 10), ("aten.add.Tensor", 11))
NEW = capture(("aten.mm.default", 12), ("aten.copy_.default", 13), ("aten.copy_.default", 14), ("aten.add.Tensor", 15))


def broken(data: dict[str, Any], toml: str, folder: Path, baseline: dict[str, Any] | None = None) -> list[Any]:
    if baseline is not None:
        (folder / "old.ograph").write_text(json.dumps(baseline))
        toml = f'baseline = "old.ograph"\n{toml}'
    (folder / "gates.toml").write_text(toml)
    return check(data, read_gates(folder / "gates.toml"))


def test_a_count_that_moved_names_old_new_and_the_line(tmp_path: Path) -> None:
    toml = '[[gate]]\npath = "graphs.8.nodes"\nequals = 2\nwhy = "each is 2 us"\n'
    (gate,) = broken(NEW, toml, tmp_path, OLD)
    assert (gate.path, gate.old, gate.new, gate.limit, gate.why) == (
        "graphs.8.nodes",
        2,
        4,
        "exactly 2",
        "each is 2 us",
    )
    assert gate.moved == ("step.py:13, step.py:14 in step: aten.copy_.default 0 -> 2",)
    assert str(gate).splitlines()[0] == "graphs.8.nodes: 2 -> 4, expected exactly 2 (each is 2 us)"
    assert broken(OLD, toml, tmp_path, OLD) == []


def test_lines_kept_in_the_gates_do_without_a_baseline(tmp_path: Path) -> None:
    toml = write_gates(OLD)
    moved = {gate.path: gate.moved for gate in broken(NEW, toml, tmp_path)}
    assert moved["graphs.8.ops"] == ("step.py:13, step.py:14 in step: aten.copy_.default 0 -> 2",)
    gone = {gate.path: gate.moved for gate in broken(capture(("aten.mm.default", 9)), toml, tmp_path)}
    assert gone["graphs.8.ops"] == ("step.py in step: aten.add.Tensor 1 -> 0 (the line is gone)",)


def test_bytes_name_the_lines_that_allocate(tmp_path: Path) -> None:
    toml = '[[gate]]\npath = "graphs.8.memory.own_bytes"\nat_most = 200\n'
    (gate,) = broken(capture(("a", 10), ("b", 11), ("c", 12)), toml, tmp_path, OLD)
    assert (gate.old, gate.new) == (200, 300)
    assert gate.moved == ("step.py:12: bytes of line 12 0 -> 100",)


@pytest.mark.parametrize(
    ("kind", "limit", "holds"),
    [
        ("equals", 4, True),
        ("equals", 5, False),
        ("at_most", 4, True),
        ("at_most", 3, False),
        ("at_least", 4, True),
        ("at_least", 5, False),
    ],
)
def test_every_kind_of_limit(kind: str, limit: int, holds: bool, tmp_path: Path) -> None:
    assert (broken(NEW, f'[[gate]]\npath = "graphs.8.ops"\n{kind} = {limit}\n', tmp_path) == []) == holds


def report(*findings: Finding) -> dict[str, Any]:
    metrics = {"recompiles": 2, "by.size": {"8": {"ops": 49}}, "seconds": 0.5, "ok": True}
    data = Report("step.py:step", {}, findings, metrics, ("streams",)).as_dict()
    return json.loads(json.dumps(data))


RNG = Finding.of("rng", "error", ("step.py", 7), "torch.rand repeats")
SYNC = Finding.of("device-sync", "error", ("step.py", 9), "Tensor.item waits")
BREAK = Finding.of("graph-break", "warning", ("step.py", 3), "print")


def test_findings_have_limits_by_severity_and_code(tmp_path: Path) -> None:
    data = report(RNG, SYNC, BREAK)
    toml = "[findings]\nerror = 1\nwarning = 1\nrng = 0\n"
    errors, code = broken(data, toml, tmp_path, report(RNG))
    assert (errors.path, errors.old, errors.new) == ("findings.error", 1, 2)
    assert errors.moved == ("step.py:9  device-sync: Tensor.item waits",)  # the new one, not the old
    assert (code.path, code.new) == ("findings.rng", 1)
    assert broken(data, "[findings]\nerror = 2\n", tmp_path) == []


def test_keys_with_dots_and_entries_of_lists_are_found(tmp_path: Path) -> None:
    data = report(RNG)
    toml = "".join(
        f"[[gate]]\npath = {json.dumps(path)}\nequals = {json.dumps(value)}\n"
        for path, value in [
            ("metrics.by.size.8.ops", 49),
            ("findings.0.line", 7),
            ("verdict", "findings"),
            ("metrics.ok", True),
            ("not_checked", ["streams"]),
            ("not_checked", 1),
        ]
    )
    assert broken(data, toml, tmp_path) == []


def test_an_unknown_path_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"graphs\.8\.node: there is no such value.*nearest is graphs\.8\.nodes"):
        broken(OLD, '[[gate]]\npath = "graphs.8.node"\nequals = 1\n', tmp_path)
    with pytest.raises(ConfigError, match=r"the nearest is graphs\.8$"):
        broken(OLD, '[[gate]]\npath = "graphs.16"\nequals = 1\n', tmp_path)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("gates = 1", "unknown gates"),
        ("[[gate]]\nequals = 1", "gate 1: path is missing"),
        ('[[gate]]\npath = "a"', r"gate 1 \(a\): 0 limits"),
        ('[[gate]]\npath = "a"\nequals = 1\nat_most = 2', "2 limits"),
        ('[[gate]]\npath = "a"\nmost = 1', "unknown most"),
        ('[[gate]]\npath = "a"\nat_most = "x"', "at_most: expected a number, got 'x'"),
        ('[gate]\npath = "a"', "two brackets"),
        ("[findings]\nerrors = 0", "findings.errors: expected one of error, warning"),
        ("[findings]\nerror = -1", "how many are allowed"),
        ("[findings", "not TOML"),
        ('baseline = "nowhere.ograph"', "nowhere.ograph: cannot be read"),
        ('[[gate]]\npath = "target"\nequals = 3', "'step.py:step', which cannot be compared with 3"),
    ],
)
def test_a_bad_gates_file_is_refused_by_name(toml: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        broken(OLD, toml, tmp_path)


def timeline() -> dict[str, Any]:
    step = {"start": 0.0, "batch_size": 4, "rows": 3, "kind": "decode", "prepare": 2e-4, "launch": 1e-5}
    steps = [{**step, "start": n * 1e-3, "sample": 1e-4, "wait": 5e-4, "gap": 3e-4} for n in range(5)]
    return {"schema": 1, "kind": "ostinato-timeline", "target": "t", "environment": {}, "steps": steps}


STARTUP = {"schema": 1, "kind": "ostinato-startup", "target": "t", "environment": {}, "seconds": 2.5} | {
    "phases": [{"name": "dynamo", "batch_size": 1, "start": 0, "seconds": 1, "cache": None, "why": ""}]
}


@pytest.mark.parametrize(
    "data",
    [OLD, NEW, report(RNG, BREAK), report(), timeline(), STARTUP, json.loads(json.dumps(advise({3: 5, 9: 2}, 2)))],
    ids=["ograph", "ograph-2", "findings", "clean", "timeline", "startup", "sizes"],
)
def test_what_is_written_from_a_file_passes_and_notices_what_moves(data: dict[str, Any], tmp_path: Path) -> None:
    toml = write_gates(data)
    assert broken(data, toml, tmp_path) == []
    changed = copy.deepcopy(data)
    _grow(changed)
    if data.get("kind") != "ostinato-timeline":  # times only: nothing exact to hold it to
        assert broken(changed, toml, tmp_path) != []


def _grow(data: Any) -> None:
    """Add one to every integer, and repeat the last entry of every list of objects."""
    for name, value in data.items():
        if isinstance(value, dict):
            _grow(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            data[name] = value + 1
        elif name in ("phases", "findings", "not_checked", "best", "ops") and value:
            value.append(value[-1])


def test_the_commented_times_are_gates_once_they_are_wanted(tmp_path: Path) -> None:
    toml = write_gates(timeline()).replace("# [[", "[[").replace("# path", "path").replace("# at_most", "at_most")
    assert len(tomllib.loads(toml)["gate"]) == 5
    assert broken(timeline(), toml, tmp_path) == []
    slower = timeline()
    for step in slower["steps"]:
        step["prepare"] *= 2
    (gate,) = broken(slower, toml, tmp_path)
    assert gate.path == "summary.prepare.median"


def test_files_are_checked_from_the_folder_of_the_gates(tmp_path: Path) -> None:
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "old.ograph").write_text(json.dumps(OLD))
    (tmp_path / "ci" / "gates.toml").write_text(
        'baseline = "old.ograph"\n[[gate]]\npath = "graphs.8.ops"\nequals = 2\n'
    )
    (gate,) = check(NEW, read_gates(tmp_path / "ci" / "gates.toml"))
    assert gate.moved
