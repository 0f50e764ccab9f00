"""One judge of a finished run: what must hold of the target, its ledger, the servers and the files, whatever happened."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import psycopg
import support
from aftermath import checksum, fetch, files_in, sessions, text_of_ledger, uncovered, value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from process import Process

    from keyhaul.embedded.server import EmbeddedServer

RECORDS = (  # a message may name the run
    "(select chunk, record, stage, rules, key, data, attempts, resolved_at is not null from keyhaul.quarantine)"
)
RECORDS_OF_AUTO_CHUNKS = (  # each sitting merges anew
    "(select stage, rules, key, data, attempts, resolved_at is not null from keyhaul.quarantine)"
)
COUNTS = ("read", "loaded", "unchanged", "duplicate", "filtered", "quarantined")

LONGEST_SECONDS = 60.0
"""What no process may take for the few hundred rows of these tests, which are moved in 1 s on an idle machine."""

MOST_BYTES = 400_000_000
"""The most memory that one may have; an undisturbed run has 240 to 270 MB, nearly all of it libraries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What a run that nothing disturbed left: the rows, the quarantine and the balance, each without an order.

    Attributes:
        replayed: the balance of all its replays' committed batches; zeros when there was none.
        of_records: the part of the quarantine that is compared, as SQL.
    """

    rows: tuple[int, int]
    records: tuple[int, int]
    balance: tuple[int, ...]
    replayed: tuple[int, ...]
    of_records: str = RECORDS


def truth_of(target: str, table: str, of_records: str = RECORDS) -> Truth:
    """Take the truth from a target whose run was not disturbed."""
    return Truth(
        rows=checksum(target, table),
        records=checksum(target, of_records),
        balance=balance(target, "runs.kind = 'run' and runs.status = 'done'"),
        replayed=balance(target, _REPLAYED),
        of_records=of_records,
    )


def truth_of_a_clean_run(
    server: EmbeddedServer, home: Path, table: str, args: Callable[[str], Sequence[str]], source: str, kept: str
) -> Truth:
    """Do a run that nothing disturbs, in a database of its own, and take the truth from it.

    Args:
        server: for the database.
        home: HOME of the process.
        table: the statement that makes public.items in the target.
        args: of ``etl``, for a target's URI.
        source: the source's URI; its public.items has the same columns.
        kept: the condition for the source's rows that are loaded: the truth's rows are those that plain SQL says.
    """
    target = support.make_database(server, "whole")
    try:
        fetch(target, table)
        done = support.run_etl(home, *args(target))
        assert done.returncode == 0, done.stderr
        known = truth_of(target, "public.items")
        assert known.rows == checksum(source, f"(select * from public.items where {kept})")
        return known
    finally:
        support.drop_database(server, target)


_REPLAYED = "runs.kind = 'replay' and chunks.status = 'done'"
"""A replay that was killed is given up, and what it has committed stays."""


def balance(target: str, of: str) -> tuple[int, ...]:
    """Return the sums of the chunks for which a condition holds, in the order of `COUNTS`."""
    sums = ", ".join(f"coalesce(sum(rows_{name}), 0)::bigint" for name in COUNTS)
    return fetch(target, f"select {sums} from keyhaul.chunks join keyhaul.runs using (run_id) where {of}")[0]


def problems(
    truth: Truth,
    target: str,
    table: str,
    *,
    key: str,
    servers: Sequence[str],
    folders: Sequence[Path] = (),
    secrets: Sequence[str] = (),
    printed: str = "",
    processes: Sequence[Process] = (),
    logs: Sequence[Path] = (),
    longest_seconds: float = LONGEST_SECONDS,
    most_bytes: int = MOST_BYTES,
) -> list[str]:
    """Return everything that is wrong after a run that ended well; an empty list is the only good answer.

    Args:
        truth: of a run that nothing disturbed.
        target: the target's URI.
        table: the table that was loaded.
        key: its columns that no two rows share, as SQL.
        servers: URIs of all databases in which nothing of keyhaul may be left.
        folders: in which no file may be left.
        secrets: texts that may stand nowhere, beside the passwords of the target and the servers.
        printed: what was printed by others than the `processes`.
        processes: all that had a part in the run, those that were killed as well; what they have printed is
            looked at, and how long they took and how much memory they had.
        logs: files that are meant to stay.
        longest_seconds: that one of them may take.
        most_bytes: of memory that one of them may have.
    """
    found = []
    if checksum(target, table) != truth.rows:
        found.append(f"rows: {checksum(target, table)}, expected {truth.rows}")
    twice = value(target, f"select count(*) - count(distinct ({key})) from {table}")
    if twice:
        found.append(f"{twice} rows are there twice")
    found += _ledger(truth, target)
    found += _checksums(target, table)
    for uri in servers:
        found += [f"a session is left: {name} ({state})" for name, state in sessions(uri)]
        found += _left(uri)
    found += [f"a file is left: {folder}/{name}" for folder in folders for name in files_in(folder)]
    passwords = {str(psycopg.conninfo.conninfo_to_dict(uri).get("password", "")) for uri in (target, *servers)}
    places = {
        "ledger": text_of_ledger(target),
        "output": printed + "".join(run.printed for run in processes),
        "log": "".join(log.read_text() for log in logs),
    }
    found += _secrets({*secrets, *passwords} - {""}, places)
    for number, run in enumerate(processes, start=1):
        if run.seconds > longest_seconds:
            found.append(f"process {number} took {run.seconds:.1f} s, at most {longest_seconds:g} are allowed")
        if run.peak_bytes > most_bytes:
            found.append(f"process {number} had {run.peak_bytes:,} bytes, at most {most_bytes:,} are allowed")
    return found


def _secrets(secrets: Iterable[str], places: Mapping[str, str]) -> list[str]:
    """Look for secrets in any form."""
    found = []
    for secret in secrets:
        forms = {secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode().rstrip("=")}
        found += [f"a secret is in the {name}" for name, text in places.items() if any(form in text for form in forms)]
    return found


def _ledger(truth: Truth, target: str) -> list[str]:
    found = []
    runs = fetch(target, "select kind, status from keyhaul.runs")
    # A replay that was killed is given up by the next one.
    if [status for kind, status in runs if kind == "run"] != ["done"] or any(
        kind == "replay" and status not in {"done", "abandoned"} for kind, status in runs
    ):
        found.append(f"runs: {fetch(target, 'select run_id, kind, status from keyhaul.runs')}")
    counts, replayed = balance(target, "runs.kind = 'run' and runs.status = 'done'"), balance(target, _REPLAYED)
    if (counts, replayed) != (truth.balance, truth.replayed):
        found.append(f"balance: {counts} and {replayed}, expected {truth.balance} and {truth.replayed}")
    if counts[0] != sum(counts[1:]):
        found.append(f"the balance does not close: {counts}")
    records = checksum(target, truth.of_records)
    if records != truth.records:
        found.append(f"quarantine: {records}, expected {truth.records}")
    undone = value(
        target,
        "select count(*) from keyhaul.chunks c join keyhaul.runs r using (run_id)"
        " where c.status <> 'done' and (r.kind = 'run' or r.status = 'done')",
    )
    if undone:
        found.append(f"{undone} planned chunks are not done")
    found += uncovered(target)
    differing = value(
        target,
        "select count(*) from keyhaul.chunks c join keyhaul.runs r using (run_id) where r.kind = 'run' and"
        " rows_quarantined <> (select count(*) from keyhaul.quarantine q where (q.run_id, q.chunk) = (c.run_id, c.chunk))",
    )
    if differing:
        found.append(f"{differing} chunks count other records than the quarantine holds")
    return found


def _checksums(target: str, table: str) -> list[str]:
    """Compare what the chunks' checksums sum to with the whole table, of a ledger whose run has them."""
    sums = fetch(
        target,
        "select coalesce(sum(rows_there), 0)::bigint, coalesce(sum(hash_there), 0) from keyhaul.chunks"
        " join keyhaul.runs using (run_id) where runs.checksum is not null and runs.kind = 'run' having count(*) > 0",
    )
    return (
        [f"checksums: {sums[0]}, expected {checksum(target, table)}"]
        if sums and sums[0] != checksum(target, table)
        else []
    )


_OF_SOMEBODY = (
    "exists (select from pg_stat_get_backend_idset() as id where relnamespace::regnamespace::text"
    " in ('pg_temp_' || id, 'pg_toast_temp_' || id))"
)
"""A server that crashed has no backend for the temporary tables of before; it drops them in its own time."""


def _left(uri: str) -> list[str]:
    queries = {
        "advisory locks": "select count(*) from pg_locks where locktype = 'advisory'"
        " and database = (select oid from pg_database where datname = current_database())",
        "temporary tables": f"select count(*) from pg_class where relpersistence = 't' and {_OF_SOMEBODY}",
        "tables of ours outside the ledger": "select count(*) from pg_class c join pg_namespace n on n.oid = relnamespace"
        r" where relname like '%\_keyhaul%' and nspname <> 'keyhaul' and relkind in ('r', 'p')"
        f" and (relpersistence <> 't' or {_OF_SOMEBODY})",
        "prepared transactions": "select count(*) from pg_prepared_xacts where database = current_database()",
        "idle transactions": "select count(*) from pg_stat_activity where datname = current_database()"
        " and state like 'idle in transaction%' and pid <> pg_backend_pid()",
    }
    return [f"{count} {what}" for what, query in queries.items() if (count := value(uri, query))]
