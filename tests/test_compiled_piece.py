"""Compiled pieces: compiled once, for one class of shapes, alone; and nothing of the process left changed.

Few and tiny functions: each compilation takes seconds.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from deferred_stream import DeferredStream
from ostinato.graphs.ambient import neutral_state
from ostinato.graphs.compile_scope import cache_folder, compile_scope
from ostinato.graphs.compiled import CompiledPiece
from ostinato.graphs.toolchain import cpp_compiler_problem
from ostinato.layers.errors import CaptureError
from ostinato.models.decode_step import begin_rows, head
from ostinato.models.rope_tables import Rotation
from ostinato.step_buffers import StepBuffers
from ostinato.step_pieces import _last_arguments, _rows_alone

pytestmark = pytest.mark.skipif(cpp_compiler_problem() is not None, reason="needs a C++ compiler")

Dims = Iterable[tuple[Tensor, int]]


def write_and_sum(cache: Tensor, x: Tensor, slots: Tensor, factor: float = 2.0) -> Tensor:
    """What a layer does in small: write into the caller's tensor, read what was written."""
    cache.index_copy_(0, slots, x)
    return cache.sum(0) + factor * x


def write_and_sum_rows(cache: Tensor, x: Tensor, slots: Tensor) -> Dims:
    return [(x, 0), (slots, 0)]


def call(run: Any, rows: int, cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``run`` on ``rows`` rows; the result and the written cache."""
    cache = torch.zeros(200, 4) if cache is None else cache
    x = torch.arange(rows * 4.0).view(rows, 4)
    return run(cache, x, torch.arange(rows) * 2), cache


def settings() -> dict[str, Any]:
    """All that a compilation might leave behind in this process."""
    import torch._dynamo.config
    import torch._inductor.config

    return {
        "environment": dict(os.environ),
        "inductor": torch._inductor.config.get_config_copy(),
        "dynamo": torch._dynamo.config.get_config_copy(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "random state": torch.get_rng_state().tolist(),
        "gradients": torch.is_grad_enabled(),
        "running threads": {thread.name for thread in threading.enumerate()} - {"tqdm_monitor"},
        "children": {child.pid for child in psutil.Process().children(recursive=True)},
    }


@pytest.fixture(scope="module")
def changed() -> dict[str, Any]:
    """Filled by ``piece``: what its compilation changed."""
    return {}


@pytest.fixture(scope="module")
def piece(changed: dict[str, Any]) -> CompiledPiece:
    """One piece with a symbolic number of rows, compiled on three."""
    made = CompiledPiece(write_and_sum, write_and_sum_rows)
    assert made.compiles == 0
    before = settings()
    with neutral_state("cpu"):
        call(made, 3)
    after = settings()
    changed |= {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    return made


# One compilation.


@pytest.mark.parametrize("rows", [2, 3, 4, 7, 64, 99])
def test_any_number_of_rows_runs_the_same_code(piece: CompiledPiece, rows: int) -> None:
    with neutral_state("cpu"):
        (got, cache), (want, written) = call(piece, rows), call(write_and_sum, rows)
    torch.testing.assert_close(got, want)
    assert torch.equal(cache, written)
    assert piece.compiles == 1


@pytest.mark.parametrize(
    "caller",
    [
        torch.no_grad(),
        torch.enable_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
        torch.device("meta"),
    ],
    ids=["no_grad", "enable_grad", "inference_mode", "autocast", "device"],
)
def test_a_caller_in_another_mode_gets_the_same_values_and_no_compilation(piece: CompiledPiece, caller: Any) -> None:
    with neutral_state("cpu"):
        want = call(piece, 5)[0]
    with caller, neutral_state("cpu"):
        got = call(piece, 5)[0]
    assert torch.equal(got, want)
    assert piece.compiles == 1


def test_a_caller_with_another_default_dtype_gets_the_same_values_and_no_compilation(piece: CompiledPiece) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with neutral_state("cpu"):
            got = call(piece, 5)[0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.dtype is torch.float32
    assert piece.compiles == 1


def test_a_piece_knows_the_name_of_its_function(piece: CompiledPiece) -> None:
    assert piece.name == "write_and_sum"


# Pieces of one function.


def test_ten_pieces_of_one_function_are_independent(piece: CompiledPiece) -> None:
    """Torch gives up on a code object after eight compilations: every piece has a code object of its own."""

    def one_row(cache: Tensor, x: Tensor, slots: Tensor) -> Dims:
        return []

    pieces = [CompiledPiece(write_and_sum, one_row) for _ in range(9)]
    with neutral_state("cpu"):
        for number, made in enumerate(pieces):
            assert made.compiles == 0
            got, _ = call(made, 1, torch.full((200, 4), float(number)))
            want, _ = call(write_and_sum, 1, torch.full((200, 4), float(number)))
            torch.testing.assert_close(got, want)
            assert made.compiles == 1
        torch.testing.assert_close(call(piece, 9)[0], call(write_and_sum, 9)[0])
    assert [made.compiles for made in (piece, *pieces)] == [1] * 10
    assert not torch._dynamo.eval_frame._debug_get_cache_entry_list(write_and_sum.__code__)


def test_the_compiled_form_dies_with_its_piece() -> None:
    def small(x: Tensor) -> Tensor:
        return x + 1

    def compiled_functions() -> set[str]:
        """Dynamo's names for compiled functions, in the globals of the function that was compiled."""
        return {name for name in globals() if name.startswith("__compiled_fn")}

    gc.collect()
    before = compiled_functions()
    made = CompiledPiece(small, lambda x: [])
    with neutral_state("cpu"):
        made(torch.zeros(2))
    form = weakref.ref(torch._dynamo.eval_frame._debug_get_cache_entry_list(made._code)[0].code)
    assert len(compiled_functions() - before) == 1
    del made
    gc.collect()
    assert form() is None
    assert compiled_functions() == before


# What is refused.


def test_a_dimension_that_the_function_specialises_is_an_error() -> None:
    def three_rows_only(x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] == 3 else x

    made = CompiledPiece(three_rows_only, lambda x: [(x, 0)])
    with neutral_state("cpu"), pytest.raises(Exception, match=r"[Cc]onstraint"):
        made(torch.zeros(3, 2))
    assert made.compiles == 0


def test_a_function_that_leaves_the_graph_is_an_error() -> None:
    def breaks(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x + 1

    with neutral_state("cpu"), pytest.raises(torch._dynamo.exc.Unsupported):
        CompiledPiece(breaks, lambda x: [])(torch.zeros(3))


def test_a_process_in_which_torch_does_not_compile_is_told_so() -> None:
    def small(x: Tensor) -> Tensor:
        return x + 1

    with torch.compiler.set_stance("force_eager"), pytest.raises(CaptureError, match=r"small: torch\.compile did not"):
        CompiledPiece(small, lambda x: [])(torch.zeros(3))


# Manners.


def test_compiling_changes_nothing_of_the_process(piece: CompiledPiece, changed: dict[str, Any]) -> None:
    """Environment, settings, random state; and neither a thread nor a compiler process is left running."""
    assert changed == {}


@pytest.mark.parametrize("given", [None, "mine"])
def test_the_compile_scope_sets_the_folder_and_restores_the_environment(
    given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    folder = tmp_path / "ostinato" / f"inductor-{torch.__version__}"
    if given is not None:
        folder = tmp_path / given
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    before, threads = dict(os.environ), config.compile_threads
    for error in (None, ZeroDivisionError):
        with pytest.raises(error) if error else monkeypatch.context(), compile_scope():
            assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder) == str(cache_folder())
            assert folder.is_dir()
            if error:
                raise error
        assert dict(os.environ) == before
        assert config.compile_threads == threads
    if given is None:
        assert folder.stat().st_mode & 0o077 == 0


def test_scopes_of_two_threads_may_end_in_any_order() -> None:
    from torch._inductor import config

    before, threads = dict(os.environ), config.compile_threads
    entered, leave, seen = threading.Event(), threading.Event(), []

    def other() -> None:
        with compile_scope():
            entered.set()
            leave.wait(60)
        seen.append(config.compile_threads)

    thread = threading.Thread(target=other)
    with compile_scope():
        thread.start()
        assert entered.wait(60)
    assert config.compile_threads == threads
    assert os.environ["TORCH_WARM_POOL"] == "0", "the other thread's scope still holds"
    leave.set()
    thread.join()
    assert seen == [threads]
    assert dict(os.environ) == before


def test_the_default_cache_is_in_the_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path(f"/home/somebody/.cache/ostinato/inductor-{torch.__version__}")


def test_a_missing_compiler_is_a_reason_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.cpp_builder as builder
    from torch._inductor.exc import InvalidCxxCompiler

    def absent() -> str:
        raise InvalidCxxCompiler

    assert cpp_compiler_problem() is None
    monkeypatch.setattr(builder, "get_cpp_compiler", absent)
    problem = cpp_compiler_problem()
    assert problem
    assert "\n" not in problem


# The pieces that are compiled on a GPU alone.


@pytest.mark.parametrize("rotates", [True, False])
def test_the_gathers_before_a_decode_step_compile_for_any_number_of_rows(rotates: bool) -> None:
    """Cut from an engine's own buffers, the changed cells of the table among them."""
    buffers = StepBuffers(6, 8, 4, 5, 30, DeferredStream(eagerness=1.0), fixed_width=True)
    state, draw = buffers.state, torch.Generator().manual_seed(0)
    table = torch.randn(64, 4, generator=draw)
    rope = (Rotation(table, table + 1), Rotation(None, None)) if rotates else (Rotation(None, None),)
    piece = CompiledPiece(begin_rows, _rows_alone)
    for rows in (6, 2, 3, 5):
        inputs = buffers.row_inputs(rows)
        state.last_token.random_(0, 50, generator=draw)
        inputs.token_ids.random_(-1, 3, generator=draw)
        inputs.row_slot.copy_(torch.randperm(6, generator=draw)[:rows])
        inputs.positions.random_(0, 64, generator=draw)
        assert inputs.table_at is not None
        assert inputs.table_value is not None
        inputs.table_at.copy_(torch.randperm(30, generator=draw)[: 2 * rows])
        inputs.table_value.random_(1, 90, generator=draw)
        state.block_table.zero_()
        want = begin_rows(state.last_token, state.block_table.clone(), rope, inputs)
        with neutral_state("cpu"):
            got = piece(state.last_token, state.block_table, rope, inputs)
        assert torch.equal(got.token_ids, want.token_ids)
        assert torch.equal(got.block_table, want.block_table)
        assert state.block_table.view(-1)[inputs.table_at].equal(inputs.table_value)
        for ours, theirs in zip(got.rotations, want.rotations, strict=True):
            assert (ours.cos is None) == (theirs.cos is None)
            assert ours.cos is None or (torch.equal(ours.cos, theirs.cos) and torch.equal(ours.sin, theirs.sin))
    assert piece.compiles == 1


def test_the_head_compiles_for_any_number_of_rows() -> None:
    class Model:
        weight = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))

        def norm(self, x: Tensor) -> Tensor:
            return x * x.pow(2).mean(-1, keepdim=True).rsqrt()

        def compute_logits(self, hidden: Tensor) -> Tensor:
            return hidden @ self.weight

    piece, model = CompiledPiece(head, _last_arguments), Model()
    for rows in (5, 2, 7):
        x = torch.randn(rows, 16)
        with neutral_state("cpu"):
            torch.testing.assert_close(piece(model, x), head(model, x))  # type: ignore[arg-type]
    assert piece.compiles == 1
