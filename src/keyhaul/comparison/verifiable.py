"""Which run a comparison is with, and whether the job given is the one that it did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keyhaul import events
from keyhaul.differing import difference
from keyhaul.errors import RefusedError
from keyhaul.ledger.reading import find_named, find_run
from keyhaul.staging.copies import across_chunks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyhaul.before.prepare import Prepared
    from keyhaul.ledger.rows import Replayable
    from keyhaul.ledger.store import Ledger
    from keyhaul.model import Observer


def find_original(
    prepared: Prepared, ledger: Ledger, run: str, observe: Observer, *, changed: bool = False
) -> Replayable:
    """Return the run, which must be the job's own, with the target as it left it.

    The job may be that of a replay of the run, too, whose rules a person has mended.

    Args:
        prepared: the job given.
        ledger: in its target.
        run: a run's name, or ``last`` for the job's newest.
        observe: told when a replay was of another job.
        changed: the job may be another one.

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
    _check_job(original, ledger, job.identity(), observe, changed=changed)
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


def _check_job(
    original: Replayable, ledger: Ledger, given: Mapping[str, Any], observe: Observer, *, changed: bool
) -> None:
    """Refuse a job that is neither the run's nor that of a replay of it, unless that is meant."""
    # All rows that the source has are compared in the run's chunks, whatever these are.
    aside = {"contents": None, "chunk": 0, "checksum": None, "incremental": None}
    replays = ledger.replays(original.run_id)
    own, *others = (
        difference({**config, **aside}, {**given, **aside})
        for config in (original.config, *(config for _, config in replays))
    )
    if own and all(others):
        told = f"the job given is another one: {'; '.join(own)}"
        if not changed:
            msg = f"verify run {original.run_id}: {told}. Give the run's own source and settings, or --changed"
            raise RefusedError(msg)
        observe(events.Notice(message=told, level="warning"))
    other = next((name for (name, _), differs in zip(replays, others, strict=True) if differs), None)
    if other:
        message = (
            f"run {original.run_id} was replayed with another job (run {other}): rows that it brought may be told as "
            "differences. Give the job as it was at the last replay"
        )
        observe(events.Notice(message=message, level="warning"))
