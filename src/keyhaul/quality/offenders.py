"""The rows that fail a check: a few by their keys, and all of them in a Parquet file when that is asked for."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from keyhaul.errors import ConfigError
from keyhaul.quality.sql import ROW, System, failing
from keyhaul.quoting import quote_name, quote_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pyarrow as pa

    from keyhaul.config.checkfile import Expectation
    from keyhaul.quality.verdict import Verdict

CHECK: Final = "_check"
"""The first column of an export: the check that the row fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which offenders are wanted.

    Attributes:
        sample_rows: of each failing check.
        show_values: the values of the columns that the check looks at as well, and not the key alone.
        export: a Parquet file for all of them, with all columns.
        force: replace that file.
    """

    sample_rows: int = 5
    show_values: bool = False
    export: Path | None = None
    force: bool = False

    def refuse_existing(self) -> None:
        """Refuse a file to export to that is there already.

        Raises:
            ConfigError: it is there, and `force` is not given.
        """
        if self.export is not None and (self.export.is_dir() or (self.export.exists() and not self.force)):
            raise ConfigError(
                f"write {self.export}: it exists already. Name another file, or add --force to replace it"
            )


def samples(system: System, verdicts: Sequence[Verdict], failed: Sequence[Expectation], asked: Asked) -> list[Verdict]:
    """Return the verdicts, those of the `failed` checks with a few offenders, in no particular order."""
    checks = {check.name: check for check in failed}
    return [
        replace(verdict, offenders=_sample(system, checks[verdict.name], asked)) if verdict.name in checks else verdict
        for verdict in verdicts
    ]


def _sample(system: System, check: Expectation, asked: Asked) -> tuple[dict[str, str | None], ...]:
    shown = {name: f"{ROW}.{quote_name(name)}::varchar" for name in system.key}
    number = system.row_number()
    if not shown and number:
        shown = {"row": f"({number})::varchar"}
    if asked.show_values:
        names = check.demand.columns or _named(check.demand.text, tuple(system.columns))
        shown |= {name: f"{ROW}.{quote_name(name)}::varchar" for name in names}
    if not shown or not asked.sample_rows:
        return ()
    columns = ", ".join(shown.values())
    where = failing(check, system)
    rows = system.fetch(f"select {columns} from {system.from_item} where {where} limit {asked.sample_rows}")
    return tuple(
        {name: None if value is None else str(value) for name, value in zip(shown, row, strict=True)} for row in rows
    )


def _named(expression: str, columns: Sequence[str]) -> Sequence[str]:
    """Return the columns that an expression may look at, by their names in its text; all where none is."""
    return [
        name for name in columns if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", expression, re.IGNORECASE)
    ] or columns


def export(system: System, failed: Sequence[Expectation], asked: Asked) -> int | None:
    """Write every row that fails one of the `failed` checks, once for each, and return how many; None without a file.

    The columns are `CHECK` and the source's: in a file's own types, of a database as PostgreSQL's text. Memory is
    that of a batch.

    Raises:
        ConfigError: the file cannot be written.
    """
    if asked.export is None:
        return None
    columns = "".join(f", {ROW}.{quote_name(name)} as {quote_name(name)}" for name in system.columns)
    if system.row_number() == "":
        columns = "".join(f", {ROW}.{quote_name(name)}::varchar as {quote_name(name)}" for name in system.columns)
    number = 0
    with exporting(asked) as write:
        queries = [
            f"select {quote_text(check.name)} as {quote_name(CHECK)}{columns} from {system.from_item} "
            f"where {failing(check, system)}"
            for check in failed
        ]
        # With nothing that fails, a file without rows, so that whoever comes after finds its columns.
        for query in queries or [f"select '' as {quote_name(CHECK)}{columns} from {system.from_item} limit 0"]:
            for batch in system.stream(query):
                write(batch)
                number += batch.num_rows
    return number


@contextmanager
def exporting(asked: Asked) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """Yield what writes batches of one schema; the file appears under its name when it is whole, for its owner alone.

    Raises:
        ConfigError: the file cannot be written.
    """
    from pyarrow import parquet

    path = asked.export or Path(os.devnull)
    writer: Any = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".part")
    except OSError as error:
        raise ConfigError(f"write {path}: {error.strerror}. Name a folder that exists and can be written") from error
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:

            def write(batch: pa.RecordBatch) -> None:
                nonlocal writer
                writer = writer or parquet.ParquetWriter(file, batch.schema)
                if batch.num_rows:
                    writer.write_batch(batch)

            yield write
            if writer is not None:
                writer.close()
        asked.refuse_existing()
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"write {path}: {error.strerror}. Free some space or name another file") from error
    finally:
        part.unlink(missing_ok=True)
