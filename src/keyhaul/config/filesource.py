"""Files as a source: what a job says of them under ``source:``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from keyhaul.config.fields import Names, Words
from keyhaul.config.parts import EVERYWHERE, Flag, Part, setting
from keyhaul.config.sourcekind import SourceKind, kind_setting
from keyhaul.storeaddress import SCHEMES, is_remote, take_apart, whole_path

if TYPE_CHECKING:
    from keyhaul.config.draft import Draft


class CsvFormat(Part):
    """How a CSV file is written."""

    delimiter: str = setting(
        ",",
        "Between two fields; a tab for files that end in .tsv or .tab.",
        "one ASCII character",
        pattern=r'^[^"\r\n\x80-\U0010ffff]$',
    )
    quote: Literal['"', "'"] | None = setting(
        '"', "Around a field; inside it twice for one. null: no field is quoted.", "a double or a single quote, or null"
    )
    encoding: str = setting("utf-8", "Of the text.", "an encoding such as utf-8, latin-1 or cp1252", min_length=1)
    header: bool = setting(
        default=True,
        meaning="Whether the first line names the columns; else column1, column2 and so on.",
        expected="true or false",
    )
    nulls: Words = setting(
        ("",), "Unquoted words that are NULL; a quoted field never is.", 'a list of words such as ["", "NULL"]'
    )
    comment: str | None = setting(
        None,
        "A line that begins with it is left out; in quotes it is a part of the field.",
        "one ASCII character such as #, other than the delimiter and the quote",
        pattern=r"^[^\s0-9A-Za-z,;|\"'\x80-\U0010ffff]$",
    )
    decimal: Literal[".", ","] = setting(
        ".", "Before the fraction of a number; thousands are not separated.", "a point or a comma"
    )


class ExcelFormat(Part):
    """Where in a workbook the records are."""

    sheet: str | None = setting(
        None, "The sheet's name; by default the first that is not hidden.", "a name", min_length=1
    )
    header_row: int | None = setting(
        1,
        "The row with the columns' names, as the workbook counts; what is above it is left out. null: there is none, "
        "and columns are called column1, column2 and so on.",
        "a whole number from 1, or null",
        ge=1,
    )


PARTS: Final[dict[str, type[Part]]] = {"csv": CsvFormat, "excel": ExcelFormat}
"""Setting of files → what is in it."""


class FilesSource(SourceKind):
    """Files of one format, each a source of records without a key."""

    schemes = ("file",)
    stores = SCHEMES
    endings = (
        ".csv",
        ".tsv",
        ".tab",
        ".jsonl",
        ".ndjson",
        ".json",
        ".xlsx",
        ".xlsm",
        ".xls",
        ".xlsb",
        ".ods",
        ".parquet",
        ".arrow",
        ".feather",
        ".ipc",
    )
    has_key: ClassVar[bool] = False
    packed: ClassVar[tuple[str, ...]] = (".gz", ".zst", ".bz2", ".xz", ".zip")
    needs_key = False

    kind: Literal["files"] = kind_setting("files")
    path: Names = setting(
        ...,
        "A file, a glob such as in/*.csv.gz, a folder, or a list of these; from the current directory, or in a store: "
        "az://container/…, s3://bucket/…, https://host/file.csv.",
        "a path or a list of paths",
    )
    format: Literal["csv", "json", "excel", "parquet", "arrow"] | None = setting(
        None, "How the files are written; by default what their endings say.", "csv, json, excel, parquet or arrow"
    )
    columns: dict[str, str] = setting(
        {},
        "PostgreSQL types of columns; those of the others are inferred from a sample.",
        "a mapping of columns to types such as {id: bigint, amount: numeric(12,2)}",
        Flag("--column", value="'COL TYPE'", help="Type of a file's column.", many=True, commands=EVERYWHERE),
    )
    csv: CsvFormat = setting(CsvFormat(), "How CSV files are written.", "a mapping such as {delimiter: ;}")
    excel: ExcelFormat = setting(
        ExcelFormat(), "Which part of a workbook is read.", "a mapping such as {sheet: Sheet1, header_row: 1}"
    )
    extra_columns: Literal["refuse", "ignore"] = setting(
        "refuse",
        "What becomes of a column that the first file does not have, and of a JSON key that is no column.",
        "refuse or ignore",
    )
    missing_columns: Literal["refuse", "null"] = setting(
        "refuse", "What becomes of a column of the first file that another one does not have.", "refuse or null"
    )
    only_new: bool = setting(
        default=False,
        meaning="Load only the files that no run of the job has loaded yet, in mode append unless another is given.",
        expected="true or false",
        flags=Flag("--only-new", help="Load the files that no run has loaded.", commands=EVERYWHERE),
        variable="ETL_ONLY_NEW",
    )
    time_zone: str | None = setting(
        None,
        "Zone in which timestamps without a zone are meant, for a column with one.",
        "a zone such as Europe/Berlin",
        (),
        "ETL_TIME_ZONE",
        min_length=1,
    )

    def identity(self) -> dict[str, Any]:
        """Return the whole paths, and how the files are read; size and date are the source's affair."""
        return {
            "database": "files",
            "files": [whole_path(path) for path in self.path],
            **self.model_dump(mode="json", exclude={"kind", "uri", "path"}),
        }

    @classmethod
    def complete(cls, draft: Draft, body: dict[str, Any]) -> str | None:  # noqa: ARG003 - nothing can be wrong
        """Return the name of a table that is called like the first file."""
        path = body.get("path")
        first = path[0] if isinstance(path, list | tuple) and path else path
        return table_name(first) if isinstance(first, str) else None


def table_name(path: str) -> str:
    """Return a table's name like a file's or a folder's: lower case, letters, digits and underscores."""
    path = str(take_apart(path)) if is_remote(path) else path
    name = Path(path).name
    parent = Path(path).parent.name
    stem = name.split(".", 1)[0] if not re.fullmatch(r"[*?\[\]{}]*", name.split(".", 1)[0]) else parent
    plain = re.sub(r"\W+", "_", stem.lower()).strip("_")
    if not plain or plain[0].isdigit():
        plain = f"t_{plain}"
    return plain.encode()[:_NAME_BYTES].decode(errors="ignore")


_NAME_BYTES: Final = 63
