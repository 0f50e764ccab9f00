"""Replay: the quarantined records of a run go through the job again, read from the source by their keys."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import psycopg

from keyhaul import events
from keyhaul.before import checksums
from keyhaul.before.prepare import prepare
from keyhaul.differing import difference
from keyhaul.errors import ConfigError, RefusedError
from keyhaul.execution.ending import Ended, advance_sequences
from keyhaul.execution.engine import Sitting
from keyhaul.execution.pool import Pool
from keyhaul.faults import pass_point
from keyhaul.ledger.reading import find_run
from keyhaul.ledger.store import new_run_id
from keyhaul.sessions.connecting import find_ends
from keyhaul.staging.copies import check_replay
from keyhaul.targets.replayed import CLOSED
from keyhaul.text import one_line, plural

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyhaul.before.prepare import Prepared
    from keyhaul.config.job import Job
    from keyhaul.control import Control
    from keyhaul.ledger.rows import Older, Replayable
    from keyhaul.ledger.store import Ledger
    from keyhaul.model import Observer, Report
    from keyhaul.targets.rowhash import Hashing


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """The end of a replay.

    Attributes:
        run_id: the run whose records were sent again.
        older: of ``last`` only: older runs of the job that have unresolved records too, the oldest first.
        report: of the replay, with a balance of its own: ``read`` is the rows that the source has for
            the records' keys, and the keys that it has not. None when there was nothing to send.
        left: records of the run that are still unresolved; with a rule asked for, of those that broke it before.
        without_key: those of them that cannot be read again, because their key is NULL.
        changed: those of them that do not break the rule asked for any more; they break those of `breaks`.
        closed: how many records this replay resolved without loading them, as ``gone``, ``filtered``, ``duplicate``
            or ``doubtful`` (of the rows with their key some are loaded and some left out).
        rows_read: of the original run.
    """

    run_id: str
    older: tuple[Older, ...]
    report: Report | None
    left: int
    without_key: int
    rows_read: int
    changed: int = 0
    breaks: Sequence[str] = ()
    closed: Mapping[str, int] = field(default_factory=dict)

    def told(self, rule: str | None) -> list[str]:
        """Return what a person should know after the report, in lines; `rule` is the one that was asked for."""
        what = f"of run {self.run_id}" + (f" that broke {one_line(rule)}" if rule else "")
        line = f"{self.left:,} quarantined records {what} are left"
        if self.changed:
            line += f", {self.changed:,} of them now break: {one_line(', '.join(self.breaks))}"
        if self.without_key:
            line += f", {self.without_key:,} of them with a NULL key, which cannot be read again"
        if not self.closed:
            return [line]
        ways = ", ".join(f"{number:,} {_CLOSED[state]}" for state, number in self.closed.items())
        number = plural(sum(self.closed.values()), "record")
        advice = f"`etl replay {self.run_id} … --reopen` tries them again"
        return [line, f"{number} closed without being loaded ({ways}): {advice}"]


_CLOSED: Final = {
    "gone": "not in the source any more",
    "filtered": "filtered by the job now",
    "duplicate": "copies of others now",
    "doubtful": "with a key of which the job loads some rows and leaves out others",
}


def replay(
    job: Job,
    run: str,
    observe: Observer,
    control: Control,
    *,
    rule: str | None = None,
    reopen: bool = False,
    changed: bool = False,
) -> Replayed:
    """Send the unresolved quarantined records of a run through a job again.

    A batch is one transaction: the rows that load, what becomes of their quarantined records, and the
    batch's ledger row. A replay is never resumed: the next one begins with what is unresolved then.

    Args:
        job: validated; of the run's name, key, source and target table.
        run: the run's name, or ``last`` for the job's newest.
        observe: called with every event, from the threads where they happen.
        control: may be told to stop.
        rule: only records that broke this rule or constraint.
        reopen: also those that replays of the run have resolved without loading them.
        changed: the job may be another than that of the run and of its replays.

    Raises:
        ConfigError: the command, job or databases do not fit; nothing was moved.
        StopRunError: the ledger cannot be reached; the same command goes on.
    """
    started = time.perf_counter()
    run_id = new_run_id()
    with prepare(job, find_ends(job), run_id=run_id, alone=True) as prepared:
        sitting = Sitting(prepared, observe, control, run_id, started)
        try:
            return _Replay(prepared, sitting, observe, control, run_id).execute(
                run, rule, reopen=reopen, changed=changed
            )
        except (psycopg.Error, ConfigError) as error:
            raise sitting.explain(error) from error


class _Replay:
    def __init__(self, prepared: Prepared, sitting: Sitting, observe: Observer, control: Control, run_id: str) -> None:
        self._prepared = prepared
        self._job = prepared.job
        self._sitting = sitting
        self._ledger: Ledger = sitting.ledger
        self._observe = observe
        self._control = control
        self._run_id = run_id

    def execute(self, run: str, rule: str | None, *, reopen: bool, changed: bool) -> Replayed:
        ledger = self._ledger
        self._sitting.check_server()
        if not ledger.exists():
            find_run(ledger.connection, ledger.schema, run)
        ledger.create()
        original = self._find(run)
        self._check(original, changed=changed)
        self._warn_of_rivals()
        if rule is not None:
            self._check_rule(original.run_id, rule)
        if reopen:
            self._reopen(original, rule)
        _, without_key = ledger.unresolved(original.run_id, rule)
        if without_key:
            message = f"quarantined with a NULL key, cannot be read again, left: {plural(without_key, 'record')}"
            self._observe(events.Notice(message=message, level="warning"))
        keys = ledger.replay_keys(original.run_id, rule)
        if not keys:
            ledger.abandon("replay")  # one that was killed after its last batch has nothing to be gone on with
        report = self._move(original, keys) if keys else None
        otherwise, breaks = 0, list[str]()
        if rule is None:
            left, without_key = ledger.unresolved(original.run_id, None)
        else:
            left, otherwise, breaks = ledger.chosen(original.run_id, rule, keys)
            left += without_key
        return Replayed(
            run_id=original.run_id,
            report=report,
            older=ledger.older_unresolved(original.run_id, rule) if run == "last" else (),
            left=left,
            without_key=without_key,
            rows_read=original.rows_read,
            changed=otherwise,
            breaks=breaks,
            closed=ledger.closed(original.run_id, self._run_id) if report else {},
        )

    def _reopen(self, original: Replayable, rule: str | None) -> None:
        """Make records unresolved again that no replay has loaded.

        Whether a doubtful one was loaded, the target must tell. What a killed replay may still commit concerns records
        that are unresolved here, and is waited for where they are locked.
        """
        safe = self._looks_at_what_is_there() or self._target_is_unique()
        self._ledger.reopen(original.run_id, rule, [state for state in CLOSED if safe or state != "doubtful"])

    # --- what is refused -------------------------------------------------------------------------

    def _find(self, run: str) -> Replayable:
        original = self._ledger.replayable(run)
        if original is None and run == "last":
            msg = (
                f"replay job {self._job.job}: no run of this job is in the ledger. `etl runs` lists what is; "
                "give --job NAME for a run whose name in the ledger is another (that of a query comes from its text)"
            )
            raise RefusedError(msg)
        if original is None:
            find_run(self._ledger.connection, self._ledger.schema, run)  # raises, with the nearest names
            msg = f"replay run {run}: it was deleted just now"
            raise RefusedError(msg)
        return original

    def _check(self, original: Replayable, *, changed: bool) -> None:
        job, target, source = self._job, self._prepared.target, self._prepared.source.describe()
        run = f"replay run {original.run_id}"
        if original.kind == "replay":
            msg = f"{run}: it is a replay of run {original.replay_of}. Name that run: what is left is there"
            raise RefusedError(msg)
        newer = original.newer or original.given_up_for
        if original.lost or newer:
            why = original.lost or f"it was given up by --fresh, and run {newer} began anew"
            instead = f"Replay run {newer}, which reads" if newer else "Run the job again: it reads"
            msg = f"{run}: {why}. {instead} these records anew"
            raise RefusedError(msg)
        if original.job != job.job:
            msg = f"{run}: it is of job {original.job}, expected {job.job}. Give that job, or --job {original.job}"
            raise RefusedError(msg)
        if list(original.key) != list(job.key):
            msg = f"{run}: its key is {', '.join(original.key)}, not {', '.join(job.key)}. Give the run's --key"
            raise RefusedError(msg)
        old, new = (config.get("source", {}) for config in (original.config, job.identity()))
        contents = self._prepared.source.differs(original.config.get("contents", {}), self._prepared.read_columns)
        own = [name.removeprefix("_keyhaul_") for name in source.own]
        if own and contents:
            msg = (
                f"{run}: its records have no key but {', '.join(own)}, and {source.label} has changed since, so "
                f"that it may mean others: {'; '.join(contents)}. Run the job with --fresh"
            )
            raise RefusedError(msg)
        # A query may be another one: it is part of what a person mends.
        moved = difference({**old, "query": None}, {**new, "query": None})
        if moved:
            msg = f"{run}: its records are in another source: {'; '.join(moved)}. Give the run's source"
            raise RefusedError(msg)
        if original.target_table != target.label or target.ddl.before:
            what = f"not {target.label}" if original.target_table != target.label else "which is not there any more"
            msg = f"{run}: it loaded {original.target_table}, {what}. Give the run's target table in --into"
            raise RefusedError(msg)
        self._check_job(original, changed=changed)
        unique = source.key_unique
        if not (unique or self._looks_at_what_is_there() or self._target_is_unique()):
            msg = (
                f"{run}: several rows of {source.label} may have one key, and those that are loaded would be "
                f"loaded again. Create a unique index on {', '.join(job.key)} in the source, "
                + (
                    "or give each entry of targets mode: skip or upsert"
                    if job.targets
                    else "a primary key on it in the target, or give --mode skip"
                )
            )
            raise RefusedError(msg)
        check_replay(job, self._prepared.transform, target.conflict, original.config, unique=unique)

    def _check_job(self, original: Replayable, *, changed: bool) -> None:
        """Refuse a job that is neither the run's nor that of a replay of it, unless that is meant.

        Rows would be loaded that no step has changed, or that no rule has seen, and nothing takes them back.
        """
        own, *others = (
            difference(self._compared(config), self._compared(self._job.identity()))
            for config in (original.config, *(config for _, config in self._ledger.replays(original.run_id)))
        )
        if not own:
            return
        told = f"this job differs from that of run {original.run_id}, and the records go through this one: "
        told += "; ".join(own)
        if all(others) and not changed:
            msg = f"replay run {original.run_id}: {told}. Give the run's own job, or --changed if that is meant"
            raise RefusedError(msg)
        self._observe(events.Notice(message=told, level="warning"))

    def _compared(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of a job has a part in what becomes of a record, and is not looked at by itself."""
        place: dict[str, Any] = {"table": None}
        if self._job.target.mode == "skip":  # what a replay is told to give, and it changes no row that is there
            place |= {"mode": None, "conflict": None, "newer_by": None}
        aside = {"contents": None, "source": None, "key": None, "chunk": None, "checksum": None, "incremental": None}
        return {**config, **aside, "target": {**config.get("target", {}), **place}}

    def _looks_at_what_is_there(self) -> bool:
        modes: list[str | None] = [table.target.mode for table in self._prepared.tables] or [self._job.target.mode]
        return all(mode in {"skip", "upsert"} for mode in modes)

    def _target_is_unique(self) -> bool:
        """Whether a row that was loaded cannot be loaded again: the primary key is (a part of) the job's key."""
        output, primary_key = self._prepared.transform.output, self._prepared.target.primary_key
        return bool(primary_key) and all(
            name in output and output[name].source in self._job.key for name in primary_key
        )

    def _warn_of_rivals(self) -> None:
        """Say that a record may take the place of another key's row, which the run loaded after it."""
        job, target, output = self._job, self._prepared.target, self._prepared.transform.output
        same = {output[name].source for name in target.conflict if name in output}
        if target.mode == "upsert" and target.newer_by is None and not same.issuperset(job.key):
            columns = ", ".join(target.conflict)
            message = (
                f"mode upsert on {columns}: of rows with the same {columns} the last one written stays, and a replay "
                "writes its records now: an older row may take a newer one's place. Give --newer-by to compare them"
            )
            self._observe(events.Notice(message=message, level="warning"))

    def _check_rule(self, run_id: str, rule: str) -> None:
        known = self._ledger.rules(run_id)
        if rule not in known:
            msg = (
                f"replay run {run_id}: none of its records broke {rule!r}, expected one of "
                f"{', '.join(known) or 'none: nothing was quarantined'}. Change --rule"
            )
            raise RefusedError(msg)

    # --- moving ----------------------------------------------------------------------------------

    def _move(self, original: Replayable, keys: Sequence[str]) -> Report:
        job, ledger, prepared, sitting = self._job, self._ledger, self._prepared, self._sitting
        plan = prepared.source.reread(keys, sitting.sizing.chunk_rows)
        described = prepared.source.describe()
        workers = prepared.count_workers(len(plan.chunks), self._observe)
        unique = described.key_unique or self._target_is_unique()
        checksum, hashing = self._keep_checksums(original)
        new = replace(sitting.new_run(workers), kind="replay", replay_of=original.run_id, checksum=checksum)
        ledger.begin(new, plan, fresh=False)
        pass_point("plan.written")
        sitting.begin(ledger.totals(self._run_id), len(keys), workers, resumed=False)
        pool = Pool(
            replace(sitting.moving(), replay_of=original.run_id, unique_key=unique, hashing=hashing),
            ledger,
            self._observe,
            self._control,
            sitting.sizing.limits(job),
        )
        pool.move(plan.chunks, workers)
        totals = ledger.totals(self._run_id)
        reason = sitting.why_incomplete(totals)
        ledger.limited(self._run_id, sitting.sizing.told(job, pool.limits, workers))
        told = ledger.told(self._run_id, "replay")
        advance_sequences(prepared, ledger, self._observe)
        end = Ended(status="stopped" if reason else "done", reason=reason)
        ledger.end(self._run_id, end.status, reason or None)
        pass_point("run.closed")
        return sitting.report(pool, totals, told, workers=workers, resumed=False, end=end)

    def _keep_checksums(self, original: Replayable) -> tuple[dict[str, Any] | None, Hashing | None]:
        """Return how the checksums of the original run are kept true, if it has any and that can be."""
        described = self._ledger.checksum(original.run_id)
        if described is None:
            return None, None
        try:
            return described, checksums.keep(self._prepared, described)
        except RefusedError as error:
            message = f"the checksums of run {original.run_id} are of no use after this replay: {error}"
            self._observe(events.Notice(message=message, level="warning"))
            return None, None
