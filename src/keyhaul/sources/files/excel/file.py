"""A sheet of a workbook as a file of records: each row below the header that is not empty is one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import polars as pl

from keyhaul.errors import ConfigError
from keyhaul.sources.files.excel.cells import DATE, MOMENT, column_letters, first_twice, infer_kinds
from keyhaul.sources.files.excel.loading import ROW, load
from keyhaul.sources.files.file import LINE, RECORD_NUMBER, Found, Untouched
from keyhaul.sources.files.rejecting import REJECTED, raw_text
from keyhaul.sources.files.textfile import check_unchanged
from keyhaul.sources.files.values import typed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from keyhaul.sources.files.infer import Inferred
    from keyhaul.sources.files.remote.object import RemoteFile


class Excel(Untouched):
    """An open sheet.

    Attributes:
        name: the workbook's path, for people and as the value of `_file`.
        sheet: the sheet's name.
        names: its columns, from left to right.
        spooled: no; another process loads it too.
        proposed: the types that all its cells together say, by column.
    """

    def __init__(
        self,
        path: Path | RemoteFile,
        *,
        sheet: str | None = None,
        header_row: int | None = 1,
        work_dir: str | None = None,
        time_zone: str | None = None,
    ) -> None:
        """Load the sheet.

        Raises:
            ConfigError: see `load`; a column has no name, or two have the same.
        """
        self._zone = time_zone
        try:
            super().__init__(path)
        except OSError as error:
            raise ConfigError(f"read {path}: {error.strerror}, expected a file that can be read") from error
        self._loaded = load(path, sheet, header_row, work_dir)
        self.sheet = self._loaded.sheet
        try:
            self._columns = self._named(header_row)
        except BaseException:
            self.close()
            raise
        self.names = list(self._columns)
        sample = self._loaded.rows.read(0, _SAMPLED)
        self.proposed: dict[str, Inferred] = {
            name: infer_kinds(self._loaded.kinds[number], sample[str(number)]) for name, number in self._columns.items()
        }

    def parts(self, chunk_rows: int) -> Sequence[tuple[tuple[str, ...], int]]:
        """Return parts of so many records."""
        count = self._loaded.rows.count
        begins = range(0, max(count, 1), chunk_rows)
        return [((str(n), str(min(chunk_rows, count - n))), min(chunk_rows, count - n)) for n in begins]

    def read(self, part: tuple[str, ...], columns: Sequence[str]) -> Found:
        """Return a part's records in the exact types of `columns`, and those that have no such values."""
        check_unchanged(self._before, self.state(), self.name)
        begin, count = map(int, part)
        rows = self._loaded.rows.read(begin, count)
        texts = pl.DataFrame([rows[str(self._columns[name])].alias(name) for name in self._types])
        found = typed(texts.with_columns(self._with_times(texts)), self._types, time_zone=self._zone)
        wrong = self._placed(found.wrong, rows[ROW])
        number = pl.int_range(begin + 1, begin + 1 + rows.height, eager=True)
        wanted = [name for name in columns if name in self._types]
        frame = found.frame.select(wanted).with_columns(number.alias(RECORD_NUMBER), rows[ROW].alias(LINE))
        rejected = pl.DataFrame(
            [
                (number[row], rows[ROW][row], reason, why, _raw(texts, row, self._errors_by_name(rows, row)))
                for row, (reason, why) in sorted(wrong.items())
            ],
            schema=REJECTED,
            orient="row",
        )
        if wrong:
            bad = pl.Series(list(wrong), dtype=pl.Int64).implode()
            frame = frame.filter(~pl.int_range(rows.height, eager=True).is_in(bad))
        return Found(
            frame=frame,
            rejected=rejected,
            bytes_read=int(texts.estimated_size()),
            line_is=f"sheet {self.sheet} row",
        )

    def part_of(self, number: int) -> tuple[str, ...] | None:
        """Return a part that has the record of this number, from 1."""
        return (str(number - 1), "1") if 1 <= number <= self._loaded.rows.count else None

    def sample(self) -> tuple[float, float]:
        """Return bytes of a record, estimated, and how many there are."""
        sample = self._loaded.rows.read(0, _SAMPLED)
        return (sample.estimated_size() / sample.height if sample.height else 1.0), float(self._loaded.rows.count)

    def close(self) -> None:
        """Drop what was loaded; twice is once."""
        self._loaded.rows.close()

    def _named(self, header_row: int | None) -> dict[str, int]:
        """Return the number of each named column; one without a name and without a cell is none.

        Raises:
            ConfigError: a column has no name, or two have the same.
        """
        loaded = self._loaded
        if loaded.header is None:
            return {f"column{number + 1}": number for number in range(len(loaded.kinds))}
        with_errors = {column for row in loaded.errors.values() for column in row}
        names: dict[int, str] = {}
        for number, (text, kinds) in enumerate(zip(loaded.header, loaded.kinds, strict=True)):
            letters = column_letters(number + loaded.first_column)
            if text is not None and text.strip():
                names[number] = text.strip()
            elif kinds or number in with_errors:
                merged = any(low[0] < (header_row or 0) <= high[0] + 1 for low, high in loaded.merged)
                hint = f" Its row {header_row} has merged cells: is the header below it?" if merged else ""
                raise ConfigError(
                    f"read {self.name}: column {letters} of the sheet {self.sheet} has no name in row {header_row}, "
                    f"expected one.{hint} Give excel: {{header_row: …}}, or null if there is none"
                )
        if not names:
            raise ConfigError(
                f"read {self.name}: row {header_row} of the sheet {self.sheet} is empty, expected the columns' names. "
                "Give excel: {header_row: …}"
            )
        if twice := first_twice(names.values()):
            raise ConfigError(
                f"read {self.name}: the header has {', '.join(twice)} twice, expected each name once. Rename one"
            )
        return {name: number for number, name in names.items()}

    def _with_times(self, texts: pl.DataFrame) -> list[pl.Series]:
        """Return the columns of moments that have dates: a workbook does not tell midnight from a date."""
        found = []
        for name, column in self._types.items():
            kinds = self._loaded.kinds[self._columns[name]]
            if column.base_type in {"timestamp", "timestamptz"} and DATE in kinds and kinds <= {DATE, MOMENT}:
                found.append(texts[name].str.replace(r"^([0-9-]{10})$", "$1 00:00:00"))
        return found

    def _placed(self, wrong: Mapping[int, Mapping[str, str]], rows: pl.Series) -> dict[int, tuple[str, str]]:
        """Return what is wrong with which records, each with its cells; errors among them."""
        told: dict[int, list[str]] = {}
        for row, number in enumerate(rows) if self._loaded.errors else ():
            errors = self._loaded.errors.get(number, {})
            told[row] = [
                f"{name} ({self._cell(name, number)}): the error {errors[column]}, expected a value"
                for name, column in self._columns.items()
                if column in errors and name in self._types
            ]
        found = {row: ("cell_error", "; ".join(whys)) for row, whys in told.items() if whys}
        for row, whys in wrong.items():
            said = [
                why.replace(f"{name}:", f"{name} ({self._cell(name, rows[row])}):", 1) for name, why in whys.items()
            ]
            reason = found[row][0] if row in found else "wrong_value"
            found[row] = reason, "; ".join([*told.get(row, []), *said])
        return found

    def _errors_by_name(self, rows: pl.DataFrame, row: int) -> dict[str, str]:
        errors = self._loaded.errors.get(rows[ROW][row], {})
        return {name: errors[column] for name, column in self._columns.items() if column in errors}

    def _cell(self, name: str, row: int) -> str:
        return f"cell {column_letters(self._columns[name] + self._loaded.first_column)}{row}"


_SAMPLED = 10_000
"""Rows whose texts are looked at; the kinds of cells are known of all."""


def _raw(texts: pl.DataFrame, row: int, errors: Mapping[str, str]) -> str:
    """Return a record's cells as a JSON object of texts."""
    cells = dict(zip(texts.columns, texts.row(row), strict=True)) | dict(errors)
    return raw_text(json.dumps(cells, ensure_ascii=False).encode("utf-8", "backslashreplace"))
