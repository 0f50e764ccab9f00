"""The kept results of `etl check` as a Polars frame: one row for each check of each execution.

The columns are described once, in `CHECKS`; docs/history.md is written from them. Nothing here writes, and the frame
holds neither keys nor values of rows.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import polars as pl

from keyhaul.errors import ConfigError
from keyhaul.history.frames import Field, frame_of
from keyhaul.quality.records import FileRecords, LedgerRecords, Records
from keyhaul.sessions.connecting import find_ledger

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEXT, _NUMBER, _SHARE = pl.String(), pl.Int64(), pl.Float64()
_MEASURED: Final = "where `drift` measures it; else NULL"

CHECKS: Final[Mapping[str, Field]] = {
    "check_run": Field(dtype=_TEXT, meaning="the execution's name"),
    "checked_at": Field(dtype=pl.Datetime("us", "UTC"), meaning="when its results were kept", unit="UTC"),
    "file": Field(dtype=_TEXT, meaning="the checks file or job file, as it was named"),
    "source": Field(dtype=_TEXT, meaning="what was checked, without user and password"),
    "name": Field(dtype=_TEXT, meaning="the check's name"),
    "kind": Field(
        dtype=_TEXT, meaning="as in docs/quality.md; `rule` for a job's rule, `run_rule` for one across its table"
    ),
    "severity": Field(dtype=_TEXT, meaning="`error` or `warn`"),
    "status": Field(dtype=_TEXT, meaning="`passed`, `failed`, or `warned` (a failure of severity warn)"),
    "rows": Field(dtype=_NUMBER, meaning="of the source", unit="rows"),
    "failures": Field(
        dtype=_NUMBER, meaning="rows that failed; 0 or 1 for a check that holds or does not", unit="rows"
    ),
    "allowed": Field(dtype=_TEXT, meaning="the threshold, as it is written: `0`, `10`, `0.1%`"),
    "message": Field(dtype=_TEXT, meaning="what was found; empty when there is nothing to say"),
    "null_share": Field(dtype=_SHARE, meaning=f"share of NULL in the column, 0 to 1, {_MEASURED}", nullable=True),
    "mean": Field(dtype=_SHARE, meaning=f"mean of the column, {_MEASURED}", nullable=True),
    "distinct": Field(
        dtype=_NUMBER, meaning=f"different values of the column, {_MEASURED}", unit="values", nullable=True
    ),
    "accepted": Field(dtype=pl.Boolean(), meaning="whether later drift is measured from it"),
    "version": Field(dtype=_TEXT, meaning="keyhaul's version"),
}
"""Columns of `checks`."""


def checks(
    target: str | None = None,
    *,
    state: str | Path | None = None,
    home: str | None = None,
    ledger_schema: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> pl.DataFrame:
    """Return the kept results of `etl check`, a row for each check of each execution; columns as in `CHECKS`.

    Args:
        target: URI of the database that keeps them; the embedded warehouse by default.
        state: a file that keeps them, as in ``etl check --state FILE``; instead of a database.
        home: folder of the embedded PostgreSQL; the user's cache by default.
        ledger_schema: ``keyhaul`` by default.
        environ: give ``os.environ`` to take what is not given from ``ETL_TARGET_URL``, ``ETL_HOME`` and
            ``ETL_LEDGER_SCHEMA``, as the command line does.

    Returns:
        The newest execution first, its checks by name. Memory: about 0.5 kB for each row.

    Raises:
        RefusedError: no result is kept there.
        ConfigError: the database cannot be reached, or what is there not be read; or both places are given.
    """
    if state is not None and target is not None:
        raise ConfigError("read results of checks: got a database and a file, expected one of them. Remove one")
    records: Records
    if state is not None:
        records = FileRecords(Path(state))
    else:
        records = LedgerRecords(find_ledger(target, home, ledger_schema, environ or {}))
    with closing(records):
        rows = records.kept()
    found = frame_of([{**row, **_measured(row["statistics"])} for row in rows], CHECKS)
    return found.sort(["checked_at", "check_run", "name"], descending=[True, True, False])


def _measured(statistics: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the three measures; a whole number comes from JSON as an integer."""
    numbers = {name: statistics.get(name) for name in ("null_share", "mean", "distinct")}
    return {
        name: value if value is None else int(value) if name == "distinct" else float(value)
        for name, value in numbers.items()
    }
