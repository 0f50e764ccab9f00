"""A text file cut into parts by bytes, each of whole records, without reading it first.

Part k has the records whose first byte lies in ``[k * part_bytes, (k + 1) * part_bytes)`` of the file. Where the
first of them begins follows from the part before, since only who has read from the beginning knows what is quoted: so
borders are found in their order, each once, by whoever needs the next one; what was read for it is handed on and not
read again.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from keyhaul.sources.files.records import find_records

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from keyhaul.sources.files.dialect import Dialect
    from keyhaul.sources.files.records import Spans
    from keyhaul.sources.files.textfile import TextFile

_FURTHER: Final = 256 * 1024
"""Bytes that are read behind a part's end at first, to find the end of its last record; four times as many with each
further try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Border:
    """Where a part's records begin.

    Attributes:
        offset: in the file's text.
        line: physical lines before it.
        record: records before it, bad ones too.
    """

    offset: int
    line: int
    record: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The text of a part, of whole records, and where it stands in the file.

    Attributes:
        spans: its records, where finding its end has found them; else they are to be found.
    """

    text: bytes
    begin: Border
    spans: Spans | None = None


class Parts:
    """The parts of one file; safe to use from several threads."""

    def __init__(self, file: TextFile, dialect: Dialect, part_bytes: int) -> None:
        """Take a file whose header, if it has one, is passed by ``file.begin``."""
        self._file = file
        self._dialect = dialect
        self._part_bytes = part_bytes
        self._lock = threading.Lock()
        self._borders = [Border(offset=file.begin, line=file.begin_line, record=0)]

    @property
    def count(self) -> int:
        """How many parts the file has; the last ones may have no record."""
        return max(1, -(-self._file.size // self._part_bytes))

    def take(self, number: int) -> Part:
        """Return part `number`, from 0. The same each time.

        Raises:
            StopRunError: the file has changed since it was opened.
        """
        with self._lock:
            held: Part | None = None
            while len(self._borders) <= number + 1:
                held = self._find_next()
            begin, end = self._borders[number], self._borders[number + 1]
        if held is not None:
            return held
        return Part(text=self._file.read(begin.offset, end.offset - begin.offset), begin=begin)

    def border(self, number: int) -> Border:
        """Return where part `number` begins, and the one before it ends."""
        with self._lock:
            while len(self._borders) <= number:
                self._find_next()
            return self._borders[number]

    def _find_next(self) -> Part:
        """Find where the part after the last known border ends; returns that part."""
        begin = self._borders[-1]
        wanted = len(self._borders) * self._part_bytes
        if begin.offset >= wanted:  # one record is longer than the whole part
            self._borders.append(begin)
            return Part(text=b"", begin=begin)
        further = _FURTHER
        while True:
            text = self._file.read(begin.offset, min(wanted + further, self._file.size) - begin.offset)
            whole = begin.offset + len(text) >= self._file.size
            found = find_records(text, self._dialect, last=whole)
            inside = int(found.starts.search_sorted(wanted - begin.offset))
            if inside < found.starts.len():
                offset, line = found.starts[inside], found.lines[inside]
            elif whole or begin.offset + found.after >= wanted:
                offset, line = found.after, found.lines_passed
            else:
                further *= 4
                continue
            self._borders.append(
                Border(offset=begin.offset + offset, line=begin.line + line, record=begin.record + inside)
            )
            return Part(text=text[:offset], begin=begin, spans=found.first(inside, offset, line))


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Whole records of a part.

    Attributes:
        spans: where they are in the text; their lines count from `line`.
        line: physical lines before the text.
        record: records before it.
    """

    text: bytes
    spans: Spans
    line: int
    record: int


class Cuts(Protocol):
    """Parts of one file, found by texts that stay the same in another process."""

    def parts(self, chunk_rows: int) -> Sequence[tuple[tuple[str, ...], int]]:
        """Return what finds each part, and its estimated rows; see `File`."""

    def take(self, part: tuple[str, ...]) -> Taken:
        """Return a part's records.

        Raises:
            StopRunError: the file has changed since it was opened.
        """

    def part_of(self, number: int) -> tuple[str, ...] | None:
        """Return a part that has the record of this number, from 1."""

    def sample(self) -> tuple[float, float]:
        """Return bytes of a record and the number of records, estimated."""

    def samples(self, length: int) -> Iterator[tuple[bytes, Spans]]:
        """Yield about so many bytes of the file's beginning, middle and end each, and the records there."""


class ByBytes:
    """Parts of about so many rows, by the mean width of the records that were looked at.

    Attributes:
        row_bytes: that width; to be set before the first part is asked for.
    """

    def __init__(self, file: TextFile, dialect: Dialect) -> None:
        """Take a file whose header, if it has one, is passed by ``file.begin``."""
        self._file, self._dialect = file, dialect
        self._parts: dict[int, Parts] = {}
        self.row_bytes = 1.0

    def parts(self, chunk_rows: int) -> Sequence[tuple[tuple[str, ...], int]]:
        """Return parts of about so many rows; no record is read."""
        part_bytes = max(1, round(chunk_rows * self.row_bytes))
        rows = max(0, round(self.sample()[1]))
        return [
            ((str(number), str(part_bytes)), min(chunk_rows, max(0, rows - number * chunk_rows)))
            for number in range(self._of(part_bytes).count)
        ]

    def take(self, part: tuple[str, ...]) -> Taken:
        """Return a part's records; see `Cuts`."""
        number, part_bytes = map(int, part)
        taken = self._of(part_bytes).take(number)
        spans = taken.spans or find_records(taken.text, self._dialect, last=True)
        return Taken(text=taken.text, spans=spans, line=taken.begin.line, record=taken.begin.record)

    def part_of(self, number: int) -> tuple[str, ...] | None:
        """Return a part that has the record of this number, from 1."""
        part_bytes = max(1, round(_ROWS_OF_A_SEARCH * self.row_bytes))
        parts = self._of(part_bytes)
        for part in range(parts.count):
            if number <= parts.border(part + 1).record:
                return str(part), str(part_bytes)
        return None

    def sample(self) -> tuple[float, float]:
        """Return bytes of a record and the number of records, estimated."""
        return self.row_bytes, (self._file.size - self._file.begin) / self.row_bytes

    def samples(self, length: int) -> Iterator[tuple[bytes, Spans]]:
        """Yield whole lines of the file's beginning, middle and end, so many bytes of each, and the records there."""
        file = self._file
        middle, end = (file.begin + file.size) // 2, file.size - length
        begins = (file.begin, middle, end) if end > file.begin + 2 * length else (file.begin,)
        length = length if len(begins) > 1 else file.size - file.begin
        for begin in begins:
            text = file.read(begin, length)
            skipped = 0 if begin == file.begin else text.find(b"\n") + 1  # where the next line begins
            text = text[skipped:]
            yield text, find_records(text, self._dialect, last=begin + skipped + len(text) >= file.size)

    def _of(self, part_bytes: int) -> Parts:
        return self._parts.setdefault(part_bytes, Parts(self._file, self._dialect, part_bytes))


_ROWS_OF_A_SEARCH: Final = 50_000
