"""Whether PostgreSQL reads the bytes of some CSV records as this package does, so that they may go there as they are.

Its COPY takes more than docs/how-to/files.md calls a value: 0x1F and 1_000 are integers from PostgreSQL 16 on, 1e3 is
a numeric, a seventh digit of a second is rounded off. A text in which any such thing stands is not relayed. What
PostgreSQL refuses need not be found here: then nothing is stored, and the records are read in the ordinary way.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from keyhaul.sources.files.dialect import Dialect

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyhaul.model import Column
    from keyhaul.sources.files.records import Spans

_AS_THEY_ARE: Final = frozenset({"text", "varchar"})
_WHOLE: Final = frozenset({"int2", "int4", "int8"})
_HOUR_TO_SECOND: Final = r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,6})?)?"
_DAY: Final = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_ONLY: Final[Mapping[str, str]] = {
    "bool": r"^(?i:t|true|y|yes|on|1|f|false|n|no|off|0)$",
    "date": f"^{_DAY}$",
    "timestamp": f"^{_DAY}[ T]{_HOUR_TO_SECOND}$",
    "timestamptz": f"^{_DAY}[ T]{_HOUR_TO_SECOND}" + r"(Z|[+-](0[0-9]|1[0-4])(:?[0-5][0-9])?)$",
    "uuid": r"^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$",
}
"""Base type → texts that PostgreSQL reads as `values.typed` does, or refuses as it does."""


def can_relay(columns: Sequence[Column], dialect: Dialect) -> bool:
    """Whether a file's records can be relayed at all, for its columns in its own order."""
    plain = Dialect(delimiter=dialect.delimiter, header=dialect.header)
    return dialect == plain and all(_known(column) for column in columns)


def may_relay(text: bytes, spans: Spans, columns: Sequence[Column], dialect: Dialect) -> bool:
    """Whether PostgreSQL takes nothing in these records otherwise than this package does; it may refuse some.

    Args:
        text: whole records.
        spans: where they are.
        columns: of the file, in its own order; `can_relay` has said yes.
        dialect: what stands between and around the fields.
    """
    records = spans.starts.len()
    if not records or spans.bad or b"\0" in text or b"\\." in text:  # before 18, \. ends a COPY
        return False
    if not spans.regular or _has_odd_line_ends(text, spans):
        return False
    numbers = _numbers(columns, dialect.delimiter)
    if numbers is not None and pc.match_substring_regex(pa.array([text], pa.large_binary()), numbers)[0].as_py():
        return False
    wanted = {str(place): pattern for place, column in enumerate(columns) if (pattern := _pattern(column))}
    return not wanted or _all_match(text, len(columns), wanted, dialect)


def _known(column: Column) -> bool:
    base = column.base_type
    if base in {"timestamp", "timestamptz"} and column.precision is not None:  # it rounds
        return False
    return base in _AS_THEY_ARE or base in _WHOLE or base in _ONLY or base == "numeric"


def _pattern(column: Column) -> str | None:
    """Return what each text of a column has to look like; None where any text may stand."""
    precision, scale = column.precision, column.scale or 0
    if column.base_type == "numeric" and precision is not None:
        if not 0 <= scale < precision:
            return r"^\b$"  # none
        return rf"^[+-]?[0-9]{{1,{precision - scale}}}(\.[0-9]{{0,{scale}}}0*)?$"
    return _ONLY.get(column.base_type)


def _numbers(columns: Sequence[Column], delimiter: str) -> str | None:
    """Return what a field may begin with that PostgreSQL takes for a number, and this package does not."""
    free = any(column.base_type == "numeric" and column.precision is None for column in columns)
    if not free and not any(column.base_type in _WHOLE for column in columns):
        return None
    odd = r"0[xXoObB]|[0-9][0-9.]*_" + (r"|[0-9.]+[eE]" if free else "")
    return rf'(?:^|[{re.escape(delimiter)}\n"])[ \t\r\n\v\f]*[+-]?(?:{odd})'


def _has_odd_line_ends(text: bytes, spans: Spans) -> bool:
    """Whether there are line ends of two kinds, or blank lines, which PostgreSQL takes for records."""
    starts, ends = spans.starts, spans.ends
    between = starts.slice(1) - ends.head(starts.len() - 1)
    crlf = b"\r\n" in text
    most = 2 if crlf else 1
    return bool(starts[0] != 0 or len(text) - ends[-1] > most or (between != most).any())


def _all_match(text: bytes, width: int, wanted: Mapping[str, str], dialect: Dialect) -> bool:
    try:
        table = pacsv.read_csv(
            pa.BufferReader(text),
            read_options=pacsv.ReadOptions(
                column_names=[str(place) for place in range(width)], use_threads=False, block_size=len(text) + 1
            ),
            parse_options=pacsv.ParseOptions(delimiter=dialect.delimiter, newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                include_columns=list(wanted),
                column_types=dict.fromkeys(wanted, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return False
    found = (pc.all(pc.match_substring_regex(table.column(place), pattern)) for place, pattern in wanted.items())
    return all(one.as_py() is not False for one in found)
