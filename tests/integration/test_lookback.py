# ruff: noqa: RUF001 - the wide signs are formulas too
from __future__ import annotations

import csv
import io
import json
import stat
import tracemalloc

import psycopg
import pytest
from psycopg import sql
from support import wait_until

from keyhaul.errors import ConfigError, RefusedError
from keyhaul.ledger import reading, versions
from keyhaul.model import Counts
from keyhaul.printing import lookback, rejects

SCHEMA = 'the "ledger"'
DONE, CUT, OLD = "20261122T090000-aaaa", "20261122T100000-bbbb", "20261122T080000-cccc"


@pytest.fixture
def target(databases):
    with psycopg.connect(databases[1]) as conn:
        yield conn


@pytest.fixture
def ledger(target):
    versions.create(target, SCHEMA)
    add_run(target, OLD, "2026-11-22 08:00Z", job="other", status="done", planned=0)
    add_run(target, DONE, "2026-11-22 09:00Z", status="done", planned=2, ended="2026-11-22 09:00:02Z")
    add_chunk(target, DONE, 1, lower=None, upper=["5"], read=4, loaded=3, quarantined=1)
    add_chunk(target, DONE, 2, kind="nulls", read=2, loaded=0, quarantined=2)
    add_run(target, CUT, "2026-11-22 10:00Z", status="running", planned=60, sittings=2)
    for number in range(1, 61):
        status = "planned" if number > 40 else "failed" if number == 3 else "done"
        add_chunk(
            target,
            CUT,
            number,
            status=status,
            attempts=2 if number in {3, 5} else 1,
            lower=["a, [x]"],
            upper=None,
            seconds=number / 100,
            sitting=1 if number <= 20 else 2,
            error="gone [y]" if number == 3 else None,
        )
    target.commit()
    return target


def run_sql(conn, text, *values):
    conn.execute(sql.SQL(text).format(s=sql.Identifier(SCHEMA)), values)


def add_run(conn, run_id, start, *, job="flights", status, planned, ended=None, sittings=1):
    run_sql(
        conn,
        "insert into {s}.runs (run_id, job, fingerprint, config, status, source, target_table, key, chunk_rows,"
        " chunks_planned, estimated_rows, sittings, workers, pid, host, version, started_at, ended_at)"
        " values (%s, %s, 'f', '{{}}', %s, 'db:5432/source', 'public.flights', '{{id}}', 5, %s, 6, %s, 2, 7, 'box',"
        " '0.1.0', %s, %s)",
        run_id,
        job,
        status,
        planned,
        sittings,
        start,
        ended,
    )


def add_chunk(
    conn,
    run_id,
    number,
    *,
    kind="range",
    status="done",
    attempts=1,
    lower=None,
    upper=None,
    read=0,
    loaded=0,
    quarantined=0,
    seconds=0.5,
    sitting=1,
    error=None,
):
    start = "2026-11-22 10:00:00Z" if sitting == 1 else "2026-11-22 12:00:00Z"
    run_sql(
        conn,
        "insert into {s}.chunks (run_id, chunk, kind, lower_bound, upper_bound, estimated_rows, status, attempts,"
        " rows_read, rows_loaded, rows_quarantined, read_seconds, worker, sitting, started_at, ended_at, error)"
        " values (%s, %s, %s, %s, %s, 5, %s, %s, %s, %s, %s, %s, 1, %s, %s, %s::timestamptz + interval '3 s', %s)",
        run_id,
        number,
        kind,
        lower,
        upper,
        status,
        attempts,
        read,
        loaded,
        quarantined,
        seconds,
        sitting,
        start,
        start,
        error,
    )


def add_record(conn, chunk, record, *, rules=("r",), message="m", key="1", data=None):
    run_sql(
        conn,
        "insert into {s}.quarantine values (%s, %s, %s, 'rule', %s, %s, %s, %s)",
        DONE,
        chunk,
        record,
        list(rules),
        message,
        key,
        json.dumps(data or {"id": record}),
    )


def text_of(show, *values):
    stream = io.StringIO()
    show(*values, stream)
    return stream.getvalue()


def test_a_run_is_found_by_its_name_and_by_last(ledger):
    assert reading.find_run(ledger, SCHEMA, DONE) == DONE
    assert reading.find_run(ledger, SCHEMA, "last") == CUT


def test_an_unknown_run_is_refused_with_the_nearest_or_the_last_ones(ledger):
    with pytest.raises(RefusedError, match=r"such as 20261122T090000-aaaa") as near:
        reading.find_run(ledger, SCHEMA, "20261122T090000-aaab")
    assert "etl runs" in str(near.value)
    with pytest.raises(RefusedError, match=f"such as {CUT}, {DONE}, {OLD}"):
        reading.find_run(ledger, SCHEMA, "nonsense")


@pytest.mark.parametrize(
    "ask",
    [
        lambda conn: reading.find_run(conn, "no such", "last"),
        lambda conn: reading.list_runs(conn, "no such"),
        lambda conn: reading.show_run(conn, "no such", "x"),
        lambda conn: rejects.quarantine_reasons(conn, "no such", "x"),
    ],
)
def test_a_database_without_a_ledger_is_named_and_the_connection_stays_usable(target, ask):
    place = f"{target.info.host}:{target.info.port}/{target.info.dbname}"
    with pytest.raises(RefusedError, match=f"no run is recorded in {place}"):
        ask(target)
    assert target.execute("select 1").fetchone() == (1,)


def test_runs_are_listed_newest_first_with_their_sums(ledger):
    cut, done, old = reading.list_runs(ledger, SCHEMA)
    assert [cut.run_id, done.run_id, old.run_id] == [CUT, DONE, OLD]
    assert done.counts == Counts(read=6, loaded=3, quarantined=3)
    assert (done.seconds, done.chunks_done, old.seconds) == (2.0, 2, 0.0)
    assert cut.seconds == 6.0, "two sittings of 3 s, without the two hours between them"
    assert [run.run_id for run in reading.list_runs(ledger, SCHEMA, 1)] == [CUT]


def test_a_run_is_running_while_its_lock_is_held_and_interrupted_afterwards(ledger, databases):
    assert reading.list_runs(ledger, SCHEMA)[0].state == "interrupted"
    with psycopg.connect(databases[1]) as holder:
        lock = "select pg_try_advisory_lock(hashtextextended('keyhaul:' || %s || ':' || %s, 0))"
        assert holder.execute(lock, (SCHEMA, "flights")).fetchone() == (True,)
        assert [run.state for run in reading.list_runs(ledger, SCHEMA)] == ["running", "done", "done"]
        with psycopg.connect(databases[0]) as elsewhere:
            versions.create(elsewhere, SCHEMA)
            add_run(elsewhere, CUT, "2026-11-22 10:00Z", status="running", planned=1)
            assert reading.list_runs(elsewhere, SCHEMA)[0].state == "interrupted"
    # The server ends a session, and drops its locks, a moment after the client has gone.
    wait_until(lambda: reading.list_runs(ledger, SCHEMA)[0].state == "interrupted", "the lock to be dropped")


@pytest.mark.parametrize("other", [1, 1 << 32, -1])
def test_a_lock_with_another_key_does_not_make_a_run_alive(ledger, other):
    lock = "select pg_advisory_xact_lock(hashtextextended(%s, 0) # %s::bigint)"
    ledger.execute(lock, (f"keyhaul:{SCHEMA}:flights", other))
    assert reading.list_runs(ledger, SCHEMA, 1)[0].state == "interrupted"


def test_of_two_rows_that_say_running_the_newest_holds_the_lock(ledger):
    ledger.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"keyhaul:{SCHEMA}:flights",))
    add_run(ledger, "20261122T110000-dddd", "2026-11-22 11:00Z", status="running", planned=1)
    assert [run.state for run in reading.list_runs(ledger, SCHEMA, 2)] == ["running", "interrupted"]


def test_of_many_chunks_the_slowest_the_failed_and_the_retried_are_shown(ledger):
    few = [chunk.chunk for chunk in reading.show_run(ledger, SCHEMA, CUT).chunks]
    assert few == [3, 5, *range(31, 41)]
    assert len(reading.show_run(ledger, SCHEMA, CUT, chunk_limit=None).chunks) == 60
    assert [chunk.range for chunk in reading.show_run(ledger, SCHEMA, DONE).chunks] == ["… to 5", "NULL keys"]


def test_a_run_is_printed_with_its_balance_and_its_failures(ledger):
    text = text_of(lookback.print_run, reading.show_run(ledger, SCHEMA, CUT))
    assert text.startswith(f"Run {CUT} interrupted\n")
    assert "12 of 60 chunks: the slowest, the failed and the retried.\n" in text
    assert f"  All: etl show {CUT} --all\n" in text
    assert "chunk 3 failed after 2 tries: gone [y]" in text
    assert "a, [x] to …" in text
    text = text_of(lookback.print_run, reading.show_run(ledger, SCHEMA, DONE))
    assert "  quarantined  3\n  ✓ balanced" in text


def test_runs_are_printed_one_line_each(ledger):
    lines = text_of(lookback.print_runs, reading.list_runs(ledger, SCHEMA)).splitlines()
    assert lines[0].split() == [
        "run",
        "job",
        "started",
        "(UTC)",
        "status",
        "loaded",
        "quarantined",
        "unresolved",
        "seconds",
        "rows/s",
    ]
    assert lines[2].split() == [DONE, "flights", "2026-11-22", "09:00", "done", "3", "3", "0", "2.0", "3"]


def test_reasons_are_counted_by_rule_and_by_stage_where_there_is_none(ledger):
    add_record(ledger, 1, 1, rules=["a", "b"])
    add_record(ledger, 2, 1, rules=["b"])
    add_record(ledger, 2, 2, rules=[])
    assert rejects.quarantine_reasons(ledger, SCHEMA, DONE) == {"b": 2, "a": 1, "rule": 1}


def test_the_quarantine_is_printed_with_null_keys_and_without_running_what_it_holds(ledger):
    add_record(ledger, 1, 1, key=None, message="[bold]x[/bold]\x1b[2J\nnext", data={"note": "[red]é\u202e"})
    rows = rejects.quarantine_rows(ledger, SCHEMA, DONE)
    text = text_of(rejects.print_quarantine, DONE, rejects.quarantine_reasons(ledger, SCHEMA, DONE), rows, 3)
    assert "key NULL  chunk 1, record 1  r\n  [bold]x[/bold]\\x1b[2J\\nnext\n" in text
    assert '{"note": "[red]é\\u202e"}' in text
    assert text.endswith(f"and 2 more records: etl quarantine {DONE} --export bad.csv\n")


class Screen(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self):
        return True


def test_on_a_screen_the_columns_that_a_rule_names_come_first_and_no_number_changes(ledger, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "dumb")
    data = {"id": 1, "a": "x" * 40, "late by": 5, "b": {"c": [1]}}
    add_record(ledger, 1, 1, message="not (late by < 3)", data=data)
    more = sql.SQL("update {}.quarantine set message = message || ' sum', data = data || {}::jsonb")
    ledger.execute(more.format(sql.Identifier(SCHEMA), sql.Literal('{"sum": 1.10000000000000000000000000001}')))
    rows = rejects.quarantine_rows(ledger, SCHEMA, DONE)
    screen = Screen()
    rejects.print_quarantine(DONE, {}, rows, 1, screen)
    assert '{"sum": 1.10000000000000000000000000001, "late by": 5, ' in screen.getvalue()
    whole = text_of(rejects.print_quarantine, DONE, {}, rows, 1)
    assert '{"a": "x' in whole, "as it is kept, where nothing is cut"
    assert '"b": {"c": [1]}' in whole


def test_the_export_escapes_what_a_spreadsheet_would_run_and_keeps_the_record(ledger, tmp_path):
    cells = ["=1+1", " =x", '"@x', "-5", "-5+1", "+x", "\tx", "-1.5e3", "plain", "＝x", None]
    for number, key in enumerate(cells):
        add_record(ledger, 1, number, key=key, rules=["-a", "b"], message="two\r\nlines, -5", data={"v": "=1"})
    path = tmp_path / "bad.csv"
    assert rejects.export_quarantine(ledger, SCHEMA, DONE, path) == 11
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["run_id", "chunk", "record", "stage", "rules", "message", "key", "data"]
    assert [row["key"] for row in rows] == [
        "'=1+1",
        "' =x",
        "'\"@x",
        "-5",
        "'-5+1",
        "'+x",
        "'\tx",
        "-1.5e3",
        "plain",
        "'＝x",
        "",
    ]
    assert rows[0]["rules"] == "'-a; b"
    assert rows[0]["message"] == "two\r\nlines, -5"
    assert json.loads(rows[0]["data"]) == {"v": "=1"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("autocommit", [False, True])
def test_an_export_never_overwrites_unasked_and_leaves_no_part_behind(ledger, tmp_path, autocommit):
    ledger.autocommit = autocommit
    path = tmp_path / "bad.csv"
    path.write_text("mine")
    with pytest.raises(RefusedError, match="it exists already"):
        rejects.export_quarantine(ledger, SCHEMA, DONE, path)
    assert path.read_text() == "mine"
    assert rejects.export_quarantine(ledger, SCHEMA, DONE, path, force=True) == 0
    assert path.read_text().startswith("run_id,chunk")
    with pytest.raises(ConfigError, match="No such file or directory"):
        rejects.export_quarantine(ledger, SCHEMA, DONE, tmp_path / "none" / "bad.csv")
    with pytest.raises(RefusedError, match="no run is recorded"):
        rejects.export_quarantine(ledger, "no such", DONE, tmp_path / "other.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["bad.csv"]


def test_an_export_holds_a_batch_in_memory_and_not_the_quarantine(ledger, tmp_path):
    run_sql(
        ledger,
        "insert into {s}.quarantine select %s, 1, n, 'rule', '{{r}}', 'm', n::text,"
        " jsonb_build_object('x', repeat('x', 1000)) from generate_series(1, 30000) n",
        DONE,
    )
    tracemalloc.start()
    try:
        assert rejects.export_quarantine(ledger, SCHEMA, DONE, tmp_path / "bad.csv") == 30000
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 10_000_000, "30 MB of records were exported"
