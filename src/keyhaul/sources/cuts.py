"""Bounds → chunks, and neighbouring chunks → one: pure functions over boundaries that the database has put in order."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from keyhaul.model import Chunk, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

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


def batches(keys: Sequence[str], chunk_rows: int, row_bytes: float) -> Plan:
    """Return the batches of a replay: chunks of at most so many keys, in the order given."""
    parts = [tuple(keys[first : first + chunk_rows]) for first in range(0, len(keys), chunk_rows)]
    return Plan(
        chunks=tuple(
            Chunk(number=number, kind="keys", keys=part, estimated_rows=len(part))
            for number, part in enumerate(parts, start=1)
        ),
        estimated_rows=len(keys),
        estimated_bytes=int(len(keys) * row_bytes),
        exact=True,
    )


def merged(cuts: Sequence[Chunk]) -> Chunk:
    """Return the chunk that has exactly the keys of some neighbouring cuts.

    Args:
        cuts: each the neighbour of the one before, ascending or descending; at least one. A single one stays as it is.

    Raises:
        ValueError: two that follow each other here are no neighbours (a mistake of the caller).
    """
    ordered = tuple(sorted(cuts, key=lambda cut: cut.number))
    if not ordered or not all(neighbours(one, other) for one, other in pairwise(ordered)):
        message = f"merge cuts {[cut.number for cut in cuts]}: expected neighbours"
        raise ValueError(message)
    if len(ordered) == 1:
        return ordered[0]
    return Chunk(
        number=ordered[0].number,
        lower=ordered[0].lower,
        upper=ordered[-1].upper,
        estimated_rows=sum(cut.estimated_rows for cut in ordered),
        cuts=ordered,
    )


def neighbours(one: Chunk, other: Chunk) -> bool:
    """Whether these are two key ranges as they were planned with nothing between them, in either order."""
    low, high = sorted((one, other), key=lambda cut: cut.number)
    planned = one.kind == other.kind == "range" and not one.cuts and not other.cuts
    return planned and high.number == low.number + 1 and low.upper is not None and low.upper == high.lower


def to_merge(
    left: Iterable[Chunk],
    *,
    wanted: float,
    most: float,
    rows_of: Callable[[Chunk], float],
    alone: Callable[[Chunk], bool],
) -> list[Chunk]:
    """Return the first cuts of `left` that make the next chunk: neighbours, as near as they come to `wanted` rows.

    Args:
        left: the cuts that are open, in the order in which they are taken; nothing behind the last neighbour is read.
        wanted: rows that the chunk should have.
        most: rows that it must not exceed, unless its first cut does so alone.
        rows_of: how many rows a cut is expected to have.
        alone: whether a cut must not be merged.
    """
    chosen: list[Chunk] = []
    rows = 0.0
    for cut in left:
        more = rows_of(cut)
        fits = rows + more / 2 <= wanted and rows + more <= most
        if chosen and (alone(cut) or not neighbours(chosen[-1], cut) or not fits):
            break
        chosen.append(cut)
        rows += more
        if alone(cut):
            break
    return chosen


def halved(chunk: Chunk) -> tuple[Chunk, Chunk]:
    """Return the two halves of a merged chunk, the lower one first.

    Raises:
        ValueError: it is a chunk as it was planned (a mistake of the caller).
    """
    if not chunk.cuts:
        message = f"halve chunk {chunk.number}: expected one that was merged"
        raise ValueError(message)
    middle = len(chunk.cuts) // 2
    return merged(chunk.cuts[:middle]), merged(chunk.cuts[middle:])
