"""JSON records taken apart one by one: each value as the text that stands in the file, and what is wrong with others.

This is the strict way: it decides what a record is. A number keeps its digits, an object its blanks; nothing goes by
way of a float.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from keyhaul.sources.files.records import Spans

NOT_UTF8: Final = "bytes that are not UTF-8"
NUL: Final = r"the character \u0000, which no PostgreSQL text can hold"
MALFORMED: Final = "malformed_record"
EXTRA: Final = "extra_key"

_MOST_SHOWN: Final = 60
_ESCAPE: Final = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonTokens:
    """Records taken apart.

    Attributes:
        values: a String column for each column: of each good record the value's text as it stands (`"a"`, `1.10`,
            `null`, also where there is no such key).
        number: of each good record, its number in the text, Int64.
        bad: record's number → reason and what is wrong.
        ignored: keys that are no column → the number of the first record that has one.
    """

    values: pl.DataFrame
    number: pl.Series
    bad: dict[int, tuple[str, str]]
    ignored: dict[str, int]


_AT_ONCE: Final = 5_000
"""Records whose values are Python objects at a time."""

_NULL: Final = msgspec.Raw(b"null")
_BETWEEN: Final = "\0"
"""Between two values of a column: it stands in no JSON."""

_Row = tuple[msgspec.Raw, ...]


class Taker:
    """Takes apart the records of a file; safe to use from several threads.

    A record is decoded as one of exactly the columns, whose colons are then counted: so many behind a quote as there
    are values means that no key stands twice or is left over. Only where that does not come out it is looked at
    key by key.
    """

    def __init__(self, columns: Sequence[str], nested: Collection[str], *, ignore_extra: bool) -> None:
        """Take what is wanted.

        Args:
            columns: whose values are wanted.
            nested: those of them that have objects and arrays.
            ignore_extra: a record with a key that is none of `columns` is good; else it is bad.
        """
        self._columns, self._ignore_extra = tuple(columns), ignore_extra
        self._nested = [number for number, name in enumerate(columns) if name in nested]
        fields = [f"f{number}" for number in range(len(columns))]
        shape = msgspec.defstruct(
            "Record",
            [(name, msgspec.Raw, _NULL) for name in fields],
            rename=dict(zip(fields, columns, strict=True)),
            gc=False,
        )
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(shape).decode

    def take_apart(self, text: bytes, spans: Spans) -> JsonTokens:
        """Take apart the records of a part."""
        numbers: list[int] = []
        bad: dict[int, tuple[str, str]] = {}
        ignored: dict[str, int] = {}
        rows: list[_Row] = []
        frames = []
        look = _Look.at(text)
        for number, (start, end) in enumerate(zip(spans.starts, spans.ends, strict=True)):
            raw = text[start:end]
            row = None if look.closely or (look.nul and _ESCAPED_NUL in raw) else self._quickly(raw)
            if row is None:
                row = self._slowly(number, raw, look, bad, ignored)
                if row is None:
                    continue
            numbers.append(number)
            rows.append(row)
            if len(rows) == _AT_ONCE:
                frames.append(_frame(rows, self._columns))
                rows = []
        frames.append(_frame(rows, self._columns))
        return JsonTokens(values=pl.concat(frames), number=pl.Series(numbers, dtype=pl.Int64), bad=bad, ignored=ignored)

    def _quickly(self, raw: bytes) -> _Row | None:
        """Return a record's values; None when a closer look is needed."""
        try:
            row: _Row = msgspec.structs.astuple(self._decode(raw))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        colons = raw.count(b'":')
        for number in self._nested:
            colons -= bytes(row[number]).count(b'":')
        return row if colons + row.count(_NULL) == len(row) else None

    def _slowly(
        self, number: int, raw: bytes, look: _Look, bad: dict[int, tuple[str, str]], ignored: dict[str, int]
    ) -> _Row | None:
        """Return a record's values; None when it is bad, which is noted."""
        record, fault = _object(raw, look)
        if fault:
            bad[number] = MALFORMED, fault
            return None
        extra = [key for key in record if key not in self._columns]
        if extra and not self._ignore_extra:
            bad[number] = EXTRA, extra_message(extra)
            return None
        for key in extra:
            ignored.setdefault(key, number)
        return tuple(record.get(name, _NULL) for name in self._columns)


def _frame(rows: list[_Row], columns: Sequence[str]) -> pl.DataFrame:
    """Return the texts of values, a column at a time: joined and cut again, so that none is a Python text."""
    if not rows:
        return pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
    return pl.DataFrame(
        [
            pl.Series(name, [str(_BETWEEN.encode().join(values), "utf-8")]).str.split(_BETWEEN).explode()
            for name, values in zip(columns, zip(*rows, strict=True), strict=True)
        ]
    )


def extra_message(keys: Sequence[str]) -> str:
    """Return what is said of keys that are no column."""
    several = len(keys) > 1
    return (
        f"{'keys' if several else 'key'} {', '.join(map(shown, keys[:5]))}{', …' * (len(keys) > 5)}: "  # noqa: PLR2004
        f"no column{'s' * several} of this name, expected only keys that are columns. Declare it under columns, or "
        "give extra_columns: ignore"
    )


def shown(key: str) -> str:
    """Return a key for a message."""
    return json.dumps(key if len(key) <= _MOST_SHOWN else key[:_MOST_SHOWN] + "…", ensure_ascii=False)


_RECORD: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def objects(text: bytes, spans: Spans, faults: list[str]) -> Iterator[dict[str, str]]:
    """Yield key → value's text of each record that is a JSON object, and note what is wrong with the others."""
    look = _Look.at(text)
    for start, end in zip(spans.starts, spans.ends, strict=True):
        found, fault = _object(text[start:end], look)
        if fault:
            faults.append(fault)
        else:
            yield {key: str(value, "utf-8") for key, value in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What a text has, so that its records are to be looked at.

    Attributes:
        nul: an escaped NUL. loose: blanks before a colon. sound: it is UTF-8 throughout.
    """

    nul: bool
    loose: bool
    sound: bool

    @classmethod
    def at(cls, text: bytes) -> _Look:
        return cls(nul=_ESCAPED_NUL in text, loose=has_pattern(text, r'"[ \t\r\n]+:'), sound=is_utf8(text))

    @property
    def closely(self) -> bool:
        """Whether every record is to be looked at."""
        return self.loose or not self.sound


_ESCAPED_NUL: Final = b"\\u0000"


def _object(raw: bytes, look: _Look) -> tuple[dict[str, msgspec.Raw], str]:
    """Return key → value's text of a record, and what is wrong with it."""
    try:
        found = _RECORD.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return {}, _fault(raw, error)
    if not look.sound and not is_utf8(raw):
        return {}, NOT_UTF8
    if look.nul and _ESCAPED_NUL in raw and _has_nul(raw):
        return {}, NUL
    if (look.loose or raw.count(b'":') != len(found)) and (twice := _twice(raw, found, loose=look.loose)):
        return {}, f"key {', '.join(map(shown, twice))} twice, expected each key once"
    return found, ""


def has_pattern(text: bytes, pattern: str) -> bool:
    """Whether some bytes have a pattern; RE2 passes over them once."""
    offsets = pa.array([0, len(text)], pa.int64()).buffers()[1]
    array = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(text)])
    return bool(pc.match_substring_regex(array, pattern)[0].as_py())


def is_utf8(text: bytes) -> bool:
    """Whether some bytes are UTF-8."""
    if text.isascii():
        return True
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _has_nul(raw: bytes) -> bool:
    """Whether a record of sound JSON has an escaped NUL; a backslash stands only in strings there."""
    return any(code == b"0000" for code in _ESCAPE.findall(raw))


def _twice(raw: bytes, found: Mapping[str, msgspec.Raw], *, loose: bool) -> list[str]:
    """Return the keys that a record has more than once.

    The last value of a key is the one that was decoded; so where the colons behind quotes are as many as those of the
    keys and in the values together, no key stands twice. Else the pairs are counted.
    """
    if not loose and raw.count(b'":') == len(found) + sum(bytes(value).count(b'":') for value in found.values()):
        return []
    try:
        pairs = json.loads(raw, object_pairs_hook=list, parse_int=str, parse_float=str)
    except RecursionError:  # msgspec goes as deep, so it is the depth of this very call
        return ["(one of them)"]
    keys = [key for key, _ in pairs]
    return sorted({key for key in keys if keys.count(key) > 1}) if len(keys) > len(found) else []


def _fault(raw: bytes, error: Exception) -> str:
    """Return what is wrong with a record that msgspec refuses, without a value of it."""
    if not is_utf8(raw):
        return NOT_UTF8
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, msgspec.ValidationError):
        got = str(error).rpartition("got ")[2].strip("`. ")
        return f"{_KINDS.get(got, 'another value')}, expected an object"
    why = str(error).removeprefix("JSON is malformed: ")
    unpaired = "surrogate" in why or (why == "Input data was truncated" and _UNPAIRED.search(raw) is not None)
    return "an unpaired surrogate" if unpaired else f"broken JSON: {why}"


_UNPAIRED: Final = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
_KINDS: Final = {
    "array": "an array",
    "int": "a number",
    "float": "a number",
    "str": "a text",
    "bool": "a boolean",
    "null": "null",
}
