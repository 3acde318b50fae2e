"""Which sizes to capture: against all subsets on small cases, and on files that people have."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from ostinato.graphs.buckets import bucket_of, default_sizes
from ostinato.graphs.inspect.capturing.ograph import Memory, OGraph, SizeGraph
from ostinato.graphs.inspect.numbers.sizes import ASSUMED_BYTES, advise, best_sizes
from ostinato.graphs.inspect.numbers.sizes_file import advise_files, parse_bytes, read_traffic, sizes_text
from ostinato.layers.errors import ConfigError


def total(histogram: Mapping[int, int], sizes: tuple[int, ...], cost: Callable[[int], float]) -> float:
    return sum(count * cost(bucket_of(rows, sizes)) for rows, count in histogram.items())


def brute_force(histogram: Mapping[int, int], cost: Callable[[int], float], k: int) -> float:
    largest = max(histogram)
    below = range(1, largest)
    sets = (c for n in range(min(k, largest)) for c in itertools.combinations(below, n))
    return min(total(histogram, (*chosen, largest), cost) for chosen in sets)


@pytest.mark.parametrize("seed", range(40))
def test_no_subset_of_sizes_costs_less(seed: int) -> None:
    draw = random.Random(seed)
    rows = draw.sample(range(1, 12), draw.randint(1, 8))
    histogram = {n: draw.randint(0, 50) for n in rows} | {rows[0]: 3}
    prices = [draw.choice([1.0, 2.0, 5.0, 7.5, 3.25]) + draw.random() * seed for _ in range(13)]  # up and down
    for k in range(1, 8):
        for cost in (lambda size: float(size), lambda size: prices[size]):
            sizes = best_sizes(histogram, cost, k)
            assert len(sizes) <= k
            assert sizes[-1] == max(histogram)
            assert list(sizes) == sorted(set(sizes))
            assert total(histogram, sizes, cost) == pytest.approx(brute_force(histogram, cost, k))


def test_without_a_cost_padding_is_least() -> None:
    histogram = {1: 1000, 2: 10, 7: 500, 8: 1}
    assert best_sizes(histogram, None, 1) == (8,)
    assert best_sizes(histogram, None, 2) == (1, 8)
    assert best_sizes(histogram, None, 3) == (1, 7, 8)
    assert best_sizes(histogram, None, 9) == (1, 2, 7, 8)


def test_a_batch_that_never_came_is_covered_if_it_is_named() -> None:
    assert best_sizes({3: 5, 16: 0}, None, 2) == (3, 16)
    assert best_sizes({3: 5, 16: 0}, None, 1) == (16,)


def test_a_size_that_costs_more_than_a_larger_one_gets_no_graph() -> None:
    assert best_sizes({15: 100, 16: 1}, {1: 1.0, 15: 5.0, 16: 4.0}, 4) == (16,)


def test_measured_costs_are_interpolated_and_go_on() -> None:
    flat_then_steep = {1: 1.0, 4: 1.0, 8: 9.0}
    assert best_sizes({1: 10, 2: 10, 4: 10, 8: 1}, flat_then_steep, 8) == (4, 8)
    # 6 costs 5 by interpolation, 12 costs 17 by the last slope
    result = advise({6: 1, 12: 1}, 2, cost=flat_then_steep)
    assert [point["cost"] for point in result["curve"]] == [34.0, 22.0]


def test_every_number_of_graphs_for_512_sizes() -> None:
    histogram = {n: 1 + (n * 7919) % 1000 for n in range(1, 513)}
    curve = advise(histogram, 512)["curve"]
    assert [point["graphs"] for point in curve] == list(range(1, 513))
    gains = [point["gain"] for point in curve[1:]]
    assert gains == sorted(gains, reverse=True)  # each further graph brings less
    assert curve[-1]["cost"] == 0


def test_the_advice_compares_with_the_engines_own_sizes() -> None:
    histogram = {17: 100, 33: 10}
    result = advise(histogram, 2)
    assert result["current"] == list(default_sizes(33))
    assert result["best"] == [17, 33]
    computed = 100 * 24 + 10 * 33
    assert result["wasted_now"] == pytest.approx(700 / computed)
    assert result["wasted_best"] == 0
    first, second = result["curve"]
    assert (first["sizes"], first["cost"], first["gain"], first["bytes"]) == ([33], 1600, None, None)
    assert first["wasted"] == pytest.approx(1600 / 3630)
    assert (second["gain"], second["cost"]) == (1600, 0)


def test_steps_larger_than_the_largest_graph_are_counted_not_padded() -> None:
    result = advise({2: 10, 9: 4}, 3, current=[2])
    assert (result["wasted_now"], result["steps_without_graph_now"]) == (0, 4)
    for current in ([2], []):
        result = advise({9: 4}, 3, current=current)
        assert (result["wasted_now"], result["steps_without_graph_now"], result["cost_now"]) == (None, 4, 0)
    assert "no step had a graph" in sizes_text(result)


def test_current_sizes_may_be_larger_than_any_batch() -> None:
    result = advise({2: 10}, 3, current=[8])
    assert (result["cost_now"], result["wasted_now"], result["best"]) == (60, 0.75, [2])
    with pytest.raises(ConfigError, match="current: 0 is not a batch size"):
        advise({2: 10}, 3, current=[0, 8])


def test_a_graph_stops_paying_where_it_saves_less_than_a_hundredth() -> None:
    result = advise({1: 1000, 2: 1, 64: 1000}, 3)
    assert [point["sizes"] for point in result["curve"]] == [[64], [1, 64], [1, 2, 64]]
    assert result["pays_up_to"] == 2


def test_a_memory_limit_is_kept() -> None:
    histogram = dict.fromkeys(range(1, 9), 10)
    size_bytes = {1: 100.0, 8: 800.0}
    for point in advise(histogram, 8, bytes_of=size_bytes)["curve"]:
        assert point["bytes"] == 100 * sum(point["sizes"])
    limited = advise(histogram, 3, bytes_of=size_bytes, memory_limit=1300)
    assert (len(limited["best"]), limited["bytes_are"]) == (2, "measured")
    assumed = advise(histogram, 8, memory_limit=3 * ASSUMED_BYTES + 1)
    assert (len(assumed["best"]), assumed["bytes_are"]) == (3, "assumed")
    with pytest.raises(ConfigError, match="700 bytes are less than one graph of 8 rows takes, 800 bytes"):
        advise(histogram, 3, bytes_of=size_bytes, memory_limit=700)


@pytest.mark.parametrize(
    ("histogram", "k", "message"),
    [
        ({}, 1, "no steps"),
        ({4: 0}, 1, "no steps"),
        ({0: 4}, 1, "0 is not a batch size"),
        ({4: -1}, 1, "-1 steps of 4 rows"),
        ({4: 1}, 0, "max_graphs: expected an integer from 1 up, got 0"),
    ],
)
def test_what_cannot_be_planned_is_refused(histogram: dict[int, int], k: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        best_sizes(histogram, None, k)


def test_costs_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="cost of batch size 3 is nan"):
        best_sizes({4: 1}, lambda size: float("nan") if size == 3 else 1.0, 1)
    with pytest.raises(ConfigError, match="1 measured sizes; two at least"):
        best_sizes({4: 1}, {4: 1.0}, 1)


@pytest.mark.parametrize(
    "text",
    [
        '{"3": 120, "8": 5}',
        '{"steps": 125, "batch_histogram": {"3": 120, "8": 5}, "capture_sizes": [1, 2, 4, 8], "padding_rows": 7}',
        "rows,steps\n3, 120\n\n8,5\n",
        "3,100\n8,5\n3,20\n",
    ],
)
def test_a_histogram_file_of_any_form(text: str, tmp_path: Path) -> None:
    file = tmp_path / "histogram"
    file.write_text(text)
    traffic = read_traffic(file)
    assert traffic.histogram == {3: 120, 8: 5}
    assert traffic.current == ((1, 2, 4, 8) if "capture_sizes" in text else None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3,1\n4\n", "line 2: expected rows,steps, got '4'"),
        ("3,1\n4,x\n", "line 2: expected an integer from 0 up, got 'x'"),
        ('{"3": 1.5}', r"histogram\['3'\]: expected an integer from 0 up, got 1.5"),
        ('{"batch_histogram": {"x": 1}}', "batch_histogram: batch size: expected an integer from 0 up, got 'x'"),
        ('{"batch_histogram": []}', "batch_histogram: expected an object, got list"),
        ('{"steps": 3}', "no field batch_histogram"),
        ('{"3": 1,}', "line 1, column"),
        ("[1]", "expected an object"),
    ],
)
def test_a_bad_histogram_names_the_line_or_field(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "histogram"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        read_traffic(file)
    assert str(file) in str(raised.value)


def test_bytes_are_read_as_people_write_them() -> None:
    assert [parse_bytes(text) for text in ("2GiB", "500 MB", "1.5kib", 7)] == [2 << 30, 500_000_000, 1536, 7]
    with pytest.raises(ConfigError, match="like '2GiB'"):
        parse_bytes("lots")


def saved_capture(path: Path, seconds: dict[int, float | None]) -> Path:
    graphs = {
        size: SizeGraph(size, "kernel", (), (), (), {}, Memory(1000 * size, 0, 500, 0), replay_seconds=value)
        for size, value in seconds.items()
    }
    OGraph("step.py:step", {}, graphs).save(path)
    return path


def test_a_saved_capture_gives_seconds_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "h.json").write_text('{"1": 10, "4": 10}')
    capture = saved_capture(tmp_path / "run.ograph", {1: 0.5, 4: 2.0})
    result = advise_files(tmp_path / "h.json", 2, cost=capture, memory_limit="6500")
    assert (result["unit"], result["best"], result["bytes_are"]) == ("seconds", [1, 4], "measured")
    assert [point["bytes"] for point in result["curve"]] == [4500, 6000]
    assert result["curve"][1]["cost"] == 25.0
    unmeasured = saved_capture(tmp_path / "cpu.ograph", {1: None})
    with pytest.raises(ConfigError, match="no graph in it has replay_seconds"):
        advise_files(tmp_path / "h.json", 2, cost=unmeasured)


def test_the_text_fits_the_terminal_and_ends_with_the_option() -> None:
    result = advise({n: 1 + n % 7 for n in range(1, 300)}, 60, memory_limit=1 << 30)
    text = sizes_text(json.loads(json.dumps(result)))
    assert max(map(len, text.splitlines())) <= 100
    assert "28 more in the JSON" in text
    assert text.replace("\n", " ").replace("  ", "").endswith("299]")


def test_neither_torch_nor_an_engine_is_imported() -> None:
    code = (
        "import sys; from ostinato.graphs.inspect.numbers import sizes, sizes_file; sizes.best_sizes({3: 1}, None, 1);"
        "print([n for n in sys.modules if n == 'torch' or n in ('ostinato.llm', 'ostinato.config', 'ostinato.plan')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
