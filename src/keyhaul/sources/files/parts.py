"""A text file cut into parts by bytes, each of whole records, without reading it first.

Part k has the records whose first byte lies in ``[k * part_bytes, (k + 1) * part_bytes)`` of the file. Where the
first of them begins follows from the part before, since only who has read from the beginning knows what is quoted: so
borders are found in their order, each once, by whoever needs the next one; what was read for it is handed on and not
read again.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyhaul.sources.files.records import find_records

if TYPE_CHECKING:
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
