"""Which run a comparison is with, and whether the job given is the one that it did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keyhaul import events
from keyhaul.config.identity import difference
from keyhaul.errors import RefusedError
from keyhaul.ledger.reading import find_run
from keyhaul.ledger.statements import statement
from keyhaul.staging.copies import across_chunks

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psycopg

    from keyhaul.before.prepare import Prepared
    from keyhaul.ledger.rows import Replayable
    from keyhaul.ledger.store import Ledger
    from keyhaul.model import Observer


def find_named(conn: psycopg.Connection[Any], schema: str, run: str, job: str | None) -> str:
    """Return the name of the run that is meant: itself, or for ``last`` the newest of a job that is no replay.

    Args:
        conn: to the database with the ledger.
        schema: the ledger's.
        run: a run's name, or ``last``.
        job: whose runs alone are meant; None: those of any.

    Raises:
        RefusedError: there is no such run, it is a replay, or it is another job's.
    """
    newest = find_run(conn, schema, run)  # raises when there is none
    row = conn.execute(statement("run_named", schema, run=run, job=job)).fetchone()
    if row is None:
        what = f"job {job}: no run of this job" if job else "last: no run that is not a replay"
        raise RefusedError(f"verify {what} is in the ledger, the newest is {newest}. `etl runs` lists them")
    run_id, its_job, replay_of = row
    what = f"verify run {run_id}"
    if replay_of:
        raise RefusedError(f"{what}: it is a replay of run {replay_of}. Name that run: its records are compared there")
    if job not in {None, its_job}:
        raise RefusedError(f"{what}: it is of job {its_job}, expected {job}. Give that job, or --job {its_job}")
    return str(run_id)


def find_original(prepared: Prepared, ledger: Ledger, run: str, observe: Observer) -> Replayable:
    """Return the run, which must be the job's own, with the target as it left it.

    The job may be that of a replay of the run, too, whose rules a person has mended.

    Args:
        prepared: the job given.
        ledger: in its target.
        run: a run's name, or ``last`` for the job's newest.
        observe: told when a replay was of another job.

    Raises:
        RefusedError: there is no such run, it is another job's, or it cannot be compared.
    """
    job, target = prepared.job, prepared.target
    conn = ledger.connection
    original = ledger.replayable(find_named(conn, ledger.schema, run, job.job))
    if original is None:  # deleted just now
        find_run(conn, ledger.schema, run)
        raise RefusedError(f"verify run {run}: it is not in the ledger any more. `etl runs` lists what is")
    what = f"verify run {original.run_id}"
    if original.lost:
        raise RefusedError(f"{what}: {original.lost}. Compare a run whose rows are in the target")
    _check_job(original, ledger, job.identity(), observe)
    if original.target_table != target.label or target.ddl.before:
        told = "which is not there any more" if original.target_table == target.label else f"not {target.label}"
        raise RefusedError(f"{what}: it loaded {original.target_table}, {told}. Give the run's target in --into")
    if job.targets or across_chunks(job, prepared.transform):
        why = "its dedup decides among rows of different chunks, which a comparison of chunks does not see"
        why = "its records become rows of several tables" if job.targets else why
        raise RefusedError(f"{what}: {why}. Compare by a query of your own")
    row = prepared.target_conn.execute(
        "select current_setting('transaction_read_only')::bool, has_database_privilege(current_database(), 'temporary')"
    ).fetchone()
    if row and (row[0] or not row[1]):
        why = "it is read-only (a standby?). Give the primary in --target"
        why = why if row[0] else "this user may not create temporary tables. Grant TEMPORARY on the database"
        raise RefusedError(f"{what}: rows are compared by way of temporary tables in the target, and {why}")
    return original


def _check_job(original: Replayable, ledger: Ledger, given: Mapping[str, Any], observe: Observer) -> None:
    """Refuse a job that is neither the run's nor that of a replay of it."""
    # All rows that the source has are compared in the run's chunks, whatever these are.
    aside = {"contents": None, "chunk": 0, "checksum": None, "incremental": None}
    replays = ledger.replays(original.run_id)
    changed, *others = (
        difference({**config, **aside}, {**given, **aside})
        for config in (original.config, *(config for _, config in replays))
    )
    if changed and all(others):
        msg = (
            f"verify run {original.run_id}: the job given is another one: {'; '.join(changed)}. Give the run's own "
            "source and settings"
        )
        raise RefusedError(msg)
    other = next((name for (name, _), differs in zip(replays, others, strict=True) if differs), None)
    if other:
        message = (
            f"run {original.run_id} was replayed with another job (run {other}): rows that it brought may be told as "
            "differences. Give the job as it was at the last replay"
        )
        observe(events.Notice(message=message, level="warning"))
