"""Bounds → chunks: pure functions over boundaries that the database has put in order."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from keyhaul.model import Chunk

if TYPE_CHECKING:
    from collections.abc import Sequence

Key = tuple[str, ...]


def chunks_between(
    boundaries: Sequence[Key], *, total_rows: int, chunk_rows: int, null_rows: int | None
) -> tuple[Chunk, ...]:
    """Cut the whole key space at the given boundaries.

    Args:
        boundaries: strictly ascending in the database's order, as text; the first key of the second
            chunk, of the third, and so on. Empty for a single chunk.
        total_rows: rows whose key is not NULL, exact or estimated.
        chunk_rows: rows that lie between two boundaries (the last chunk has the rest).
        null_rows: estimated rows whose key has a NULL; None when the key cannot be NULL.

    Returns:
        Half-open ranges ``[lower, upper)`` in ascending order, the first without a lower and the last
        without an upper bound, so that every key that is not NULL lies in exactly one; then, when
        `null_rows` is given, one chunk for NULL keys.
    """
    edges: list[Key | None] = [None, *boundaries, None]
    chunks = []
    left = total_rows
    for number, (lower, upper) in enumerate(pairwise(edges), start=1):
        rows = min(chunk_rows, left) if upper is not None else left
        left = max(0, left - rows)
        chunks.append(Chunk(number=number, lower=lower, upper=upper, estimated_rows=rows))
    if null_rows is not None:
        chunks.append(Chunk(number=len(chunks) + 1, kind="nulls", estimated_rows=null_rows))
    return tuple(chunks)
