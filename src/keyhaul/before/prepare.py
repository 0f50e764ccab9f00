"""Everything that is settled before the first row moves: both ends are asked, and every mistake is told.

Nothing is written here, in the source or in the target.
"""

from __future__ import annotations

import difflib
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self
from zoneinfo import available_timezones

import polars as pl
import psycopg

from keyhaul import events
from keyhaul.before.context import RunContext
from keyhaul.before.filesread import check_still_there, known_files, types_there
from keyhaul.before.incremental import increments_of
from keyhaul.before.money import check_money
from keyhaul.before.runcheck import check_run_rules
from keyhaul.errors import ConfigError, RefusedError, first_line
from keyhaul.fanout.tables import compile_tables, refuse_held, together
from keyhaul.faults import pass_point
from keyhaul.ledger.store import Ledger
from keyhaul.limits.crew import DEFAULT_WORKERS, allowed_workers
from keyhaul.machine import check_limits
from keyhaul.postgres import catalog
from keyhaul.postgres.dsn import redact
from keyhaul.postgres.shapes import differences, parts
from keyhaul.sessions.connecting import (
    connect_ledger,
    describe_tls,
    noticing,
    with_login,
)
from keyhaul.sessions.links import blocker
from keyhaul.sessions.watchdog import Watchdog
from keyhaul.sources.kinds import open_source, preload
from keyhaul.sources.lookups import LookupSource
from keyhaul.sources.source import Opening
from keyhaul.staging.copies import check_dedup
from keyhaul.staging.rules import compile_rules
from keyhaul.targets.modes import with_mode
from keyhaul.targets.postgres import TargetTable, inspect_target
from keyhaul.transform.compiled import OutputColumn, Transform, compile_transform, meanings_of
from keyhaul.transform.mapping import build_mapping

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from keyhaul.config.job import Job
    from keyhaul.fanout.tables import Table
    from keyhaul.model import Column, FilesWanted, Observer
    from keyhaul.postgres.definition import TableDefinition
    from keyhaul.postgres.pgtypes import Route
    from keyhaul.sessions.connecting import Ends
    from keyhaul.sources.source import Lookups, Reader, Source
    from keyhaul.staging.rules import Check
    from keyhaul.transform.mapping import WriteColumn

    _Settled = tuple[TargetTable, TableDefinition | None, tuple[WriteColumn, ...], tuple[Table, ...]]

FILLED: Final = "filled the embedded database source with the bundled flights (336,776 rows)"
"""What is told when the embedded source is used for the first time."""

MAX_NAME_BYTES = 63
"""NAMEDATALEN - 1: PostgreSQL cuts a longer name with no more than a notice."""


@dataclass(slots=True)
class _Link:
    """The main connection to the target; another one after a loss."""

    conn: psycopg.Connection[Any]


@dataclass(frozen=True, kw_only=True)
class Prepared(RunContext):
    """An open job: both ends connected, the snapshot taken, everything compiled; nothing written yet.

    A context manager: leaving it closes both ends and with them the source's moment and the job's lock.
    """

    ends: Ends
    link: _Link
    source: Source
    definition: TableDefinition | None
    watchdog: Watchdog
    ledger: Ledger

    @property
    def target_conn(self) -> psycopg.Connection[Any]:
        """The main connection to the target."""
        return self.link.conn

    def open_reader(self, worker: int) -> Reader:
        """Return a reader in the source's moment."""
        return self.source.open(worker, self.read_columns)

    @property
    def reader(self) -> str:
        """What reads."""
        return self.source.describe().driver

    @property
    def places(self) -> tuple[str, str]:
        """What is read and what is loaded, for people; with what TLS is worth where a network is between."""
        source, target = self.source.describe(), self.ends.target
        link = "" if target.is_local else describe_tls(target, self.target_conn)
        return (
            f"{source.label} in {source.place}{f' ({source.link})' if source.link else ''}",
            f"{self.target.label} in {target.label}{f' ({link})' if link else ''}",
        )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close both connections."""
        self.close()

    def telling(self, observe: Observer) -> Self:
        """Return itself; from now on `observe` is told which connections are cut."""
        self.watchdog.observe = observe
        return self

    def connect_ledger(self) -> psycopg.Connection[Any]:
        """Return the connection to the target; a new one when it is lost."""
        if self.target_conn.closed or self.target_conn.broken:
            self.link.conn = connect_ledger(self.job, self.ends.target, self.run_id)
        return self.target_conn

    def count_workers(self, chunks: int, observe: Observer) -> int:
        """Return how many workers there will be, never more than chunks or free connections allow."""
        wanted = max(1, min(self.job.workers or DEFAULT_WORKERS, chunks or 1))
        seats = self.source.abilities.seats
        workers, warnings = allowed_workers(seats, self.target_conn, self.ends.target, wanted)
        for warning in warnings:
            observe(events.Notice(message=warning, level="warning"))
        return workers

    def refuse_held(self) -> None:
        """Refuse a new run into several tables of which one holds rows and has no mode; see `tables.refuse_held`."""
        refuse_held(self.tables)

    def close(self) -> None:
        """Close both connections."""
        self.source.close()
        self.target_conn.close()
        self.watchdog.stop()


def prepare(
    job: Job, ends: Ends, *, run_id: str = "plan", alone: bool = False, files: FilesWanted = "loaded"
) -> Prepared:
    """Connect to both ends, take the snapshot, and compile the job against what is really there.

    Args:
        job: validated.
        ends: the databases that it means.
        run_id: in the names of the sessions.
        alone: take the job's lock, and wait for what a killed process has left under way, before either end is
            looked at: what is found would not be true any more if another process of this job ended after the look.
        files: which are read, of a job that loads only new ones.

    Raises:
        ConnectError: an end cannot be reached.
        ConfigError: a table, key, column, expression or rule does not fit.
        RefusedError: a column cannot be carried, or has no place in the target; or another process has the lock.
    """
    check_limits(job.workers or DEFAULT_WORKERS)
    preload(Opening(job=job, run_id=run_id, dsn=ends.source))
    with ExitStack() as stack:
        watched = {"target": ends.target} if ends.source is None else {"source": ends.source, "target": ends.target}
        watchdog = Watchdog(watched, job.network_timeout_seconds)
        stack.callback(watchdog.stop)
        target_conn = connect_ledger(job, ends.target, run_id)
        stack.callback(target_conn.close)
        ends = replace(ends, target=with_login(ends.target, target_conn))
        ledger = Ledger(lambda: target_conn, job.ledger_schema, job.job)
        try:
            if alone:
                ledger.lock()
                ledger.settle()
            ledger.exists()  # refuses one of another version
            ends = replace(ends, target=noticing(ends.target, target_conn))
            known = known_files(job, ledger, files)
            types = types_there(job, target_conn)
            source = open_source(Opening(job=job, run_id=run_id, dsn=ends.source, known=known, types=types))
            stack.callback(source.close)
            prepared = _compile(job, ends, source, target_conn, watchdog, ledger, run_id)
            if files in {"new", "fresh"}:
                check_still_there(known, prepared.target)
            ledger.connect_by(prepared.connect_ledger)
            check_run_rules(target_conn, prepared.target, source.abilities.aggregates, job.run_rules)
            pass_point("snapshot.opened")
        except psycopg.Error as error:
            msg = f"prepare job {job.job}: {redact(first_line(error), *ends.all)}"
            if isinstance(error, psycopg.errors.LockNotAvailable) and (held := blocker()):
                msg += f". The lock was held by {held}. Wait for it, or end it"
            raise ConfigError(msg) from None
        stack.pop_all()
        return prepared


def _compile(
    job: Job,
    ends: Ends,
    source: Source,
    target_conn: psycopg.Connection[Any],
    watchdog: Watchdog,
    ledger: Ledger,
    run_id: str,
) -> Prepared:
    described = source.describe()
    if not job.key:
        job = job.model_copy(update={"key": described.key})
    if job.incremental is not None:
        increments_of(source).check(job.incremental)
    sources = {column.name: column for column in described.columns}
    routes = described.routes
    transform, checks, read_columns = compile_rows(job, routes, sources, described.key, source.abilities.lookups)
    check_dedup(job, transform)
    settle = _settle_tables if job.targets else _settle_table
    target, definition, columns, tables = settle(job, ends, target_conn, source, transform)
    return Prepared(
        job=job,
        run_id=run_id,
        target=target,
        target_dsn=ends.target,
        routes=routes,
        sources=sources,
        transform=transform,
        checks=checks,
        columns=columns,
        read_columns=read_columns,
        tables=tables,
        ends=ends,
        link=_Link(target_conn),
        source=source,
        definition=definition,
        watchdog=watchdog,
        ledger=ledger,
    )


def compile_rows(
    job: Job, routes: Mapping[str, Route], sources: Mapping[str, Column], key: Sequence[str], own: Lookups | None = None
) -> tuple[Transform, tuple[Check, ...], tuple[str, ...]]:
    """Return what becomes of a chunk's rows before the target: the steps, the rules, and the columns that are read.

    Args:
        job: validated.
        routes: how each column of the source travels.
        sources: its columns by their names.
        key: of its records.
        own: reads lookups in its moment.

    Raises:
        ConfigError, RefusedError: an expression, a rule or a column does not fit.
    """
    lookups = LookupSource(job=job, own=own)
    types = {name: routes[name].dtype for name in sources}
    transform = compile_transform(job.transform, types, lookups.load, lookups.open, meanings_of(sources))
    read_columns = tuple(name for name in routes if name in transform.needed or name in key)
    _refuse_routes(routes, read_columns)
    output = transform.output
    checks = compile_rules(
        job.rules,
        {name: column.dtype for name, column in output.items()},
        {name: column.meaning for name, column in output.items() if column.meaning},
    )
    return transform, checks, read_columns


def _settle_table(
    job: Job,
    ends: Ends,
    target_conn: psycopg.Connection[Any],
    source: Source,
    transform: Transform,
) -> _Settled:
    """Find the job's table, or what creates it, and map the columns."""
    described, known = source.describe(), source.abilities.catalog
    sources = {column.name: column for column in described.columns}
    copied = {column.source for column in transform.output.values() if column.source}
    definition = known.definition(copied) if known is not None else None
    into = job.target.table
    if into == job.source.read_table:
        into = described.table
    target = inspect_target(
        target_conn,
        into,
        output=transform.output,
        sources=sources,
        primary_key=described.primary_key,
        definition=definition,
        create=not job.target.no_create,
        foreign_keys=job.target.with_foreign_keys,
    )
    _refuse_itself(ends, source, target)
    given = [part for name in (job.source.read_table, into) if name for part in _parts(target_conn, name)]
    _check_names([*given, target.schema, target.table, *transform.output])
    columns = build_mapping(transform.output, sources, target.columns, target.label, time_zone=_check_zone(job))
    never_null = {name for name, one in transform.output.items() if one.source and sources[one.source].not_null}
    target = with_mode(target_conn, target, job.target, [column.name for column in columns], never_null)
    if job.incremental and target.null_conflict and not job.target.allow_null_conflicts:
        msg = f"load {target.label}: {null_conflict(target)}. Or set target.allow_null_conflicts: true"
        raise RefusedError(msg)
    _check_shapes(source, target_conn, target, transform.output, columns)
    check_money(source, target_conn, ends.target, target, transform.output, columns, transform.used)
    if not columns:
        msg = f"load {target.label}: no column is left after the transform. Drop fewer"
        raise RefusedError(msg)
    return target, definition, columns, ()


def null_conflict(target: TargetTable) -> str:
    """Return what a person should know of conflict columns that can be NULL, or an empty string."""
    if not target.null_conflict:
        return ""
    names = ", ".join(target.null_conflict)
    return (
        f"rows whose {names} is NULL are loaded again by each run of mode {target.mode}, because no unique index takes "
        f"two NULLs for the same: make it NOT NULL, or create the index on {', '.join(target.conflict)} with NULLS NOT "
        "DISTINCT"
    )


def _settle_tables(
    job: Job,
    ends: Ends,
    target_conn: psycopg.Connection[Any],
    source: Source,
    transform: Transform,
) -> _Settled:
    """Find the tables under `targets`, which must be there, and compile what goes into each."""
    sources = {column.name: column for column in source.describe().columns}
    tables = compile_tables(target_conn, job.targets, transform.output, sources, _check_zone(job))
    for table in tables:
        _refuse_itself(ends, source, table.target)
        copied = {name: OutputColumn(dtype=pl.String(), source=origin) for name, origin in table.copies.items()}
        _check_shapes(source, target_conn, table.target, copied, table.columns)
        check_money(source, target_conn, ends.target, table.target, copied, table.columns, table.looks_at)
    given = [part for name in [job.source.read_table] if name for part in _parts(target_conn, name)]
    _check_names([*given, *transform.output])
    return together(tables), None, (), tables


def _refuse_itself(ends: Ends, source: Source, target: TargetTable) -> None:
    described = source.describe()
    if described.database == ends.target.identity and described.label == target.label:
        msg = f"load {target.label}: it is the table that is read. Give another one in --into, or another --target"
        raise RefusedError(msg)


def _check_shapes(
    source: Source,
    target_conn: psycopg.Connection[Any],
    target: TargetTable,
    output: Mapping[str, OutputColumn],
    columns: Sequence[WriteColumn],
) -> None:
    """Refuse an enum that lacks a label, and a type of the same name that is made of something else."""
    known = source.abilities.catalog
    if target.ddl.before or known is None:
        return  # its types were compared, or will be created; or it has none that a name could hide
    sources = {column.name: column for column in source.describe().columns}
    copied = {name: sources[column.source] for name, column in output.items() if column.source}
    pairs = [(copied[column.name], column.target) for column in columns if column.name in copied]
    problems = [
        f"write {target.label}.{problem}. Change the type there, or cast the column to text in both"
        for problem in differences(pairs, known.shapes, partial(parts, target_conn))
    ]
    if problems:
        raise RefusedError("\n".join(problems))


def _parts(conn: psycopg.Connection[Any], table: str) -> Sequence[str]:
    return catalog.parse_name(conn, table) or table.rpartition(".")[::2]


def _check_names(names: Iterable[str]) -> None:
    """Refuse names that PostgreSQL would cut, or that break its own tools' scripts."""
    problems = []
    for name in dict.fromkeys(names):
        if len(name.encode()) > MAX_NAME_BYTES:
            problems.append(
                f"use name {name!r}: it has {len(name.encode())} bytes, expected at most {MAX_NAME_BYTES}. Rename it"
            )
        if any(character in name for character in "\r\n\0"):
            problems.append(
                f"use name {name!r}: it has a line break, which keyhaul does not carry. Rename it in a query"
            )
    if problems:
        raise RefusedError("\n".join(problems))


def _check_zone(job: Job) -> str | None:
    zone = job.source.time_zone
    if zone is not None and zone not in available_timezones():
        near = difflib.get_close_matches(zone, available_timezones(), n=3)
        msg = f"read source.time_zone: {zone} is no zone, expected one such as {', '.join(near) or 'Europe/Berlin'}"
        raise ConfigError(msg)
    return zone


def _refuse_routes(routes: Mapping[str, Route], read: Sequence[str]) -> None:
    refused = [f"read column {name}: {routes[name].reason}" for name in read if routes[name].kind == "refused"]
    if refused:
        raise RefusedError("\n".join(refused))
