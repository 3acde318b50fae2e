"""KV blocks as counted things: how many hold each, which of them hold a known prefix, which is handed out next.

Owns the reference counts, the free list and the prefix index. Knows integers only: block ids, token ids, digests; no
request, tensor or step. Block 0 is the null block: never handed out, and in a table it stands for a block given back.
Every other block is in exactly one state:

    free      no reference, not in the index    handed out first, the last one returned first
    cached    no reference, in the index        still a hit; evicted for its space, the first one returned first
    used      referenced, perhaps in the index

and free + cached + used = num_blocks - 1 (`check`). A block enters the index when it is full and computed, and from
then on nobody writes to it. Each operation is O(1) per block.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import dropwhile
from typing import NamedTuple

from ostinato.layers.errors import OutOfBlocks

NULL_BLOCK = 0
ROOT = b""  # the parent of a first block


def block_digest(parent: bytes, token_ids: Sequence[int], salt: bytes) -> bytes:
    """SHA-256 over (salt, parent digest, token ids): the name of a block's content and of all that precedes it.

    The salt is preceded by its length and blocks of one pool have one size, so no two inputs share an encoding.
    """
    return sha256(b"".join((len(salt).to_bytes(8), salt, parent, array("q", token_ids).tobytes()))).digest()


def extend_chain(digests: list[bytes], token_ids: Sequence[int], num_blocks: int, block_size: int, salt: bytes) -> None:
    """Append the digests still missing of the first ``num_blocks`` full blocks of ``token_ids``."""
    for i in range(len(digests), num_blocks):
        parent = digests[-1] if digests else ROOT
        digests.append(block_digest(parent, token_ids[i * block_size : (i + 1) * block_size], salt))


class _Prefix(NamedTuple):
    """What a block in the index holds. Compared on a hit: a digest alone is not proof."""

    digest: bytes
    parent: bytes
    token_ids: tuple[int, ...]


class BlockPool:
    """Reference counts, free list and prefix index of ``num_blocks`` blocks of ``block_size`` tokens.

    ``hits`` of ``queries`` prompt tokens came from the index (`count_lookup`); ``evictions`` counts blocks. ``version``
    grows when a block comes back or enters the index: while it stands still, a request that did not fit does not fit.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.hits = 0
        self.queries = 0
        self.evictions = 0
        self.version = 0
        self._references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, 0, -1))  # a stack
        self._cached: OrderedDict[int, None] = OrderedDict()  # oldest first
        self._index: dict[bytes, int] = {}
        self._prefixes: list[_Prefix | None] = [None] * num_blocks

    @property
    def num_free(self) -> int:
        """Empty blocks: no reference, not in the index."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks without a reference that are still a hit."""
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out: the free and the cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks with a reference."""
        return self.num_blocks - 1 - self.num_available

    # Holding and releasing.

    def allocate(self, n: int) -> list[int]:
        """n blocks with one reference and no content: free ones first, then the cached ones longest unused.

        Raises OutOfBlocks, and changes nothing, if fewer than n are available.
        """
        if n > self.num_available:
            raise OutOfBlocks(f"{n:,} blocks wanted, {self.num_available:,} of {self.num_blocks - 1:,} available")
        block_ids = [self._free.pop() if self._free else self._evict() for _ in range(n)]
        for block_id in block_ids:
            self._references[block_id] = 1
        return block_ids

    def num_unheld(self, block_ids: Sequence[int]) -> int:
        """How many of these blocks nobody holds: so many fewer are available once they are held."""
        return sum(self._references[block_id] == 0 for block_id in block_ids)

    def hold(self, block_ids: Sequence[int]) -> None:
        """Add a reference to blocks just found by `lookup`, before an `allocate` can evict them."""
        for block_id in block_ids:
            if self._references[block_id] == 0:
                del self._cached[block_id]
            self._references[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """Drop a reference to each block of a table, given head first and returned tail first.

        A chain is matched from its head, so eviction takes its end before its head.
        """
        for block_id in reversed(block_ids):
            if self._references[block_id] == 0:
                raise RuntimeError(f"block {block_id} is released more often than held")
            self._references[block_id] -= 1
            if self._references[block_id] == 0:
                self._return(block_id)

    def is_exclusive(self, block_id: int) -> bool:
        """One reference and not in the index: the only kind of block that may be written to."""
        return self._references[block_id] == 1 and self._prefixes[block_id] is None

    def _return(self, block_id: int) -> None:
        self.version += 1
        if self._prefixes[block_id] is None:
            self._free.append(block_id)
        else:
            self._cached[block_id] = None

    def _evict(self) -> int:
        block_id, _ = self._cached.popitem(last=False)
        self._unregister(block_id)
        self.evictions += 1
        return block_id

    # The prefix index.

    def lookup(self, digests: Sequence[bytes], token_ids: Sequence[int]) -> list[int]:
        """Blocks of the longest registered chain that starts ``token_ids``. Not held yet: see `hold`.

        ``digests[i]`` names the chain up to block i; parent and token ids are compared too.
        """
        block_ids: list[int] = []
        parent, start = ROOT, 0
        for digest in digests:
            end = start + self.block_size
            block_id = self._index.get(digest)
            if block_id is None or self._prefixes[block_id] != (digest, parent, tuple(token_ids[start:end])):
                break
            block_ids.append(block_id)
            parent, start = digest, end
        return block_ids

    def count_lookup(self, num_queried: int, num_hit: int) -> None:
        """Count a lookup that led to an admission (tokens); the scheduler asks again while a request is blocked."""
        self.queries += num_queried
        self.hits += num_hit

    def register(self, block_id: int, digest: bytes, parent: bytes, token_ids: Sequence[int]) -> None:
        """Put a held block, full and computed, into the index. The first writer of a digest wins: a twin stays out."""
        if self._references[block_id] == 0 or self._prefixes[block_id] is not None:
            raise RuntimeError(f"block {block_id} is not held, or registered before")
        if self.enable_prefix_caching and digest not in self._index:
            self.version += 1
            self._index[digest] = block_id
            self._prefixes[block_id] = _Prefix(digest, parent, tuple(token_ids))

    def registered(self, digests: Iterable[bytes]) -> list[int]:
        """The blocks that are in the index under these digests, found each on its own: to `forget`, not to read."""
        return [self._index[digest] for digest in digests if digest in self._index]

    def forget(self, block_ids: Iterable[int]) -> None:
        """Take blocks out of the index, whoever holds them: their content is not to be trusted any more."""
        for block_id in block_ids:
            if self._unregister(block_id) and self._references[block_id] == 0:
                del self._cached[block_id]
                self._free.append(block_id)

    def reset_prefix_cache(self) -> None:
        """Empty the index. Requests keep the blocks they hold."""
        self.forget(list(self._index.values()))

    def _unregister(self, block_id: int) -> bool:
        prefix = self._prefixes[block_id]
        if prefix is None:
            return False
        del self._index[prefix.digest]
        self._prefixes[block_id] = None
        return True

    # Invariants.

    def check(self, tables: Iterable[Sequence[int]] = ()) -> None:
        """Raise RuntimeError on the first broken invariant, ``tables`` being all block tables in use.

        A table may begin with null cells, for blocks that it had; they count for nothing.
        """
        for problem in self._problems(list(tables)):
            raise RuntimeError(f"block pool: {problem}")

    def _problems(self, tables: list[Sequence[int]]) -> Iterator[str]:
        held = [list(dropwhile(lambda block_id: block_id == NULL_BLOCK, table)) for table in tables]
        occurrences = Counter(block_id for table in held for block_id in table)
        if any(len(set(table)) != len(table) for table in held):
            yield "a table names a block twice"
        for block_id, references in enumerate(self._references):
            if references != occurrences[block_id]:
                yield f"block {block_id} has {references} references and is in {occurrences[block_id]} tables"
        free, registered = set(self._free), {b for b, prefix in enumerate(self._prefixes) if prefix is not None}
        unused = {b for b, references in enumerate(self._references) if b > 0 and references == 0}
        if len(free) != len(self._free) or free & registered:
            yield "the free list names a block twice, or a registered one"
        if not self._cached.keys() <= registered:
            yield "a cached block is not registered"
        if free | self._cached.keys() != unused or 0 in occurrences:
            yield "free + cached + used is not every block but the null block"
        if self._index != {prefix.digest: b for b, prefix in enumerate(self._prefixes) if prefix is not None}:
            yield "index and registered blocks are no bijection"
        if len(self._index) != len(registered):
            yield "two blocks are registered under one digest"
