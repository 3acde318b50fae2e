"""docs/real-models.md shows what the tool says of transformers' own models, and its advice mends them."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from gallery.models import page
from gallery.tool import alarms
from ostinato.graphs import inspect
from ostinato.graphs.inspect import load_target

TEXT = page.PAGE.read_text()
PARTS = {found["what"]: found["text"] for found in page.PART.finditer(TEXT)}
SAME_VERSIONS = PARTS["versions"] == page.part("versions")


@pytest.mark.skipif(not SAME_VERSIONS, reason=f"the page was {PARTS['versions'].lower()}")
@pytest.mark.parametrize("what", [what for what in PARTS if what != "versions"])
def test_page_shows_what_the_tool_says(what: str) -> None:
    assert PARTS[what] == page.part(what), "run `python tests/gallery/models/page.py`"


@pytest.mark.parametrize("model", page.MODELS)
def test_decode_on_a_static_cache_raises_no_alarm(model: str) -> None:
    assert not alarms(page.look("lint", model).findings)
    assert not alarms(page.look("emulate", model).findings)
    assert page.look("emulate", model).metrics["replay_equals_eager"]


@pytest.mark.parametrize("model", ["qwen3_window_mended", "mixtral_batched", "llama_padded"])
def test_advice_leaves_nothing_to_say(model: str) -> None:
    assert not page.look("lint", model).findings
    assert not page.look("emulate", model).findings


def test_cache_of_full_length_gives_the_logits_of_the_rolling_one() -> None:
    rolling, full = (load_target(f"{page.FOLDER / name}.py:step") for name in ("qwen3_window", "qwen3_window_mended"))
    for variant in range(6):  # the window is full from the third
        logits, expected = (each.function(*each.inputs(3, variant)) for each in (full, rolling))
        assert (logits - expected).abs().max() < 1e-6


def test_every_step_is_on_the_page() -> None:
    steps = {path.stem for path in page.FOLDER.glob("*.py")} - {"decoding", "page"}
    assert steps == set(re.findall(r"^\| \[(\w+)\]", TEXT, re.M))


# What these models taught the tool, small and for any version of transformers.


class Counter:
    """A cache that counts its tokens in Python."""

    def __init__(self) -> None:
        self.keys = torch.zeros(8, 4)
        self.length = 0


def count(x: Tensor, cache: Counter) -> Tensor:
    cache.length += 1
    return x + cache.keys[0]


def test_a_number_that_changes_in_an_input_is_found_at_its_line() -> None:
    found = inspect.lint(count, lambda batch_size, variant=0: (torch.ones(batch_size, 4), Counter()), batch_sizes=(2,))
    (finding,) = (each for each in found.findings if each.code == "python-side-effect")
    assert (finding.line, "cache.length" in finding.message) == (count.__code__.co_firstlineno + 1, True)


def grouped(x: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    return torch.nn.functional.grouped_mm(x, weights, offs=offsets)


@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="torch has no grouped_mm")
@pytest.mark.parametrize(("dtype", "severity"), [(torch.bfloat16, "info"), (torch.float16, "error")])
def test_grouped_mm_waits_for_its_offsets_unless_in_bfloat16(dtype: torch.dtype, severity: str) -> None:
    def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
        offsets = torch.full((2,), batch_size, dtype=torch.int32)
        return torch.ones(batch_size, 16, dtype=dtype), torch.ones(2, 16, 16, dtype=dtype), offsets

    (finding,) = inspect.lint(grouped, make_inputs, batch_sizes=(4,)).findings
    assert (finding.code, finding.severity) == ("device-sync", severity)


def tokens_per_expert(experts: Tensor) -> Tensor:
    return torch.histc(experts, bins=4, min=0, max=3)


def test_histc_of_integers_runs_as_on_a_gpu() -> None:
    def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor]:
        assert torch.cuda.get_device_capability()[0] >= 8
        return (torch.arange(batch_size, dtype=torch.int32) % (variant + 1),)

    report = inspect.emulate(tokens_per_expert, make_inputs, batch_size=4)
    assert not report.findings
    assert not [line for line in report.not_checked if "GPU" in line]


def hit(x: Tensor, experts: list[int]) -> Tensor:
    def run(x: Tensor) -> Tensor:
        for expert in experts:
            x = x * 2
            x = x + 1 / (1 + 0 * expert)
        return x

    return run(x)


def test_a_loop_that_runs_once_more_is_named_and_not_what_called_it() -> None:
    def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, list[int]]:
        return torch.ones(batch_size), list(range(2 + variant))

    findings = inspect.lint(hit, make_inputs, batch_sizes=(2,)).findings
    assert {(each.code, each.line) for each in findings} == {("frozen-value", hit.__code__.co_firstlineno + 2)}
