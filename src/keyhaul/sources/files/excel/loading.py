"""A sheet, loaded once into a file without a name in the work folder, from which parts are read."""

from __future__ import annotations

import re
import tempfile
import threading
import zipfile
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, Final

import polars as pl
import pyarrow as pa

from keyhaul.errors import ConfigError
from keyhaul.memory import machine_memory_bytes
from keyhaul.sources.files.excel.cells import as_texts
from keyhaul.sources.files.remote.object import on_this_machine
from keyhaul.workfolder import open_work_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from keyhaul.sources.files.remote.object import RemoteFile

ROW: Final = "row"
"""Column of a loaded sheet: the sheet's row number, from 1; the others are called by their number."""

_ROWS_AT_A_TIME: Final = 10_000
_MEMORY_OF_A_BYTE: Final = 3.0
"""Memory that a sheet takes while it is loaded, for each byte of its unpacked XML. Measured with 100,000 flights of 20
columns: 2.0 to 2.8."""
_OF_AN_OLD_BYTE: Final = 8.0
"""The same for each byte of an .xls file."""


class Rows:
    """Rows of texts in a file without a name in the work folder; read from several threads."""

    def __init__(self, width: int, work_dir: str | None) -> None:
        """Take so many columns, called by their number, besides `ROW`."""
        self._schema = pa.schema([(ROW, pa.int64()), *((str(number), pa.large_string()) for number in range(width))])
        self._spool: IO[bytes] = tempfile.TemporaryFile(dir=open_work_folder(work_dir))  # noqa: SIM115 - kept open
        self._reader: Any = None
        self._ends: list[int] = []
        self._lock = threading.Lock()

    def fill(self, frames: Iterable[pl.DataFrame]) -> None:
        """Write the rows, once."""
        with pa.ipc.new_file(self._spool, self._schema) as writer:
            for frame in frames:
                for batch in frame.to_arrow(compat_level=pl.CompatLevel.oldest()).to_batches():
                    writer.write_batch(batch)
                    self._ends.append(self.count + batch.num_rows)
        self._spool.flush()
        self._reader = pa.ipc.open_file(pa.PythonFile(self._spool, mode="r"))

    @property
    def count(self) -> int:
        """How many there are."""
        return self._ends[-1] if self._ends else 0

    def read(self, begin: int, count: int) -> pl.DataFrame:
        """Return rows by number from 0: `ROW` and the texts of each column."""
        found, position = [], 0
        for number, end in enumerate(self._ends):
            if position < begin + count and end > begin:
                with self._lock:
                    batch = self._reader.get_batch(number)
                low = max(begin - position, 0)
                found.append(batch.slice(low, min(begin + count - position, batch.num_rows) - low))
            position = end
        return pl.DataFrame(pl.from_arrow(pa.Table.from_batches(found, self._schema)))

    def close(self) -> None:
        """Drop them; twice is once."""
        self._reader = None
        self._spool.close()


@dataclass(kw_only=True, slots=True, frozen=True)
class Loaded:
    """A sheet with its header.

    Attributes:
        sheet: its name.
        header: texts of the header row, None for an empty cell; None without a header row.
        first_column: the sheet's column, from 0, that is column 0 here.
        kinds: of each column, what its cells below the header are.
        errors: row number → column → what stands there instead of a value (``#DIV/0!``).
        merged: first and last row and column, from 0, of cells that are one.
        rows: those below the header that are not empty.
    """

    sheet: str
    first_column: int
    header: list[str | None] | None
    kinds: list[set[str]]
    errors: dict[int, dict[int, str]]
    merged: list[tuple[tuple[int, int], tuple[int, int]]]
    rows: Rows


def load(path: Path | RemoteFile, sheet: str | None, header_row: int | None, work_dir: str | None) -> Loaded:
    """Load a sheet.

    Args:
        path: of an .xlsx, .xlsm, .xls, .xlsb or .ods file.
        sheet: its name; None: the first that is not hidden.
        header_row: the row with the columns' names, from 1; None: there is none. What stands above it is left out.
        work_dir: where the loaded cells lie.

    Raises:
        ConfigError: it cannot be read, is too large for this machine's memory, or there is no such sheet or row.
    """
    calamine = _needed(path, "python_calamine")
    try:
        with on_this_machine(path, work_dir) as local, _checked(path, local, calamine) as book:
            name: str = _name(path, calamine, book, sheet)
            found = book.get_sheet_by_name(name)
            errors = _errors(path, local, name, found.start or (0, 0))
            return _spooled(path, found, errors, header_row, work_dir)
    except calamine.PasswordError:
        raise ConfigError(f"read {path}: a password protects it, expected none. Save it without one") from None
    except (calamine.CalamineError, OSError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"read {path}: {why}, expected a whole workbook. Is it cut off, or packed?") from error


def _checked(path: Path | RemoteFile, local: Path, calamine: Any) -> Any:  # noqa: ANN401 - calamine and its workbook
    _check_size(path, local)
    return calamine.CalamineWorkbook.from_path(local)


def _needed(path: Path | RemoteFile, module: str) -> Any:  # noqa: ANN401 - a module
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise ConfigError(
            f"read {path}: the package {module.replace('_', '-')} is not installed, expected it for a workbook. "
            "Install it: pip install 'keyhaul[excel]'"
        ) from None


def _check_size(path: Path | RemoteFile, local: Path) -> None:
    """Refuse a workbook whose largest sheet would take more than half of the memory."""
    try:
        with zipfile.ZipFile(local) as archive:
            sizes = {one.filename: one.file_size for one in archive.infolist()}
        sheets = [size for name, size in sizes.items() if re.match(r"xl/worksheets/|content\.xml$", name)]
        unpacked = max(sheets, default=0) + sizes.get("xl/sharedStrings.xml", 0)
        needed = unpacked * _MEMORY_OF_A_BYTE
    except (zipfile.BadZipFile, OSError):  # an .xls; or no workbook, which is told when it is opened
        needed = local.stat().st_size * _OF_AN_OLD_BYTE
    most = machine_memory_bytes() / 2
    if needed > most:
        raise ConfigError(
            f"read {path}: its largest sheet needs about {needed / 2**20:,.0f} MB of memory, expected at most "
            f"{most / 2**20:,.0f} MB, half of what this machine has. Save it as CSV, or in several files"
        )


def _name(path: Path | RemoteFile, calamine: Any, book: Any, sheet: str | None) -> str:  # noqa: ANN401 - calamine and its workbook
    names: list[str] = book.sheet_names
    if sheet is not None:
        if sheet not in names:
            raise ConfigError(
                f"read {path}: no sheet {sheet!r}, expected one of {', '.join(names)}. Change excel.sheet"
            )
        return sheet
    worksheet, visible = calamine.SheetTypeEnum.WorkSheet, calamine.SheetVisibleEnum.Visible
    for one in book.sheets_metadata:
        if one.typ == worksheet and one.visible == visible:
            return str(one.name)
    raise ConfigError(f"read {path}: no sheet that is not hidden, expected one. Give excel: {{sheet: …}}")


_ERRORS: Final = {
    "Div0": "#DIV/0!",
    "NA": "#N/A",
    "Name": "#NAME?",
    "Null": "#NULL!",
    "Num": "#NUM!",
    "Ref": "#REF!",
    "Value": "#VALUE!",
}
_ERROR_CELL: Final = (b't="e"', b"t='e'")
_BLOCK: Final = 1 << 20


def _may_have_errors(path: Path) -> bool:
    """Whether a cell of an .xlsx file is an error; of any other file nobody knows."""
    try:
        with zipfile.ZipFile(path) as archive:
            sheets = [name for name in archive.namelist() if re.match(r"xl/worksheets/[^/]*\.xml$", name)]
            for name in sheets:
                with archive.open(name) as stream:
                    tail = b""
                    while block := stream.read(_BLOCK):
                        text = tail + block
                        if any(cell in text for cell in _ERROR_CELL):
                            return True
                        tail = block[-4:]
            return not sheets
    except zipfile.BadZipFile:
        return True


def _errors(path: Path | RemoteFile, local: Path, sheet: str, start: tuple[int, int]) -> dict[int, dict[int, str]]:
    """Return the cells that have an error instead of a value: calamine reads them as empty, fastexcel says where."""
    found: dict[int, dict[int, str]] = {}
    if not _may_have_errors(local):
        return found
    loaded = _needed(path, "fastexcel").read_excel(local).load_sheet(sheet, header_row=None, dtypes="string")
    _, errors = loaded.to_arrow_with_errors()
    for error in errors.errors if errors is not None else []:
        kind = re.search(r"Error\((\w+)\)", error.detail)
        if kind is not None:
            row, column = error.position
            found.setdefault(start[0] + row + 1, {})[column] = _ERRORS.get(kind[1], kind[1])
    return found


def _spooled(
    path: Path | RemoteFile,
    sheet: Any,  # noqa: ANN401 - calamine's sheet
    errors: dict[int, dict[int, str]],
    header_row: int | None,
    work_dir: str | None,
) -> Loaded:
    """Write a sheet's rows below the header, those that are not empty, as texts."""
    if sheet.start is None:
        raise ConfigError(f"read {path}: the sheet {sheet.name} is empty, expected a header")
    width = sheet.end[1] - sheet.start[1] + 1
    rows = enumerate(sheet.iter_rows(), start=1)
    header = None if header_row is None else _header(path, sheet, rows, header_row)
    found = Loaded(
        sheet=sheet.name,
        first_column=sheet.start[1],
        header=header,
        kinds=[set() for _ in range(width)],
        errors=errors,
        merged=sheet.merged_cell_ranges or [],
        rows=Rows(width, work_dir),
    )
    try:
        found.rows.fill(_frames(rows, found))
    except BaseException:
        found.rows.close()
        raise
    return found


def _header(path: Path | RemoteFile, sheet: Any, rows: Iterator[tuple[int, Any]], header_row: int) -> list[str | None]:  # noqa: ANN401
    for number, cells in rows:
        if number == header_row:
            return [as_texts([cell], set())[0] for cell in cells]
    raise ConfigError(
        f"read {path}: the sheet {sheet.name} has {sheet.end[0] + 1:,} rows, expected a header in row {header_row:,}. "
        "Change excel.header_row"
    )


def _frames(rows: Iterator[tuple[int, Any]], found: Loaded) -> Iterator[pl.DataFrame]:
    while block := list(islice(rows, _ROWS_AT_A_TIME)):
        numbers = pl.Series(ROW, [number for number, _ in block], dtype=pl.Int64)
        columns = zip(*(cells for _, cells in block), strict=True)
        frame = pl.DataFrame(
            [
                as_texts(cells, kinds).alias(str(n))
                for n, (cells, kinds) in enumerate(zip(columns, found.kinds, strict=True))
            ]
        )
        full = frame.select(pl.any_horizontal(pl.all().is_not_null())).to_series()
        if found.errors:
            full |= numbers.is_in(pl.Series(list(found.errors), dtype=pl.Int64).implode())
        if full.any():
            yield frame.insert_column(0, numbers).filter(full)
