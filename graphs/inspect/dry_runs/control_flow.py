"""From two runs that part to the statement that decides: the ``if``, ``for`` or ``while`` between their lines."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from ostinato.graphs.inspect.source import Place

Stack = tuple[Place, ...]
"""The user's lines, innermost first."""

_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.While, ast.Match, ast.Try)
_DECIDES = (*_BRANCHES, ast.ListComp, ast.GeneratorExp, ast.DictComp, ast.SetComp, ast.BoolOp)


def parting(taken: Stack, other: Stack, before: Stack) -> Place | None:
    """The statement that sent one run to ``taken`` and the other to ``other``, after both had been at ``before``."""
    if not taken:
        return other[0] if other else None
    mine, theirs, common = (list(reversed(stack)) for stack in (taken, other, before))
    depth = next((d for d, place in enumerate(mine) if d >= len(theirs) or theirs[d] != place), len(mine) - 1)
    depth = max(depth, _still_in_loop(mine, common))
    for inner in range(depth, len(mine)):  # where nothing decides about the call, something inside of it does
        place = mine[inner]
        elsewhere = [_line_in(stack, inner, place) for stack in (theirs, common)]
        line = deciding_line(place.file, place.line, *elsewhere)
        if line is not None:
            return place._replace(line=line)
    return mine[depth]


def _still_in_loop(mine: list[Place], before: list[Place]) -> int:
    """The depth of the innermost function in whose loop the run was ``before`` and still is; else 0."""
    found = 0
    for depth, (place, earlier) in enumerate(zip(mine, before, strict=False)):
        if place[::2] != earlier[::2]:
            break
        parts = _deciding(place.file, place.line)
        loops = (part for part, _ in parts if isinstance(part, ast.For | ast.While))
        if any(loop.lineno < earlier.line <= (loop.end_lineno or 0) for loop in loops):
            found = depth
        if place != earlier:
            break
    return found


def _line_in(stack: list[Place], depth: int, place: Place) -> int | None:
    """The line of the frame at ``depth``, if it is one of the same function."""
    if depth < len(stack) and (stack[depth].file, stack[depth].function) == (place.file, place.function):
        return stack[depth].line
    return None


def deciding_line(file: str, line: int, other: int | None = None, before: int | None = None) -> int | None:
    """The line of the statement in the same function that decides whether ``line`` runs.

    The outermost that holds ``line`` in a branch without ``other``; rather one that had not been entered ``before``.
    """
    parts = _deciding(file, line)
    apart = [statement for statement, branch in parts if other is None or not branch[0] <= other <= branch[1]]
    new = [s for s in apart if before is None or not s.lineno <= before <= (s.end_lineno or s.lineno)]
    if other is None:
        new, apart = new[-1:], apart[-1:]
    chosen = new or apart
    return chosen[0].lineno if chosen else None


Branch = tuple[int, int]


@lru_cache(maxsize=4096)
def _deciding(file: str, line: int) -> list[tuple[ast.expr | ast.stmt, Branch]]:
    """Statements of the innermost function that decide about ``line``, outermost first, with the branch it is in."""
    found: list[tuple[ast.expr | ast.stmt, Branch]] = []
    node: ast.AST | None = _parsed(file)
    while node is not None:
        node = next((child for child in ast.iter_child_nodes(node) if _holds(child, line)), None)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            found = []
        elif isinstance(node, _DECIDES):
            found.append((node, next((b for b in _branches(node) if b[0] <= line <= b[1]), (line, line))))
    return found


def _branches(node: ast.AST) -> Iterator[Branch]:
    for name in ("body", "orelse", "handlers", "finalbody", "cases"):
        part = getattr(node, name, None)
        nodes = part if isinstance(part, list) else [part] if isinstance(part, ast.AST) else []
        lines = [n for child in nodes for n in (getattr(child, "lineno", 0), getattr(child, "end_lineno", 0) or 0) if n]
        if lines:
            yield min(lines), max(lines)


def _holds(node: ast.AST, line: int) -> bool:
    begin, end = getattr(node, "lineno", None), getattr(node, "end_lineno", None)
    return begin is not None and end is not None and begin <= line <= end


@lru_cache(maxsize=64)
def _parsed(file: str) -> ast.Module | None:
    try:
        return ast.parse(Path(file).read_text())
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None
