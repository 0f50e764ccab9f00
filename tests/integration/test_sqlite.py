"""A SQLite file into PostgreSQL, through the command line: moves, resumes, verifies and replays."""

from __future__ import annotations

import datetime as dt
import random
import signal
import sqlite3
import time
from contextlib import closing
from decimal import Decimal

import psycopg
import pytest
from process import Process

SEED = 20_261_201
CHINOOK = """
create table Album (AlbumId integer primary key, Title nvarchar(160) not null);
create table Track (
    TrackId integer primary key not null, Name nvarchar(200) not null, AlbumId integer references Album,
    Milliseconds integer not null, Bytes int, UnitPrice numeric(10,2) not null default 0.99, Added datetime, Day date,
    Live boolean, Cover blob, Loudness real, Seconds integer generated always as (Milliseconds / 1000) virtual
);
create index IFK_TrackAlbumId on Track (AlbumId);
"""


def tracks(path, rows=1_000, bad=()):
    """A file like Chinook's; `bad` are statements that spoil rows."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("begin")
        for statement in CHINOOK.split(";"):
            conn.execute(statement)
        conn.executemany(
            "insert into Track values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    n, f"name {n % 97}", n % 7 or None, n * 11, 2**40 + n, 0.99 + n % 3, f"2024-02-{n % 28 + 1:02d} 12:34:56",
                    f"2024-{n % 12 + 1:02d}-28", n % 2, bytes([n % 256, 0, 255]), n / 7,
                )
                for n in range(1, rows + 1)
            ),
        )  # fmt: skip
        for statement in bad:
            conn.execute(statement)
        conn.execute("commit")
    return path


RAW_17 = (
    '{"TrackId":"17","Name":"name 17","AlbumId":"3","Milliseconds":"187","Bytes":"many","UnitPrice":"2.99",'
    '"Added":"2024-02-18 12:34:56","Day":"2024-06-28","Live":"1","Cover":"\\\\x1100ff",'
    '"Loudness":"2.4285714285714284","Seconds":"0"}'
)


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def move(etl, database, server, tmp_path, work):
    """``move("chunked", "--table", …)`` runs etl on the file shop.db; also its source, target and work folder."""

    class Move:
        target = database(server, "sqlite")
        path = tmp_path / "shop.db"

        def __call__(self, command, *args, code=0, source=None):
            ends = ("--source", source or f"sqlite:///{self.path}", "--target", self.target)
            done = etl(command, *args, *ends, env={"ETL_WORK_DIR": str(work)}, cwd=tmp_path)
            assert done.returncode == code, done.stdout + done.stderr
            assert [place.name for place in work.iterdir()] in ([], ["sqlite.lock"])
            return done.stdout + done.stderr

        def rows(self, query):
            with psycopg.connect(self.target) as conn:
                return conn.execute(query).fetchall()

    return Move()


def test_a_table_is_moved_with_nothing_but_its_name(move):
    tracks(move.path)
    said = move("chunked", "--table", "Track", "--chunk", "300")
    assert "private copy" not in said
    assert move.rows('select * from "Track" where "TrackId" = 8') == [
        (8, "name 8", 1, 88, 2**40 + 8, Decimal("2.99"), dt.datetime(2024, 2, 9, 12, 34, 56), dt.date(2024, 9, 28), False,  # noqa: DTZ001
         b"\x08\x00\xff", 8 / 7, 0),
    ]  # fmt: skip
    assert move.rows('select count(*), count("AlbumId"), sum("UnitPrice") from "Track"') == [
        (1000, 858, Decimal("1990.00"))
    ]
    assert move.rows(
        "select column_name, format_type(a.atttypid, a.atttypmod), is_nullable from information_schema.columns"
        " join pg_attribute a on a.attname = column_name and a.attrelid = '\"Track\"'::regclass"
        " where table_name = 'Track' order by ordinal_position"
    ) == [
        ("TrackId", "bigint", "NO"), ("Name", "text", "NO"), ("AlbumId", "bigint", "YES"), ("Milliseconds", "bigint", "NO"),
        ("Bytes", "bigint", "YES"), ("UnitPrice", "numeric(10,2)", "NO"), ("Added", "timestamp without time zone", "YES"),
        ("Day", "date", "YES"), ("Live", "boolean", "YES"), ("Cover", "bytea", "YES"), ("Loudness", "double precision", "YES"),
        ("Seconds", "bigint", "YES"),
    ]  # fmt: skip
    assert move.rows(
        "select pg_get_constraintdef(oid) from pg_constraint where conrelid = '\"Track\"'::regclass and contype = 'p'"
    ) == [('PRIMARY KEY ("TrackId")',)]
    assert "equal" in move("verify", "--table", "Track")


def test_a_path_is_a_source_too_and_the_plan_says_what_is_not_carried(move):
    tracks(move.path)
    said = move("plan", "--table", "Track", source="shop.db")
    for sentence in (
        "UnitPrice: its default is not created",
        "Seconds: its values are copied and not generated",
        "foreign key to Album: not created",
        "index IFK_TrackAlbumId: not created",
    ):
        assert sentence in said


def test_records_whose_values_do_not_fit_are_in_the_quarantine_and_a_replay_loads_them_when_they_are_mended(move):
    tracks(move.path, bad=[
        "update Track set Bytes = 'many' where TrackId = 17",
        "update Track set Live = 2, Day = '29/02/2024' where TrackId = 612",
        "update Track set Name = cast(x'ff' as text) where TrackId = 613",
    ])  # fmt: skip
    move("chunked", "--table", "Track", "--chunk", "100", code=1)
    assert move.rows("select stage, rules, key, message, data->>'raw' from keyhaul.quarantine order by key") == [
        ("read", ["storage_class"], "17", "Bytes: got a text, expected an integer (INT)",
         RAW_17),
        ("read", ["malformed"], "612",
         "Day: got a text of another form or range, expected a text YYYY-MM-DD (date); Live: got an integer of another form or range, expected 0 or 1 (boolean)",
         move.rows("select data->>'raw' from keyhaul.quarantine where key = '612'")[0][0]),
        ("read", ["encoding"], "613", "Name: got bytes that are no UTF-8, expected a text in UTF-8 without U+0000 (nvarchar(200))",
         move.rows("select data->>'raw' from keyhaul.quarantine where key = '613'")[0][0]),
    ]  # fmt: skip
    assert move.rows('select count(*) from "Track"') == [(997,)]
    assert move.rows("select rows_read, rows_loaded, rows_quarantined from keyhaul.chunks where chunk = 7") == [
        (100, 98, 2)
    ]
    assert "equal" in move("verify", "--table", "Track")
    with closing(sqlite3.connect(move.path)) as conn:
        conn.execute("update Track set Bytes = 5 where TrackId = 17")
        conn.execute("update Track set Name = 'mended' where TrackId = 613")
        conn.commit()
    move("replay", "last", "--table", "Track", code=1)
    assert move.rows("select key, resolved_as, attempts from keyhaul.quarantine order by key") == [
        ("17", "loaded", 2),
        ("612", None, 2),
        ("613", "loaded", 2),
    ]
    assert move.rows('select "TrackId", "Name", "Bytes" from "Track" where "TrackId" in (17, 612, 613) order by 1') == [
        (17, "name 17", 5),
        (613, "mended", 2**40 + 613),
    ]
    assert "equal" in move("verify", "--table", "Track")


def test_transform_rules_and_dedup_work_as_for_any_source(move):
    tracks(move.path, bad=["update Track set Bytes = 'many' where TrackId = 12"])
    move(
        "chunked", "--table", "Track", "--chunk", "70", "--set", "minutes = Milliseconds / 60000.0", "--where",
        "TrackId % 5 <> 0", "--rule", "short: Milliseconds < 10000", "--dedup", "Name", "--order-by", "TrackId", code=1,
    )  # fmt: skip
    with closing(sqlite3.connect(move.path)) as conn:
        good = "TrackId % 5 <> 0 and Milliseconds < 10000 and TrackId <> 12"
        expected = conn.execute(
            f"select max(TrackId), Name from Track where {good} group by Name order by max(TrackId)"
        ).fetchall()
    assert move.rows('select "TrackId", "Name" from "Track" order by 1') == expected
    counts = move.rows(
        "select sum(rows_read), sum(rows_loaded), sum(rows_duplicate), sum(rows_filtered), sum(rows_quarantined)"
        " from keyhaul.chunks"
    )
    assert counts == [(1000, len(expected), 1000 - 200 - 73 - len(expected), 200, 73)]
    assert move.rows("select stage, count(*) from keyhaul.quarantine group by 1 order by 1") == [
        ("read", 1),
        ("rule", 72),
    ]


@pytest.mark.parametrize(
    ("table", "key", "expected"),
    [
        ("create table t (a text, b int, v, primary key (a, b)) without rowid", ["a", "b"], [("x", 1, 5), ("y", 2, 6)]),
        ("create table t (a text, b int, v)", ["_rowid"], [("x", 1, 5), ("y", 2, 6)]),
        ("create table t (a text primary key, rowid int, v)", ["a"], [("x", 1, 5), ("y", 2, 6)]),
    ],
)
def test_a_key_is_found(move, table, key, expected):
    with closing(sqlite3.connect(move.path)) as conn:
        conn.execute(table)
        conn.execute("insert into t values ('x', 1, 5), ('y', 2, 6)")
        conn.commit()
    move("chunked", "--table", "t", "--chunk", "1")
    assert move.rows("select * from t order by 1") == expected
    assert move.rows("select key, chunks_planned from keyhaul.runs") in ([(key, 2)], [(key, 3)])
    assert "equal" in move("verify", "--table", "t")


def test_a_query_is_run_once_and_its_columns_have_the_types_of_their_values(move):
    tracks(move.path)
    move(
        "chunked", "--query", "select TrackId, datetime(Milliseconds * 1000, 'unixepoch') as at, random() as chance from Track",
        "--key", "TrackId", "--into", "public.times", "--chunk", "400",
    )  # fmt: skip
    assert move.rows("select count(*), count(distinct chance), min(at), max(at) from times") == [
        (1000, 1000, "1970-01-01 03:03:20", "1970-05-08 07:33:20")
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--table", "Tracks"], "Tracks is not there. Tables in this file: Album, Track"),
        (["--table", "Track", "--key", "Id"], "Track has no column Id, expected one of TrackId, Name"),
        (["--query", "delete from Track", "--key", "a", "--into", "t"], "expected one SELECT"),
        (["--table", "mixed"], "v is declared without a type, and its values are integer, text"),
    ],
)
def test_a_mistake_is_told_before_the_first_row(move, args, message):
    tracks(
        move.path,
        rows=3,
        bad=["create table mixed (id integer primary key, v)", "insert into mixed values (1, 1), (2, 'a')"],
    )
    assert message in move("chunked", *args, code=2)
    assert move.rows("select count(*) from pg_class where relnamespace = 'public'::regnamespace") == [(0,)]


def test_a_column_that_has_no_type_can_be_dropped_or_be_given_one(move):
    tracks(
        move.path,
        rows=3,
        bad=["create table mixed (id integer primary key, v)", "insert into mixed values (1, 1), (2, 'a')"],
    )
    move("chunked", "--query", "select id, cast(v as text) as v from mixed", "--key", "id", "--into", "mixed")
    assert move.rows("select * from mixed order by id") == [(1, "1"), (2, "a")]


def test_no_table_is_made_of_a_file_that_is_not_there(move):
    assert "is not there" in move("chunked", "--table", "t", code=2) or not move.path.exists()
    assert not move.path.exists()


# --- kills and changes -----------------------------------------------------------------------------


def everything(target):
    with psycopg.connect(target) as conn:
        return (
            conn.execute('select count(*), sum(hashtext("Track"::text)::bigint) from "Track"').fetchall(),
            conn.execute("select key, rules, message, data from keyhaul.quarantine order by key").fetchall(),
            conn.execute(
                "select sum(rows_read), sum(rows_loaded), sum(rows_quarantined) from keyhaul.chunks"
            ).fetchall(),
        )


@pytest.mark.parametrize(
    "point", ["snapshot.opened", "plan.written", "read.after:2", "commit.before:2", "commit.after:3", "run.closed"]
)
def test_killed_at_a_point_the_same_command_makes_what_one_run_makes(etl, database, server, tmp_path, work, point):
    path = tracks(tmp_path / "shop.db", bad=["update Track set Bytes = 'many' where TrackId % 100 = 1"])
    clean, killed = database(server, "clean"), database(server, "killed")
    common = ["chunked", "--source", str(path), "--table", "Track", "--chunk", "100", "--workers", "2"]
    env = {"ETL_WORK_DIR": str(work)}
    assert etl(*common, "--target", clean, env=env).returncode == 1
    fault = point if ":" in point else f"{point}:1"
    first = etl(*common, "--target", killed, env={**env, "KEYHAUL_FAULT": f"{fault}:kill"})
    assert first.returncode == -signal.SIGKILL, first.stderr
    assert len(list(work.glob("sqlite-*"))) == 1
    again = etl(*common, "--target", killed, env=env)
    if point != "run.closed":
        assert again.returncode == 1, again.stdout + again.stderr
    assert everything(killed) == everything(clean)
    assert list(work.glob("sqlite-*")) == []


def test_killed_at_random_moments_the_same_command_makes_what_one_run_makes(
    etl, etl_home, database, server, tmp_path, work
):
    path = tracks(tmp_path / "shop.db", rows=60_000, bad=["update Track set Bytes = 'many' where TrackId % 10000 = 1"])
    clean, killed = database(server, "clean"), database(server, "killed")
    common = ["chunked", "--source", str(path), "--table", "Track", "--chunk", "1000", "--workers", "2"]
    env = {"ETL_WORK_DIR": str(work)}
    assert etl(*common, "--target", clean, env=env).returncode == 1
    chance = random.Random(SEED)  # noqa: S311 - moments, no secrets
    for _ in range(3):
        # So slow that no machine is through before the third kill.
        slow = (*common, "--target", killed, "--progress", "json", "--rate-limit", "20000")
        run = Process(etl_home, *slow, cwd=tmp_path, env=env)
        try:
            run.wait_for("RunStarted")
            time.sleep(chance.uniform(0.0, 0.8))
            run.send(signal.SIGKILL)
            run.end()
        finally:
            run.close()
    last = etl(*common, "--target", killed, env=env)
    assert last.returncode in {0, 1}, last.stderr
    assert everything(killed) == everything(clean)
    assert list(work.glob("sqlite-*")) == []


def test_a_file_that_has_changed_is_refused_and_one_that_is_as_it_was_goes_on(etl, database, server, tmp_path, work):
    path = tracks(tmp_path / "shop.db")
    target = database(server, "changed")
    common = ["chunked", "--source", str(path), "--table", "Track", "--chunk", "100", "--target", target]
    env = {"ETL_WORK_DIR": str(work)}
    assert etl(*common, env={**env, "KEYHAUL_FAULT": "commit.after:2:kill"}).returncode == -signal.SIGKILL
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("update Track set Bytes = 5 where TrackId = 900")
        conn.commit()
    refused = etl(*common, env=env)
    assert refused.returncode == 2
    assert f"Track in {path} has changed since the run was planned: sha256" in refused.stderr
    assert list(work.glob("sqlite-*")) == []
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("update Track set Bytes = ? where TrackId = 900", [2**40 + 900])
        conn.commit()
    path.touch()
    done = etl(*common, env=env)
    assert done.returncode == 0, done.stderr
    with psycopg.connect(target) as conn:
        assert conn.execute('select count(*) from "Track"').fetchall() == [(1000,)]


def test_a_replay_by_rowid_is_refused_when_the_file_has_changed(move):
    with closing(sqlite3.connect(move.path)) as conn:
        conn.execute("create table t (v int)")
        conn.execute("insert into t values (1), ('many'), (3)")
        conn.commit()
        move("chunked", "--table", "t", code=1)
        assert move.rows("select key from keyhaul.quarantine") == [("2",)]
        conn.execute("update t set v = 2 where rowid = 2")
        conn.commit()
    assert "its records have no key but _rowid, and t has changed since" in move(
        "replay", "last", "--table", "t", code=2
    )


def test_a_live_writer_does_not_show_in_the_target(etl_home, database, server, tmp_path, work):
    """All chunks are of one moment, though a row moves from each end of the table to the other meanwhile."""
    path = tracks(tmp_path / "shop.db", rows=20_000)
    target = database(server, "moment")
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("pragma journal_mode = wal")
        run = Process(
            etl_home, "chunked", "--source", str(path), "--table", "Track", "--chunk", "500", "--target", target,
            "--progress", "json", cwd=tmp_path, env={"ETL_WORK_DIR": str(work)},
        )  # fmt: skip
        try:
            run.wait_for("RunStarted")
            for n in range(200):
                conn.execute("update Track set Bytes = Bytes + 1 where TrackId in (?, ?)", [n + 1, 20_000 - n])
            assert run.end() == 0
        finally:
            run.close()
    with psycopg.connect(target) as conn:
        assert conn.execute(
            'select count(*), count(*) filter (where "Bytes" <> 2^40 + "TrackId") from "Track"'
        ).fetchall() == [(20_000, 0)]


def test_the_ledger_knows_the_job_so_replay_and_verify_need_no_more_than_the_addresses(move):
    tracks(move.path, bad=["update Track set Bytes = 'many' where TrackId = 17"])
    move("chunked", "--table", "Track", "--chunk", "100", "--where", "TrackId <= 500", code=1)
    with closing(sqlite3.connect(move.path)) as conn:
        conn.execute("update Track set Bytes = 5 where TrackId = 17")
        conn.commit()
    move("replay", "last")
    assert move.rows('select count(*), min("Bytes") from "Track"') == [(500, 5)]
    assert "equal" in move("verify", "last")
