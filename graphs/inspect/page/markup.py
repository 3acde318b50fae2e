"""HTML and SVG as nested calls, escaped unless already markup. Knows nothing of what the page says.

``element("td", text, class_="code")`` gives ``<td class="code">…</td>``. Names of attributes: ``_`` stands for ``-``,
one at the end is dropped; None leaves the attribute out. What it writes is HTML and XML at once.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

# What XML 1.0 cannot hold: control characters, lone surrogates and two that are no characters.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_VOID = frozenset({"br", "circle", "col", "hr", "input", "line", "link", "meta", "path", "rect", "use"})


class Markup(str):
    """Text that is markup already: it goes into the page as it is."""

    __slots__ = ()


Child = object
"""Markup, text or number; None and False are left out, a list or tuple stands for its members."""


def escape(text: object) -> Markup:
    """Return ``text`` safe in content and in quoted attributes; what cannot be printed becomes U+FFFD."""
    return Markup(html.escape(_UNPRINTABLE.sub("\ufffd", str(text)), quote=True))


def join(children: Iterable[Child]) -> Markup:
    """Concatenate children, escaping those that are not markup."""
    return Markup("".join(_flat(children)))


def element(name: str, /, *children: Child, **attributes: object) -> Markup:
    """Return one element with its children."""
    opening = name + "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Markup(f"<{opening}/>")
    return Markup(f"<{opening}>{join(children)}</{name}>")


def table(head: Iterable[Child], rows: Iterable[Markup], caption: Child = None, **attributes: object) -> Markup:
    """Return a table that scrolls sideways where it is too wide; ``rows`` are ``tr`` elements."""
    cells = [title if isinstance(title, Markup) else element("th", title, scope="col") for title in head]
    inner = element(
        "table",
        element("caption", element("span", caption)) if caption else None,
        element("thead", element("tr", cells)),
        element("tbody", list(rows)),
        **attributes,
    )
    return element("div", inner, class_="wide", tabindex="0")


def number_head(*titles: str) -> list[Markup]:
    """Heads of columns of numbers."""
    return [element("th", title, scope="col", class_="number") for title in titles]


def number(text: Child, **attributes: object) -> Markup:
    """Return a cell that holds a number."""
    return element("td", text, **{"class_": "number", **attributes})


def _flat(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if child is None or child is False:
            continue
        if isinstance(child, Markup):
            yield child
        elif isinstance(child, list | tuple):
            yield from _flat(child)
        else:
            yield escape(child)
