"""From a job to its files, and from a ticket to a reader of them in another process."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from keyhaul.config.job import FilesSource as Config
from keyhaul.errors import ConfigError
from keyhaul.sources.columns import column_of
from keyhaul.sources.files.dialect import Dialect
from keyhaul.sources.files.source import FilesSource, Wanted

if TYPE_CHECKING:
    from keyhaul.sources.files.source import FilesReader
    from keyhaul.sources.source import Opening, Ticket


def open_source(opening: Opening) -> FilesSource:
    """Open the files of a job.

    Raises:
        ConfigError: a file is missing or cannot be read, a type or an encoding is not known.
    """
    config = opening.job.source
    if not isinstance(config, Config):
        raise TypeError(config.kind)
    csv = config.csv
    _check_encoding(csv.encoding)
    if csv.comment is not None and csv.comment in {csv.delimiter, csv.quote}:
        msg = f"source.csv.comment: got {csv.comment}, expected another character than the delimiter and the quote"
        raise ConfigError(msg)
    declared = {name: type_of(name, text) for name, text in config.columns.items()}
    return FilesSource(
        Wanted(
            paths=config.path,
            format=config.format,
            declared=declared,
            dialect=Dialect(**csv.model_dump(exclude={"encoding"})),
            encoding=csv.encoding,
            sheet=config.excel.sheet,
            header_row=config.excel.header_row,
            extra_columns=config.extra_columns,
            missing_columns=config.missing_columns,
            time_zone=config.time_zone,
            work_dir=opening.job.work_dir,
            known=opening.known,
            there=opening.types,
        )
    )


def join(ticket: Ticket) -> FilesReader:
    """Open a reader in another process.

    Raises:
        ConfigError: the files are not there.
    """
    state = dict(ticket.state)
    dialect = dict(state.pop("dialect"))
    source = FilesSource(
        Wanted(
            **{**state, "paths": tuple(state["paths"])},
            dialect=Dialect(**{**dialect, "nulls": tuple(dialect["nulls"])}),
        )
    )
    return source.open(1, ticket.columns)


_SHORT = {
    "int": "integer",
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "float": "double precision",
    "float4": "real",
    "float8": "double precision",
    "bool": "boolean",
    "decimal": "numeric",
    "string": "text",
    "varchar": "character varying",
    "char": "character",
    "timestamp": "timestamp without time zone",
    "timestamptz": "timestamp with time zone",
    "time": "time without time zone",
}
"""Names that people write for types, as ``format_type`` prints them."""


def type_of(name: str, text: str) -> str:
    """Return the PostgreSQL type that a job gives a column, as ``format_type`` prints it.

    Raises:
        ConfigError: it is none that a file's column can have.
    """
    plain = " ".join(text.lower().split()).replace(" ,", ",").replace(", ", ",")
    word, bracket, rest = plain.partition("(")
    word = word.strip()
    known = _SHORT.get(word, word)
    if bracket and known.endswith("time zone"):  # timestamp(3) without time zone
        first, _, last = known.partition(" ")
        full = f"{first}({rest} {last}"
    else:
        full = f"{known}({rest}" if bracket else known
    try:
        column_of(name, full)
    except ValueError as error:
        expected = str(error).partition("expected ")[2]
        raise ConfigError(f"read source.columns.{name}: type {text!r}, expected {expected}") from None
    return full


def _check_encoding(encoding: str) -> None:
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise ConfigError(
            f"read source.csv.encoding: {encoding!r} is not known, expected one such as utf-8, latin-1 or cp1252"
        ) from None
