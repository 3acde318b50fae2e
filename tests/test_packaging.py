"""What a distribution promises: its public names, its version, its data files, and pins that fit what it declares."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ostinato
from ostinato.layers import errors

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = {
    canonicalize_name(line.partition("==")[0]): line.partition("==")[2].strip()
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
}
UNPINNED_EXTRAS = {"flash", "serve", "structured"}  # nothing of ours installs them yet


def test_the_version_is_the_installed_one() -> None:
    assert ostinato.__version__ == importlib.metadata.version("ostinato")


@pytest.mark.parametrize("name", ostinato.__all__)
def test_every_public_name_can_be_read(name: str) -> None:
    assert getattr(ostinato, name) is not None
    assert name in dir(ostinato)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'ostinato' has no attribute 'LLMs'"):
        _ = ostinato.LLMs  # type: ignore[attr-defined]


def test_every_error_is_public() -> None:
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert tree == set(ostinato.errors.__all__)
    assert tree <= set(ostinato.__all__)


def declared() -> list[Requirement]:
    project = PYPROJECT["project"]
    lists = [project["dependencies"]]
    lists += [needs for extra, needs in project["optional-dependencies"].items() if extra not in UNPINNED_EXTRAS]
    return [Requirement(text) for needs in lists for text in needs]


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_a_declared_dependency_has_a_pin_in_its_range(requirement: Requirement) -> None:
    pin = PINS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin, prereleases=True)


def test_pins_name_no_build() -> None:
    """A local version such as ``+cpu`` exists on one machine's index only."""
    assert [name for name, version in PINS.items() if not re.fullmatch(r"[0-9][0-9a-z.]*", version)] == []


def test_every_data_file_of_the_demo_model_is_packaged() -> None:
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["ostinato.models.demo"]
    data = [path.name for path in (ROOT / "models" / "demo").iterdir() if path.is_file() and path.suffix != ".py"]
    assert "config.json" in data
    assert [name for name in data if not any(fnmatch(name, pattern) for pattern in patterns)] == []


def test_the_package_says_it_is_typed() -> None:
    assert (ROOT / "engine" / "py.typed").is_file()


def test_the_readme_is_the_long_description() -> None:
    assert PYPROJECT["project"]["readme"] == "README.md"
    assert (ROOT / "README.md").is_file()
