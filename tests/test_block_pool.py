"""BlockPool by literal block ids: what is handed out, shared, evicted and found, and that `check` sees every damage."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostinato.block_pool import ROOT, BlockPool, block_digest, extend_chain
from ostinato.layers.errors import OutOfBlocks

SIZE = 2


def chain(token_ids: list[int], salt: bytes = b"") -> list[bytes]:
    digests: list[bytes] = []
    extend_chain(digests, token_ids, len(token_ids) // SIZE, SIZE, salt)
    return digests


def fill(pool: BlockPool, token_ids: list[int]) -> list[int]:
    """A table for ``token_ids`` with every full block registered."""
    table = pool.allocate(-(-len(token_ids) // SIZE))
    for i, digest in enumerate(chain(token_ids)):
        parent = chain(token_ids)[i - 1] if i else ROOT
        pool.register(table[i], digest, parent, token_ids[i * SIZE : (i + 1) * SIZE])
    return table


def find(pool: BlockPool, token_ids: list[int]) -> list[int]:
    return pool.lookup(chain(token_ids), token_ids)


def counts(pool: BlockPool) -> tuple[int, int, int]:
    return pool.num_free, pool.num_cached, pool.num_used


# Handing out and taking back.


def test_block_0_is_never_handed_out() -> None:
    pool = BlockPool(4, SIZE)
    assert pool.allocate(3) == [1, 2, 3]
    with pytest.raises(OutOfBlocks, match="1 blocks wanted, 0 of 3 available"):
        pool.allocate(1)


def test_a_refused_allocation_changes_nothing() -> None:
    pool = BlockPool(4, SIZE)
    table = fill(pool, [1, 2, 3, 4])
    pool.release(table)
    with pytest.raises(OutOfBlocks):
        pool.allocate(4)
    assert counts(pool) == (1, 2, 0)
    assert find(pool, [1, 2, 3, 4]) == table
    pool.check()


def test_empty_blocks_are_reused_last_returned_first() -> None:
    pool = BlockPool(6, SIZE)
    first, second = pool.allocate(2), pool.allocate(2)
    pool.release(first)
    pool.release(second)
    assert pool.allocate(5) == [3, 4, 1, 2, 5]


def test_empty_blocks_are_taken_before_cached_ones() -> None:
    pool = BlockPool(5, SIZE)
    pool.release(fill(pool, [1, 2, 3, 4, 5]))  # blocks 1 and 2 cached, block 3 empty
    assert counts(pool) == (2, 2, 0)
    assert pool.allocate(2) == [3, 4]
    assert pool.evictions == 0


def test_eviction_takes_the_longest_unused_and_a_chain_from_its_tail() -> None:
    pool = BlockPool(7, SIZE)
    a = fill(pool, [1, 2, 3, 4, 5, 6])
    b = fill(pool, [7, 8, 9, 10, 11, 12])
    assert (a, b) == ([1, 2, 3], [4, 5, 6])
    pool.release(b)
    pool.release(a)
    assert pool.allocate(4) == [6, 5, 4, 3]
    assert pool.evictions == 4
    assert find(pool, [1, 2, 3, 4, 5, 6]) == [1, 2]
    assert find(pool, [7, 8, 9, 10, 11, 12]) == []
    pool.check([[6, 5, 4, 3]])


def test_a_hit_makes_a_block_the_most_recently_used() -> None:
    pool = BlockPool(4, SIZE)
    tables = [fill(pool, [i, i]) for i in (1, 2, 3)]
    for table in tables:
        pool.release(table)
    pool.hold(find(pool, [1, 1]))
    pool.release([1])
    assert pool.allocate(3) == [2, 3, 1]


def test_held_blocks_are_not_evicted() -> None:
    pool = BlockPool(4, SIZE)
    pool.release(fill(pool, [1, 2, 3, 4]))
    assert pool.num_unheld([1, 2]) == 2
    pool.hold([1, 2])
    assert pool.num_unheld([1, 2]) == 0
    with pytest.raises(OutOfBlocks):
        pool.allocate(2)
    assert pool.allocate(1) == [3]


def test_a_shared_block_returns_with_its_last_reference() -> None:
    pool = BlockPool(3, SIZE)
    table = fill(pool, [1, 2])
    pool.hold(table)
    pool.hold(table)
    pool.check([table, table, table])
    pool.release(table)
    pool.release(table)
    assert counts(pool) == (1, 0, 1)
    pool.release(table)
    assert counts(pool) == (1, 1, 0)


def test_releasing_twice_is_an_error() -> None:
    pool = BlockPool(3, SIZE)
    table = pool.allocate(1)
    pool.release(table)
    with pytest.raises(RuntimeError, match="block 1 is released more often than held"):
        pool.release(table)


def test_only_an_unshared_unregistered_block_is_exclusive() -> None:
    pool = BlockPool(4, SIZE)
    a, b = pool.allocate(2)
    assert pool.is_exclusive(a)
    pool.hold([a])
    assert not pool.is_exclusive(a)
    pool.register(b, *named([1, 2]))
    assert not pool.is_exclusive(b)
    assert not pool.is_exclusive(3)


# The prefix index.


def named(token_ids: list[int]) -> tuple[bytes, bytes, list[int]]:
    """Digest, parent and tokens of a first block, as `register` takes them."""
    return block_digest(ROOT, token_ids, b""), ROOT, token_ids


def test_lookup_finds_the_longest_registered_chain() -> None:
    pool = BlockPool(8, SIZE)
    assert fill(pool, [1, 2, 3, 4, 5, 6]) == [1, 2, 3]
    assert find(pool, [1, 2, 3, 4, 5, 6, 7, 8]) == [1, 2, 3]
    assert find(pool, [1, 2, 3, 4, 9, 9]) == [1, 2]
    assert find(pool, [3, 4]) == []  # a block is found behind its own prefix only
    assert find(pool, [1]) == []


def test_lookup_stops_at_a_gap() -> None:
    pool = BlockPool(4, SIZE)
    fill(pool, [1, 2, 3, 4, 5, 6])
    pool.forget([2])
    assert find(pool, [1, 2, 3, 4, 5, 6]) == [1]


def test_the_first_writer_of_a_digest_wins() -> None:
    pool = BlockPool(4, SIZE)
    first, twin = fill(pool, [1, 2]), fill(pool, [1, 2])
    assert find(pool, [1, 2]) == first == [1]
    pool.release(twin)
    assert counts(pool) == (2, 0, 1)  # the twin was not cached
    pool.check([first])


def test_a_digest_collision_is_a_miss_by_tokens_and_by_parent() -> None:
    pool, digest = BlockPool(4, SIZE), b"the digest of everything"
    (block_id,) = pool.allocate(1)
    pool.register(block_id, digest, ROOT, [1, 2])
    assert pool.lookup([digest], [1, 2]) == [block_id]
    assert pool.lookup([digest], [1, 3]) == []
    assert pool.lookup([digest, digest], [1, 2, 1, 2]) == [block_id]  # not also as the child of itself


def test_digests_depend_on_tokens_parent_and_salt() -> None:
    digests = {
        block_digest(parent, token_ids, salt)
        for parent in (ROOT, b"p" * 32)
        for token_ids in ([1, 2], [2, 1], [1, 3], [2**40, 0])
        for salt in (b"", b"a", b"b", b"aa")
    }
    assert len(digests) == 2 * 4 * 4
    assert {len(digest) for digest in digests} == {32}


def test_a_chain_is_extended_without_computing_a_digest_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    token_ids = list(range(8))
    digests = chain(token_ids[:4])
    calls: list[list[int]] = []

    def counted(parent: bytes, token_ids: list[int], salt: bytes) -> bytes:
        calls.append(token_ids)
        return block_digest(parent, token_ids, salt)

    monkeypatch.setattr("ostinato.block_pool.block_digest", counted)
    extend_chain(digests, token_ids, 4, SIZE, b"")
    assert calls == [[4, 5], [6, 7]]
    assert digests == chain(token_ids)


def test_another_salt_finds_nothing() -> None:
    pool = BlockPool(4, SIZE)
    fill(pool, [1, 2, 3, 4])
    assert pool.lookup(chain([1, 2, 3, 4], b"tenant"), [1, 2, 3, 4]) == []


def test_a_block_is_registered_once_and_only_while_held() -> None:
    pool = BlockPool(4, SIZE)
    table = fill(pool, [1, 2])
    with pytest.raises(RuntimeError, match="registered before"):
        pool.register(table[0], *named([3, 4]))
    with pytest.raises(RuntimeError, match="block 2 is not held"):
        pool.register(2, *named([3, 4]))


def test_without_prefix_caching_nothing_is_found_or_kept() -> None:
    pool = BlockPool(4, SIZE, enable_prefix_caching=False)
    table = fill(pool, [1, 2])
    assert find(pool, [1, 2]) == []
    pool.release(table)
    assert counts(pool) == (3, 0, 0)


def test_forgotten_blocks_are_not_found_and_stay_with_their_holders() -> None:
    pool = BlockPool(6, SIZE)
    cached, held = fill(pool, [1, 2]), fill(pool, [3, 4])
    pool.release(cached)
    pool.forget([*cached, *held, 5])
    assert find(pool, [1, 2]) == find(pool, [3, 4]) == []
    assert counts(pool) == (4, 0, 1)
    pool.check([held])


def test_blocks_are_forgotten_by_their_digests_wherever_they_are() -> None:
    pool = BlockPool(6, SIZE)
    cached, digests = fill(pool, [1, 2, 3, 4]), chain([1, 2, 3, 4, 5, 6])
    pool.release(cached[1:])
    assert pool.registered(digests[1:]) == [2]  # the third was never there
    assert pool.registered(digests) == [1, 2]
    pool.forget(pool.registered(digests))
    assert find(pool, [1, 2, 3, 4]) == pool.registered(digests) == []
    pool.check([[1]])


def test_reset_empties_the_index() -> None:
    pool = BlockPool(6, SIZE)
    pool.release(fill(pool, [1, 2, 3, 4]))
    held = fill(pool, [5, 6])
    pool.reset_prefix_cache()
    assert counts(pool) == (4, 0, 1)
    assert find(pool, [1, 2]) == find(pool, [5, 6]) == []
    pool.release(held)
    pool.check()
    assert counts(pool) == (5, 0, 0)


def test_counters_add_up() -> None:
    pool = BlockPool(6, SIZE)
    pool.count_lookup(10, 4)
    pool.count_lookup(3, 0)
    assert (pool.queries, pool.hits, pool.evictions) == (13, 4, 0)


def test_the_version_stands_still_while_nothing_can_help_a_refused_request() -> None:
    pool = BlockPool(4, SIZE)
    table = pool.allocate(2)
    before = pool.version
    pool.allocate(1)
    assert pool.version == before
    pool.register(table[0], *named([1, 2]))
    assert pool.version > before
    before = pool.version
    pool.release(table)
    assert pool.version > before


# Every invariant that `check` states, broken once.


def leak(pool: BlockPool) -> None:
    pool._free.pop()


def free_twice(pool: BlockPool) -> None:
    pool._free.append(pool._free[0])


def free_while_held(pool: BlockPool) -> None:
    pool._free.append(1)


def free_and_cached(pool: BlockPool) -> None:
    pool._free.append(4)


def cached_but_unregistered(pool: BlockPool) -> None:
    pool._cached[pool._free.pop()] = None


def cached_while_held(pool: BlockPool) -> None:
    pool._cached[1] = None


def null_block_free(pool: BlockPool) -> None:
    pool._free.append(0)


def reference_too_many(pool: BlockPool) -> None:
    pool._references[1] += 1


def reference_too_few(pool: BlockPool) -> None:
    pool._references[1] -= 1


def index_names_a_stranger(pool: BlockPool) -> None:
    pool._index[b"nobody"] = 1


def index_lost_a_block(pool: BlockPool) -> None:
    pool._index.popitem()


def registered_twice(pool: BlockPool) -> None:
    pool._prefixes[2] = pool._prefixes[1]


DAMAGES = [
    leak,
    free_twice,
    free_while_held,
    free_and_cached,
    cached_but_unregistered,
    cached_while_held,
    null_block_free,
    reference_too_many,
    reference_too_few,
    index_names_a_stranger,
    index_lost_a_block,
    registered_twice,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_check_sees(damage: Callable[[BlockPool], None]) -> None:
    pool = BlockPool(8, SIZE)
    table = fill(pool, [1, 2, 3])  # block 1 registered, block 2 not
    pool.release(fill(pool, [4, 5, 6, 7]))  # blocks 3 and 4 cached
    pool.check([table])
    damage(pool)
    with pytest.raises(RuntimeError, match="block pool: "):
        pool.check([table])


def test_check_counts_the_null_cells_that_tables_begin_with_for_nothing() -> None:
    pool = BlockPool(8, SIZE)
    table = fill(pool, [1, 2, 3, 4, 5, 6])
    pool.hold([3])
    pool.release([1, 2])
    pool.check([[0, 0, 3], [0, 3]])
    assert find(pool, [1, 2, 3, 4, 5, 6]) == table == [1, 2, 3]  # given back, and still a hit


@pytest.mark.parametrize("tables", [[], [[1, 2], [1]], [[1]], [[1, 2], [5]], [[1, 1], [2]], [[1, 0, 2]], [[1, 2, 0]]])
def test_check_compares_references_with_the_tables(tables: list[list[int]]) -> None:
    pool = BlockPool(8, SIZE)
    fill(pool, [1, 2, 3])
    with pytest.raises(RuntimeError):
        pool.check(tables)


# Random operations against a model that is too simple to be wrong.

PROMPTS = [[1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [1, 2, 9, 9], [7, 8, 7]]


class NaivePool:
    """The three states as plain lists and sets of whole prefixes, searched from end to end."""

    def __init__(self, num_blocks: int) -> None:
        self.free = list(range(num_blocks - 1, 0, -1))
        self.cached: list[int] = []
        self.content: dict[int, tuple[int, ...]] = {}  # block id -> all tokens up to its end

    def admit(self, token_ids: list[int]) -> list[int] | None:
        full = [tuple(token_ids[: (i + 1) * SIZE]) for i in range(len(token_ids) // SIZE)]
        table: list[int] = []
        for prefix in full:
            found = [block_id for block_id, content in self.content.items() if content == prefix]
            if not found:
                break
            table += found
        missing = -(-len(token_ids) // SIZE) - len(table)
        usable = [block_id for block_id in self.free[::-1] + self.cached if block_id not in table]
        if missing > len(usable):
            return None
        new = usable[:missing]
        for block_id in [*table, *new]:
            self.free = [b for b in self.free if b != block_id]
            self.cached = [b for b in self.cached if b != block_id]
        for block_id in new:
            self.content.pop(block_id, None)
        table += new
        for block_id, prefix in zip(table, full, strict=False):
            if prefix not in self.content.values():
                self.content[block_id] = prefix
        return table

    def release(self, table: list[int], others: list[list[int]]) -> None:
        for block_id in reversed(table):
            if not any(block_id in other for other in others):
                (self.cached if block_id in self.content else self.free).append(block_id)


@settings(max_examples=60)
@given(st.integers(2, 9), st.lists(st.tuples(st.booleans(), st.integers(0, 99)), max_size=40))
def test_random_operations_agree_with_the_naive_pool(num_blocks: int, operations: list[tuple[bool, int]]) -> None:
    pool, naive, tables = BlockPool(num_blocks, SIZE), NaivePool(num_blocks), list[list[int]]()
    for admit, choice in operations:
        if admit:
            token_ids = PROMPTS[choice % len(PROMPTS)]
            table = admit_to(pool, token_ids)
            assert table == naive.admit(token_ids)
            tables += [table] if table else []
        elif tables:
            table = tables.pop(choice % len(tables))
            pool.release(table)
            naive.release(table, tables)
        pool.check(tables)
        assert counts(pool)[:2] == (len(naive.free), len(naive.cached))


def admit_to(pool: BlockPool, token_ids: list[int]) -> list[int] | None:
    """What the scheduler does: look up, hold, allocate; here registering at once."""
    found, digests = find(pool, token_ids), chain(token_ids)
    missing = -(-len(token_ids) // SIZE) - len(found)
    if missing + pool.num_unheld(found) > pool.num_available:
        return None
    pool.hold(found)
    table = found + pool.allocate(missing)
    for i in range(len(found), len(digests)):
        pool.register(table[i], digests[i], digests[i - 1] if i else ROOT, token_ids[i * SIZE : (i + 1) * SIZE])
    return table
