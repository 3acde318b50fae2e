"""Graph breaks and recompilations: each at its line, and nothing left behind in the process."""

from __future__ import annotations

import gc
import importlib
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list

from ostinato.graphs.inspect.assertions import assert_no_recompile
from ostinato.graphs.inspect.dynamo.break_advice import advice_on
from ostinato.graphs.inspect.dynamo.break_text import parse_break
from ostinato.graphs.inspect.dynamo.breaks import breaks
from ostinato.graphs.inspect.report import Finding, Report, validate
from ostinato.graphs.inspect.target import TargetError

_OTHER = """
import logging
log = logging.getLogger("breaks.example")

def nested(x):
    y = x * 2
    log.debug("nested")  # break: logging
    return y + 1
"""
_STEP = """
import torch
from breaks_other import nested

def step(x, length):
    y = x.relu()
    print(end="")  # break: print
    y = nested(y)
    if y.sum() > 3:  # break: branch
        y = y - 1
    n = int(y[0, 0].item())  # break: item
    return y * length + n
"""


def _inputs(batch_size: int, variant: int = 0) -> tuple[Any, ...]:
    return torch.arange(batch_size * 4.0).view(batch_size, 4), 5 + variant


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A step with four breaks, one of them in another file."""
    (tmp_path / "breaks_other.py").write_text(_OTHER)
    (tmp_path / "breaks_step.py").write_text(_STEP)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("breaks_other", "breaks_step"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("breaks_step")


def _line(text: str, words: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if words in line)


def _of(report: Report, code: str, severity: str | None = None) -> list[Finding]:
    return [each for each in report.findings if each.code == code and severity in (None, each.severity)]


def _line_of(words: str) -> int:
    return _line(Path(__file__).read_text(), words)


def test_every_break_is_found_once_at_its_line_also_in_another_file(example: ModuleType) -> None:
    report = breaks(example.step, _inputs, batch_sizes=(2, 3), variants=2)
    found = {(Path(str(each.file)).name, each.line) for each in _of(report, "graph-break")}
    assert found == {
        ("breaks_other.py", _line(_OTHER, "break: logging")),
        ("breaks_step.py", _line(_STEP, "break: print")),
        ("breaks_step.py", _line(_STEP, "break: branch")),
        ("breaks_step.py", _line(_STEP, "break: item")),
    }
    assert len(_of(report, "graph-break")) == report.metrics["breaks"] == 4
    assert len(_of(report, "graph-break", "error")) == 2  # those for which the host waits: a capture is refused too
    validate(report.as_dict())


def test_nothing_of_the_process_changes(example: ModuleType) -> None:
    other = sys.modules["breaks_other"]
    host = torch.compile(other.nested, backend="eager")
    host(torch.ones(3))
    trace, dynamo = logging.getLogger("torch.__trace"), logging.getLogger("torch._dynamo")
    handlers, others = trace.handlers[:], dynamo.handlers[:]
    compiled = len(torch._dynamo.utils.get_compilation_metrics())
    counters = {name: dict(count) for name, count in torch._dynamo.utils.counters.items()}
    breaks(example.step, _inputs, batch_sizes=(2,), variants=2)
    gc.collect()

    assert (trace.handlers, dynamo.handlers) == (handlers, others)
    assert {name: dict(count) for name, count in torch._dynamo.utils.counters.items()} == counters
    assert not _debug_get_cache_entry_list(example.step.__code__)
    assert not [name for name in vars(example) if name.startswith(("__compiled_fn", "__resume_at"))]
    host(torch.ones(3))
    assert len(torch._dynamo.utils.get_compilation_metrics()) == compiled, "the host's own compiled function is kept"


def test_a_walk_does_not_teach_the_host_which_sizes_change() -> None:
    def step(x: Tensor) -> Tensor:
        return x + 1

    breaks(step, lambda batch_size: (torch.ones(batch_size, 2),), batch_sizes=(2, 3, 4))
    host = torch.compile(step, backend="eager")
    host(torch.ones(2, 2))
    host(torch.ones(3, 2))
    host(torch.ones(4, 2))
    assert len(_debug_get_cache_entry_list(step.__code__)) == 2  # static, then dynamic, as in a fresh process
    torch._C._dynamo.eval_frame.reset_code(step.__code__)


def _loops(x: Tensor, length: int) -> Tensor:
    for _ in range(length):  # a form for each length
        x = x + 1
    return x


def test_a_value_that_makes_a_new_form_at_each_step_is_followed_to_the_limit() -> None:
    report = breaks(_loops, _inputs, batch_sizes=(2,))
    (finding,) = _of(report, "recompile", "error")
    assert finding.line == _line_of("# a form for each length")
    assert "length went from 5 to 6" in finding.message
    assert f"until the limit of {report.metrics['recompile_limit']}" in finding.message
    assert report.metrics["cache_size"] == report.metrics["recompile_limit"]


def _scales(x: Tensor, length: int) -> Tensor:
    return x * length  # symbolic at its second value


def test_an_int_that_becomes_symbolic_is_a_warning_and_the_first_new_size_is_no_fault() -> None:
    report = breaks(_scales, _inputs, batch_sizes=(1, 2, 4))
    assert not report.errors
    (value,) = _of(report, "recompile", "warning")
    assert value.line == _line_of("# symbolic at its second value")
    (size,) = _of(report, "recompile", "info")
    assert "once, for batch size 2" in size.message
    assert report.metrics["recompiles_by_batch_size"] == {"1": 1, "2": 1, "4": 0}


def test_a_size_for_which_each_batch_size_has_a_form_is_a_warning() -> None:
    def step(x: Tensor) -> Tensor:
        for _ in range(x.shape[0]):  # each size unrolls otherwise
            x = x + 1
        return x

    report = breaks(step, lambda batch_size: (torch.ones(batch_size, 2),), batch_sizes=(1, 2, 3, 4))
    (finding,) = _of(report, "recompile", "warning")
    assert "for each new batch size (2, 3, 4)" in finding.message


class _Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0

    def forward(self, x: Tensor) -> Tensor:
        self.tokens += 1  # an int of a module
        return x + self.tokens


def test_a_module_that_counts_its_calls_is_an_error_without_variants() -> None:
    report = breaks(_Counts(), lambda batch_size: (torch.ones(batch_size, 2),), batch_sizes=(2,))
    (finding,) = _of(report, "recompile", "error")
    assert finding.line == _line_of("# an int of a module")
    assert "buffer" in finding.fix
    assert any("takes no variant" in said for said in report.not_checked)


def test_a_tensor_that_grows_with_the_token_is_told_from_a_new_batch_size() -> None:
    def step(x: Tensor, keys: Tensor) -> Tensor:
        return x @ keys.T

    def inputs(batch_size: int, variant: int = 0) -> tuple[Any, ...]:
        return torch.ones(batch_size, 4), torch.ones(5 + variant, 4)

    report = breaks(step, inputs, batch_sizes=(2,))
    (finding,) = _of(report, "recompile", "warning")
    assert "keys.size(0) went from 5 to 6" in finding.message
    assert "static cache" in finding.fix


def test_assert_no_recompile_names_line_guard_and_fix() -> None:
    assert_no_recompile(lambda x, _: x + 1, _inputs, batch_sizes=(1, 2))
    with pytest.raises(
        AssertionError, match=rf"test_inspect_breaks.py:{_line_of('# a form for each length')}  recompile(.|\n)*length"
    ):
        assert_no_recompile(_loops, _inputs, batch_sizes=(2,))


def test_what_is_compiled_already_is_compiled_apart_and_fullgraph_makes_a_break_an_error() -> None:
    def step(x: Tensor, _: int) -> Tensor:
        print(end="")
        return x + 1

    compiled = torch.compile(step, backend="eager", fullgraph=True)
    (finding,) = _of(breaks(compiled, _inputs, batch_sizes=(2,)), "graph-break")
    assert finding.severity == "error" and "fullgraph=True" in finding.message


def test_a_loop_with_a_break_is_dropped_as_a_whole_and_said_to_be_unchecked() -> None:
    def step(x: Tensor, _: int) -> Tensor:
        for _ in range(2):
            print(end="")
            x = x + 1
        return x

    report = breaks(step, _inputs, batch_sizes=(2,))
    (finding,) = _of(report, "graph-break", "error")
    assert "nothing of the function" in finding.message
    assert any("runs uncompiled" in said for said in report.not_checked)


def test_a_disabled_function_is_a_break_and_its_inside_unchecked() -> None:
    @torch._dynamo.disable
    def sampler(x: Tensor) -> Tensor:
        return x * 2

    def step(x: Tensor, _: int) -> Tensor:
        return sampler(x + 1) + 1

    report = breaks(step, _inputs, batch_sizes=(2,))
    (finding,) = _of(report, "graph-break")
    assert "leave alone" in finding.message
    assert any("runs uncompiled" in said for said in report.not_checked)


def test_a_target_that_raises_is_told_with_its_line_and_not_as_a_break() -> None:
    def step(x: Tensor, _: int) -> Tensor:
        return x @ torch.ones(3)  # of another size

    line = _line_of("# of another size")
    with pytest.raises(TargetError, match=rf"raised RuntimeError: .* at .*test_inspect_breaks.py:{line}"):
        breaks(step, _inputs, batch_sizes=(2,))


def test_a_break_within_the_standard_library_is_put_at_the_users_line() -> None:
    def step(x: Tensor, _: int) -> Tensor:
        logging.info("one line")  # logging takes locks, looks at frames
        return x + 1

    (finding,) = _of(breaks(step, _inputs, batch_sizes=(2,)), "graph-break")
    assert finding.line == _line_of("# logging takes locks")
    assert "logging" in finding.message


def test_a_clean_step_has_no_finding_but_the_first_new_size() -> None:
    linear = nn.Linear(4, 4)
    report = breaks(lambda x, _: linear(x).softmax(-1), _inputs, batch_sizes=(1, 2, 4))
    assert report.verdict == "clean"
    assert report.metrics["breaks"] == 0 and report.metrics["frames"] == report.metrics["graphs"] == 1


_SAID = """Graph break in user code at {file}:7
Graph Break Reason: Encountered graph break when attempting to trace CALL: a function call, e.g. f(x, y):

{kind}
  Explanation: {explanation}
  Hint: It may be possible to write Dynamo tracing rules for this code.
  Hint: Set an option.

  Developer debug context: {context}

 For more details about this graph break, please visit: https://example.org

User code traceback:
  File "/tool/walk.py", line 3, in walk
    compiled(x)
  File "{file}", line 7, in torch_dynamo_resume_in_step_at_6
    f(x)
"""


@pytest.mark.parametrize(
    ("kind", "explanation", "context", "advice"),
    [
        ("Failed to trace builtin operator", "operator `print` with", "builtin print", "print"),
        ("Failed to trace builtin operator", "operator `open` with argument types ['str']", "builtin open", "file"),
        ("Unsupported Tensor.item() call with capture_scalar_outputs=False", "", "call_method item", "item"),
        ("Tensor.tolist() with non-integer tensor", "", "to_list", "tolist"),
        ("Data-dependent branching", "Detected data-dependent branching", "attempted to jump", "branch"),
        ("Dynamic shape operator", "Operator `aten.nonzero.default`", "", "dynamic-shape"),
        ("Data dependent operator", "", "aten.equal.default", "data-dependent-operator"),
        ("Attempted to call function marked as skipped", "the builtin `time.time.`", "module: time", "clock"),
        ("Attempted to call function marked as skipped", "builtin `_warnings.warn`", "module: _warnings", "warning"),
        ("Attempted to call function marked as skipped", "builtin `x.Random.random.`", "", "random"),
        ("Attempted to call function marked as skipped", "a C/C++ extension", "module: mine", "extension"),
        ("Unsupported context manager", "cannot enter a `lock` context manager", "", "lock"),
        ("Unsupported context manager", "cannot enter a `Mine` context manager", "", "context-manager"),
        ("Unsupported method call", "method `now` of class `type`", "<class 'datetime.datetime'>", "clock"),
        ("torch.jit.script/freeze modules unsupported", "", "RecursiveScriptModule", "script"),
        ("Something new", "nobody knows", "", "other"),
    ],
)
def test_each_kind_of_break_has_its_advice(kind: str, explanation: str, context: str, advice: str) -> None:
    said = _SAID.format(file=__file__, kind=kind, explanation=explanation, context=context)
    text = parse_break(said, "/tool/walk.py")
    assert (text.kind, text.hints) == (kind, ("Set an option.",))
    assert [place.function for place in text.stack] == ["step"], "lines above the target, and names of rests, are gone"
    assert advice_on(text).name == advice
