"""docs/real-models.md shows what the tool says of transformers' own models, and its advice mends them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import pytest

pytest.importorskip("transformers")

from gallery.models import page
from gallery.tool import alarms
from ostinato.graphs.inspect import load_target

TEXT = page.PAGE.read_text()
PARTS = {found["what"]: found["text"] for found in page.PART.finditer(TEXT)}
SAME_VERSIONS = PARTS["versions"] == page.part("versions")


@pytest.fixture(autouse=True, scope="module")
def neighbours() -> Iterator[None]:
    """The steps import from their own folder."""
    sys.path.insert(0, str(page.FOLDER))
    yield
    sys.path.remove(str(page.FOLDER))


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
