"""One file as the engine sees it, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from keyhaul.model import Column
    from keyhaul.sources.files.remote.object import RemoteFile

FILE, RECORD_NUMBER, LINE = "_keyhaul_file", "_keyhaul_number", "_keyhaul_line"
"""Columns of each file of our own: its path, the record's number in it from 1, the physical line it begins on from
1. What a job selects of them has another name; see `selected`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Records of a part.

    Attributes:
        frame: the columns asked for, then `RECORD_NUMBER` and `LINE` (NULL in a format without lines).
        rejected: one row each: number, line (Int64), reason, message, raw (String).
        bytes_read: of the file's part.
        line_is: what `LINE` counts, for people.
        notices: sentences for a person, each once for the file.
    """

    frame: pl.DataFrame
    rejected: pl.DataFrame
    bytes_read: int
    line_is: str = "line"
    notices: tuple[str, ...] = ()


def place_of(name: str, what: str, numbers: pl.Series) -> str:
    """Return where some records stand: ``part-3.csv, lines 250,001 to 300,412``.

    Args:
        name: of the file.
        what: is counted.
        numbers: of the records, Int64.
    """
    short = PurePath(name).name
    if not numbers.len():
        return f"{short}, no {what}"
    first, last = (int(numbers.sort()[place]) for place in (0, -1))
    return f"{short}, {what} {first:,} to {last:,}"


class Untouched:
    """What files have in common that are read where they stand, without a copy of their text."""

    spooled = False
    names: list[str]

    def __init__(self, path: Path | RemoteFile) -> None:
        """Take the file's place and its state before it is read."""
        self.name, self._path = str(path), path
        self._before = self.state()
        self._types: Mapping[str, Column] = {}

    def settle(self, types: Mapping[str, Column]) -> None:
        """Take the types in which columns are read; see `File`."""
        self._types = {name: types[name] for name in self.names if name in types}

    def state(self) -> tuple[int, int | str]:
        """Return size and time of change (ns); of a remote file its etag in place of that."""
        if not isinstance(self._path, Path):
            return self._path.state()
        found = self._path.stat()
        return found.st_size, found.st_mtime_ns


class File(Protocol):
    """An open file. `read` is called from several threads.

    Attributes:
        name: its path, for people and as the value of `FILE`.
        names: its columns, in its own order.
        spooled: whether it is read from a copy that no other process can see.
    """

    name: str
    names: list[str]

    @property
    def spooled(self) -> bool:
        """See above."""

    def state(self) -> tuple[int, int | str]:
        """Return size and time of change (ns); of a remote file its etag in place of that."""

    def settle(self, types: Mapping[str, Column]) -> None:
        """Take the types in which columns are read, by name; those that are not named are not read."""

    def parts(self, chunk_rows: int) -> Sequence[tuple[tuple[str, ...], int]]:
        """Return what finds each part, as texts, and its estimated rows; together all records, each once."""

    def read(self, part: tuple[str, ...], columns: Sequence[str]) -> Found:
        """Return a part's records.

        Raises:
            StopRunError: the file has changed.
            ChunkError: the part cannot be read.
        """

    def part_of(self, number: int) -> tuple[str, ...] | None:
        """Return a part that has the record of this number; None when there is none."""

    def sample(self) -> tuple[float, float]:
        """Return bytes of a record and the number of records, estimated."""

    def close(self) -> None:
        """Close it; twice is once."""
