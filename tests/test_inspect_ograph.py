"""Captures at op level: what a run says of its ops, the saved file, and the tables made of it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ostinato.graphs.inspect.capturing import costs
from ostinato.graphs.inspect.capturing.attribution import NodeWatch, owners
from ostinato.graphs.inspect.capturing.buffer_names import names_of
from ostinato.graphs.inspect.capturing.capture import capture
from ostinato.graphs.inspect.capturing.diff_text import diff_text
from ostinato.graphs.inspect.capturing.graph_diff import graph_diff, load_size
from ostinato.graphs.inspect.capturing.ograph import Node, OGraph, Op, Parameter, SizeGraph
from ostinato.graphs.inspect.capturing.op_record import DIRECT_LAUNCH, record_step
from ostinato.graphs.inspect.capturing.op_times import HostClock, StateKeeper, median_seconds
from ostinato.graphs.inspect.capturing.pool_memory import memory_text
from ostinato.graphs.inspect.capturing.show import show
from ostinato.graphs.inspect.target import TargetError
from ostinato.graphs.inspect.tracing.listening_mode import ListeningMode
from ostinato.layers.errors import ConfigError

WIDTH, SLOTS = 16, 8


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, cache: Tensor, position: Tensor) -> Tensor:
        cache.index_copy_(1, position, x[:, None])
        return x + self.down(self.up(cache.mean(1)))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(WIDTH, 100, bias=False)

    def forward(self, ids: Tensor, caches: list[Tensor], position: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, cache, position)
        return self.head(x)


MODEL = Model()


def decode(ids: Tensor, caches: list[Tensor], position: Tensor) -> Tensor:
    logits = MODEL(ids, caches, position)
    position.add_(1)
    return logits.argmax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Any, ...]:
    caches = [torch.zeros(batch_size, SLOTS, WIDTH) for _ in range(2)]
    return torch.zeros(batch_size, dtype=torch.int64), caches, torch.tensor([3])


@pytest.fixture(scope="module")
def ograph() -> OGraph:
    return capture(decode, make_inputs, batch_sizes=(4, 1), name="decode")


def line_of(text: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def ops_named(graph: SizeGraph, name: str) -> list[Op]:
    return [op for op in graph.ops if costs_name(op) == name]


def costs_name(op: Op) -> str:
    return op.op.split(".")[1]


# What is recorded.


def test_each_op_has_its_line_module_and_the_function_that_was_called(ograph: OGraph) -> None:
    products = ops_named(ograph.at(4), "mm")
    assert [op.module for op in products] == [
        "MODEL.layers.0.up",
        "MODEL.layers.0.down",
        "MODEL.layers.1.up",
        "MODEL.layers.1.down",
        "MODEL.head",
    ]
    assert {op.line for op in products[:4]} == {line_of("self.down(self.up(")}
    assert {op.function for op in products[:4]} == {"Layer.forward"}
    assert {op.api for op in products} == {"torch.nn.functional.linear"}
    assert all(op.file == __file__ for op in ograph.at(4).ops)


def test_bytes_and_operations_come_from_shapes(ograph: OGraph) -> None:
    up = ops_named(ograph.at(4), "mm")[0]
    assert (up.bytes_read, up.bytes_written) == (4 * (4 * 16 + 16 * 64), 4 * 4 * 64)
    assert up.flops == 2 * 4 * 16 * 64
    assert up.shapes == "[4, 16] x [16, 64] -> [4, 64]"


def test_buffers_are_named_by_argument_and_module(ograph: OGraph) -> None:
    graph = ograph.at(4)
    up = ops_named(graph, "mm")[0]
    assert up.inputs == (up.inputs[0], "MODEL.layers.0.up.weight")
    kinds = {name: graph.buffers[name].kind for name in ("ids", "caches[1]", "position", "MODEL.embed.weight")}
    assert kinds == {"ids": "input", "caches[1]": "input", "position": "input", "MODEL.embed.weight": "weight"}
    outputs = [name for name, buffer in graph.buffers.items() if buffer.kind == "output"]
    assert outputs == list(ops_named(graph, "argmax")[0].outputs)
    assert graph.buffers[up.inputs[0]].kind == "pool"
    assert graph.buffers["MODEL.layers.0.up.weight"].shape == (64, 16)


def test_ops_are_timed_and_held_against_the_bandwidth(ograph: OGraph) -> None:
    graph = ograph.at(4)
    assert all(op.seconds is not None and op.seconds > 0 for op in graph.ops)
    shares = [op.of_bandwidth for op in graph.ops if op.bytes]
    assert all(share is not None and 0 < share <= 1 for share in shares)
    assert ograph.environment["read_bandwidth"] > 1e8
    assert graph.replay_seconds is not None and graph.eager_seconds is not None


def test_state_is_put_back_before_each_timed_run() -> None:
    """The position would leave the cache after five steps; capturing takes more."""
    graph = capture(decode, make_inputs, batch_sizes=(1,)).at()
    assert graph.replay_seconds is not None


def test_inference_mode_is_taken_apart_into_the_same_ops() -> None:
    inside = torch.inference_mode()(decode)
    names = [op.op for op in capture(inside, make_inputs, batch_sizes=(1,)).at().ops]
    assert names == [op.op for op in capture(decode, make_inputs, batch_sizes=(1,)).at().ops]


def test_compiled_functions_are_described_as_what_they_were_made_of() -> None:
    compiled = torch.compile(decode)
    names = [op.op for op in capture(compiled, make_inputs, batch_sizes=(1,)).at().ops]
    assert names.count("aten.mm.default") == 5


def test_a_step_that_raises_is_blamed_with_its_batch_size() -> None:
    def broken(x: Tensor) -> Tensor:
        return x @ x

    with pytest.raises(TargetError, match="broken: batch size 2: RuntimeError"):
        capture(broken, lambda batch_size: (torch.zeros(batch_size, 3),), batch_sizes=(2,), name="broken")
    with pytest.raises(ConfigError, match="at least one, each 1 or more"):
        capture(decode, make_inputs, batch_sizes=(0, 1))


def test_two_runs_that_differ_give_no_times_and_say_so() -> None:
    calls = []

    def growing(x: Tensor) -> Tensor:
        calls.append(1)
        for _ in calls:
            x = x + 1
        return x

    saved = capture(growing, lambda batch_size: (torch.zeros(batch_size),), batch_sizes=(1,))
    assert saved.at().replay_seconds is None and all(op.seconds is None for op in saved.at().ops)
    assert any("did not call the same" in note for note in saved.not_checked)


# Memory.


def test_the_peak_is_what_python_holds_by_line() -> None:
    def step(x: Tensor) -> Tensor:
        held = x + 1  # 400 bytes, held to the end
        for _ in range(3):
            x = x * 2  # while the second is made the first is alive
        return x.sum() + held.sum()

    memory = capture(step, lambda batch_size: (torch.zeros(100),), batch_sizes=(1,)).at().memory
    lines = {line.line: line.bytes for line in memory.by_line}
    assert lines == {line_of("held = x + 1"): 400, line_of("x = x * 2  #"): 800}
    assert memory.own_bytes + memory.shared_bytes == 1200
    assert memory.external_bytes == 400 and memory.exec_bytes is None


def test_smaller_sizes_find_their_bytes_in_the_pool_of_the_largest(ograph: OGraph) -> None:
    large, small = ograph.at(4).memory, ograph.at(1).memory
    assert large.shared_bytes == 0 and large.own_bytes > small.shared_bytes > 0
    assert small.own_bytes == 8  # its result: one token of eight bytes
    assert sum(line.bytes for line in small.by_line) == small.own_bytes + small.shared_bytes


# What an operation costs.

X, TABLE, INDEX = torch.ones(4, 8), torch.ones(100, 8), torch.tensor([1, 2, 3])
aten = torch.ops.aten


@pytest.mark.parametrize(
    ("op", "args", "read", "written"),
    [
        (aten.add.Tensor, (X, X), 256, 128),
        (aten.add.Tensor, (X, TABLE[:1].expand(4, 8)), 128 + 32, 128),
        (aten.t.default, (X,), 0, 0),
        (aten.slice.Tensor, (X, 0, 0, 2), 0, 0),
        (aten.add_.Tensor, (X.clone(), X), 256, 128),
        (aten.copy_.default, (X.clone(), X), 128, 128),
        (aten.fill_.Scalar, (X.clone(), 1.0), 0, 128),
        (aten.embedding.default, (TABLE, INDEX), 24 + 96, 96),
        (aten.index_select.default, (TABLE, 0, INDEX), 24 + 96, 96),
        (aten.index_copy_.default, (TABLE.clone(), 0, INDEX, X[:3]), 24 + 96, 96),
        (aten.index_put_.default, (TABLE.clone(), [INDEX], X[:3]), 24 + 96, 96),
        (aten.empty_like.default, (X,), 0, 0),
        (aten.ones_like.default, (X,), 128, 128),
        (aten.sum.dim_IntList, (X, [1]), 128, 16),
        (aten.mm.out, (X, X.t(), torch.empty(4, 4)), 256, 64),
    ],
    ids=lambda value: str(value) if not isinstance(value, tuple) else "",
)
def test_traffic_of(op: Any, args: tuple[Any, ...], read: int, written: int) -> None:
    kwargs: dict[str, Any] = {}
    if op is aten.mm.out:
        args, kwargs = args[:2], {"out": args[2]}
    assert costs.traffic(op, args, kwargs, op(*args, **kwargs)) == (read, written)


def test_attention_is_counted_on_a_cpu_too() -> None:
    q = torch.ones(2, 3, 5, 8)

    class Seen(ListeningMode):
        flops = 0

        def called(self, op: Any, args: Any, kwargs: Any) -> Any:
            result = op(*args, **kwargs)
            self.flops += costs.flops(op, args, kwargs, result)
            return result

    with Seen() as seen:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert seen.flops == 2 * (2 * 2 * 3 * 5 * 5 * 8)


# Names.


def test_what_a_step_reaches_is_named() -> None:
    table = torch.zeros(3)
    other = nn.Linear(2, 2)

    def looked_up() -> Tensor:
        return table

    def step(rows: dict[str, Tensor], *rest: Tensor) -> Tensor:
        return other(rows["x"]) + looked_up() + rest[0] + MODEL.head.weight

    tensors = names_of(step, ({"x": torch.zeros(2)}, torch.zeros(1))).tensors
    assert tensors["rows['x']"][1] == "input" and tensors["rest[0]"][1] == "input"
    assert tensors["table"] == (table, "state")
    assert tensors["other.weight"] == (other.weight, "weight")
    assert "MODEL.layers.1.down.weight" in tensors


def test_bound_methods_and_modules_are_looked_into() -> None:
    layer = Layer()
    assert {"up.weight", "down.weight"} == set(names_of(layer, ()).tensors)
    assert {"up.weight", "down.weight"} == set(names_of(layer.forward, ()).tensors)


# Node to op, on a made-up graph that grows by one node with each op that is no view.


def test_every_node_gets_an_op_also_those_launched_beside_operators() -> None:
    nodes: list[int] = []

    class Launches(ListeningMode):
        def called(self, op: Any, args: Any, kwargs: Any) -> Any:
            result = op(*args, **kwargs)
            if not op.is_view:
                nodes.append(100 - len(nodes))
            return result

    def launch_by_hand() -> None:
        nodes.append(100 - len(nodes))

    class Direct(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            launch_by_hand()
            return x

    direct = nn.Sequential(Direct())

    def step(x: Tensor) -> Tensor:
        x = direct(x.t() + 1)
        launch_by_hand()
        x = x * 2
        launch_by_hand()
        return x

    watch, x = NodeWatch(lambda: tuple(nodes)), torch.zeros(2, 2)
    with Launches():
        run = record_step(step, (x,), watch)
    found = owners(nodes, run.created, watch.out_of_order)
    names = ["aten.t.default", "aten.add.Tensor", DIRECT_LAUNCH, DIRECT_LAUNCH, "aten.mul.Tensor", DIRECT_LAUNCH]
    assert [op.op for op in run.ops] == names
    assert [op.module for op in run.ops] == ["", "", "direct.0", "", "", ""]
    assert found.op_of == (1, 2, 3, 4, 5)
    assert found.nodes_of == ((0, 0), (0, 1), (1, 1), (2, 1), (3, 1), (4, 1))
    assert found.notes == ()


def test_a_recorded_run_keeps_nothing_alive() -> None:
    seen = []

    def step(x: Tensor) -> Tensor:
        y = x + 1
        seen.append(torch.multiprocessing.reductions.StorageWeakRef(y.untyped_storage()))
        return y * 2

    run = record_step(step, (torch.zeros(4),))
    assert seen[0].expired() and len(run.outputs) == 1


def test_what_a_step_writes_is_put_back() -> None:
    counter = torch.zeros(1)
    state = StateKeeper([counter])
    median_seconds(lambda: counter.add_(1), state, HostClock(), runs=3)
    assert counter.item() == 1


# The file.


@pytest.mark.parametrize("name", ["run.ograph", "run.ograph.gz"])
def test_a_saved_capture_is_read_back_equal(ograph: OGraph, tmp_path: Path, name: str) -> None:
    ograph.save(tmp_path / name)
    assert OGraph.load(tmp_path / name) == ograph
    assert (tmp_path / name).read_bytes().startswith(b"\x1f\x8b" if name.endswith("gz") else b"{")


def test_the_file_is_plain_json_with_these_names(ograph: OGraph) -> None:
    data = json.loads(json.dumps(ograph.as_dict(), allow_nan=False))
    assert set(data) == {"schema", "kind", "target", "environment", "graphs", "findings", "not_checked"}
    assert (data["schema"], data["kind"], list(data["graphs"])) == (1, "ostinato-graph", ["1", "4"])
    graph = data["graphs"]["4"]
    names = "index op api module file line function inputs outputs shapes"
    numbers = "bytes_read bytes_written flops seconds of_bandwidth nodes"
    assert " ".join(graph["ops"][0]) == f"{names} {numbers}"
    assert graph["level"] == "op" and graph["nodes"] == [] and graph["edges"] == []
    assert set(graph["memory"]) == {"own_bytes", "shared_bytes", "exec_bytes", "external_bytes", "by_line"}


def changed(data: Any, path: str, value: Any) -> Any:
    *parents, last = path.split("/")
    place = data
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place[part]
    if value is ...:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("kind", "ostinato-timeline", "not a saved capture: kind is 'ostinato-timeline'"),
        ("schema", 2, "schema is 2; this version reads 1; a newer ostinato wrote it"),
        ("target", 3, r"ograph\.target: expected str, got int 3"),
        ("graphs", {}, "graphs is empty"),
        ("graphs/4/batch_size", 5, r"graphs\['4'\]\.batch_size is 5"),
        ("graphs/4/level", "gpu", "'gpu' is none of op, kernel"),
        ("graphs/4/ops/0/bytes_read", ..., r"graphs\['4'\]\.ops\[0\]\.bytes_read is missing"),
        ("graphs/4/ops/1/seconds", "fast", r"ops\[1\]\.seconds: expected float, got str fast"),
        ("graphs/4/ops/1/flops", True, r"ops\[1\]\.flops: expected int, got bool"),
        ("graphs/4/ops/1/index", 7, r"ops\[1\]: index 7"),
        ("graphs/4/ops/0/nodes", [0, 1], r"ops\[0\]: index 0, nodes \(0, 1\) of 0"),
        ("graphs/4/edges", [[0, 1]], "but there are 0 nodes"),
        ("graphs/4/memory", [], "memory: expected an object, got list"),
        ("graphs/4/buffers/ids/kind", "thing", "'thing' is none of input, weight"),
    ],
)
def test_a_broken_file_is_named_by_field(ograph: OGraph, path: str, value: Any, message: str) -> None:
    data = changed(json.loads(json.dumps(ograph.as_dict())), path, value)
    with pytest.raises(ConfigError, match=message):
        OGraph.from_dict(data)


def test_a_file_that_is_no_capture_is_said_to_be_none(tmp_path: Path) -> None:
    cases: dict[str, bytes] = {
        "text": b"hello",
        "list": b"[1]",
        "cut.gz": gzip.compress(b"{}" * 1000)[:20],
        "infinite": b'{"schema": 1, "kind": "ostinato-graph", "target": Infinity}',
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=name):
            OGraph.load(tmp_path / name)
    with pytest.raises(ConfigError, match="missing"):
        OGraph.load(tmp_path / "missing")


def test_a_field_that_a_later_version_added_is_passed_over(ograph: OGraph) -> None:
    data = json.loads(json.dumps(ograph.as_dict()))
    data["graphs"]["4"]["ops"][0]["colour"] = "red"
    assert OGraph.from_dict(data) == ograph


# Tables.


@pytest.mark.parametrize("by", ["op", "module", "kernel", "line"])
def test_tables_fit_a_hundred_columns(ograph: OGraph, by: Any) -> None:
    text = show(ograph, 4, by)
    assert max(map(len, text.splitlines()[1:])) <= 100
    assert text.splitlines()[0].startswith("decode, batch size 4: 14 ops and 7 views")


def test_modules_that_differ_in_a_number_are_added_up(ograph: OGraph) -> None:
    rows = [line.split() for line in show(ograph, 4, "module").splitlines()]
    counts = {row[0]: row[1] for row in rows if len(row) > 3}
    assert (counts["MODEL.layers.*.up"], counts["MODEL.head"]) == ("2", "1")


def test_a_size_or_view_that_is_not_there_is_refused(ograph: OGraph) -> None:
    with pytest.raises(ConfigError, match="no graph of batch size 3; there are 1, 4"):
        show(ograph, 3)
    with pytest.raises(ConfigError, match="none of op, module, kernel, line"):
        show(ograph, 4, "colour")  # type: ignore[arg-type]


def test_memory_is_a_row_for_each_size_and_lines_of_the_largest(ograph: OGraph) -> None:
    text = memory_text(ograph)
    assert [row.split()[0] for row in text.splitlines()[4:7]] == ["4", "1", "all"]
    assert f"test_inspect_ograph.py:{line_of('self.down(self.up(')}" in text


# Kernels, by hand.


def kernel_graph(names: list[str], grid: int = 1, constant: str = "0x5") -> SizeGraph:
    base = capture(lambda x: x + 1, lambda batch_size: (torch.zeros(batch_size),), batch_sizes=(1,)).at()
    parameters = (Parameter(0, 8, "0x7f00", "x"), Parameter(8, 4, constant))
    nodes = tuple(
        Node(i, "kernel", name, (grid, 1, 1), (128, 1, 1), 0, parameters, op=0, seconds=1e-5)
        for i, name in enumerate(names)
    )
    ops = (replace(base.ops[0], nodes=(0, len(names))),)
    return replace(base, level="kernel", ops=ops, nodes=nodes, edges=())


def test_kernels_are_listed_with_grid_and_count() -> None:
    graph = kernel_graph(["add", "add", "scan"], grid=7)
    text = show(OGraph("t", {"read_bandwidth": 1e9}, {1: graph}), 1, "kernel")
    rows = [line.split()[:3] for line in text.splitlines()]
    assert ["add", "7×1×1", "2"] in rows and ["scan", "7×1×1", "1"] in rows


def test_a_diff_names_kernels_that_came_went_and_changed() -> None:
    before, after = kernel_graph(["add", "scan"]), kernel_graph(["add", "split", "scan"], grid=2, constant="0x7")
    found = graph_diff(before, after)
    assert [entry["name"] for entry in found["kernels"]["added"]] == ["split"]
    assert found["kernels"]["removed"] == []
    assert found["totals"]["nodes"] == [2, 3]
    first = found["kernels"]["changed"][0]
    assert (first["before"]["grid"], first["after"]["grid"]) == ((1, 1, 1), (2, 1, 1))
    assert (first["before"]["constants"], first["after"]["constants"]) == (["0x5"], ["0x7"])
    (line,) = found["lines"]
    assert (line["what"], line["before"], line["after"]) == ("nodes", 2, 3)
    assert "0x5 → 0x7" in diff_text(before, after)


# Differences.


def test_two_sizes_differ_in_bytes_and_in_no_count(ograph: OGraph) -> None:
    found = graph_diff(ograph.at(1), ograph.at(4))
    assert found["ops"]["added"] == found["ops"]["removed"] == found["lines"] == []
    products = [entry for entry in found["ops"]["changed"] if entry["name"] == "aten.mm.default"]
    assert products[0]["before"]["flops"] * 4 == products[0]["after"]["flops"]
    assert max(map(len, diff_text(ograph.at(1), ograph.at(4)).splitlines())) <= 100


def variant_of_step(extra: bool) -> Callable[..., Any]:
    def step(x: Tensor) -> Tensor:
        y = x * 2
        if extra:
            y = y.relu()
        return y.sum()

    return step


def test_an_op_that_came_is_given_with_its_line() -> None:
    before, after = (
        capture(variant_of_step(extra), lambda batch_size: (torch.zeros(batch_size),), batch_sizes=(2,)).at()
        for extra in (False, True)
    )
    found = graph_diff(before, after)
    assert [(entry["name"], entry["line"]) for entry in found["ops"]["added"]] == [
        ("aten.relu.default", line_of("y = y.relu()"))
    ]
    (line,) = found["lines"]
    assert (line["place"].split()[0], line["before"], line["after"]) == (
        f"test_inspect_ograph.py:{line_of('y = y.relu()')}",
        0,
        1,
    )
    assert "+ relu" in diff_text(before, after)
    assert "no op and no kernel differs" in diff_text(before, replace(before))


def test_a_file_and_size_are_named_with_an_at_sign(ograph: OGraph, tmp_path: Path) -> None:
    path = str(tmp_path / "run.ograph")
    ograph.save(path)
    assert load_size(f"{path}@1")[1].batch_size == 1
    assert load_size(path)[1].batch_size == 4
    with pytest.raises(ConfigError, match="expected FILE@BATCH_SIZE"):
        load_size(f"{path}@big")
