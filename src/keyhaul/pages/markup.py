"""HTML and SVG elements: text is escaped unless it is markup already, so that no name or message can become any."""

from __future__ import annotations

import html
from typing import Final

from keyhaul.text import one_line

_VOID: Final = frozenset({"meta", "br", "hr"})


class Markup(str):
    """Text that is HTML; whatever else is a `str` is foreign and gets escaped."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """Return foreign text as HTML, with control and invisible characters written as escapes."""
    return text if isinstance(text, Markup) else Markup(html.escape(one_line(text)))


def element(name: str, /, *children: str | None, **attributes: str | float | None) -> Markup:
    """Return an element.

    Args:
        name: of the element.
        children: in order; `Markup` as it is, other text escaped, None left out.
        attributes: a trailing ``_`` is dropped and ``__`` becomes ``-``: ``class_``, ``stroke__width``.
            A float is written with at most three decimals; None leaves the attribute out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("__", "-")}="{html.escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str | None) -> Markup:
    """Return the children one after the other, foreign text escaped."""
    return Markup("".join(escape(child) for child in children if child is not None))


def _number(value: str | float) -> str:
    if isinstance(value, str):
        return one_line(value)
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
