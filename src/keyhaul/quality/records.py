"""Where the results of checks are kept: the ledger's table `checks`, or a file of JSON lines without a database.

What was accepted last is what drift is measured from.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

import psycopg
from psycopg.rows import dict_row

import keyhaul
from keyhaul.config.parts import EMBEDDED
from keyhaul.errors import ConfigError, RefusedError, first_line
from keyhaul.ledger import versions
from keyhaul.ledger.statements import statement
from keyhaul.redaction import hide
from keyhaul.sessions.connecting import LedgerPlace, connect, find_ledger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from keyhaul.config.checkfile import CheckFile
    from keyhaul.quality.verdict import Verdict

Statistics = dict[str, float | None]

_KEPT: Final = (
    "name",
    "kind",
    "severity",
    "status",
    "rows",
    "failures",
    "allowed",
    "message",
    "statistics",
    "accepted",
)
"""What a state file has of each check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Where results are kept, as the caller asks; None leaves it to the file.

    Attributes:
        ledger: a database's URI, or ``embedded``.
        schema: of the ledger; keyhaul by default.
        state: a file, where there is no database.
        accept: measure drift from this execution, whatever its outcome.
    """

    ledger: str | None = None
    schema: str | None = None
    state: Path | None = None
    accept: bool = False


class Records(Protocol):
    """Results of checks, kept.

    Attributes:
        label: for people.
    """

    label: str

    def accepted(self, source: str) -> Mapping[str, Statistics]:
        """Return the statistics that each drift check of a source was last accepted with, by name."""

    def add(
        self, check_run: str, file: str, source: str, verdicts: Sequence[Verdict], accepted: frozenset[str]
    ) -> None:
        """Keep one execution; `accepted` names the checks from which drift is measured next."""

    def kept(self) -> list[dict[str, Any]]:
        """Return every result, a mapping for each check of each execution, in no order; nothing is created."""

    def close(self) -> None:
        """Give the connection back."""


class LedgerRecords:
    """Results in the table `checks` of a ledger's schema, which is created when it is missing."""

    def __init__(self, ledger: LedgerPlace, called: str = "") -> None:
        """Connect.

        Args:
            ledger: its database and schema.
            called: what the database is called for people; host, port and name by default.

        Raises:
            ConnectError: the database cannot be reached.
        """
        self.label = f"{called or ledger.dsn.label}, {ledger.schema}.checks"
        self._schema = ledger.schema
        self._conn = connect(
            ledger.dsn,
            "target",
            application_name="keyhaul check ledger",
            settings={"timezone": "UTC", "statement_timeout": "60s"},
        )

    def accepted(self, source: str) -> Mapping[str, Statistics]:
        """Return what each drift check was last accepted with; nothing is created."""
        try:
            if not self._there():
                return {}
            return dict(self._conn.execute(statement("accepted_checks", self._schema, source=source)).fetchall())
        except psycopg.Error as error:
            raise self._wrapped("read", error) from error

    def add(
        self, check_run: str, file: str, source: str, verdicts: Sequence[Verdict], accepted: frozenset[str]
    ) -> None:
        """Keep one execution, whole, in one transaction.

        Raises:
            ConfigError: the database does not let us.
        """
        values = json.dumps([_stored(verdict, accepted) for verdict in verdicts])
        try:
            with self._conn.transaction():
                versions.create(self._conn, self._schema)
                self._conn.execute(
                    statement(
                        "insert_checks",
                        self._schema,
                        check_run=check_run,
                        file=file,
                        source=source,
                        version=keyhaul.__version__,
                        verdicts=values,
                    )
                )
        except psycopg.Error as error:
            raise self._wrapped("write", error) from error

    def kept(self) -> list[dict[str, Any]]:
        """Return every result; nothing is created.

        Raises:
            RefusedError: none is kept.
            ConfigError: the database does not let us read.
        """
        try:
            with self._conn.cursor(row_factory=dict_row) as cursor:
                there = self._there()
                rows = cursor.execute(statement("kept_checks", self._schema)).fetchall() if there else []
        except psycopg.Error as error:
            raise self._wrapped("read", error) from error
        if not rows:
            raise RefusedError(_nothing(self.label))
        return rows

    def close(self) -> None:
        """Close the connection."""
        self._conn.close()

    def _there(self) -> bool:
        return versions.check(self._conn, self._schema)

    def _wrapped(self, verb: str, error: psycopg.Error) -> ConfigError:
        return ConfigError(
            f"{verb} results of checks in {self.label}: {first_line(error)}. Give another --ledger, or rights on that "
            "schema"
        )


class FileRecords:
    """Results in a file of JSON lines, one line for each execution; for checks without a database."""

    def __init__(self, path: Path) -> None:
        """Remember the file; it need not be there."""
        self.label = str(path)
        self._path = path

    def accepted(self, source: str) -> Mapping[str, Statistics]:
        """Return what each drift check was last accepted with.

        Raises:
            ConfigError: the file cannot be read, or is no such file.
        """
        kept = [one for one in self._results() if one["source"] == source and _measures(one)]
        return {one["name"]: one["statistics"] for one in kept}

    def kept(self) -> list[dict[str, Any]]:
        """Return every result.

        Raises:
            RefusedError: there is no such file.
            ConfigError: the file cannot be read, or is no such file.
        """
        if not self._path.exists():
            raise RefusedError(_nothing(self.label))
        return list(self._results())

    def add(
        self, check_run: str, file: str, source: str, verdicts: Sequence[Verdict], accepted: frozenset[str]
    ) -> None:
        """Append one line; two processes that do so at once do not mix their lines.

        Raises:
            ConfigError: the file cannot be written.
        """
        record = {
            "check_run": check_run,
            "checked_at": datetime.now(UTC).isoformat(),
            "file": file,
            "source": source,
            "version": keyhaul.__version__,
            "checks": [_stored(verdict, accepted) for verdict in verdicts],
        }
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "ab", buffering=0) as sink:
                sink.write(json.dumps(record).encode() + b"\n")
        except OSError as error:
            raise ConfigError(
                f"write {self._path}: {error.strerror}. Name another file in --state or state:"
            ) from error

    def close(self) -> None:
        """Nothing is kept open."""

    def _results(self) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(self._lines(), 1):
            try:
                run = json.loads(line)
                checked_at = datetime.fromisoformat(run["checked_at"])
                about = {name: run[name] for name in ("check_run", "file", "source", "version")}
                found = [{**about, "checked_at": checked_at, **{name: one[name] for name in _KEPT}}
                         for one in run["checks"]]  # fmt: skip
            except (ValueError, TypeError, KeyError) as error:
                msg = (
                    f"read {self._path} line {number}: got something else, expected a state of etl check. Name another"
                )
                raise ConfigError(msg) from error
            yield from found

    def _lines(self) -> list[str]:
        try:
            return self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"read {self._path}: {error}. Name another file in --state or state:") from error


def _nothing(label: str) -> str:
    return f"read results of checks: none is kept in {label}. Run etl check first, or name another place"


def _measures(one: Mapping[str, Any]) -> bool:
    return bool(one["kind"] == "drift" and one["accepted"])


def _stored(verdict: Verdict, accepted: frozenset[str]) -> dict[str, Any]:
    """Return what is kept of a verdict: no keys and no values of rows."""
    kept = {key: value for key, value in asdict(verdict).items() if key not in {"offenders", "at", "line"}}
    kept["message"] = hide(verdict.message)
    return kept | {"statistics": dict(verdict.statistics), "accepted": verdict.name in accepted}


def records_of(file: CheckFile, keep: Keep, home: str | None, environ: Mapping[str, str]) -> Records | None:
    """Return where results go: the first of --ledger, --state, ledger:, state:, ETL_TARGET_URL, the embedded server."""
    uri = keep.ledger
    if uri is None:
        state = keep.state or (file.state if file.ledger_uri is None else None)
        if state is not None:
            return FileRecords(state)
        beside = EMBEDDED if file.source.file is None and file.source.uri == EMBEDDED else None
        uri = file.ledger_uri or environ.get("ETL_TARGET_URL") or beside
    if uri is None:
        return None
    schema = keep.schema or environ.get("ETL_LEDGER_SCHEMA") or file.ledger_schema
    return LedgerRecords(find_ledger(uri, home, schema, environ), called(uri))


def called(uri: str) -> str:
    """Return what a ledger's database is called: the embedded server's port is another one each time."""
    return "the embedded warehouse" if uri == EMBEDDED else ""
