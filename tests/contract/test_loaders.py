"""What every loader promises, run on each of them: a chunk is stored with its ledger row and its quarantine, or not at all."""

from __future__ import annotations

import datetime as dt
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import polars as pl
import psycopg
import pytest
from psycopg import sql

from keyhaul.errors import ChunkError, RejectedError, StaleChunkError, StopRunError, TransientError
from keyhaul.ledger.rows import NewRun
from keyhaul.ledger.store import Ledger
from keyhaul.model import RECORD, Chunk, Counts, Plan, Staged, Timings
from keyhaul.postgres import catalog
from keyhaul.postgres.dsn import Dsn
from keyhaul.postgres.pgtypes import SESSION_SETTINGS
from keyhaul.sources.cuts import chunks_between, merged
from keyhaul.staging.stage import REJECTED
from keyhaul.targets import transaction
from keyhaul.targets.postgres import TargetTable
from keyhaul.targets.session import SESSIONS
from keyhaul.targets.transaction import LedgerEntry
from keyhaul.transform.mapping import write_column

RUN = "20260101T000000-0000"
CHUNKS = chunks_between([("10",), ("20",)], total_rows=30, chunk_rows=10, null_rows=None)
ENTRY = LedgerEntry(
    run_id=RUN,
    chunk=CHUNKS[0],
    ledger_schema="keyhaul",
    worker=1,
    sitting=1,
    attempts=1,
    timings=Timings(read_seconds=0.5),
    bytes_read=64,
)


@dataclass
class Bench:
    """A target database with a planned run, and what a test does there."""

    conn: psycopg.Connection[Any]
    uri: str
    loader: str
    sessions: list[Any]

    def session(self):
        self.sessions.append(SESSIONS[self.loader](self.uri))
        return self.sessions[-1]

    def table(self, definition, name="public.t"):
        self.conn.execute(f"create table {name} ({definition})")
        return self.target(name)

    def target(self, name="public.t"):
        relation = catalog.describe_table(self.conn, *catalog.resolve(self.conn, name))
        return TargetTable(schema="public", table=name.rpartition(".")[2], columns=relation.columns)

    def load(self, target, frame, *, rejected=None, entry=ENTRY, session=None, origins=None):
        wanted = {column.name: column for column in target.columns}
        columns = [
            write_column(name, dtype, (origins or wanted).get(name), wanted[name])
            for name, dtype in frame.schema.items()
            if name != RECORD
        ]
        rejected = pl.DataFrame(schema=REJECTED) if rejected is None else rejected
        counts = Counts(read=frame.height + rejected.height, quarantined=rejected.height)
        staged = Staged(accepted=frame, rejected=rejected, counts=counts, describe=describe)
        return transaction.load(session or self.session(), target, columns, staged, entry)

    def all(self, query):
        return self.conn.execute(query).fetchall()

    def stored(self):
        """Rows of t, of the quarantine, and the statuses of the chunks."""
        return (
            self.all("select count(*) from t")[0][0],
            self.all("select count(*) from keyhaul.quarantine")[0][0],
            [status for (status,) in self.all("select status from keyhaul.chunks order by chunk")],
        )


NOTHING = (0, 0, ["planned", "planned", "planned"])


@pytest.fixture(params=sorted(SESSIONS))
def bench(request, server, database):
    uri = database(server, "loader")
    settings = {**SESSION_SETTINGS, "lock_timeout": "2s", "idle_in_transaction_session_timeout": "0"}
    dsn = Dsn.parse(uri, "test").uri(application_name="loader under test", options=settings)
    with psycopg.connect(uri, autocommit=True) as conn:
        ledger = Ledger(lambda: conn, "keyhaul", "job")
        ledger.create()
        run = NewRun(
            run_id=RUN, job="job", fingerprint="f", config={}, source="s", target_table="public.t", key=("id",),
            chunk_rows=10, workers=1,
        )  # fmt: skip
        ledger.begin(run, Plan(chunks=CHUNKS, estimated_rows=0, estimated_bytes=0, exact=True), fresh=True)
        conn.execute("set search_path = public, pg_catalog")
        made = Bench(conn=conn, uri=dsn, loader=request.param, sessions=[])
        yield made
        for session in made.sessions:
            session.close()


def frame(schema=None, **columns):
    height = len(next(iter(columns.values())))
    return pl.DataFrame({RECORD: range(height), **columns}, schema_overrides={RECORD: pl.Int64(), **(schema or {})})


def numbers(*ids):
    return frame({"id": pl.Int32()}, id=list(ids))


def describe(found):
    """Complete what only the target finds, as the stage would."""
    return found.with_columns(key=pl.lit(None, pl.String), data=pl.lit("{}")).select(
        pl.col(name).cast(dtype) for name, dtype in REJECTED.items()
    )


def rejected(*records):
    rows = [
        (record, "rule", ["a", "b"], "not a; not b", str(record), f'{{"id": {record}, "é": "1e400"}}')
        for record in records
    ]
    return pl.DataFrame(rows, schema=REJECTED, orient="row")


# --- together or not at all --------------------------------------------------------------------


def test_rows_quarantine_and_ledger_row_are_stored_together(bench):
    result = bench.load(bench.table("id int"), numbers(1, 2), rejected=rejected(2))
    assert bench.all("select id from t order by id") == [(1,), (2,)]
    assert bench.all("select run_id, chunk, record, stage, rules, message, key, data from keyhaul.quarantine") == [
        (RUN, 1, 2, "rule", ["a", "b"], "not a; not b", "2", {"id": 2, "é": "1e400"})
    ]
    assert bench.stored() == (2, 1, ["done", "planned", "planned"])
    assert result.counts == Counts(read=3, loaded=2, quarantined=1)
    assert bench.all(
        "select rows_read, rows_loaded, rows_quarantined, attempts, bytes_read, worker, sitting, read_seconds, error"
        " from keyhaul.chunks where chunk = 1"
    ) == [(3, 2, 1, 1, 64, 1, 1, 0.5, None)]


def test_nothing_is_visible_before_the_commit(bench):
    target = bench.table("id int")
    session = bench.session()
    seen = []
    commit = session.commit

    def look_first():
        seen.append(bench.stored())
        commit()

    session.commit = look_first
    bench.load(target, numbers(1), session=session)
    assert seen == [NOTHING]
    assert bench.stored() == (1, 0, ["done", "planned", "planned"])


def test_an_empty_chunk_gets_its_ledger_row(bench):
    assert bench.load(bench.table("id int"), numbers()).counts == Counts()
    assert bench.stored() == (0, 0, ["done", "planned", "planned"])


def alone(bench, target, data, match):
    """A loader that can go on after an error isolates the guilty record; the other gives the chunk back whole."""
    if bench.loader == "copy":
        counts = bench.load(target, data).counts
        assert (counts.loaded, counts.quarantined) == (data.height - 1, 1)
        assert bench.stored() == (data.height - 1, 1, ["done", "planned", "planned"])
        return
    with pytest.raises(RejectedError, match=match):
        bench.load(target, data)
    assert bench.stored() == NOTHING


def test_a_constraint_that_would_fail_at_the_commit_is_asked_before_it(bench):
    target = bench.table("id int unique deferrable initially deferred")
    alone(bench, target, numbers(1, 1), "duplicate key value violates unique constraint")


def test_a_session_that_is_lost_before_the_commit_leaves_nothing_behind(bench):
    target = bench.table("id int")
    session = bench.session()

    def lose():
        bench.all("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'loader under test'")
        type(session).commit(session)

    session.commit = lose
    with pytest.raises(TransientError):
        bench.load(target, numbers(1), session=session)
    assert bench.stored() == NOTHING


def test_a_quarantine_record_that_cannot_be_stored_takes_the_rows_back(bench):
    broken = rejected(1).with_columns(data=pl.lit("no json"))
    with pytest.raises(ChunkError, match="json"):
        bench.load(bench.table("id int"), numbers(1), rejected=broken)
    assert bench.stored() == NOTHING


def test_a_second_load_of_a_chunk_does_nothing_and_returns_what_the_ledger_says(bench):
    target = bench.table("id int")
    first = bench.load(target, numbers(1, 2), rejected=rejected(2))
    again = bench.load(target, numbers(1, 2, 3), entry=replace(ENTRY, attempts=2))
    assert bench.stored() == (2, 1, ["done", "planned", "planned"])
    assert again.counts == first.counts
    assert (again.attempts, again.bytes_read) == (1, 64)


def test_a_second_task_with_the_same_chunk_waits_and_then_does_nothing(bench):
    target = bench.table("id int")
    first, second = bench.session(), bench.session()
    assert 0 <= transaction.claim(first, ENTRY) < 5
    with ThreadPoolExecutor() as pool:
        other = pool.submit(bench.load, target, numbers(7), session=second)
        assert not other.done()
        bench.load(target, numbers(1), session=first)
        assert other.result(timeout=10).counts.loaded == 1
    assert bench.all("select id from t") == [(1,)]


def test_the_wait_for_the_ledger_row_is_told_apart_from_the_load(bench):
    target = bench.table("id int")
    first, second = bench.session(), bench.session()
    transaction.claim(first, ENTRY)
    with ThreadPoolExecutor() as pool:
        began = time.monotonic()
        other = pool.submit(bench.load, target, numbers(7), session=second)
        time.sleep(0.5)
        waited = not other.done()
        first.close()
        timings = other.result(timeout=60).timings
        seconds = time.monotonic() - began
    assert waited
    assert 0.2 < timings.wait_seconds < timings.wait_seconds + timings.load_seconds < seconds
    assert bench.all("select wait_seconds, load_seconds from keyhaul.chunks where chunk = 1") == [
        (pytest.approx(timings.wait_seconds), pytest.approx(timings.load_seconds))
    ]


def test_a_chunk_that_the_ledger_does_not_know_is_refused(bench):
    with pytest.raises(StopRunError, match=f"does not have the whole plan of run {RUN} any more"):
        bench.load(bench.table("id int"), numbers(1), entry=replace(ENTRY, chunk=Chunk(number=9)))
    assert bench.stored() == NOTHING


TAKEN = {
    "another sitting": "update keyhaul.runs set sittings = 2",
    "given up": "update keyhaul.runs set status = 'abandoned'",
    "done": "update keyhaul.runs set status = 'done'",
}


@pytest.mark.parametrize("change", TAKEN.values(), ids=TAKEN)
def test_who_has_lost_the_run_to_another_process_loads_nothing_more(bench, change):
    bench.conn.execute(change)
    with pytest.raises(StopRunError, match=rf"run {RUN} is another process's by now .*this is {ENTRY.sitting}"):
        bench.load(bench.table("id int"), numbers(1))
    assert bench.stored() == NOTHING


def test_a_run_is_not_taken_over_or_given_up_while_a_chunk_of_it_is_being_loaded(bench):
    session = bench.session()
    transaction.claim(session, ENTRY)
    with psycopg.connect(bench.uri, autocommit=True) as other:
        other.execute("set lock_timeout = 200")
        ledger = Ledger(lambda: other, "keyhaul", "job")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            ledger.settle()
        with pytest.raises(psycopg.errors.LockNotAvailable):
            ledger.abandon("run")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            ledger.resume(RUN, 1)


def test_one_session_loads_one_chunk_after_another(bench):
    target, session = bench.table("id int, j json"), bench.session()
    for chunk in (1, 2, 3):
        data = frame({"id": pl.Int32()}, id=[chunk], j=['{"a": 1}'])
        bench.load(target, data, session=session, entry=replace(ENTRY, chunk=Chunk(number=chunk)), rejected=rejected(9))
    assert bench.stored() == (3, 3, ["done", "done", "done"])


# --- merged chunks -----------------------------------------------------------------------------------

MERGED = replace(ENTRY, chunk=merged(CHUNKS))
LEDGER = (
    "select chunk, cuts, lower_bound, upper_bound, estimated_rows, status, rows_read from keyhaul.chunks order by 1"
)


def test_a_merged_chunk_leaves_one_ledger_row_with_the_range_that_was_loaded(bench):
    target = bench.table("id int")
    result = bench.load(target, numbers(11, 21), rejected=rejected(2), entry=replace(ENTRY, chunk=merged(CHUNKS[1:])))
    assert (result.chunk, result.counts.read) == (2, 3)
    assert bench.all(LEDGER) == [(1, 1, None, ["10"], 10, "planned", 0), (2, 2, ["10"], None, 20, "done", 3)]
    assert bench.all("select chunk, record from keyhaul.quarantine") == [(2, 2)]
    bench.load(target, numbers(1), entry=ENTRY)
    assert bench.all(LEDGER)[0] == (1, 1, None, ["10"], 10, "done", 1)


def test_a_merged_chunk_that_is_not_committed_leaves_its_cuts_as_they_were(bench):
    before, session = bench.all(LEDGER), bench.session()
    session.commit = session.close
    bench.load(bench.table("id int"), numbers(1), session=session, entry=MERGED)
    assert bench.stored() == NOTHING
    assert bench.all(LEDGER) == before


def test_a_second_load_of_the_same_merged_chunk_does_nothing(bench):
    target = bench.table("id int")
    first = bench.load(target, numbers(1, 11), rejected=rejected(2), entry=MERGED)
    again = bench.load(target, numbers(1, 11, 21), entry=replace(MERGED, attempts=2))
    assert bench.stored() == (2, 1, ["done"])
    assert (again.counts, again.attempts) == (first.counts, 1)


@pytest.mark.parametrize(
    ("loaded", "wanted"),
    [((1, 1), (1, 2)), ((2, 2), (1, 3)), ((3, 3), (2, 3)), ((1, 2), (1, 1)), ((1, 2), (2, 3)), ((1, 3), (2, 2))],
)
def test_a_chunk_of_which_a_part_was_loaded_with_others_is_stale_and_nothing_is_stored(bench, loaded, wanted):
    target = bench.table("id int")
    bench.load(target, numbers(1), entry=replace(ENTRY, chunk=merged(CHUNKS[loaded[0] - 1 : loaded[1]])))
    before = (bench.stored(), bench.all(LEDGER))
    with pytest.raises(StaleChunkError, match=f"of the cuts {wanted[0]} to {wanted[1]} some are loaded already"):
        bench.load(target, numbers(2), entry=replace(ENTRY, chunk=merged(CHUNKS[wanted[0] - 1 : wanted[1]])))
    assert (bench.stored(), bench.all(LEDGER)) == before


@pytest.mark.parametrize("wanted", [(1, 2), (2, 2)])
def test_who_wants_a_part_of_a_merged_chunk_waits_for_it_and_then_does_nothing(bench, wanted):
    target = bench.table("id int")
    first, second = bench.session(), bench.session()
    transaction.claim(first, MERGED)
    with ThreadPoolExecutor() as pool:
        entry = replace(ENTRY, chunk=merged(CHUNKS[wanted[0] - 1 : wanted[1]]))
        other = pool.submit(bench.load, target, numbers(7), session=second, entry=entry)
        time.sleep(0.2)
        assert not other.done()
        bench.load(target, numbers(1), session=first, entry=MERGED)
        with pytest.raises(StaleChunkError):
            other.result(timeout=10)
    assert bench.all("select id from t") == [(1,)]
    assert bench.all(LEDGER) == [(1, 3, None, None, 30, "done", 1)]


def test_who_wants_a_merged_chunk_waits_for_each_of_its_cuts_and_goes_on_when_they_are_let_go(bench):
    target = bench.table("id int")
    first, second = bench.session(), bench.session()
    transaction.claim(first, replace(ENTRY, chunk=merged(CHUNKS[1:])))
    with ThreadPoolExecutor() as pool:
        other = pool.submit(bench.load, target, numbers(7), session=second, entry=MERGED)
        time.sleep(0.2)
        assert not other.done()
        first.close()
        assert other.result(timeout=10).timings.wait_seconds > 0.1
    assert bench.all(LEDGER) == [(1, 3, None, None, 30, "done", 1)]


def test_a_cut_that_someone_has_deleted_from_the_ledger_is_told(bench):
    bench.conn.execute("delete from keyhaul.chunks where chunk = 2")
    with pytest.raises(StopRunError, match=f"does not have the whole plan of run {RUN} any more"):
        bench.load(bench.table("id int"), numbers(1), entry=MERGED)
    assert bench.stored() == (0, 0, ["planned", "planned"])


# --- counted by SQL ----------------------------------------------------------------------------------

DROP_ODD = """
create function drop_odd() returns trigger language plpgsql as
$$ begin if new.id % 2 = 1 then return null; end if; return new; end $$;
create trigger drop_odd before insert on t for each row execute function drop_odd();
"""


def test_a_trigger_that_drops_rows_fails_the_chunk_and_nothing_is_stored(bench):
    target = bench.table("id int")
    bench.conn.execute(DROP_ODD)
    with pytest.raises(ChunkError, match=r"public\.t stored 1 of 3 rows; a trigger or rule there drops or adds rows"):
        bench.load(target, numbers(1, 2, 3))
    assert bench.stored() == NOTHING


def test_a_trigger_that_adds_rows_fails_the_chunk_and_nothing_is_stored(bench):
    target = bench.table("id int")
    bench.conn.execute(
        "create function twice() returns trigger language plpgsql as"
        " $$ begin if new.id < 100 then insert into public.t values (new.id + 100); end if; return new; end $$;"
        "create trigger twice before insert on t for each row execute function twice()"
    )
    with pytest.raises(ChunkError, match="stored 4 of 2 rows"):
        bench.load(target, numbers(1, 2))
    assert bench.stored() == NOTHING


def test_a_trigger_that_writes_elsewhere_does_not_disturb_the_count(bench):
    target = bench.table("id int")
    bench.conn.execute(
        "create table log (id int);"
        "create function note() returns trigger language plpgsql as"
        " $$ begin insert into public.log values (new.id); return new; end $$;"
        "create trigger note after insert on t for each row execute function note()"
    )
    assert bench.load(target, numbers(1, 2)).counts.loaded == 2
    assert bench.all("select count(*) from log") == [(2,)]


@pytest.mark.parametrize("more", ["", ", j json"])
def test_rows_of_a_partitioned_table_are_counted_in_its_partitions(bench, more):
    bench.conn.execute(f"create table t (id int{more}) partition by range (id)")
    bench.conn.execute("create table low partition of t for values from (minvalue) to (10)")
    bench.conn.execute("create table high partition of t for values from (10) to (100) partition by list (id)")
    bench.conn.execute("create table high_rest partition of high default")
    data = numbers(1, 20, 30)
    data = data.with_columns(j=pl.lit("{}")) if more else data
    assert bench.load(bench.target(), data).counts == Counts(read=3, loaded=3)
    assert bench.all("select count(*) from high_rest") == [(2,)]


def test_a_row_without_a_partition_is_rejected_alone(bench):
    bench.conn.execute("create table t (id int) partition by range (id)")
    bench.conn.execute("create table low partition of t for values from (1) to (10)")
    alone(bench, bench.target(), numbers(1, 20), "no partition of relation")


# --- values ----------------------------------------------------------------------------------------

DIRECT = {
    "smallint": (pl.Int16(), [-32768, None, 32767], ["-32768", None, "32767"]),
    "integer": (pl.Int32(), [-(2**31), None], ["-2147483648", None]),
    "bigint": (pl.Int64(), [2**63 - 1, None], ["9223372036854775807", None]),
    "real": (pl.Float32(), [0.1, float("nan"), float("inf"), -0.0], ["0.1", "NaN", "Infinity", "-0"]),
    "double precision": (pl.Float64(), [5e-324, float("-inf"), None], ["5e-324", "-Infinity", None]),
    "boolean": (pl.Boolean(), [True, False, None], ["true", "false", None]),
    "text": (pl.String(), ["é\U0001f600\n\\", "", None], ["é\U0001f600\n\\", "", None]),
    "varchar(3)": (pl.String(), ["äöü", None], ["äöü", None]),
    "bytea": (pl.Binary(), [b"\x00\xff'", b"", None], ["\\x00ff27", "\\x", None]),
    "date": (pl.Date(), [dt.date(1, 1, 1), dt.date(9999, 12, 31), None], ["0001-01-01", "9999-12-31", None]),
    "timestamp": (pl.Datetime("us"), [dt.datetime(1969, 12, 31, 23, 59, 59, 999999), None],  # noqa: DTZ001
                  ["1969-12-31 23:59:59.999999", None]),
    "timestamptz": (pl.Datetime("us", "UTC"), [dt.datetime(2020, 3, 29, 0, 30, tzinfo=dt.UTC), None],
                    ["2020-03-29 00:30:00+00", None]),
    "numeric(38,20)": (pl.Decimal(38, 20), [Decimal("-123456789012345678.00000000000000000001"), None],
                       ["-123456789012345678.00000000000000000001", None]),
    "numeric": (pl.Decimal(38, 0), [Decimal("9" * 38), Decimal(0)], ["9" * 38, "0"]),
    "uuid": (pl.String(), ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", None], ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", None]),
    "jsonb": (pl.String(), ['{"a": [1, "é", 1e400]}', "null", None], ['{"a": [1, "é", 1' + "0" * 400 + "]}", "null", None]),
    "json": (pl.String(), ['{"b":1,  "b":2.10}', None], ['{"b":1,  "b":2.10}', None]),
    "integer[]": (pl.String(), ["{{1,NULL},{3,4}}", "[0:1]={1,2}", None], ["{{1,NULL},{3,4}}", "[0:1]={1,2}", None]),
    "interval": (pl.String(), ["1 mon -2 days +03:00:00.000001", None], ["1 mon -2 days +03:00:00.000001", None]),
    "time": (pl.String(), ["24:00:00", None], ["24:00:00", None]),
    "inet": (pl.String(), ["::1/64", None], ["::1/64", None]),
    "numrange": (pl.String(), ["[1.10,)", "empty", None], ["[1.10,)", "empty", None]),
}  # fmt: skip


@pytest.mark.parametrize("kind", DIRECT)
def test_values_arrive_exactly(bench, kind):
    dtype, values, texts = DIRECT[kind]
    bench.conn.execute("set timezone = 'UTC'")
    target = bench.table(f"id int, x {kind}")
    bench.load(target, frame({"id": pl.Int32(), "x": dtype}, id=list(range(len(values))), x=values))
    assert [text for (text,) in bench.all("select x::text from t order by id")] == texts


def test_columns_of_the_direct_route_and_of_the_temporary_table_go_together(bench):
    target = bench.table(
        "id int, u uuid, j jsonb, n numeric, a text[], o timestamptz, b bytea, d date default '2000-01-01'"
    )
    data = frame(
        {"id": pl.Int32(), "n": pl.String(), "o": pl.Datetime("us", "UTC")},
        id=[1, 2],
        u=["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", None],
        j=['{"a": 1}', None],
        n=["1.500", "NaN"],
        a=["{x,NULL}", "{}"],
        o=[dt.datetime(2020, 1, 1, tzinfo=dt.UTC), None],
        b=[b"\xff", None],
    )
    assert bench.load(target, data).counts.loaded == 2
    assert bench.all(
        "select id, u::text, j->>'a', n::text, a::text, o = '2020-01-01 00:00+00', b, d::text from t order by id"
    ) == [
        (1, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "1", "1.500", "{x,NULL}", True, b"\xff", "2000-01-01"),
        (2, None, None, "NaN", "{}", None, None, "2000-01-01"),
    ]


def test_columns_go_by_name_whatever_their_order_and_spelling(bench):
    target = bench.table('"B" int, "select" text, "a \'q\' %s" int, "\U0001f600" text')
    data = frame(
        {"a 'q' %s": pl.Int32(), "B": pl.Int32()}, **{"\U0001f600": ["x"], "a 'q' %s": [1], "select": ["s"], "B": [2]}
    )
    bench.load(target, data)
    assert bench.all("select * from t") == [(2, "s", 1, "x")]


def test_a_table_with_an_odd_name_is_loaded(bench):
    name = 'T "x" %s é'
    quoted = '"' + name.replace('"', '""') + '"'
    bench.conn.execute(f"create table public.{quoted} (id int)")
    found = bench.target(f"public.{quoted}")
    bench.load(replace(found, table=name), numbers(1))
    assert bench.all(f"select id from public.{quoted}") == [(1,)]


def test_an_identity_column_takes_the_values_of_the_source(bench):
    target = bench.table("id int generated always as identity, x json")
    bench.load(target, frame({"id": pl.Int32()}, id=[7], x=["{}"]))
    assert bench.all("select id from t") == [(7,)]


def test_more_rows_than_a_batch_arrive(bench):
    target = bench.table("id int primary key, s text")
    data = frame({"id": pl.Int32()}, id=list(range(40_000)), s=[str(n) for n in range(40_000)])
    assert bench.load(target, data).counts.loaded == 40_000
    assert bench.all("select count(*), sum(id), count(*) filter (where s = id::text) from t") == [
        (40_000, 799_980_000, 40_000)
    ]


def test_a_lock_that_is_not_given_is_worth_another_try(bench):
    target = bench.table("id int")
    with bench.conn.transaction():
        bench.conn.execute("lock table t in access exclusive mode")
        with pytest.raises(TransientError, match="lock timeout"):
            bench.load(target, numbers(1))
    assert bench.stored() == NOTHING


@pytest.mark.parametrize("name", sorted(SESSIONS))
def test_a_server_that_is_not_there_is_worth_another_try(name):
    with pytest.raises(TransientError):
        SESSIONS[name]("postgresql://nobody@127.0.0.1:1/none?connect_timeout=1")


def test_an_error_of_the_server_is_told_in_its_words_and_without_the_value(bench):
    session = bench.session()
    with pytest.raises(ChunkError, match=r"^load chunk: invalid input syntax for type inet: \"…\" \(SQLSTATE 22P02\)$"):
        session.execute(sql.SQL("select 'secret'::inet"))


def test_an_error_names_the_constraint_but_not_the_row(bench):
    bench.table("id int primary key")
    session = bench.session()
    with pytest.raises(ChunkError, match='duplicate key value violates unique constraint "t_pkey"') as caught:
        session.execute(sql.SQL("insert into public.t values (424242), (424242)"))
    assert "424242" not in str(caught.value)
