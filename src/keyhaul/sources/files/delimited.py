"""A CSV file: header, types, parts, and the records of a part with those that it cannot give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from keyhaul.errors import ConfigError
from keyhaul.sources.files.file import LINE, RECORD_NUMBER, Found
from keyhaul.sources.files.parts import Parts
from keyhaul.sources.files.records import count_fields, find_records
from keyhaul.sources.files.tokens import Tokens, take_apart
from keyhaul.sources.files.values import typed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyhaul.model import Column
    from keyhaul.sources.files.dialect import Dialect
    from keyhaul.sources.files.textfile import TextFile

SAMPLE_BYTES: Final = 1 << 20
"""Bytes of a file that are looked at for types, at its beginning, middle and end each."""

RAW_CHARACTERS: Final = 8_000
"""Of a rejected record's text so much is kept, and its length."""

REJECTED: Final[dict[str, pl.DataType]] = {
    "number": pl.Int64(),
    "line": pl.Int64(),
    "reason": pl.String(),
    "message": pl.String(),
    "raw": pl.String(),
}


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
        self._row_bytes = 1.0
        self._parts: dict[int, Parts] = {}

    def settle(self, types: Mapping[str, Column]) -> None:
        """Take the types of the columns; those that are not named are not read."""
        self._types = {name: types[name] for name in self.names if name in types}

    @property
    def spooled(self) -> bool:
        """Whether the text is a copy that no other process can see."""
        return self._file.spooled

    def state(self) -> tuple[int, int]:
        """Return size and time of change (ns)."""
        return self._file.state()

    def parts(self, chunk_rows: int) -> Sequence[tuple[tuple[str, ...], int]]:
        """Return parts of about so many rows, by the sample's mean width; no record is read."""
        part_bytes = max(1, round(chunk_rows * self._row_bytes))
        count = self._of(part_bytes).count
        rows = max(0, round((self._file.size - self._file.begin) / self._row_bytes))
        return [
            ((str(number), str(part_bytes)), min(chunk_rows, max(0, rows - number * chunk_rows)))
            for number in range(count)
        ]

    def read(self, part: tuple[str, ...], columns: Sequence[str]) -> Found:
        """Return a part's records in the exact types of `columns`, and those that have no such values."""
        number, part_bytes = map(int, part)
        taken = self._of(part_bytes).take(number)
        tokens = take_apart(taken.text, self.names, self._dialect, taken.spans)
        wanted = [name for name in columns if name in self._types]
        found = typed(tokens.texts, self._types, time_zone=self._zone)
        line = tokens.spans.lines.gather(tokens.number) + taken.begin.line + 1
        frame = found.frame.select(wanted).with_columns(
            (tokens.number + taken.begin.record + 1).alias(RECORD_NUMBER), line.alias(LINE)
        )
        if found.wrong:
            kept = pl.select(row=pl.int_range(frame.height)).to_series().is_in(pl.Series(list(found.wrong)).implode())
            frame = frame.filter(~kept)
        rejected = self._rejected(taken.text, tokens, found.wrong, taken.begin.line, taken.begin.record)
        return Found(frame=frame, rejected=rejected, bytes_read=len(taken.text))

    def part_of(self, number: int) -> tuple[str, ...] | None:
        """Return a part that has the record of this number, from 1."""
        part_bytes = max(1, round(50_000 * self._row_bytes))
        parts = self._of(part_bytes)
        for part in range(parts.count):
            found = parts.border(part + 1)
            if number <= found.record:
                return str(part), str(part_bytes)
        return None

    def sample(self) -> tuple[float, float]:
        """Return bytes of a record and the number of records, estimated."""
        return self._row_bytes, (self._file.size - self._file.begin) / self._row_bytes

    def close(self) -> None:
        """Close it; twice is once."""
        self._file.close()

    # --- before the first part -------------------------------------------------------------------

    def _of(self, part_bytes: int) -> Parts:
        return self._parts.setdefault(part_bytes, Parts(self._file, self._dialect, part_bytes))

    def _read_header(self) -> list[str]:
        file = self._file
        text = file.read(file.begin, SAMPLE_BYTES)
        spans = find_records(text, self._dialect, last=file.begin + len(text) >= file.size)
        if not spans.starts.len():
            what = "an empty file" if not text.strip() else "no line end in the first megabyte"
            raise ConfigError(f"read {self.name}: {what}, expected a first line with the columns' names")
        first = text[: spans.ends[0]]
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
        file = self._file
        middle, end = (file.begin + file.size) // 2, file.size - SAMPLE_BYTES
        begins = (file.begin, middle, end) if end > file.begin + 2 * SAMPLE_BYTES else (file.begin,)
        length = SAMPLE_BYTES if len(begins) > 1 else file.size - file.begin
        frames, records, size = [], 0, 0
        for begin in begins:
            text = file.read(begin, length)
            skipped = 0 if begin == file.begin else text.find(b"\n") + 1  # where the next line begins
            text = text[skipped:]
            spans = find_records(text, self._dialect, last=begin + skipped + len(text) >= file.size)
            tokens = take_apart(text[: spans.after], self.names, self._dialect)
            if begin != file.begin and len(tokens.bad) * 2 > tokens.spans.starts.len():
                continue  # it began inside quotes
            frames.append(tokens.texts)
            records, size = records + tokens.spans.starts.len(), size + spans.after
        self._row_bytes = max(1.0, size / records) if records else 1.0
        return pl.concat(frames) if frames else pl.DataFrame(schema=dict.fromkeys(self.names, pl.String))

    # --- rejected records ------------------------------------------------------------------------

    def _rejected(
        self, text: bytes, tokens: Tokens, wrong: Mapping[int, Mapping[str, str]], line: int, record: int
    ) -> pl.DataFrame:
        rows = [(number, "malformed_record", why) for number, why in tokens.bad.items()]
        rows += [(tokens.number[row], "wrong_value", "; ".join(found.values())) for row, found in wrong.items()]
        spans = tokens.spans
        return pl.DataFrame(
            [
                (
                    number + record + 1,
                    spans.lines[number] + line + 1,
                    reason,
                    why,
                    raw_text(text[spans.starts[number] : spans.ends[number]]),
                )
                for number, reason, why in sorted(rows)
            ],
            schema=REJECTED,
            orient="row",
        )


def raw_text(raw: bytes) -> str:
    r"""Return a record as it stands in the file; bytes that are no text as ``\xe9``, a long one with its length."""
    text = raw.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
    if len(text) <= RAW_CHARACTERS:
        return text
    return f"{text[:RAW_CHARACTERS]}… ({len(raw):,} bytes)"
