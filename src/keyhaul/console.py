"""Where text for people goes: lines and tables, laid out for the stream that they are written to.

`write` lays rich renderables out with colour and at the terminal's width on a terminal, as plain lines
without trailing blanks elsewhere. Text that comes from data or from a database is passed through
`text.one_line` before and never read as markup.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from typing import TYPE_CHECKING, Literal, TextIO

from keyhaul.errors import StopRunError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

_HARMFUL = re.compile(r"(?:\x1b\[[0-9;]*m)|[^\n\t -~]")
"""What may not be printable: rich's own colours are let through on a terminal, whatever else moves one is not."""

PLAIN_WIDTH = 10_000
"""Columns of a stream that is no terminal: wide enough that no line is ever broken."""


def is_terminal(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal; a closed stream is none."""
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def can_move_cursor(stream: TextIO) -> bool:
    """Return whether a display can be redrawn in place on `stream`: a terminal that is not dumb (rich reads TERM)."""
    from rich.console import Console

    return is_terminal(stream) and not Console(file=stream).is_dumb_terminal


def write(stream: TextIO, build: Callable[[Console], Iterable[RenderableType]]) -> None:
    """Write what `build` returns to `stream`, in one piece.

    Args:
        stream: a terminal gets colour and its own width; any other stream plain lines of any length.
        build: is given the console on which its answer is laid out, for its width.
    """
    from rich.console import Console

    terminal = is_terminal(stream)
    width = Console(file=stream).width if terminal else PLAIN_WIDTH
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        force_terminal=terminal,
        no_color=None if terminal else True,
        width=width,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for renderable in build(console):
        console.print(renderable)
    text = "\n".join(line.rstrip() for line in buffer.getvalue().split("\n"))
    stream.write(_encodable(_harmless(text, colours=terminal), stream))
    stream.flush()


def write_line(stream: TextIO, line: str) -> None:
    """Write one line and flush; a stream that is gone does not stop the run that it would tell about."""
    with contextlib.suppress(OSError, ValueError):
        stream.write(_encodable(_harmless(line, colours=False), stream) + "\n")
        stream.flush()


def write_result(stream: TextIO, text: str) -> None:
    """Write what a command was asked for, in one piece, and flush. A reader that is gone has read enough.

    Raises:
        StopRunError: it cannot be written: a full disk, or a stream that is closed.
    """
    try:
        stream.write(_encodable(_harmless(text, colours=False), stream))
        stream.flush()
    except BrokenPipeError:
        _forget(stream)
    except (AttributeError, OSError, ValueError) as error:
        _forget(stream)
        why = getattr(error, "strerror", None) or "it is closed"
        raise StopRunError(f"write the result to stdout: {why}. Nothing of it is kept; mend that and repeat") from error


def _forget(stream: TextIO) -> None:
    """Let go of what could not be written: Python would try again at its end, and fail with a code of its own."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        descriptor = stream.fileno()
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _harmless(text: str, *, colours: bool) -> str:
    """Return `text` with its control and invisible characters as escapes: a name could move the terminal's cursor."""

    def escaped(match: re.Match[str]) -> str:
        found = match[0]
        if found.isprintable() or (colours and len(found) > 1):
            return found
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in found)

    return _HARMFUL.sub(escaped, text)


def _encodable(text: str, stream: TextIO) -> str:
    """Return `text` as far as a stream in a narrow encoding (LC_ALL=C, PYTHONIOENCODING) can write it."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.replace("✓ ", "").replace("✗ ", "").replace("→", "->").replace("…", "...")
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def grid(headers: Sequence[tuple[str, str]] = (), *, columns: str = "") -> Table:
    """Return an empty table without frames, indented by two.

    Args:
        headers: title and ``<`` or ``>`` (left or right) of each column.
        columns: without titles, one ``<`` or ``>`` for each column.
    """
    from rich.table import Table

    table = Table(box=None, show_header=bool(headers), header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", width=0)
    for title, side in [*headers, *(("", side) for side in columns)]:
        justify: Literal["left", "right"] = "right" if side == ">" else "left"
        table.add_column(title, justify=justify, no_wrap=True, overflow="ellipsis")
    return table


def fitted(console: Console, columns: Mapping[str, tuple[str, Sequence[Text]]], expendable: Sequence[str]) -> Table:
    """Return a table that fits the console: columns are left out, in the order of `expendable`, never cut numbers.

    Args:
        console: for its width.
        columns: title → (``<`` or ``>``, the cells from top to bottom).
        expendable: titles of the columns that may go, the first to go first.
    """
    from rich.measure import Measurement

    shown = dict(columns)
    for title in [*expendable, ""]:
        table = grid([(name, side) for name, (side, _) in shown.items()])
        for row in zip(*(cells for _, cells in shown.values()), strict=True):
            table.add_row("", *row)
        if Measurement.get(console, console.options.update(width=PLAIN_WIDTH), table).maximum <= console.width:
            break
        shown.pop(title, None)
    return table
