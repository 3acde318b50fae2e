"""The pieces of a step in their compiled forms: one for each class of shapes, each compiled exactly once.

Three classes. *single*: one row, static, in the form that reads weights at memory bandwidth on a CPU. *rows*: two rows
or more, their number symbolic. *tokens*: a mixed step's tokens, two or more, their number symbolic. The width of the
block table and the number of KV blocks are symbolic in all, so neither a longer context nor another cache size compiles
anew. Layers of one kind share one compiled form; the sampler's passes and the edits of logits share one for any number
of rows: code made for several rows is right for one, since nothing in it compares row counts.

On a CPU the head of several rows and the gathers before the layers gain nothing by compiling. On a GPU each operation
would be a kernel of its own in the graph, so they are compiled too, and the sampler is our own kernels.

Sizes that are symbolic in one call must differ in the call that compiles it (equal ones would be taken for one):
``HINT_ROWS``, ``HINT_WIDTH`` and at least ``MIN_BLOCKS`` blocks. Knows which dimension of which argument varies;
compiles nothing by itself: the first call of a piece does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from ostinato.graphs.compiled import CompiledPiece, SymbolicDims
from ostinato.layers import logit_edits, sampler
from ostinato.layers.attention.metadata import MIN_CELLS, AttentionMetadata
from ostinato.layers.logit_edits import EditInputs
from ostinato.models import decode_step
from ostinato.models.decode_step import Pieces, Sample, StepDecoder, eager_pieces, sample_by_kernels, sample_by_passes

HINT_ROWS, HINT_WIDTH, MIN_BLOCKS = 2, MIN_CELLS, 8

Dims = Iterable[tuple[Tensor, int]]
Cache = Tensor | tuple[Tensor, ...]


def _none(*_: object) -> Dims:
    return ()


def _first_dims(*args: object) -> Dims:
    """Dimension 0 of every tensor that has one."""
    for arg in args:
        if isinstance(arg, Tensor) and arg.dim():
            yield arg, 0
        elif isinstance(arg, tuple):
            yield from _first_dims(*arg)


def _pages(block: object, x: Tensor, k_cache: Cache, v_cache: Cache, meta: AttentionMetadata) -> Dims:
    """What varies between engines (blocks) and between steps (width of the table), whatever the rows."""
    return [*_first_dims(k_cache, v_cache), (meta.block_table, 1)]


def _pages_and_rows(block: object, x: Tensor, k_cache: Cache, v_cache: Cache, meta: AttentionMetadata) -> Dims:
    return [*_pages(block, x, k_cache, v_cache, meta), *_first_dims(x, *meta)]


def _pages_and_tokens(block: object, x: Tensor, k_cache: Cache, v_cache: Cache, meta: AttentionMetadata) -> Dims:
    return [*_pages(block, x, k_cache, v_cache, meta), *_first_dims(x, meta.slot_mapping, meta.cos, meta.sin)]


def _rows_alone(last_token: Tensor, block_table: Tensor, rope: object, rows: object) -> Dims:
    """Of ``begin_rows``: the tables of an engine have one size."""
    return _first_dims(rows)


def _rows_of_edits(logits: Tensor, edits: EditInputs) -> Dims:
    """Of ``logit_edits.edit``: what is per row; its tables have one size."""
    return _first_dims(logits, *edits[: EditInputs._fields.index("counts")])


def _last_arguments(module: object, *tensors: Tensor) -> Dims:
    return _first_dims(*tensors)


class StepPieces:
    """Every piece of one engine: ``for_rows(n)`` serves decode rows and sampling rows, ``for_tokens`` mixed steps."""

    def __init__(self, decoder: StepDecoder, max_num_seqs: int, *, compiled: bool, on_gpu: bool, kernels: bool) -> None:
        """``kernels``: the sampler is ours (``layers.kernels``), not passes of ATen operations."""
        self.compiled = compiled
        self._compiled: list[CompiledPiece] = []
        self._several = max_num_seqs > 1
        sample = sample_by_kernels if kernels else sample_by_passes()
        self._single = self._rows = self.for_tokens = eager_pieces(decoder, sample)
        if compiled:
            sample = sample_by_kernels if kernels else self._compiled_passes()
            single, rows, tokens = (
                self._layers(decoder, dims) for dims in (_pages, _pages_and_rows, _pages_and_tokens)
            )
            edit = self._piece(logit_edits.edit, _rows_of_edits if self._several else _none)
            self._single = Pieces(single, self._piece(decode_step.head, _none), sample, edit=edit)
            self._rows = Pieces(rows, sample=sample, edit=edit)
            self.for_tokens = Pieces(tokens)
            if on_gpu:
                begin, head = decode_step.begin_rows, decode_step.head
                self._single = replace(self._single, begin_rows=self._piece(begin, _none))
                of_rows = self._piece(head, _last_arguments), self._piece(begin, _rows_alone)
                self._rows = replace(self._rows, head=of_rows[0], begin_rows=of_rows[1])

    def for_rows(self, rows: int) -> Pieces:
        """The forms for ``rows`` rows."""
        return self._single if rows == 1 else self._rows

    @property
    def lost(self) -> bool:
        """Whether the host threw the compiled forms away (``torch._dynamo.reset()``)."""
        return bool(self._compiled) and self._compiled[0].lost

    def compile_again(self) -> None:
        """Let the next call of every piece compile it."""
        for piece in self._compiled:
            piece.compile_again()

    @property
    def compiles(self) -> int:
        """Compilations so far, over all pieces."""
        return sum(piece.compiles for piece in self._compiled)

    def _compiled_passes(self) -> Sample:
        symbolic = _first_dims if self._several else _none
        return sample_by_passes(*(self._piece(f, symbolic) for f in (sampler.temper, sampler.narrow, sampler.draw)))

    def _layers(self, decoder: StepDecoder, symbolic: SymbolicDims) -> tuple[CompiledPiece, ...]:
        by_kind = {layer: self._piece(decode_step.layer, symbolic) for layer in dict.fromkeys(decoder.kinds)}
        return tuple(by_kind[layer] for layer in decoder.kinds)

    def _piece(self, function: object, symbolic: SymbolicDims) -> CompiledPiece:
        piece = CompiledPiece(function, symbolic)  # type: ignore[arg-type]
        self._compiled.append(piece)
        return piece
