"""The baseline: an interpolated n-gram model of tokens with Kneser-Ney smoothing, counted with numpy.

For a context h of n − 1 tokens and a token w (Kneser & Ney 1995, in the interpolated form and with the three discounts
per order of Chen & Goodman 1998, section 3, "modified Kneser-Ney"):

    p_n(w | h) = max(c(h w) − D(c(h w)), 0) / Σ_v c(h v)  +  γ(h) · p_{n−1}(w | h without its first token)

γ(h) is the mass the discounts took from h, so probabilities sum to one by construction; p_0 is uniform. c counts
occurrences in the highest order; in a lower order it counts the distinct tokens seen before the n-gram. The discounts
follow from the counts of counts, so nothing is tuned on held-out text.

Knows ids and counts; does not know text. An n-gram is one integer in base `vocab_size`, first token most significant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ostinato.models.demo.tokens import EOS_ID, TokenIds

Keys = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

T = TypeVar("T", np.int64, np.float64)

ORDER = 4  # tokens, the predicted one included


@dataclass(frozen=True)
class Counts:
    """The n-grams of one order: sorted `keys` [grams] with their `counts`, and per context what its n-grams add up to.

    `contexts` [contexts] are sorted; `totals` [contexts] is Σ c(h ·); `left_over` [contexts] is γ(h).
    """

    keys: Keys
    counts: Keys
    discounts: Floats  # [4]: what is taken from a count of 0, 1, 2, and 3 or more
    contexts: Keys
    totals: Keys
    left_over: Floats

    @classmethod
    def of(cls, keys: Keys, counts: Keys, vocab_size: int) -> Counts:
        """Groups sorted, distinct `keys` [grams] and their `counts` by context."""
        discounts = kneser_ney_discounts(counts)
        contexts, first = np.unique(keys // vocab_size, return_index=True)
        totals = np.add.reduceat(counts, first)
        taken = np.add.reduceat(discounts[np.minimum(counts, 3)], first)
        return cls(keys, counts, discounts, contexts, totals, taken / totals)

    def interpolate(self, keys: Keys, context_keys: Keys, lower: Floats) -> Floats:
        """p_n [positions] of the n-grams `keys`, given p_{n−1} `lower`; an unseen context leaves `lower` as it is."""
        count = _look_up(self.keys, self.counts, keys, 0)
        total = _look_up(self.contexts, self.totals, context_keys, 1)
        left_over = _look_up(self.contexts, self.left_over, context_keys, 1.0)
        return (count - self.discounts[np.minimum(count, 3)]) / total + left_over * lower


def kneser_ney_discounts(counts: Keys) -> Floats:
    """D(0), D(1), D(2), D(3+) [4] from the counts of counts n_1 … n_4 (Chen & Goodman 1998, equation 26).

    D(k) = k − (k + 1)·Y·n_{k+1}/n_k with Y = n_1/(n_1 + 2·n_2). Where a tiny corpus has no n-gram of some count,
    D(k) = Y, Kneser and Ney's single discount.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(np.float64)
    y = n[1] / (n[1] + 2 * n[2]) if n[1] and n[2] else 0.5
    discounts = [k - (k + 1) * y * n[k + 1] / n[k] if n[k] and n[k + 1] else y for k in (1, 2, 3)]
    return np.minimum(np.maximum([0.0, *discounts], 0.0), [0.0, 1.0, 2.0, 3.0])


class NgramModel:
    """Counts of every order 1 … `order`, from documents of token ids."""

    def __init__(self, documents: Sequence[TokenIds], vocab_size: int, order: int = ORDER) -> None:
        """Counts the documents [num_tokens each]; `order − 1` eos stand before each, as in `log2_probabilities`."""
        if vocab_size**order > np.iinfo(np.int64).max:
            raise ValueError(f"{order}-grams of {vocab_size:,} tokens do not fit into 63 bits")
        self.vocab_size, self.order = vocab_size, order
        grams = np.concatenate([self._grams(document) for document in documents])
        keys, counts = np.unique(grams, return_counts=True)
        self.orders: list[Counts] = []
        for n in range(order, 0, -1):
            self.orders.insert(0, Counts.of(keys, counts, vocab_size))
            keys, counts = np.unique(keys % vocab_size ** (n - 1), return_counts=True)  # distinct left neighbours

    def log2_probabilities(self, document: TokenIds) -> Floats:
        """log2 p [num_tokens] of each token of a document given the tokens (and eos) before it."""
        return np.log2(self._probabilities(self._grams(document)))

    def distribution(self, context: Sequence[int]) -> Floats:
        """p(· | context) [vocab_size] after `order − 1` tokens of context; sums to one."""
        head = sum(token * self.vocab_size**i for i, token in enumerate(reversed(context)))
        return self._probabilities(head * self.vocab_size + np.arange(self.vocab_size, dtype=np.int64))

    def _probabilities(self, grams: Keys) -> Floats:
        """p [positions] of `order`-grams, from the uniform distribution upwards."""
        probability = np.full(len(grams), 1.0 / self.vocab_size)
        for n, counts in enumerate(self.orders, start=1):
            keys = grams % self.vocab_size**n
            probability = counts.interpolate(keys, keys // self.vocab_size, probability)
        return probability

    def _grams(self, document: TokenIds) -> Keys:
        """One `order`-gram key [num_tokens] for each token of the document."""
        padded = np.concatenate([np.full(self.order - 1, EOS_ID, dtype=np.int64), document])
        powers = self.vocab_size ** np.arange(self.order - 1, -1, -1, dtype=np.int64)
        grams: Keys = np.lib.stride_tricks.sliding_window_view(padded, self.order) @ powers
        return grams


def _look_up(keys: Keys, values: npt.NDArray[T], wanted: Keys, default: float) -> npt.NDArray[T]:
    """`values` at the `wanted` keys, and `default` where a key is not among the sorted `keys`."""
    index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[index] == wanted, values[index], values.dtype.type(default))
