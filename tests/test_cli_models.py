"""``ostinato models``: the families and their mechanisms, from the code's own tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ostinato import cli_models
from ostinato.cli import app
from ostinato.layers.activation import ACTIVATIONS
from ostinato.models import rope_json
from ostinato.models.registry import families


@pytest.fixture(scope="module")
def listed() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(CliRunner().invoke(app, ["models", "--json", "-"]).stdout)
    return result


def test_every_family_is_listed_with_all_its_architectures() -> None:
    done = CliRunner().invoke(app, ["models"])
    assert (done.exit_code, done.stderr) == (0, "")
    for family in families():
        assert f"\n{family.name:<11} {', '.join(family.architectures)}\n" in f"\n{done.stdout}"


def test_every_family_says_something_about_itself() -> None:
    assert [family.name for family in families() if not family.about] == []


@pytest.mark.parametrize(
    ("family", "mechanism"),
    [
        ("qwen3", "QK norm"),
        ("qwen3_moe", "mixture of experts"),
        ("minimax_m2", "correction bias"),
        ("gpt2", "learned positions"),
        ("gpt_oss", "attention sinks"),
        ("gemma2", "norms before and behind"),
        ("olmo2", "norms behind"),
        ("falcon", "plain feed-forward"),
    ],
)
def test_mechanisms_are_read_from_the_rules(listed: dict[str, Any], family: str, mechanism: str) -> None:
    found = {each["name"]: each["mechanisms"] for each in listed["families"]}
    assert mechanism in found[family]
    assert mechanism not in found["llama"]


def test_the_shared_tables_are_those_that_the_code_uses(listed: dict[str, Any]) -> None:
    assert listed["activations"] == list(ACTIVATIONS)
    assert listed["rope"] == list(rope_json._KEYS)
    assert listed["norms"] == ["rms", "gemma", "layer"]
    assert listed["routing"] == ["softmax", "topk_softmax", "sigmoid"]


def test_a_file_gets_the_json_and_stdout_the_text(tmp_path: Path, listed: dict[str, Any]) -> None:
    done = CliRunner().invoke(app, ["models", "--json", str(tmp_path / "models.json")])
    assert done.stdout == cli_models.as_text(cli_models.catalogue()) + "\n"
    assert json.loads((tmp_path / "models.json").read_text()) == listed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["more"], "more"),
        (["--json"], "--json"),
        (["--json", ""], "--json: cannot write ''"),
        (["--json", "nowhere/models.json"], "--json: cannot write 'nowhere/models.json'"),
        (["--json", "."], "--json: cannot write '.'"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["models", *arguments])
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
