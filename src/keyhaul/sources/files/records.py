"""Where the records of a CSV text begin and end: one definition, in a vectorised form and in a strict one.

A record ends at LF or CR LF outside quotes. A quote opens a field only as its first character, and closes it only
before a delimiter, a line end or the end of the text; inside, it is doubled. In a field that begins with anything
else it is an ordinary character (5" disk). A blank line is no record, and neither is a comment. A physical line that
breaks this is a bad record by itself, and the next one begins after it: an unclosed quote never takes its neighbours
along.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import polars as pl
import pyarrow as pa

if TYPE_CHECKING:
    from keyhaul.sources.files.dialect import Dialect

_LF: Final = 10
_CR: Final = 13

MOST_RECORD_BYTES: Final = 64 * 2**20
"""A record that has no end within so many bytes is one whose quote is not closed: what is held at a time is bounded."""

CLOSING: Final = "text after a closing quote, or a quote that is not closed"
BARE_CR: Final = "a carriage return without a line feed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """The records of a text, in their order.

    Attributes:
        starts, ends: Int64, bytes in the text; an end is behind the last byte of the record, before its line end.
        lines: Int64, the physical line on which each record begins, from 0 for the text's first.
        bad: record's number → what is wrong with its quoting or its line end.
        after: where the first record begins that is not whole in the text; its length when all are.
        lines_passed: physical lines that end before `after`.
        regular: no quote stands inside a field that does not begin with one.
    """

    starts: pl.Series
    ends: pl.Series
    lines: pl.Series
    bad: dict[int, str]
    after: int
    lines_passed: int
    regular: bool = False

    def first(self, records: int, after: int, lines_passed: int) -> Spans:
        """Return the first records alone, as if the text ended with them."""
        return Spans(
            starts=self.starts.head(records),
            ends=self.ends.head(records),
            lines=self.lines.head(records),
            bad={number: why for number, why in self.bad.items() if number < records},
            after=after,
            lines_passed=lines_passed,
            regular=self.regular,
        )


def find_records(text: bytes, dialect: Dialect, *, last: bool) -> Spans:
    """Find the records of a text that begins with one.

    Args:
        text: bytes of a file from the beginning of a record.
        dialect: what quotes a field.
        last: whether the file ends with the text; else what stands behind the last line end is not looked at.

    Returns:
        The records that are whole in the text. The vectorised way and the strict one agree (a property test).
    """
    found = None if may_have_comments(text, dialect) else _vectorised(text, dialect, last=last)
    return found if found is not None else strictly(text, dialect, last=last)


def may_have_comments(text: bytes, dialect: Dialect) -> bool:
    """Whether a line of the text begins as a comment does; inside quotes it is none."""
    if dialect.comment is None:
        return False
    mark = dialect.comment.encode()
    return text.startswith(mark) or b"\n" + mark in text


def _vectorised(text: bytes, dialect: Dialect, *, last: bool) -> Spans | None:
    """Find the records by their bytes' positions; None when a quote or a line end is not where it may be."""
    data = bytes_of(text)
    size = data.len()
    feeds = where(data == _LF)
    quotes = (
        where(data == ord(dialect.quote)) if dialect.quote is not None and dialect.quote.encode() in text else _NONE
    )
    if not _well_quoted(data, quotes, dialect, last=last):
        return None
    outside = feeds.filter(_outside(feeds, quotes)) if quotes.len() else feeds
    returns = where(data == _CR) if b"\r" in text else _NONE
    if returns.len() and _has_bare_return(data, returns, quotes, last=last):
        return None
    after = outside[-1] + 1 if outside.len() else 0
    starts = pl.concat([_ZERO, outside + 1]).head(outside.len())
    ends = outside
    if last and after < size:
        starts, ends = starts.append(pl.Series([after])), ends.clone().append(pl.Series([size]))
        after = size
    if returns.len():  # CR LF: the record ends before the CR
        cut = (ends > starts) & (data.gather(pl.select(pl.max_horizontal(ends - 1, pl.lit(0))).to_series()) == _CR)
        ends = ends - cut.cast(pl.Int64)
    full = ends > starts
    starts = starts.filter(full)
    if ((ends.filter(full) - starts) > MOST_RECORD_BYTES).any() or size - after > MOST_RECORD_BYTES:
        return None
    return Spans(
        starts=starts,
        ends=ends.filter(full),
        lines=feeds.search_sorted(starts).cast(pl.Int64),
        bad={},
        after=after,
        lines_passed=int(feeds.search_sorted(after)),
        regular=True,
    )


_NONE: Final = pl.Series([], dtype=pl.Int64)
_ZERO: Final = pl.Series([0], dtype=pl.Int64)


def bytes_of(text: bytes) -> pl.Series:
    """Return the bytes as a series of UInt8, without copying them."""
    array = pa.Array.from_buffers(pa.uint8(), len(text), [None, pa.py_buffer(text)])
    return pl.Series(pl.from_arrow(array))


def where(mask: pl.Series) -> pl.Series:
    """Return the positions at which a mask is true, as Int64."""
    return mask.arg_true().cast(pl.Int64)


def _outside(positions: pl.Series, quotes: pl.Series) -> pl.Series:
    """Whether an even number of quotes stands before each position."""
    return quotes.search_sorted(positions) % 2 == 0


def _at(data: pl.Series, positions: pl.Series) -> pl.Series:
    """Return the bytes at some positions; behind the end and before the beginning there is a line feed."""
    inside = (positions >= 0) & (positions < data.len())
    return data.gather(positions.zip_with(inside, _zeros(positions))).zip_with(inside, _feeds(positions))


def _zeros(like: pl.Series) -> pl.Series:
    return pl.repeat(0, like.len(), dtype=pl.Int64, eager=True)


def _feeds(like: pl.Series) -> pl.Series:
    return pl.repeat(_LF, like.len(), dtype=pl.UInt8, eager=True)


def _well_quoted(data: pl.Series, quotes: pl.Series, dialect: Dialect, *, last: bool) -> bool:
    """Whether each odd quote opens a field or stands twice, and each even one closes one or stands twice.

    In a text that goes on, the last record may be cut anywhere, so an open quote at the end is no fault; what stands
    behind the last complete record is looked at again with the next part.
    """
    if quotes.len() == 0:
        return True
    if quotes.len() % 2 and last:
        return False
    delimiter = ord(dialect.delimiter)
    opening, closing = quotes.gather_every(2), quotes.gather_every(2, 1)
    before, behind = _at(data, opening - 1), _at(data, closing + 1)
    twice = (opening - 1 == closing.shift(1).extend_constant(None, opening.len() - closing.len())).fill_null(
        value=False
    )
    if not ((before == delimiter) | (before == _LF) | twice).all():
        return False
    again = (closing + 1 == opening.shift(-1).head(closing.len())).fill_null(value=False)
    return bool(((behind == delimiter) | (behind == _LF) | (behind == _CR) | again).all())


def _has_bare_return(data: pl.Series, returns: pl.Series, quotes: pl.Series, *, last: bool) -> bool:
    """Whether a carriage return outside quotes has no line feed behind it; one at the end of a part may get it yet."""
    outside = returns.filter(_outside(returns, quotes)) if quotes.len() else returns
    at_end = outside + 1 >= data.len()
    bare = _at(data, outside + 1) != _LF
    return bool((bare & ~at_end).any() or (at_end.any() and last))


@lru_cache(maxsize=16)
def _patterns(delimiter: str, quote: str | None) -> tuple[re.Pattern[bytes], re.Pattern[bytes], re.Pattern[bytes]]:
    """Return what a field looks like, a record with its line end, and one that may go on behind the text's end."""
    d = re.escape(delimiter).encode()
    if quote is None:
        plain = rb"[^\r\n]*+"
        never = re.compile(rb"(?!)")
        return never, re.compile(plain + rb"(?P<end>\r?\n|\Z)"), re.compile(plain + rb"\r\Z")
    q = re.escape(quote).encode()
    # A field: quoted with doubled quotes inside, or anything else without a line end, as 5" disk.
    quoted = rb"%(q)s(?:[^%(q)s]++|%(q)s%(q)s)*+%(q)s" % {b"q": q}
    field = rb"(?:%s|(?!%s)[^%s\r\n]*+)" % (quoted, q, d)
    record = rb"%s(?:%s%s)*+(?P<end>\r?\n|\Z)" % (field, d, field)
    whole = rb"%s(?:%s%s)*+" % (field, d, field)
    opened = rb"(?:%s%s)*%s(?:[^%s]++|%s%s)*+\Z" % (field, d, q, q, q, q)
    cut = rb"%s\r\Z|%s" % (whole, opened)
    return re.compile(field), re.compile(record), re.compile(cut)


def strictly(text: bytes, dialect: Dialect, *, last: bool) -> Spans:
    """Find the records one after the other; each physical line that is none is a bad record by itself."""
    _, record, _ = _patterns(dialect.delimiter, dialect.quote)
    starts: list[int] = []
    ends: list[int] = []
    lines: list[int] = []
    bad: dict[int, str] = {}
    position, line, size = 0, 0, len(text)
    mark = dialect.comment.encode() if dialect.comment is not None else None
    while position < size:
        if mark is not None and text.startswith(mark, position):
            feed = text.find(b"\n", position)
            if feed < 0 and not last:
                break
            position, line = (size, line) if feed < 0 else (feed + 1, line + 1)
            continue
        match = record.match(text, position, position + MOST_RECORD_BYTES)
        decided = last or position + MOST_RECORD_BYTES < size
        whole = match is not None and (match["end"] != b"" or (match.end() == size and last))
        if match is not None and whole:
            end, following, wrong = match.start("end"), match.end(), ""
        else:
            feed = text.find(b"\n", position)
            if not decided and (match is not None or feed < 0 or _may_go_on(text, position, dialect)):
                break
            following = size if feed < 0 else feed + 1
            end = following if feed < 0 else feed
            end -= text[position:end].endswith(b"\r")
            wrong = _what_is_wrong(text[position:end], dialect)
        if end > position:
            if wrong:
                bad[len(starts)] = wrong
            starts.append(position)
            ends.append(end)
            lines.append(line)
        line += text.count(b"\n", position, following)
        position = following
    return Spans(
        starts=pl.Series(starts, dtype=pl.Int64),
        ends=pl.Series(ends, dtype=pl.Int64),
        lines=pl.Series(lines, dtype=pl.Int64),
        bad=bad,
        after=position,
        lines_passed=line,
    )


def _may_go_on(text: bytes, position: int, dialect: Dialect) -> bool:
    """Whether the record at `position` is in a quoted field where the text ends, so that only more text can tell."""
    _, _, cut = _patterns(dialect.delimiter, dialect.quote)
    return cut.match(text, position) is not None


def _what_is_wrong(line: bytes, dialect: Dialect) -> str:
    return CLOSING if dialect.quote is not None and dialect.quote.encode() in line else BARE_CR


def count_fields(record: bytes, dialect: Dialect) -> int:
    """Return how many fields a well-formed record has."""
    delimiter = dialect.delimiter.encode()
    if dialect.quote is None or dialect.quote.encode() not in record:
        return record.count(delimiter) + 1
    field, _, _ = _patterns(dialect.delimiter, dialect.quote)
    count, position = 0, -1
    while position < len(record):
        match = field.match(record, position + 1)
        position = match.end() if match is not None else len(record)
        count += 1
    return count
