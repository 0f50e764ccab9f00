"""From the bytes of some CSV records to a frame of texts, and the records that cannot be taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl
import pyarrow as pa
import pyarrow.csv as pc

from keyhaul.errors import ChunkError
from keyhaul.sources.files.records import bytes_of, count_fields, find_records, may_have_comments, where

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyhaul.sources.files.dialect import Dialect
    from keyhaul.sources.files.records import Spans

NUL: Final = "a NUL byte, which no PostgreSQL text can hold"
NOT_UTF8: Final = "bytes that are not UTF-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Records taken apart.

    Attributes:
        texts: one String column for each of the file's columns, as `names`; NULL where the dialect says so.
        number: of each row of `texts`, the record's number in the text, Int64, ascending.
        bad: record's number → why it could not be taken apart.
        spans: where the records are; a bad one's bytes are ``text[starts[n]:ends[n]]``.
    """

    texts: pl.DataFrame
    number: pl.Series
    bad: dict[int, str]
    spans: Spans


def take_apart(text: bytes, names: Sequence[str], dialect: Dialect, spans: Spans | None = None) -> Tokens:
    """Take apart the records of a text that has only whole ones.

    pyarrow does it for all records that are well formed; those that are not are found by themselves and left out, so
    that each costs itself.

    Args:
        text: whole records.
        names: of the file's columns; a record must have so many fields.
        dialect: what stands between and around them.
        spans: the records, where they are known already.

    Raises:
        ChunkError: pyarrow did not find as many records as there are: a fault of ours.
    """
    spans = spans or find_records(text, dialect, last=True)
    bad = dict(spans.bad)
    bad |= _with_nul(text, spans)
    commented = may_have_comments(text, dialect)
    found = None if bad or commented else _parse(text, names, dialect)
    if found is None:
        bad |= _not_utf8(text, spans)
        good = _alone(text, spans, bad) if commented else _without(text, spans, bad)
        found = _parse(good, names, dialect)
        if found is None:
            bad |= _ragged(text, spans, len(names), dialect, bad)
            good = _alone(text, spans, bad) if commented else _without(text, spans, bad)
            found = _parse(good, names, dialect)
    number = pl.int_range(spans.starts.len(), eager=True)
    if bad:
        number = number.filter(~number.is_in(pl.Series(list(bad), dtype=pl.Int64).implode()))
    if found is None or found.height != number.len():
        got = "none" if found is None else f"{found.height:,}"
        raise ChunkError(f"take apart {number.len():,} records: the parser found {got}, expected as many")
    return Tokens(texts=found, number=number, bad=bad, spans=spans)


def _parse(text: bytes, names: Sequence[str], dialect: Dialect) -> pl.DataFrame | None:
    """Return the fields of a well-formed text; None when a record is not."""
    if not text:
        return pl.DataFrame({name: [] for name in names}, schema=dict.fromkeys(names, pl.String))
    if not text.endswith(b"\n"):
        text += b"\n"  # else pyarrow takes an empty field at the end, behind one in quotes, for one in quotes
    numbers = [str(number) for number in range(len(names))]  # pyarrow takes a name twice for a mistake
    try:
        table = pc.read_csv(
            pa.BufferReader(text),
            read_options=pc.ReadOptions(column_names=numbers, use_threads=False, block_size=len(text) + 1),
            parse_options=pc.ParseOptions(
                delimiter=dialect.delimiter,
                quote_char=dialect.quote or False,
                double_quote=True,
                newlines_in_values=True,
                ignore_empty_lines=True,
            ),
            convert_options=pc.ConvertOptions(
                column_types=dict.fromkeys(numbers, pa.string()),
                null_values=list(dialect.nulls),
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    frame = pl.DataFrame(pl.from_arrow(table))
    frame.columns = list(names)
    return frame


def _record_at(spans: Spans, positions: pl.Series) -> pl.Series:
    """Return the numbers of the records in which some bytes stand."""
    return (spans.starts.search_sorted(positions, side="right").cast(pl.Int64) - 1).unique().sort()


def _with_nul(text: bytes, spans: Spans) -> dict[int, str]:
    if b"\0" not in text:
        return {}
    return dict.fromkeys(_record_at(spans, where(bytes_of(text) == 0)), NUL)


def _not_utf8(text: bytes, spans: Spans) -> dict[int, str]:
    """Find the records with bytes that are not UTF-8; a text without any is looked at once."""
    found: dict[int, str] = {}
    begin = 0
    while True:
        try:
            text[begin:].decode("utf-8")
        except UnicodeDecodeError as error:
            number = max(int(spans.starts.search_sorted(begin + error.start, side="right")) - 1, 0)
            found[number] = NOT_UTF8
            begin = spans.ends[number]
        else:
            return found


def _without(text: bytes, spans: Spans, bad: dict[int, str]) -> bytes:
    """Return the text without the bad records; the line ends between them stay."""
    parts, begin = [], 0
    for number in sorted(bad):
        parts.append(text[begin : spans.starts[number]])
        begin = spans.ends[number]
    parts.append(text[begin:])
    return b"".join(parts)


def _alone(text: bytes, spans: Spans, bad: dict[int, str]) -> bytes:
    """Return the records that are not bad without what stands between them."""
    pairs = enumerate(zip(spans.starts, spans.ends, strict=True))
    return b"".join(text[start:end] + b"\n" for number, (start, end) in pairs if number not in bad)


def _ragged(text: bytes, spans: Spans, width: int, dialect: Dialect, known: dict[int, str]) -> dict[int, str]:
    """Find the records that have more or fewer fields than `width`; looked for only after the parser found one."""
    found: dict[int, str] = {}
    for number, (start, end) in enumerate(zip(spans.starts, spans.ends, strict=True)):
        if number in known:
            continue
        count = count_fields(text[start:end], dialect)
        if count != width:
            found[number] = f"{count} field{'s' * (count != 1)}, expected {width}"
    return found
