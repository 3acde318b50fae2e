"""Batch sizes with a graph: the rule, its completeness, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from ostinato.graphs.buckets import bucket_of, check_sizes, default_sizes
from ostinato.layers.errors import ConfigError


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
