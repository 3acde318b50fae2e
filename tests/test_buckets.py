"""Batch sizes with a graph: the rule, its completeness, what is refused; and the set of graphs that serves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ostinato.graphs.buckets import bucket_of, check_sizes, default_sizes
from ostinato.graphs.graph_set import GraphSet
from ostinato.graphs.host_graph import HostGraph
from ostinato.graphs.streams import HostStream
from ostinato.layers.errors import CaptureError, ConfigError


@pytest.mark.parametrize(
    ("max_num_seqs", "sizes"),
    [
        (1, [1]),
        (5, [1, 2, 3, 4, 5]),
        (16, list(range(1, 17))),
        (17, [*range(1, 17), 17]),
        (24, [*range(1, 17), 24]),
        (25, [*range(1, 17), 24, 25]),
        (48, [*range(1, 17), 24, 32, 40, 48]),
        (50, [*range(1, 17), 24, 32, 40, 48, 50]),
    ],
)
def test_default_sizes_are_all_to_16_then_every_8th_and_the_largest(max_num_seqs: int, sizes: list[int]) -> None:
    assert list(default_sizes(max_num_seqs)) == sizes


@pytest.mark.parametrize("max_num_seqs", [1, 2, 15, 16, 17, 23, 24, 31, 100, 257])
def test_every_batch_gets_the_smallest_graph_that_holds_it(max_num_seqs: int) -> None:
    sizes = default_sizes(max_num_seqs)
    for rows in range(1, max_num_seqs + 1):
        assert bucket_of(rows, sizes) == min(size for size in sizes if size >= rows)


def test_no_batch_is_padded_by_more_than_seven_rows() -> None:
    assert max(bucket_of(rows, default_sizes(300)) - rows for rows in range(1, 301)) == 7


@pytest.mark.parametrize(
    ("given", "sizes"),
    [([], (8,)), ([8], (8,)), ([4, 1, 4], (1, 4, 8)), ((2, 8, 6), (2, 6, 8))],
)
def test_given_sizes_are_sorted_and_completed_by_the_largest(given: Any, sizes: tuple[int, ...]) -> None:
    assert check_sizes(given, 8) == sizes


@pytest.mark.parametrize("bad", [0, -1, 9, 2.0, "2", True, None])
def test_a_bad_size_is_named_with_the_limit(bad: Any) -> None:
    with pytest.raises(ConfigError, match=f"capture_sizes: {bad!r} is not a batch size from 1 to max_num_seqs = 8"):
        check_sizes([1, bad], 8)


# The set of graphs behind the sizes.


class Steps:
    """Steps that write their size and variant into ``out``; notes the order in which they are asked for."""

    def __init__(self) -> None:
        self.out = torch.zeros(2, dtype=torch.int64)
        self.asked: list[tuple[int, int]] = []

    def step_of(self, size: int, variant: int) -> Callable[[], None]:
        self.asked.append((size, variant))

        def step() -> None:
            self.out[0].fill_(size)
            self.out[1].fill_(variant)

        return step


@pytest.fixture(params=["host", "emulated"])
def graphs(request: pytest.FixtureRequest) -> tuple[GraphSet[int], Steps]:
    stream = HostStream(torch.device("cpu"), emulate=request.param == "emulated")
    made, steps = GraphSet[int]((1, 2, 5), stream), Steps()
    made.capture_all([7, 8], steps.step_of)
    return made, steps


def test_graphs_are_captured_largest_first(graphs: tuple[GraphSet[int], Steps]) -> None:
    made, steps = graphs
    assert steps.asked == [(5, 7), (5, 8), (2, 7), (2, 8), (1, 7), (1, 8)]
    assert made.captures == 6


def test_replay_takes_the_smallest_graph_and_counts_it(graphs: tuple[GraphSet[int], Steps]) -> None:
    made, steps = graphs
    for rows, size in ((1, 1), (2, 2), (3, 5), (4, 5), (5, 5)):
        steps.out.zero_()
        assert made.size_for(rows) == size
        made.replay(size, 8)
        assert steps.out.tolist() == [size, 8]
    assert made.replays == {1: 1, 2: 1, 5: 3}
    assert made.size_for(6) is None


def test_a_graph_that_was_not_captured_is_named(graphs: tuple[GraphSet[int], Steps]) -> None:
    with pytest.raises(CaptureError, match="batch sizes: no graph for 2, 9; 6 are captured"):
        graphs[0].replay(2, 9)


def test_a_closed_set_replays_nothing_and_closes_again(graphs: tuple[GraphSet[int], Steps]) -> None:
    made, _ = graphs
    made.close()
    made.close()
    with pytest.raises(CaptureError, match="0 are captured"):
        made.replay(1, 7)


def test_a_host_graph_that_was_reset_does_not_replay() -> None:
    graph = HostGraph()
    graph.capture(lambda: None)
    graph.replay()
    graph.reset()
    with pytest.raises(RuntimeError, match="was reset"):
        graph.replay()
