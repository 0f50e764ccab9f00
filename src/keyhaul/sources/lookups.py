"""The rows of a lookup, read once before the first chunk: from a database in a snapshot, or from a file."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from keyhaul.errors import ConfigError, safe_message
from keyhaul.postgres.dsn import Dsn
from keyhaul.sources.postgres.lookups import opened
from keyhaul.transform.lookup import LookupTable, check_columns, check_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyhaul.config.job import Job
    from keyhaul.config.lookupstep import Lookup
    from keyhaul.sources.source import Lookups
    from keyhaul.transform.lookup import LookupRows


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupSource:
    """Reads lookups for one run.

    Attributes:
        job: the one that runs; says the timeouts.
        own: of the job's source, for lookups without a `uri`; None where it has no tables besides.
    """

    job: Job
    own: Lookups | None

    def load(self, lookup: Lookup, keys: Mapping[str, pl.DataType]) -> LookupTable:
        """Return the lookup's rows with the columns that it names.

        Args:
            lookup: what to read.
            keys: its key columns → the type that the chunk's column has; text in a CSV file stays text for a
                text column (``007`` is no number).

        Raises:
            ConfigError: there is no such table, file or column, it cannot be read, or it is too large.
        """
        if lookup.file is not None:
            return LookupTable(frame=_read_file(lookup, Path(lookup.file), keys))
        if lookup.uri is None:
            return self._own(lookup).load(lookup)
        with ExitStack() as stack:
            try:
                dsn = Dsn.parse(lookup.uri, "source.uri of the lookup")
                other = stack.enter_context(opened(self.job, dsn))
            except ConfigError as error:
                msg = f"{lookup.at}: {error}"
                raise type(error)(msg) from None
            return other.load(lookup)

    def open(self, lookup: Lookup) -> LookupRows:
        """Describe a lookup of the job's source that is read for each chunk; no row is read here.

        Raises:
            ConfigError: there is no such table or column, it cannot be read, or its keys cannot be compared there.
        """
        return self._own(lookup).open(lookup)

    def _own(self, lookup: Lookup) -> Lookups:
        if self.own is None:
            msg = (
                f"{lookup.at}: read lookup {lookup.name}: the job's source has no other tables. Give source.uri of a "
                "PostgreSQL database, or a file"
            )
            raise ConfigError(msg)
        return self.own


# --- files ---------------------------------------------------------------------------------------


def _read_file(lookup: Lookup, path: Path, keys: Mapping[str, pl.DataType]) -> pl.DataFrame:
    head = f"{lookup.at}: read lookup file {lookup.file}"
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        msg = f"{head}: got {got}, expected a CSV or Parquet file. Give its path from the current directory"
        raise ConfigError(msg)
    try:
        return _read_parquet(lookup, path) if path.suffix.lower() == ".parquet" else _read_csv(lookup, path, keys)
    except pl.exceptions.NoDataError:
        msg = f"{head}: got an empty file, expected a first line with the columns' names"
        raise ConfigError(msg) from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        msg = f"{head}: {safe_message(error)}, expected a readable {path.suffix[1:].upper()} file"
        raise ConfigError(msg) from None


def _read_csv(lookup: Lookup, path: Path, keys: Mapping[str, pl.DataType]) -> pl.DataFrame:
    check_size(lookup, path.stat().st_size)
    header = pl.scan_csv(path, glob=False, infer_schema=False).collect_schema().names()
    check_columns(lookup, header)
    texts = {name: pl.String for name, dtype in keys.items() if isinstance(dtype, pl.String)}
    whole = pl.scan_csv(path, glob=False, infer_schema_length=None, schema_overrides=texts)
    return whole.select(lookup.columns).collect()


def _read_parquet(lookup: Lookup, path: Path) -> pl.DataFrame:
    import pyarrow.parquet as pq  # 20 ms, and only for such files

    lazy = pl.scan_parquet(path, glob=False)
    check_columns(lookup, lazy.collect_schema().names())
    metadata = pq.read_metadata(path)
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    parts = (group.column(number) for group in groups for number in range(group.num_columns))
    wanted = set(lookup.columns)
    check_size(lookup, sum(p.total_uncompressed_size for p in parts if p.path_in_schema.split(".")[0] in wanted))
    return lazy.select(lookup.columns).collect()
