"""How many KV blocks tokens need, all of them or within a sliding window: arithmetic, no state.

Under a window of W tokens a query at position q sees the keys at ``q - W < k <= q``. A request that has computed c
tokens and is given n more in a step reads and writes the positions ``[c - W + 1, c + n)`` in it, and what lies before
them never again. Over the cells of its block table (B tokens each):

    [0, (c - W + 1) // B)                  behind the window: given back, the cells name the null block
    [(c - W + 1) // B, ceil((c + n) / B))  held: at most (W + n + B - 3) // B + 1 blocks

The bound: W - 1 + n consecutive positions touch the most blocks where the first of them is the last of its block; the
other W + n - 2 then need ceil((W + n - 2) / B) blocks more. With n = 1 it is what a request needs to progress at all.
"""

from __future__ import annotations


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold ``num_tokens`` from a block's beginning on."""
    return -(-num_tokens // block_size)


def blocks_behind(num_computed: int, window: int | None, block_size: int) -> int:
    """Blocks of which no query from position ``num_computed`` on sees any; none without a window."""
    return 0 if window is None else max(0, num_computed - window + 1) // block_size


def most_blocks(num_requests: int, num_tokens: int, window: int, block_size: int) -> int:
    """The most that ``num_requests`` requests hold while a step computes ``num_tokens`` tokens, one of each at least.

    The sum of the bound above over all of them, since floors add up to no more than the floor of the sum.
    """
    return num_requests + (num_requests * (window + block_size - 3) + num_tokens) // block_size


def blocks_to_progress(num_tokens: int, window: int | None, block_size: int) -> int:
    """Blocks that a request must be able to hold at once to compute ``num_tokens``, a token at a time if need be.

    So many always suffice. Fewer never do: up to the token at position ``window + block_size - 2`` none falls behind,
    and at that token the bound is reached. (It is reached at every block's first token, so a cached beginning helps
    only as far as the window covers it.)
    """
    needed = blocks_for(num_tokens, block_size)
    return needed if window is None else min(needed, most_blocks(1, 1, window, block_size))
