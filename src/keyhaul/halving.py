"""The search for guilty records: a part that fails is halved until each guilty record stands alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

E = TypeVar("E", bound=BaseException)


def halve(
    frame: pl.DataFrame,
    attempt: Callable[[pl.DataFrame], E | None],
    alone: Callable[[pl.DataFrame, E], None],
    instead: Mapping[int, Callable[[pl.DataFrame], pl.DataFrame | None]] | None = None,
    known: E | None = None,
) -> None:
    """Do something with all records of a frame but the guilty ones, in their order.

    With g guilty records among n this costs at most about 2·g·log2(n) further attempts.

    Args:
        frame: the records, one a row.
        attempt: does it for a part of them, and returns the error for which nothing was done.
        alone: called with a record that fails alone, and its error.
        instead: number of failed attempts → what is asked then: it gets all records that are left and returns those
            that are tried next, as one part; None goes on with halves.
        known: the error of all together, which are not tried so again then.
    """
    pending, failed = [frame], 0
    while pending:
        part = pending.pop()
        error, known = known or attempt(part), None
        if error is None:
            continue
        if part.height == 1:
            alone(part, error)
            continue
        failed += 1
        ask = instead.get(failed) if instead else None
        left = ask(pl.concat([part, *reversed(pending)])) if ask else None
        if left is not None:
            pending = [left]
        else:
            middle = part.height // 2
            pending += [part[middle:], part[:middle]]
