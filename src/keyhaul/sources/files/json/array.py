"""A JSON array in a file: where its elements are, found in one pass in blocks, so that they can be read in parts.

Only quotes and brackets are looked at. What is wrong inside an element's brackets is the element's own affair; what is
wrong between elements, or leaves a bracket or a quote open, is a fault of the whole file, since nobody can say where
the next element begins.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final

import polars as pl

from keyhaul.errors import ConfigError
from keyhaul.sources.files.parts import Taken
from keyhaul.sources.files.records import MOST_RECORD_BYTES, Spans, bytes_of, where
from keyhaul.workfolder import open_work_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from keyhaul.sources.files.textfile import TextFile

_BLOCK: Final = 4 * 2**20
_FEED: Final = 10
_QUOTE: Final = ord('"')
_LOWER: Final = 32
"""Makes a curly bracket of a square one."""
_OPENS: Final = 3
"""What an opening bracket's byte leaves of a division by eight; a closing one leaves 5."""
_ENTRY: Final = 24
"""Bytes of an element in the index: begin, end, line."""


class Elements:
    """The elements of one array, by number; safe to use from several threads.

    Where they are is written to a file without a name in the work folder, 24 bytes for each.
    """

    def __init__(self, file: TextFile, work_dir: str | None) -> None:
        """Find the elements.

        Raises:
            ConfigError: the array has no end, something stands behind it, or it is none.
            StopRunError: the file has changed since it was opened.
        """
        self._file = file
        self._index: IO[bytes] = tempfile.TemporaryFile(dir=open_work_folder(work_dir))  # noqa: SIM115 - kept open
        self._count = self._bytes = 0
        try:
            for found in _elements(file):
                entry = pl.concat_list("start", "end", "line").explode()
                self._index.write(found.select(entry).to_series().to_arrow().buffers()[1])
                self._count += found.height
                self._bytes += int((found["end"] - found["start"]).sum())
            self._index.flush()
        except BaseException:
            self.close()
            raise

    def parts(self, chunk_rows: int) -> Sequence[tuple[tuple[str, ...], int]]:
        """Return parts of so many elements."""
        begins = range(0, max(self._count, 1), chunk_rows)
        return [((str(n), str(min(chunk_rows, self._count - n))), min(chunk_rows, self._count - n)) for n in begins]

    def take(self, part: tuple[str, ...]) -> Taken:
        """Return the elements of a part, one after the other with a line feed between two."""
        begin, count = map(int, part)
        index = self._entries(begin, count)
        if not index.height:
            nothing = pl.Series([], dtype=pl.Int64)
            spans = Spans(starts=nothing, ends=nothing, lines=nothing, bad={}, after=0, lines_passed=0)
            return Taken(text=b"", spans=spans, line=0, record=begin)
        first, last = index["start"][0], index["end"][-1]
        text = self._file.read(first, last - first)
        pairs = zip(index["start"] - first, index["end"] - first, strict=True)
        ends = (index["end"] - index["start"] + 1).cum_sum() - 1
        spans = Spans(
            starts=ends - (index["end"] - index["start"]),
            ends=ends,
            lines=index["line"],
            bad={},
            after=int(ends[-1]),
            lines_passed=0,
        )
        return Taken(text=b"\n".join([text[start:end] for start, end in pairs]), spans=spans, line=0, record=begin)

    def part_of(self, number: int) -> tuple[str, ...] | None:
        """Return a part that has the element of this number, from 1."""
        return (str(number - 1), "1") if 1 <= number <= self._count else None

    def sample(self) -> tuple[float, float]:
        """Return mean bytes of an element, and how many there are."""
        return (self._bytes / self._count if self._count else 1.0), float(self._count)

    def samples(self, length: int) -> Iterator[tuple[bytes, Spans]]:
        """Yield elements of the array's beginning, middle and end, about so many bytes of each."""
        few = max(1, int(length / self.sample()[0]))
        begins = (0, (self._count - few) // 2, self._count - few) if self._count > 3 * few else (0,)
        for begin in begins:
            taken = self.take((str(begin), str(few if len(begins) > 1 else self._count)))
            yield taken.text, taken.spans

    def close(self) -> None:
        """Drop the index; twice is once."""
        self._index.close()

    def _entries(self, begin: int, count: int) -> pl.DataFrame:
        raw = os.pread(self._index.fileno(), count * _ENTRY, begin * _ENTRY)
        values = pl.Series(memoryview(raw).cast("q").tolist(), dtype=pl.Int64)
        return pl.DataFrame({name: values.gather_every(3, n) for n, name in enumerate(("start", "end", "line"))})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """What a block of the array's inside has.

    Attributes:
        elements: start, end and line of each that is whole in it.
        after: where the next block begins: behind the last of them.
        lines: line feeds before that.
        closing: where the array's own bracket closes; -1: not in this block.
    """

    elements: pl.DataFrame
    after: int
    lines: int
    closing: int


def _elements(file: TextFile) -> Iterator[pl.DataFrame]:
    """Yield start, end and physical line from 0 of the elements, block by block."""
    position, line, some, length = _inside(file), 0, False, _BLOCK
    line = file.read(file.begin, position - file.begin).count(b"\n")
    while True:
        text = file.read(position, length)
        whole = position + len(text) >= file.size
        block = _block(text, file.path, line, first=not some)
        if not block.elements.height and block.closing < 0:
            if whole:
                _refuse(
                    file.path, line, "the array has no end", "a closing bracket. Is it cut off, or still being written?"
                )
            if length >= 2 * MOST_RECORD_BYTES:
                _refuse(file.path, line, "no element ends within 64 MB", "elements of less")
            length *= 2
            continue
        some, length = some or bool(block.elements.height), _BLOCK
        offset = pl.col("start", "end") + position
        yield block.elements.with_columns(offset, pl.col("line") + line)
        position, line = position + block.after, line + block.lines
        if block.closing >= 0:
            _only_blanks(file, position)
            return


def _inside(file: TextFile) -> int:
    """Return where the array's inside begins."""
    position = file.begin
    while text := file.read(position, _BLOCK):
        bare = text.lstrip()
        if bare:
            return position + len(text) - len(bare) + 1
        position += len(text)
    return position


def _only_blanks(file: TextFile, position: int) -> None:
    while text := file.read(position, _BLOCK):
        if text.strip():
            _refuse(file.path, None, "text after the closing bracket", "nothing. Are there several arrays?")
        position += len(text)


def _block(text: bytes, path: object, line: int, *, first: bool) -> _Block:
    """Find the elements that are whole in a text that begins inside the array, between two elements."""
    # Escapes stand only in strings, and of a run of backslashes each pair is one.
    plain = text.replace(b"\\\\", b"__").replace(b'\\"', b"__") if b"\\" in text else text
    data = bytes_of(plain)
    curly = data | _LOWER
    brackets = where((curly == ord("{")) | (curly == ord("}")))
    quotes = where(data == _QUOTE)
    brackets = brackets.filter(quotes.search_sorted(brackets) % 2 == 0)
    opens = data.gather(brackets) % 8 == _OPENS
    depth = (opens.cast(pl.Int64) * 2 - 1).cum_sum()
    closing = -1
    if (depth < 0).any():
        until = int((depth < 0).arg_true()[0])
        closing = int(brackets[until])
        brackets, opens, depth = brackets.head(until), opens.head(until), depth.head(until)
    starts, ends = brackets.filter(opens & (depth == 1)), brackets.filter(depth == 0) + 1
    starts = starts.head(ends.len())
    feeds = where(data == _FEED)
    gaps = list(zip([0, *ends], [*starts, closing], strict=True))
    if closing < 0:
        gaps.pop()
    scalars = _check_gaps(text, gaps, path, (line, feeds), first=first, closed=closing >= 0)
    if scalars:
        starts = pl.concat([starts, pl.Series([start for start, _ in scalars], dtype=pl.Int64)]).sort()
        ends = pl.concat([ends, pl.Series([end for _, end in scalars], dtype=pl.Int64)]).sort()
    after = closing + 1 if closing >= 0 else (int(ends[-1]) if ends.len() else 0)
    elements = pl.DataFrame({"start": starts, "end": ends, "line": feeds.search_sorted(starts).cast(pl.Int64)})
    return _Block(elements=elements, after=after, lines=int(feeds.search_sorted(after)), closing=closing)


_SCALAR: Final = re.compile(rb'[ \t\r\n]*(?:(,)|("(?:[^"\\]|\\.)*"|[^\s,"\[\]{}]+))', re.DOTALL)


def _check_gaps(
    text: bytes, gaps: list[tuple[int, int]], path: object, lines: tuple[int, pl.Series], *, first: bool, closed: bool
) -> list[tuple[int, int]]:
    """Return the elements that have no brackets; between two elements stands one comma, before the first none."""
    if not gaps:
        return []
    inner = gaps[1:-1] if closed else gaps[1:]
    odd = {text[start:end] for start, end in inner if end - start != 1 or text[start] != _COMMA}
    suspect = [gaps[0]]
    if any(gap.strip() != b"," for gap in odd):
        suspect += inner
    if closed and len(gaps) > 1:
        suspect.append(gaps[-1])
    scalars: list[tuple[int, int]] = []
    for start, end in suspect:
        before, behind = not (first and start == 0), not (closed and (start, end) == gaps[-1])
        found, fault = _scalars(text, start, end, before=before, behind=behind)
        if fault:
            _refuse(path, lines[0] + int(lines[1].search_sorted(start)), fault, "one comma between two elements")
        scalars += found
    return scalars


_COMMA: Final = ord(",")


def _scalars(text: bytes, start: int, end: int, *, before: bool, behind: bool) -> tuple[list[tuple[int, int]], str]:
    """Return the elements in a gap, and what is wrong with it; `before` and `behind` it stand elements."""
    found: list[tuple[int, int]] = []
    value, commas = before, False
    stop = start + len(text[start:end].rstrip())
    while start < stop:
        match = _SCALAR.match(text, start, stop)
        if match is None:
            return [], "text that is no JSON between two elements"
        if (match[1] is not None) != value:
            return [], "no comma between two elements" if value else "a comma without an element before it"
        value, commas = match[1] is None, match[1] is not None
        if match[2] is not None:
            found.append(match.span(2))
        start = match.end()
    if behind and value:
        return [], "no comma between two elements"
    if not behind and commas:
        return [], "a comma before the closing bracket"
    return found, ""


def _refuse(path: object, line: int | None, got: str, expected: str) -> None:
    place = "" if line is None else f"line {line + 1}: "
    raise ConfigError(f"read {path}: {place}{got}, expected {expected}")
