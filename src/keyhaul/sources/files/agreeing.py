"""The columns that all files of a source have together: names, types, and what those rest on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import polars as pl

from keyhaul.errors import ConfigError
from keyhaul.model import RECORD
from keyhaul.sources.columns import column_of
from keyhaul.sources.files.columnar import Columnar
from keyhaul.sources.files.delimited import Delimited
from keyhaul.sources.files.excel.cells import EMPTY
from keyhaul.sources.files.excel.file import Excel
from keyhaul.sources.files.file import FILE, LINE, RECORD_NUMBER
from keyhaul.sources.files.infer import Inferred, infer
from keyhaul.sources.files.json.file import JsonFile
from keyhaul.sources.files.json.values import infer_values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyhaul.model import Column
    from keyhaul.sources.files.file import File

_F = TypeVar("_F")

MOST_SAMPLED: Final = 20
"""Of more files so many are looked at for types, evenly over the list."""

_MOST_COLUMNS: Final = 1600
"""Of a PostgreSQL table."""


def agreed(
    files: Sequence[File], declared: Mapping[str, str], there: Mapping[str, str], *, extra: str, missing: str
) -> tuple[dict[str, Column], dict[str, str]]:
    """Return the columns as all files are read, and evidence of the types that the job does not declare.

    Args:
        files: open, of one format.
        declared: column → type; those hold.
        there: column → type in the target, which comes before what the values of texts seem to be.
        extra: ``refuse`` or ``ignore`` columns that the first file does not have.
        missing: ``refuse``, or ``null`` for columns of the first file that another one does not have.

    Raises:
        ConfigError: the files do not fit together, or have a column of keyhaul's own name.
    """
    jsons = [file for file in files if isinstance(file, JsonFile)]
    proposed = _of_keys(jsons, declared) if jsons else _of_first(files, declared, extra=extra, missing=missing)
    _refuse_own_names(files)
    columns: dict[str, Column] = {}
    evidence: dict[str, str] = {}
    texts = bool(jsons) or any(isinstance(file, Delimited) for file in files)
    for name, found in proposed.items():
        columns[name] = column_of(name, declared.get(name, found.pg_type))
        if name not in declared and texts and (same := _as_there(name, there)) is not None:
            columns[name] = same
            evidence[name] = f"{same.pg_type}: as in the target"
        elif name not in declared or found is _UNSEEN:
            evidence[name] = f"{columns[name].pg_type}: {found.evidence}"
    for file in files:
        file.settle(columns)
    return columns, evidence


def _as_there(name: str, there: Mapping[str, str]) -> Column | None:
    """Return a column in the type that the target has; None where a file's column cannot have it."""
    try:
        return column_of(name, there[name]) if name in there else None
    except ValueError:
        return None


def _of_first(files: Sequence[File], declared: Mapping[str, str], *, extra: str, missing: str) -> dict[str, Inferred]:
    """Return the columns of the first file, which all others must have too unless the job allows it."""
    first, *others = files
    _check_alike(first, others, extra=extra, missing=missing)
    unknown = [name for name in declared if name not in first.names]
    if unknown:
        raise ConfigError(
            f"read {first.name}: no column {', '.join(unknown)}, expected one of {', '.join(first.names[:20])}. "
            "Change columns"
        )
    sheets = [file for file in files if isinstance(file, Excel)]
    if sheets:
        return {
            name: _widest([sheet.proposed[name] for sheet in sheets if name in sheet.names]) for name in first.names
        }
    if isinstance(first, Columnar):
        return {name: first.proposed.get(name, _UNKNOWN) for name in first.names}
    texts = [file for file in files if isinstance(file, Delimited)]
    looked = [file.look() for file in _some(texts)]
    _suppose(texts)
    decimal = texts[0].decimal
    return {
        name: infer(pl.concat([one[name] for one in looked if name in one.columns]), decimal=decimal)
        for name in first.names
    }


def _widest(proposed: Sequence[Inferred]) -> Inferred:
    """Return the type that holds what all sheets have in a column."""
    found = {one.pg_type: one for one in proposed if one.evidence != EMPTY}
    if len(found) <= 1:
        return next(iter(found.values()), proposed[0])
    for kinds, pg_type in _TOGETHER:
        if found.keys() <= kinds:
            return found[pg_type]
    return Inferred(pg_type="text", evidence=f"{', '.join(sorted(found))} in different files")


_TOGETHER: Final = (
    ({"bigint", "double precision"}, "double precision"),
    ({"date", "timestamp without time zone"}, "timestamp without time zone"),
    ({"time without time zone", "interval"}, "interval"),
)

_UNKNOWN: Final = Inferred(pg_type="text", evidence="declared")
_UNSEEN: Final = Inferred(pg_type="text", evidence="declared, and in no record looked at")


def _of_keys(files: Sequence[JsonFile], declared: Mapping[str, str]) -> dict[str, Inferred]:
    """Return the keys of the records that were looked at, of all files, and what is declared besides.

    Raises:
        ConfigError: no record has a key, and none is declared, or there are more than a table has columns.
    """
    values: dict[str, list[pl.Series]] = {}
    for file in _some(files):
        for name, found in file.look().items():
            values.setdefault(name, []).append(found)
    _suppose(files)
    names = [*values, *(name for name in declared if name not in values)]
    if not names:
        raise ConfigError(
            f"read {files[0].name}: no record with a key in the megabytes that were looked at, expected one at least, "
            "on a line of its own or in an array. Or declare the columns"
        )
    if len(names) > _MOST_COLUMNS:
        raise ConfigError(
            f"read {files[0].name}: {len(names):,} different keys, expected at most {_MOST_COLUMNS:,}, the columns of "
            "a table. Are the keys values?"
        )
    return {name: infer_values(pl.concat(values[name])) if name in values else _UNSEEN for name in names}


def _some(files: Sequence[_F]) -> Sequence[_F]:
    return files[:: max(1, len(files) // MOST_SAMPLED)]


def _suppose(files: Sequence[JsonFile | Delimited]) -> None:
    """Let files that were not looked at have records as wide as the others' are on the average."""
    looked = _some(files)
    mean = sum(file.sample()[0] for file in looked) / len(looked)
    for file in files:
        if file not in looked:
            file.suppose(mean)


def _refuse_own_names(files: Sequence[File]) -> None:
    problems = [
        f"read {file.name}: column {name} has a name of keyhaul's own, expected another one. Rename it in the file"
        for file in files
        for name in file.names
        if name in {FILE, RECORD_NUMBER, LINE} or name.lower() == RECORD
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _check_alike(first: File, others: Sequence[File], *, extra: str, missing: str) -> None:
    problems = []
    for file in others:
        more = [name for name in file.names if name not in first.names]
        less = [name for name in first.names if name not in file.names]
        if more and extra == "refuse":
            problems.append(
                f"read {file.name}: column {', '.join(more)} is not in {first.name}, expected the same columns. "
                "Give extra_columns: ignore to leave it out"
            )
        if less and missing == "refuse":
            problems.append(
                f"read {file.name}: column {', '.join(less)} of {first.name} is missing, expected the same "
                "columns. Give missing_columns: null to load NULL"
            )
    if problems:
        raise ConfigError("\n".join(problems))
