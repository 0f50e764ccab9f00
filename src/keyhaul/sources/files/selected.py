"""Columns that a job asks for and that stand in no file: where a record is, and the parts of folders (year=2024)."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import polars as pl

from keyhaul.errors import ConfigError
from keyhaul.postgres import pgtypes
from keyhaul.sources.columns import column_of
from keyhaul.sources.files.columnar import Columnar
from keyhaul.sources.files.file import LINE, RECORD_NUMBER
from keyhaul.sources.files.values import typed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyhaul.model import Column
    from keyhaul.sources.files.file import File

_TYPES: Final = {"_file": "text", "_line": "bigint", "_record": "bigint"}
"""What may be selected of a record's place, and its type: the file's path, the physical line that the record begins on
(in a workbook the row), and its number in the file; both from 1."""

_PART: Final = re.compile(r"([^=/]+)=([^/]*)")
_NO_VALUE: Final = "__HIVE_DEFAULT_PARTITION__"


class Selected:
    """What is selected, for each file.

    Attributes:
        columns: name → column, in the job's order.
    """

    def __init__(self, files: Sequence[File], declared: Mapping[str, str], *, missing: str) -> None:
        """Find which of the declared columns are no file's own.

        Args:
            files: open.
            declared: column → type, as the job says.
            missing: ``refuse``, or ``null`` for a part of a folder that a file's path does not have.

        Raises:
            ConfigError: a type does not fit, a path does not have the part, or files of this format have no lines.
        """
        inside = {name for file in files for name in file.names}
        folders = {file.name: _folders(file.name) for file in files}
        known = {name for parts in folders.values() for name in parts}
        wanted = {
            name: pg_type for name, pg_type in declared.items() if name not in inside and name in {*_TYPES, *known}
        }
        self.columns: dict[str, Column] = {}
        for name, pg_type in wanted.items():
            if pg_type != _TYPES.get(name, pg_type):
                msg = f"read {files[0].name}: column {name} is declared as {pg_type}, expected {_TYPES[name]}"
                raise ConfigError(f"{msg}. Change columns, or convert it in the transform")
            self.columns[name] = column_of(name, pg_type)
        if "_line" in self.columns and any(isinstance(file, Columnar) for file in files):
            raise ConfigError(f"read {files[0].name}: _line: the format has no lines. Take _record in its place")
        self._constant = {file.name: self._of(file.name, folders[file.name], missing) for file in files}

    def expressions(self, file: str, names: Sequence[str]) -> list[pl.Expr]:
        """Return those of `names` that are selected, for the records of a file."""
        constant = self._constant[file]
        found = []
        for name in names:
            if name in constant:
                found.append(pl.lit(constant[name].first(), dtype=constant[name].dtype).alias(name))
            elif name in self.columns:
                found.append(pl.col(LINE if name == "_line" else RECORD_NUMBER).alias(name))
        return found

    def _of(self, file: str, parts: Mapping[str, str | None], missing: str) -> Mapping[str, pl.Series]:
        """Return what is the same for all records of a file, a series of one value each."""
        found: dict[str, pl.Series] = {}
        for name, column in self.columns.items():
            if name == "_file":
                found[name] = pl.Series([file])
                continue
            if name in _TYPES:
                continue
            if name not in parts and missing == "refuse":
                msg = f"read {file}: its path has no part {name}=…, as others have"
                raise ConfigError(f"{msg}. Give missing_columns: null to load NULL")
            given = pl.DataFrame({name: [parts.get(name)]}, schema={name: pl.String})
            read = typed(given, {name: column})
            if read.wrong:
                why = next(iter(read.wrong[0].values()))
                raise ConfigError(f"read {file}: {why}, got {name}={parts[name]} in its path. Change columns")
            found[name] = read.frame[name].cast(pgtypes.route(column).dtype)
        return found


def _folders(path: str) -> dict[str, str | None]:
    """Return the parts ``name=value`` of a path's folders."""
    matches = filter(None, map(_PART.fullmatch, PurePath(path).parts[:-1]))
    return {unquote(match[1]): None if match[2] == _NO_VALUE else unquote(match[2]) for match in matches}
