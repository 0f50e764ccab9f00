"""A run's context for another process: plain data that can be pickled, and what makes it whole there."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

from keyhaul import redaction
from keyhaul.before.context import RunContext
from keyhaul.before.prepare import compile_rows
from keyhaul.config.job import hidden_in, load_job, settings
from keyhaul.config.parts import EMBEDDED
from keyhaul.errors import ConfigError, RefusedError
from keyhaul.postgres.dsn import Dsn
from keyhaul.sources.kinds import join
from keyhaul.staging.copies import across_chunks
from keyhaul.transform.mapping import build_mapping

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyhaul.before.prepare import Prepared
    from keyhaul.config.job import Job
    from keyhaul.model import Column
    from keyhaul.postgres.pgtypes import Route
    from keyhaul.sources.source import Reader, Ticket
    from keyhaul.targets.postgres import TargetTable
    from keyhaul.targets.rowhash import Hashing

TARGET: Final = "ETL_TARGET_URL"
"""The variable that has the target's address in a process that joins the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTicket:
    """What another process needs to move chunks of a run; picklable, with the names of secrets and never with one.

    Attributes:
        text: the job as it was given, without addresses; a variable's name stands for its value.
        given: what the text leaves out and is no secret, as flags.
        fingerprint: of the job: the other process must come to the same.
        key: the job's, as the source has settled it.
        source: opens a reader there.
        columns: the source's, in order.
        routes: how each travels.
        target: the table that is loaded, there by now.
        place: where it is, without the password.
    """

    run_id: str
    sitting: int
    text: str
    given: Mapping[str, str]
    fingerprint: str
    key: tuple[str, ...]
    ledger_schema: str
    source: Ticket
    columns: tuple[Column, ...]
    routes: Mapping[str, Route]
    target: TargetTable
    place: Mapping[str, Any]
    hashing: Hashing | None


@dataclass(frozen=True, kw_only=True)
class Joined(RunContext):
    """The context of a run that another process has begun and will end."""

    ticket: Ticket
    environ: Mapping[str, str]

    def open_reader(self, worker: int) -> Reader:
        """Return a reader in the moment that the other process holds."""
        del worker
        return join(self.ticket, self.environ)


def ticket_of(run: Prepared) -> RunTicket:
    """Return what another process needs of an open run.

    Raises:
        RefusedError: another process would not do the same with a chunk, or a secret would have to be in the ticket.
    """
    job = run.job
    if why := _why_alone(run):
        msg = f"move chunks of run {run.run_id} in another process: {why}. Move them in this one"
        raise RefusedError(msg)
    given = {"job": job.job}
    if job.source.kind != "postgres":
        path = job.source.path
        given["source"] = f"sqlite:///{path}" if isinstance(path, str) else path[0]
    elif job.source.uri == EMBEDDED:
        given["source"] = EMBEDDED
    if job.target.uri == EMBEDDED:
        given["target"] = EMBEDDED
    return RunTicket(
        run_id=run.run_id,
        sitting=run.sitting,
        text=job.given,
        given=given,
        fingerprint=job.fingerprint(),
        key=job.key,
        ledger_schema=job.ledger_schema,
        source=run.source.ticket(run.read_columns),
        columns=tuple(run.sources.values()),
        routes=dict(run.routes),
        target=replace(run.target, ddl=replace(run.target.ddl, before=(), after=(), left_out=())),
        place={field.name: getattr(run.target_dsn, field.name) for field in fields(Dsn) if field.name != "password"},
        hashing=run.hashing,
    )


def _why_alone(run: Prepared) -> str:
    """Return why only the process that has opened the run can move its chunks, or an empty string."""
    job = run.job
    if not job.given or hidden_in(job.given):
        return "a secret is written out in the job, expected ${NAME} in a job file"
    if job.targets or run.replay_of is not None:
        return "it loads several tables, or is a replay"
    if any(step.lookup is not None for step in job.transform):
        return "a lookup is held by the process that read it"
    if across_chunks(job, run.transform):
        return "copies may lie in different chunks, which are gathered in one folder"
    if job.source.kind == "files" and len(job.source.path) > 1:
        return "its source is a list of paths, expected one path, a folder or a pattern"
    return ""


def join_run(ticket: RunTicket, environ: Mapping[str, str]) -> Joined:
    """Return the context of a run that another process holds open.

    Args:
        ticket: from `ticket_of`, perhaps through pickle.
        environ: has the addresses with their passwords, and the variables that the job's text names.

    Raises:
        ConfigError: a variable is missing.
        RefusedError: the job, or its target, is another one here.
    """
    job, target_dsn = _job(ticket, environ), _target(ticket, environ)
    sources = {column.name: column for column in ticket.columns}
    transform, checks, read_columns = compile_rows(job, ticket.routes, sources, ticket.key)
    columns = build_mapping(
        transform.output, sources, ticket.target.columns, ticket.target.label, time_zone=job.source.time_zone
    )
    return Joined(
        job=job,
        run_id=ticket.run_id,
        sitting=ticket.sitting,
        target=ticket.target,
        target_dsn=target_dsn,
        routes=ticket.routes,
        sources=sources,
        transform=transform,
        checks=checks,
        columns=columns,
        read_columns=read_columns,
        hashing=ticket.hashing,
        ticket=ticket.source,
        environ=environ,
    )


def _job(ticket: RunTicket, environ: Mapping[str, str]) -> Job:
    """Return the run's job; variables of settings are in its text already, and count no more."""
    given: dict[str, object] = {"allow_python": True, **ticket.given}
    for flag, name in (("source", ticket.source.secret), ("target", TARGET)):
        if flag not in given:
            given[flag] = environ.get(name) or None
    known = {setting.variable for setting in settings()}
    rest = {name: value for name, value in environ.items() if name not in known}
    job = load_job(None, given, rest, text=ticket.text, reads_source=False)
    job = job.model_copy(update={"key": ticket.key, "ledger_schema": ticket.ledger_schema})
    if job.fingerprint() != ticket.fingerprint:
        msg = f"join run {ticket.run_id}: the job is another one here. Give this process the same variables and files"
        raise RefusedError(msg)
    return job


def _target(ticket: RunTicket, environ: Mapping[str, str]) -> Dsn:
    """Return where the target is, with the password that this process has."""
    if not environ.get(TARGET):
        msg = f"join run {ticket.run_id}: {TARGET} is not set in this process. Give it the target's address"
        raise ConfigError(msg)
    given = Dsn.parse(environ[TARGET], TARGET)
    dsn = Dsn(**ticket.place, password=given.password or environ.get("PGPASSWORD", ""))
    if given.identity != dsn.identity:
        msg = f"join run {ticket.run_id}: {TARGET} is {given.label}, expected the run's target. Correct it"
        raise RefusedError(msg)
    redaction.remember(dsn.password)
    return dsn
