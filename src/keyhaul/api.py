"""Moves from Python: the same engine as the command line's, with an observer instead of a display."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyhaul import events
from keyhaul.before.preview import preview
from keyhaul.comparison import comparing, ledgercompare
from keyhaul.comparison.differences import FIRST_DIFFERENCES
from keyhaul.config.job import Job, load_job
from keyhaul.control import Control, as_interrupt
from keyhaul.errors import ConfigError
from keyhaul.execution import engine
from keyhaul.sessions.connecting import find_ledger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keyhaul.before.preview import Preview
    from keyhaul.comparison.differences import Verification
    from keyhaul.comparison.ledgercompare import LedgerComparison
    from keyhaul.model import Observer, Report

    AnyJob = Job | Mapping[str, Any] | str | Path


def run(
    job: AnyJob,
    observe: Observer | None = None,
    *,
    fresh: bool = False,
    full: bool = False,
    control: Control | None = None,
    allow_python: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Report:
    """Move what a job says, as ``etl run`` does: start a run, or go on with the unfinished one.

    Ctrl-C (a notebook's interrupt) in the main thread lets the chunks under way end, a second one cancels
    them; the run stops resumably and the report says so. In other threads use `control`.

    Args:
        job: a `Job`, the path of a job file, or settings by the names of their flags with ``_`` for ``-``,
            for example ``{"key": "id", "chunk": 10_000, "rule": ["positive: air_time > 0"]}``.
        observe: called with each event of `keyhaul.events`, from the threads where they happen; must be quick
            and must not raise.
        fresh: start a new run even when an unfinished one is there.
        full: of an incremental job: read all rows, not only those above the watermark.
        control: may be told to stop from another thread.
        allow_python: permit the job's Python steps.
        environ: give ``os.environ`` to lay ``ETL_*`` variables over the file and to fill in ``${NAME}``.

    Returns:
        The report; ``outcome`` is ``done``, ``stopped`` or ``interrupted``. It may be ``done`` with records in
        quarantine.

    Raises:
        ConfigError: the job or the databases do not fit; nothing was moved.
        StopRunError: the ledger cannot be reached any more; the same call goes on with the run.
    """
    stop = control or Control()
    whole = _read(job, allow_python=allow_python, environ=environ)
    with _watching(stop, observe) as watched:
        return engine.run(whole, watched, stop, fresh=fresh, full=full)


def plan(
    job: AnyJob,
    observe: Observer | None = None,
    *,
    full: bool = False,
    allow_python: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Preview:
    """Return what a run would do, as ``etl plan`` prints it: chunks, routes of columns, DDL. Moves nothing.

    Args:
        job: see `run`.
        observe: called with what a person should know, such as that the embedded source was filled.
        full: see `run`.
        allow_python: see `run`.
        environ: see `run`.

    Raises:
        ConfigError: the job or the databases do not fit.
    """
    return preview(_read(job, allow_python=allow_python, environ=environ), observe, full=full)


def verify(
    job: AnyJob,
    run: str = "last",
    observe: Observer | None = None,
    *,
    extra: bool | None = None,
    limit: int = FIRST_DIFFERENCES,
    show_values: bool = False,
    allow_python: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Verification:
    """Compare a run's target with what the source gives now, as ``etl verify`` does. Changes nothing.

    Ctrl-C ends the comparison with `KeyboardInterrupt`, after the statements under way are cancelled.

    Args:
        job: see `run` (the function); the one that the run did.
        run: its name, or ``last`` for the job's newest.
        observe: called with what a person should know, such as that an index is missing, and with other events of
            `keyhaul.events`, from the threads where they happen.
        extra: whether rows that only the target has are differences; None: when the table was empty before
            the load (no mode, or replace).
        limit: how many differences are named; all are counted.
        show_values: whether the named differences have their values, not only key and columns.
        allow_python: see `run` (the function).
        environ: see `run` (the function).

    Returns:
        What differs, by chunk and by row; ``equal`` says whether anything does.

    Raises:
        ConfigError: the job or the databases do not fit, or the run is another job's.
        StopRunError: a database was lost, or a chunk could not be compared.
    """
    whole = _read(job, allow_python=allow_python, environ=environ)
    watched = observe or (lambda _event: None)
    return comparing.verify(whole, run, extra=extra, limit=limit, show_values=show_values, observe=watched)


def verify_ledger(
    run: str = "last",
    observe: Observer | None = None,
    *,
    job: str | None = None,
    show_values: bool = False,
    target: str | None = None,
    home: str | None = None,
    ledger_schema: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> LedgerComparison:
    """Compare a target with the checksums that a run has stored, as ``etl verify --against-ledger`` does.

    The source is not touched, and nothing is changed. Ctrl-C ends the comparison with `KeyboardInterrupt`, after the
    statements under way are cancelled.

    Args:
        run: its name, or ``last`` for the newest that is no replay.
        observe: called with what a person should know, such as that an index is missing, from the threads where
            that happens.
        job: the name of a job, whose runs alone are meant.
        show_values: whether the chunks that differ have their key ranges.
        target: URI of the database with the ledger; the embedded warehouse by default.
        home: folder of the embedded PostgreSQL; the user's cache by default.
        ledger_schema: ``keyhaul`` by default.
        environ: give ``os.environ`` to take what is not given from ``ETL_TARGET_URL``, ``ETL_HOME`` and
            ``ETL_LEDGER_SCHEMA``, and timeouts and retries from their variables, as the command line does.

    Returns:
        The chunks that differ; ``equal`` says whether any does.

    Raises:
        ConfigError: the database cannot be reached, there is no such run, it has no checksums (``checksum: true``),
            or they cannot be compared any more.
        StopRunError: the database was lost, or a chunk could not be compared.
    """
    known = environ or {}
    place = ledgercompare.Place(ledger=find_ledger(target, home, ledger_schema, known), job=job)
    return ledgercompare.compare_ledger(
        place.within(known), run, observe or (lambda _event: None), show_values=show_values
    )


def _read(job: AnyJob, *, allow_python: bool, environ: Mapping[str, str] | None) -> Job:
    if isinstance(job, Job):
        return job
    path, flags = (None, dict(job)) if not isinstance(job, str | Path) else (Path(job), {})
    try:
        return load_job(path, {**flags, "allow_python": allow_python or None}, environ or {})
    except ValueError as error:
        raise ConfigError(
            f"read job: got {error}, expected names of flags with _ for -. See docs/configuration.md"
        ) from None


@contextmanager
def _watching(control: Control, observe: Observer | None) -> Iterator[Observer]:
    """Yield an observer while Ctrl-C tells the control to stop; before the run has begun it ends the call."""
    begun = False

    def watch(event: object) -> None:
        nonlocal begun
        begun = begun or isinstance(event, events.RunStarted)
        if observe is not None:
            observe(event)

    def handle(number: int, _frame: object) -> None:
        control.interrupt(number)
        if not begun:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield watch
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        with as_interrupt(lambda: bool(control.signal) and not begun):
            yield watch
    finally:
        signal.signal(signal.SIGINT, before)
