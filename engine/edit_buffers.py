"""The tables that edits of logits read: counts of tokens, biases and masks, a row of each per slot, on the device.

A row is written when its slot's request first samples after an admission, from all the tokens that the host knows then,
which are all there are: the step counts those that follow by itself. A mask that follows its request's tokens is
written before every step. Requests that edit nothing never touch a table, and never read one: on a CPU, rows that
were never used are no memory in use.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ostinato.graphs.streams import DeviceStream
from ostinato.models.kv_cache import zero_pages
from ostinato.request import Request
from ostinato.sampling_params import MAX_LOGIT_BIAS
from ostinato.token_masks import num_words

Write = Callable[[], object]
"""What is queued on the device before a step; reads host memory that nobody else has."""


def edit_tables(slots: int, vocab_size: int) -> dict[str, tuple[tuple[int, int], torch.dtype]]:
    """Shapes and types of the tables for ``slots`` requests at a time."""
    rows = slots + 1
    return {
        "counts": ((rows, vocab_size), torch.int32),
        "bias_ids": ((rows, MAX_LOGIT_BIAS), torch.int64),
        "bias": ((rows, MAX_LOGIT_BIAS), torch.float32),
        "mask": ((rows, num_words(vocab_size)), torch.int32),
    }


def edit_table_bytes(slots: int, vocab_size: int) -> int:
    """Bytes of all tables."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in edit_tables(slots, vocab_size).values())


class EditBuffers:
    """Tables of ``slots`` rows and a spare one, for tokens below ``vocab_size``."""

    def __init__(self, slots: int, vocab_size: int, stream: DeviceStream) -> None:
        tables = edit_tables(slots, vocab_size)
        self._stream = stream
        self._tables = {name: zero_pages(shape, dtype, stream.device) for name, (shape, dtype) in tables.items()}
        self.counts, self.mask = self._tables["counts"], self._tables["mask"]
        self.bias_ids, self.bias = self._tables["bias_ids"], self._tables["bias"]
        self._owner = [-1] * slots

    def forget(self) -> None:
        """Trust nothing: every row is written anew when it is next needed."""
        self._owner = [-1] * len(self._owner)

    def named_tensors(self) -> dict[str, Tensor]:
        """The tables."""
        return self._tables

    @property
    def num_bytes(self) -> int:
        """Of all tables."""
        return sum(table.nbytes for table in self.named_tensors().values())

    def sync(self, requests: Iterable[Request]) -> list[Write]:
        """What has to be written before ``requests`` sample."""
        writes: list[Write] = []
        for request in requests:
            if not request.edits:
                continue
            slot, mask = request.row_slot, request.mask
            is_new = self._owner[slot] != request.admission
            self._owner[slot] = request.admission
            if is_new and request.params.penalises:
                writes.append(self._counts_of(request))
            if is_new and request.params.logit_bias:
                writes.append(self._biases_of(request))
            if mask is not None and (is_new or mask.follows_tokens):
                staged = self._staged(mask.words(request.token_ids))
                writes.append(functools.partial(self.mask[slot].copy_, staged, non_blocking=True))
        return writes

    def _counts_of(self, request: Request) -> Write:
        counted = Counter(request.output_token_ids)
        values = {token: 2 * times for token, times in counted.items()}
        for token in set(request.prompt_token_ids):
            values[token] = values.get(token, 0) + 1
        ids = self._staged(np.fromiter(values.keys(), np.int64, len(values)))
        return functools.partial(
            _fill, self.counts[request.row_slot], ids, self._staged(np.fromiter(values.values(), np.int32, len(values)))
        )

    def _biases_of(self, request: Request) -> Write:
        pairs, slot = request.params.logit_bias, request.row_slot
        ids, bias = np.zeros(MAX_LOGIT_BIAS, np.int64), np.zeros(MAX_LOGIT_BIAS, np.float32)
        ids[: len(pairs)] = [token for token, _ in pairs]
        bias[: len(pairs)] = [number for _, number in pairs]
        return functools.partial(_copy, self.bias_ids[slot], self._staged(ids), self.bias[slot], self._staged(bias))

    def _staged(self, array: NDArray[np.generic]) -> Tensor:
        """A copy in memory that the device copies from, used once."""
        staging = self._stream.staging(array.nbytes)
        dtype = torch.from_numpy(np.zeros(0, array.dtype)).dtype
        staging.view(dtype).numpy()[:] = array
        return staging.view(dtype)


def _fill(row: Tensor, ids: Tensor, values: Tensor) -> None:
    """``row`` becomes ``values`` at ``ids``, and 0 elsewhere."""
    row.zero_()
    row.index_copy_(0, ids.to(row.device, non_blocking=True), values.to(row.device, non_blocking=True))


def _copy(ids_row: Tensor, ids: Tensor, bias_row: Tensor, bias: Tensor) -> None:
    ids_row.copy_(ids, non_blocking=True)
    bias_row.copy_(bias, non_blocking=True)
