"""A CSV file: header, types, parts, and the records of a part with those that it cannot give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from keyhaul.errors import ConfigError
from keyhaul.sources.files.file import place_of
from keyhaul.sources.files.parts import ByBytes
from keyhaul.sources.files.records import count_fields, find_records
from keyhaul.sources.files.rejecting import found_in
from keyhaul.sources.files.relaying import can_relay, may_relay
from keyhaul.sources.files.tokens import take_apart
from keyhaul.sources.files.values import typed
from keyhaul.sources.source import Relay

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyhaul.model import Column
    from keyhaul.sources.files.dialect import Dialect
    from keyhaul.sources.files.file import Found
    from keyhaul.sources.files.textfile import TextFile

SAMPLE_BYTES: Final = 1 << 20
"""Bytes of a file that are looked at for types, at its beginning, middle and end each."""


class Delimited:
    """An open CSV file.

    Attributes:
        name: its path, for people and as the value of `_file`.
        names: its columns, in its own order.
    """

    def __init__(self, file: TextFile, dialect: Dialect, time_zone: str | None = None) -> None:
        """Read the header and look at a sample; `settle` says the types.

        Raises:
            ConfigError: it is empty, has no header, or a column twice.
        """
        self._file, self._dialect, self._zone = file, dialect, time_zone
        self.name = str(file.path)
        self.names = self._read_header()
        self._types: dict[str, Column] = {}
        self._cuts = ByBytes(file, dialect)

    def settle(self, types: Mapping[str, Column]) -> None:
        """Take the types of the columns; those that are not named are not read."""
        self._types = {name: types[name] for name in self.names if name in types}

    @property
    def decimal(self) -> str:
        """What stands before the fraction of a number."""
        return self._dialect.decimal

    @property
    def spooled(self) -> bool:
        """Whether the text is a copy that no other process can see."""
        return self._file.spooled

    def state(self) -> tuple[int, int | str]:
        """Return size and time of change (ns); see `File`."""
        return self._file.state()

    def parts(self, chunk_rows: int) -> Sequence[tuple[tuple[str, ...], int]]:
        """Return parts of about so many rows, by the sample's mean width; no record is read."""
        return self._cuts.parts(chunk_rows)

    def read(self, part: tuple[str, ...], columns: Sequence[str]) -> Found:
        """Return a part's records in the exact types of `columns`, and those that have no such values."""
        taken = self._cuts.take(part)
        tokens = take_apart(taken.text, self.names, self._dialect, taken.spans)
        wanted = [name for name in columns if name in self._types]
        found = typed(tokens.texts, self._types, time_zone=self._zone, decimal=self._dialect.decimal)
        bad = {number: ("malformed_record", why) for number, why in tokens.bad.items()}
        return found_in(taken, tokens.number, found, bad, wanted)

    @property
    def relays(self) -> bool:
        """Whether parts of it may go to PostgreSQL as they are."""
        whole = len(self._types) == len(self.names)
        return whole and can_relay([self._types[name] for name in self.names], self._dialect)

    def relay(self, part: tuple[str, ...]) -> Relay | None:
        """Return a part's bytes, if PostgreSQL takes nothing in them otherwise than `read` does."""
        taken = self._cuts.take(part)
        columns = [self._types[name] for name in self.names]
        if not may_relay(taken.text, taken.spans, columns, self._dialect):
            return None
        return Relay(
            text=taken.text,
            records=taken.spans.starts.len(),
            columns=tuple(self.names),
            delimiter=self._dialect.delimiter,
            place=place_of(self.name, "lines", taken.spans.lines + taken.line + 1),
        )

    def part_of(self, number: int) -> tuple[str, ...] | None:
        """Return a part that has the record of this number, from 1."""
        return self._cuts.part_of(number)

    def sample(self) -> tuple[float, float]:
        """Return bytes of a record and the number of records, estimated."""
        return self._cuts.sample()

    def suppose(self, row_bytes: float) -> None:
        """Take a mean width of the records, of a file that is not looked at."""
        self._cuts.row_bytes = row_bytes

    def close(self) -> None:
        """Close it; twice is once."""
        self._file.close()

    # --- before the first part -------------------------------------------------------------------

    def _read_header(self) -> list[str]:
        file = self._file
        text = file.read(file.begin, SAMPLE_BYTES)
        spans = find_records(text, self._dialect, last=file.begin + len(text) >= file.size)
        if not spans.starts.len():
            what = "an empty file" if not text.strip() else "no line end in the first megabyte"
            raise ConfigError(f"read {self.name}: {what}, expected a first line with the columns' names")
        first = text[spans.starts[0] : spans.ends[0]]
        fields = take_apart(first, [str(n) for n in range(count_fields(first, self._dialect))], self._dialect)
        if not fields.texts.height:
            raise ConfigError(f"read {self.name}: line 1 has {next(iter(fields.bad.values()))}, expected a header")
        names = ["" if name is None else name.strip() for name in fields.texts.row(0)]
        if not self._dialect.header:
            return [f"column{number}" for number in range(1, len(names) + 1)]
        following = spans.starts[1] if spans.starts.len() > 1 else spans.after
        file.begin_line += int(spans.lines[1]) if spans.starts.len() > 1 else spans.lines_passed
        file.begin += following
        self._check_names(names)
        return names

    def _check_names(self, names: list[str]) -> None:
        twice = sorted({name for name in names if names.count(name) > 1})
        if "" in names:
            raise ConfigError(
                f"read {self.name}: column {names.index('') + 1} of the header has no name, expected one. "
                'Is the delimiter right (csv: {delimiter: ";"}), or has the file no header (csv: {header: false})?'
            )
        if twice:
            raise ConfigError(
                f"read {self.name}: the header has {', '.join(twice)} twice, expected each name once. Rename one"
            )

    def look(self) -> pl.DataFrame:
        """Return the texts of records of the file's beginning, middle and end; measures them too."""
        frames, records, size = [], 0, 0
        for number, (text, spans) in enumerate(self._cuts.samples(SAMPLE_BYTES)):
            tokens = take_apart(text[: spans.after], self.names, self._dialect)
            if number and len(tokens.bad) * 2 > tokens.spans.starts.len():
                continue  # it began inside quotes
            frames.append(tokens.texts)
            records, size = records + tokens.spans.starts.len(), size + spans.after
        self._cuts.row_bytes = max(1.0, size / records) if records else 1.0
        return pl.concat(frames) if frames else pl.DataFrame(schema=dict.fromkeys(self.names, pl.String))
