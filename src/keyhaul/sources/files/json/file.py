"""A file of JSON records: lines of objects, or one array of them."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import polars as pl

from keyhaul.errors import ConfigError
from keyhaul.sources.files.dialect import Dialect
from keyhaul.sources.files.json.array import Elements
from keyhaul.sources.files.json.fast import read_fast, schema_of
from keyhaul.sources.files.json.tokens import Taker, objects, shown
from keyhaul.sources.files.json.values import typed_values
from keyhaul.sources.files.parts import ByBytes
from keyhaul.sources.files.rejecting import found_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from keyhaul.model import Column
    from keyhaul.sources.files.file import Found
    from keyhaul.sources.files.parts import Cuts, Taken
    from keyhaul.sources.files.textfile import TextFile

SAMPLE_BYTES: Final = 1 << 20
_LINES: Final = Dialect(quote=None, header=False)
"""A raw line feed cannot stand in a JSON string: a line is a record."""

_MISSES: Final = 3
_AGAIN: Final = 8
"""After so many parts that the fast way could not read, only each eighth is tried."""

_MOST_TOLD: Final = 20
"""So many keys that are left out are told, for each file."""


class JsonFile:
    """An open file of JSON records.

    Attributes:
        name: its path, for people and as the value of `_file`.
        names: the keys of the records that `look` has seen, in the order of their first appearance.
    """

    def __init__(self, file: TextFile, *, work_dir: str | None, ignore_extra: bool, time_zone: str | None) -> None:
        """See whether it is an array, and where its elements are.

        Raises:
            ConfigError: an array that is cut off, or with text behind it.
        """
        self._file, self._ignore_extra, self._zone = file, ignore_extra, time_zone
        self.name = str(file.path)
        self.names: list[str] = []
        self._array = Elements(file, work_dir) if _first_byte(file) == b"[" else None
        self._lines = ByBytes(file, _LINES)
        self._types: dict[str, Column] = {}
        self._schema: pa.Schema | None = None
        self._taker = Taker((), (), ignore_extra=ignore_extra)
        self._misses = 0
        self._ignored: set[str] = set()
        self._lock = threading.Lock()

    @property
    def spooled(self) -> bool:
        """Whether the text is a copy that no other process can see."""
        return self._file.spooled

    def state(self) -> tuple[int, int | str]:
        """Return size and time of change (ns); see `File`."""
        return self._file.state()

    def settle(self, types: Mapping[str, Column]) -> None:
        """Take the types of the columns; a key that is none of them is refused, or left out and told."""
        self._types = dict(types)
        self._schema = schema_of(self._types)
        nested = {name for name, column in types.items() if column.base_type in {"json", "jsonb"}}
        self._taker = Taker(list(types), nested, ignore_extra=self._ignore_extra)

    def parts(self, chunk_rows: int) -> Sequence[tuple[tuple[str, ...], int]]:
        """Return parts of about so many records."""
        return self._cuts.parts(chunk_rows)

    def read(self, part: tuple[str, ...], columns: Sequence[str]) -> Found:
        """Return a part's records in the exact types of `columns`, and those that have no such values."""
        taken = self._cuts.take(part)
        wanted = [name for name in columns if name in self._types]
        return self._fast(taken, wanted) or self._strict(taken, wanted)

    def part_of(self, number: int) -> tuple[str, ...] | None:
        """Return a part that has the record of this number, from 1."""
        return self._cuts.part_of(number)

    def sample(self) -> tuple[float, float]:
        """Return bytes of a record and the number of records, estimated."""
        return self._cuts.sample()

    def look(self) -> dict[str, pl.Series]:
        """Return the texts of the values of records of the beginning, middle and end, by key; measures them too.

        Raises:
            ConfigError: none of the records there is a JSON object.
        """
        values: dict[str, list[str]] = {}
        faults: list[str] = []
        records = size = good = 0
        for text, spans in self._cuts.samples(SAMPLE_BYTES):
            for record in objects(text, spans, faults):
                good += 1
                for key, value in record.items():
                    values.setdefault(key, []).append(value)
            records, size = records + spans.starts.len(), size + spans.after
        if records and not good:
            raise ConfigError(
                f"read {self.name}: no record looked at is a JSON object ({faults[0]}), expected one on each line, or "
                "one array of them. Records over several lines become lines with: jq -c . FILE"
            )
        self._lines.row_bytes = max(1.0, size / records) if records else 1.0
        self.names = [key for key in values if key]
        return {key: pl.Series(key, values[key], dtype=pl.String) for key in self.names}

    def suppose(self, row_bytes: float) -> None:
        """Take a mean width of the records, of a file that is not looked at."""
        self._lines.row_bytes = row_bytes

    def close(self) -> None:
        """Close it; twice is once."""
        if self._array is not None:
            self._array.close()
        self._file.close()

    @property
    def _cuts(self) -> Cuts:
        return self._array or self._lines

    def _fast(self, taken: Taken, wanted: Sequence[str]) -> Found | None:
        """Return what pyarrow reads; None where the strict way is to say, at once where it had to several times."""
        if self._schema is None or (self._misses >= _MISSES and self._misses % _AGAIN):
            self._misses += 1
            return None
        values = read_fast(taken.text, taken.spans, self._schema, self._types, time_zone=self._zone)
        if values is None:
            self._misses += 1
            return None
        self._misses = 0
        return found_in(taken, pl.int_range(values.frame.height, eager=True), values, {}, wanted)

    def _strict(self, taken: Taken, wanted: Sequence[str]) -> Found:
        tokens = self._taker.take_apart(taken.text, taken.spans)
        values = typed_values(tokens.values, self._types, time_zone=self._zone)
        found = found_in(taken, tokens.number, values, tokens.bad, wanted)
        return replace(found, notices=self._left_out(taken, tokens.ignored))

    def _left_out(self, taken: Taken, ignored: Mapping[str, int]) -> tuple[str, ...]:
        """Say which keys are left out, each once for the file."""
        with self._lock:
            new = {key: number for key, number in ignored.items() if key not in self._ignored}
            new = dict(list(new.items())[: _MOST_TOLD - len(self._ignored)])
            self._ignored.update(new)
        return tuple(
            f"{self.name}: key {shown(key)}, first in record {number + taken.record + 1:,}, is no column: left out"
            for key, number in new.items()
        )


def _first_byte(file: TextFile) -> bytes:
    """Return the first byte that is no blank; empty in a file without one."""
    position = file.begin
    while text := file.read(position, SAMPLE_BYTES):
        if bare := text.lstrip():
            return bare[:1]
        position += len(text)
    return b""
