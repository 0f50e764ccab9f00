"""One judge of a finished run: what must hold of the target, its ledger, the servers and the files, whatever happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aftermath import checksum, fetch, files_in, sessions, text_of_ledger, uncovered, value

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

RECORDS = "(select chunk, record, stage, rules, key, data from keyhaul.quarantine)"  # a message may name the run
RECORDS_OF_AUTO_CHUNKS = "(select stage, rules, key, data from keyhaul.quarantine)"  # each sitting merges anew
COUNTS = ("read", "loaded", "unchanged", "duplicate", "filtered", "quarantined")


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What a run that nothing disturbed left: the rows, the quarantine and the balance, each without an order.

    Attributes:
        of_records: the part of the quarantine that is compared, as SQL.
    """

    rows: tuple[int, int]
    records: tuple[int, int]
    balance: tuple[int, ...]
    of_records: str = RECORDS


def truth_of(target: str, table: str, of_records: str = RECORDS) -> Truth:
    """Take the truth from a target whose run was not disturbed."""
    return Truth(
        rows=checksum(target, table),
        records=checksum(target, of_records),
        balance=balance(target),
        of_records=of_records,
    )


def balance(target: str) -> tuple[int, ...]:
    """Return the sums of the finished run's chunks, in the order of `COUNTS`."""
    sums = ", ".join(f"coalesce(sum(rows_{name}), 0)::bigint" for name in COUNTS)
    return fetch(
        target, f"select {sums} from keyhaul.chunks join keyhaul.runs using (run_id) where runs.status = 'done'"
    )[0]


def problems(
    truth: Truth,
    target: str,
    table: str,
    *,
    key: str,
    servers: Iterable[str],
    folders: Sequence[Path] = (),
    secrets: Sequence[str] = (),
    printed: str = "",
) -> list[str]:
    """Return everything that is wrong after a run that ended well; an empty list is the only good answer.

    Args:
        truth: of a run that nothing disturbed.
        target: the target's URI.
        table: the table that was loaded.
        key: its columns that no two rows share, as SQL.
        servers: URIs of all databases in which nothing of keyhaul may be left.
        folders: in which no file may be left.
        secrets: texts that may stand nowhere.
        printed: what the processes have printed.
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
    held = text_of_ledger(target) + printed
    found += ["a secret is in the ledger or the output" for secret in secrets if secret in held]
    return found


def _ledger(truth: Truth, target: str) -> list[str]:
    found = []
    if fetch(target, "select status from keyhaul.runs") != [("done",)]:
        found.append(f"runs: {fetch(target, 'select run_id, status from keyhaul.runs')}")
    counts = balance(target)
    if counts != truth.balance:
        found.append(f"balance: {counts}, expected {truth.balance}")
    if counts[0] != sum(counts[1:]):
        found.append(f"the balance does not close: {counts}")
    records = checksum(target, truth.of_records)
    if records != truth.records:
        found.append(f"quarantine: {records}, expected {truth.records}")
    undone = value(target, "select count(*) from keyhaul.chunks where status <> 'done'")
    if undone:
        found.append(f"{undone} planned chunks are not done")
    found += uncovered(target)
    differing = value(
        target,
        "select count(*) from keyhaul.chunks c where rows_quarantined <> (select count(*) from keyhaul.quarantine q"
        " where (q.run_id, q.chunk) = (c.run_id, c.chunk))",
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


def _left(uri: str) -> list[str]:
    queries = {
        "advisory locks": "select count(*) from pg_locks where locktype = 'advisory'"
        " and database = (select oid from pg_database where datname = current_database())",
        "temporary tables": "select count(*) from pg_class where relpersistence = 't'",
        "tables of ours outside the ledger": "select count(*) from pg_class c join pg_namespace n on n.oid = relnamespace"
        r" where relname like '%\_keyhaul%' and nspname <> 'keyhaul' and relkind in ('r', 'p')",
        "prepared transactions": "select count(*) from pg_prepared_xacts where database = current_database()",
        "idle transactions": "select count(*) from pg_stat_activity where datname = current_database()"
        " and state like 'idle in transaction%' and pid <> pg_backend_pid()",
    }
    return [f"{count} {what}" for what, query in queries.items() if (count := value(uri, query))]
