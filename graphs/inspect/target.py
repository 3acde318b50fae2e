"""What is looked at: a step function and what makes its inputs.

``file.py:function`` or ``package.module:function``; the same module has ``make_inputs(batch_size, variant=0)``, which
returns the function's positional arguments. Variants change values and host metadata (lengths, tables), never the batch
size. Knows no ostinato model: a checkpoint folder becomes a ``Target`` elsewhere.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ostinato.layers.errors import ConfigError

if TYPE_CHECKING:
    from ostinato.graphs.inspect.tracing.residency import Residency

Step = Callable[..., Any]
MakeInputs = Callable[..., tuple[Any, ...]]


class TargetError(ConfigError):
    """The target cannot be found or run; says which part of it, and why."""


class TargetTimeout(TargetError):
    """It ran longer than the limit."""


@dataclass(frozen=True)
class Target:
    """A step and its inputs."""

    name: str
    function: Step
    make_inputs: MakeInputs
    residency: Residency | None = None
    """Where tensors lie that its module made for a device that is not there."""

    def inputs(self, batch_size: int, variant: int = 0) -> tuple[Any, ...]:
        """Fresh positional arguments; ``TargetError`` if ``make_inputs`` fails or returns no tuple."""
        try:
            if self.has_variants:
                inputs = self.make_inputs(batch_size, variant=variant)
            else:
                inputs = self.make_inputs(batch_size)
        except Exception as error:
            raise TargetError(
                f"{self.name}: make_inputs({batch_size}, variant={variant}) raised {type(error).__name__}: {error}"
            ) from error
        if not isinstance(inputs, tuple):
            raise TargetError(
                f"{self.name}: make_inputs returned {type(inputs).__name__}; expected a tuple of arguments"
            )
        return inputs

    @property
    def has_variants(self) -> bool:
        """Whether ``make_inputs`` takes ``variant``; without, frozen values cannot be told from constants."""
        return takes(self.make_inputs, "variant")


def as_target(function: Step, make_inputs: MakeInputs, name: str | None = None) -> Target:
    """A target of two functions in hand, called by the function's own name unless ``name`` is given."""
    own = getattr(function, "__qualname__", type(function).__name__)
    return Target(name or own, function, make_inputs)


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether ``function`` takes a keyword argument ``name``."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)


def load_target(text: str) -> Target:
    """Import what ``text`` names. Importing runs the module, as Python does."""
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise TargetError(f"target {text!r}: expected file.py:function or package.module:function")
    module, residency = _imported(place)
    function = _attribute(module, name, text)
    make_inputs = getattr(module, "make_inputs", None)
    if not callable(make_inputs):
        raise TargetError(f"target {text!r}: {place} has no function make_inputs(batch_size, variant=0)")
    return Target(text, function, make_inputs, residency)


def _attribute(module: ModuleType, name: str, text: str) -> Step:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        steps = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise TargetError(f"target {text!r}: no function {name!r} there; it has {', '.join(steps) or 'none'}")
    function: Step = found
    return function


def _imported(place: str) -> tuple[ModuleType, Residency | None]:
    """Import as it stands; where it asks for a GPU that is not there, again as if it were."""
    load = _import_file if place.endswith(".py") else _import_module
    try:
        return load(place), None
    except TargetError as error:
        if "CUDA" not in str(error) and "NVIDIA" not in str(error):
            raise
    from ostinato.graphs.inspect.tracing.imagined import as_if_on_device
    from ostinato.graphs.inspect.tracing.residency import Residency

    residency = Residency()
    with as_if_on_device(residency):
        return load(place), residency


def _import_file(place: str) -> ModuleType:
    path = Path(place)
    if not path.is_file():
        raise TargetError(f"target: no file {path}")
    name = _free_name(path.stem)
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise TargetError(f"target: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for good: torch.compile and pickle look modules up by name
    try:
        with _on_path(str(path.resolve().parent)):  # its neighbours, as `python file.py` finds them
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise TargetError(f"target: importing {path} raised {type(error).__name__}: {error}") from error
    return module


def _free_name(stem: str) -> str:
    """A module name that is nobody else's."""
    numbered = (f"{stem}_{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain([stem], numbered) if name not in sys.modules)


def _import_module(name: str) -> ModuleType:
    try:
        with _on_path(""):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise TargetError(f"target: no module {error.name!r}") from error
    except Exception as error:
        raise TargetError(f"target: importing {name} raised {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _on_path(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
