"""Runs a jinja2 template from a checkpoint: inside jinja2's sandbox, and on a budget.

The sandbox keeps a template from reaching anything but the plain data it was given, and from changing that. The budget
keeps it from running for ever: `MAX_STEPS` loop rounds and calls, `MAX_SECONDS` looked at with each of them,
`MAX_CHARS` of output, and as much for any one value that an operator builds. What one filter or method does in one call
is not bounded (a padding to a billion characters, say).

Names, filters and white space are those of transformers' `apply_chat_template`. Knows no checkpoint and no messages.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_CHARS = 4_000_000
MAX_STEPS = 500_000
MAX_SECONDS = 5.0


def compile_template(source: str) -> jinja2.Template:
    """Compile a template that counts its steps. Raises jinja2.TemplateSyntaxError."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
    tree = _CountSteps().visit(environment.parse(source))
    tree.set_environment(environment)
    return environment.from_string(tree)


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """Return the output. Raises what the template raises, and SecurityError when the budget is spent."""
    token = _budget.set(_Budget())
    try:
        return "".join(_up_to_max_chars(template.generate(variables)))
    finally:
        _budget.reset(token)


class _Budget:
    def __init__(self) -> None:
        self.steps = MAX_STEPS
        self.deadline = time.monotonic() + MAX_SECONDS

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise SecurityError(f"more than {MAX_STEPS:,} loop rounds and calls")
        if time.monotonic() > self.deadline:
            raise SecurityError(f"more than {MAX_SECONDS:g} seconds")


_budget: ContextVar[_Budget] = ContextVar("template budget")


def _spend(steps: int) -> None:
    budget = _budget.get(None)
    if budget is not None:  # jinja2 folds constants while it compiles, outside any rendering
        budget.spend(steps)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters |= {"tojson": _tojson, "counted": _counted, "joined": _joined}
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda format: datetime.now().strftime(format),
            "dict": _Dict(),
            "namespace": _Namespace,
        }
        del self.globals["lipsum"]  # makes as much text as it is asked for

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_size(_size_of_result(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _spend(1)
        return super().call(__context, __obj, *args, **kwargs)


class _CountSteps(NodeTransformer):
    """Sends what every loop goes over, and every ``~``, through a filter that counts."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "joined")


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _counted(items: Any) -> Any:
    if isinstance(items, Sized):
        _spend(len(items))
        return items
    return _counted_one_by_one(items)


def _counted_one_by_one(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _spend(1)
        yield item


def _joined(parts: list[Any]) -> str:
    texts = [str(part) for part in parts]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


def _size_of_result(operator: str, left: Any, right: Any) -> int:
    """An upper bound for ``+``, ``*`` and ``**``, in items of a container or bits of a number."""
    if operator == "**" and isinstance(right, int):
        return _size(left) * max(right, 1)
    if operator == "*" and isinstance(left, int) != isinstance(right, int):
        sized, times = (right, left) if isinstance(left, int) else (left, right)
        return _size(sized) * max(times, 1) if isinstance(times, int) else 0
    return _size(left) + _size(right)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, Sized) else value.bit_length() if isinstance(value, int) else 0


def _check_size(size: int) -> None:
    if size > MAX_CHARS:
        raise SecurityError(f"a value of size {size:,}; the limit is {MAX_CHARS:,}")


def _up_to_max_chars(pieces: Iterable[str]) -> Iterator[str]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_CHARS:
            raise SecurityError(f"more than {MAX_CHARS:,} characters of output")
        yield piece


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is: jinja2's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Dict:
    """What ``dict`` means in a template: the two ways to make one, and no attribute of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """jinja2's namespace without private names."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args  # so that a template may name an attribute "self"
        for name in dict(*rest, **kwargs):
            _check_public(name)
        jinja2.utils.Namespace.__init__(self, *rest, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace holds no private name; got {name!r}")


class _GenerationBlock(Extension):
    """``{% generation %}…{% endgeneration %}`` marks an answer for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
