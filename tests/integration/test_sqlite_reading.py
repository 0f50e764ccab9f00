"""SQLite files as they are read: the private copy, bounds, and that the fast path and the strict one agree."""

from __future__ import annotations

import datetime as dt
import fcntl
import os
import random
import sqlite3
import string
import subprocess
import sys
import threading
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keyhaul.errors import CancelledError, ChunkError, ConfigError, StopRunError
from keyhaul.model import Chunk
from keyhaul.quoting import quote_name
from keyhaul.sources.cuts import chunks_between
from keyhaul.sources.sqlite import catalog
from keyhaul.sources.sqlite.bounds import Walk, literal, written
from keyhaul.sources.sqlite.copier import checksum
from keyhaul.sources.sqlite.copying import Copy
from keyhaul.sources.sqlite.declared import observe, read_declared
from keyhaul.sources.sqlite.reading import Rows, SqliteReader, _DoubtError

pytestmark = pytest.mark.filterwarnings("error")


def make(path, *statements, rows=None):
    """A database file; `rows` are put into the table t."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("begin")
        for statement in statements:
            conn.execute(statement)
        if rows:
            conn.executemany(f"insert into t values ({', '.join('?' * len(rows[0]))})", rows)
        conn.execute("commit")
    return path


def rows_of(path, table="t", key=()):
    with closing(catalog.connect(path)) as conn:
        found = catalog.read_table(conn, table)
    return Rows(
        copy=path,
        table=table,
        rowid=found.rowid,
        fields=found.fields,
        key=tuple(key or found.primary_key),
        encoding=found.encoding,
    )


def cut(rows, size):
    with closing(catalog.connect(rows.copy)) as conn:
        names = [quote_name(name) for name in rows.key]
        bounds, total = Walk(conn, rows.table, names, rows.encoding).bounds(size)
    nullable = any(not field.not_null for field in rows.fields if field.name in rows.key)
    return chunks_between(bounds, total_rows=total, chunk_rows=size, null_rows=0 if nullable else None)


# --- the copy ------------------------------------------------------------------------------------


def copy_of(path, base, **given):
    return Copy.make(path, base, **{"wait_seconds": 5.0, "cancelled": threading.Event(), **given})


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_copy_is_its_owners_alone_and_the_same_for_the_same_contents(tmp_path, mode):
    live = make(tmp_path / "live.db", "create table t (id integer primary key, v text)", rows=[(1, "a"), (2, "b")])
    base = tmp_path / "work"
    base.mkdir(mode=0o700)
    with closing(sqlite3.connect(live)) as conn:
        conn.execute(f"pragma journal_mode = {mode}")
        first = copy_of(live, base)
        assert (first.path.stat().st_mode & 0o777, first.path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert sorted(place.name for place in first.path.parent.iterdir()) == ["copy.db", "lock"]
        again = copy_of(live, base)
        conn.execute("update t set v = 'c' where id = 2")
        conn.commit()
        changed = copy_of(live, base)
        conn.execute("update t set v = 'b' where id = 2")
        conn.commit()
        back = copy_of(live, base)
    checksums = [one.checksum for one in (first, again, changed, back)]
    assert checksums[0] == checksums[1] == checksums[3] != checksums[2]
    for one in (first, again, changed, back):
        one.remove()
        one.remove()
    assert [place.name for place in base.iterdir()] == ["sqlite.lock"]


def test_another_version_of_the_library_that_wrote_last_is_no_other_contents(tmp_path):
    path = make(tmp_path / "t.db", "create table t (id integer primary key)", rows=[(1,)])
    before = checksum(str(path))
    with path.open("r+b") as file:
        file.seek(96)
        file.write(b"\0\x2e\0\0")
    assert checksum(str(path)) == before
    with path.open("r+b") as file:
        file.seek(60)
        file.write(b"\0\0\0\7")  # user_version
    assert checksum(str(path)) != before


def test_a_copy_has_what_was_committed_before_it_and_nothing_that_is_under_way(tmp_path):
    live = make(tmp_path / "live.db", "create table t (id integer primary key)", rows=[(1,), (2,)])
    with closing(sqlite3.connect(live, isolation_level=None)) as conn:
        conn.execute("pragma journal_mode = wal")
        conn.execute("insert into t values (3)")
        conn.execute("begin immediate")
        conn.execute("delete from t")
        copied = copy_of(live, tmp_path)
        conn.execute("rollback")
    with closing(sqlite3.connect(copied.path)) as conn:
        assert conn.execute("select id from t").fetchall() == [(1,), (2,), (3,)]
    copied.remove()


def test_a_writer_that_holds_the_file_is_waited_for_and_then_told(tmp_path):
    live = make(tmp_path / "live.db", "create table t (id integer primary key)")
    with closing(sqlite3.connect(live, isolation_level=None, check_same_thread=False)) as conn:
        conn.execute("begin exclusive")
        with pytest.raises(ConfigError, match=r"another process has been writing for 0\.2 s"):
            copy_of(live, tmp_path, wait_seconds=0.2)
        threading.Timer(0.3, lambda: conn.execute("commit")).start()
        copy_of(live, tmp_path, wait_seconds=10.0).remove()


def test_a_copy_can_be_cancelled(tmp_path):
    live = make(tmp_path / "live.db", "create table t (id integer primary key)")
    stop = threading.Event()
    with closing(sqlite3.connect(live, isolation_level=None)) as conn:
        conn.execute("begin exclusive")
        threading.Timer(0.3, stop.set).start()
        with pytest.raises(CancelledError):
            copy_of(live, tmp_path, wait_seconds=60.0, cancelled=stop)
    assert list(tmp_path.glob("sqlite-*")) == []


@pytest.mark.parametrize(
    "contents", [b"not a database at all, but long enough " * 40, b"SQLite format 3\0" + b"\xff" * 4096]
)
def test_what_is_no_database_is_told_by_name(tmp_path, contents):
    live = tmp_path / "live.db"
    live.write_bytes(contents)
    with pytest.raises(ConfigError, match=f"copy {live}"):
        copy_of(live, tmp_path)
    assert list(tmp_path.glob("sqlite-*")) == []


def test_what_a_killed_run_has_left_is_swept_by_the_next_and_what_is_in_use_stays(tmp_path):
    live = make(tmp_path / "live.db", "create table t (id integer primary key)")
    program = (
        "import sys, threading; from pathlib import Path; from keyhaul.sources.sqlite.copying import Copy\n"
        "copy = Copy.make(Path(sys.argv[1]), Path(sys.argv[2]), wait_seconds=5, cancelled=threading.Event())\n"
        "print(copy.path, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(live), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        left = Path(other.stdout.readline().strip())
        mine = copy_of(live, tmp_path)
        assert left.exists()
        other.kill()
    copy_of(live, tmp_path).remove()
    assert not left.parent.exists()
    assert mine.path.exists()
    mine.remove()


def test_the_live_file_is_not_opened_in_this_process(tmp_path):
    """A plain open and close would drop the locks that a library in this process holds on it."""
    live = make(tmp_path / "live.db", "create table t (id integer primary key)")
    with live.open("rb+") as held:
        fcntl.lockf(held, fcntl.LOCK_EX, 1, 1000)
        copy_of(live, tmp_path).remove()
        program = (
            "import fcntl, sys; f = open(sys.argv[1], 'rb+'); fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1000)"
        )
        other = subprocess.run([sys.executable, "-c", program, str(live)], capture_output=True, text=True, check=False)
        assert "BlockingIOError" in other.stderr


def test_a_copy_that_is_gone_stops_the_run_at_once(tmp_path):
    path = make(tmp_path / "t.db", "create table t (id integer primary key)", rows=[(1,)])
    reader = SqliteReader(rows_of(path))
    path.unlink()
    with pytest.raises(StopRunError, match="private copy"):
        reader.read(Chunk(number=1))
    assert not path.exists()


def test_a_damaged_copy_costs_the_chunk_and_tells_no_value(tmp_path):
    path = make(
        tmp_path / "t.db",
        "create table t (id integer primary key, v text)",
        rows=[(n, "secret" * 200) for n in range(500)],
    )
    rows = rows_of(path)
    with path.open("r+b") as file:
        file.seek(4096 * 20)
        file.write(os.urandom(4096 * 40))
    with pytest.raises(ChunkError) as caught:
        SqliteReader(rows).read(Chunk(number=1))
    assert "secret" not in str(caught.value)


# --- chunks --------------------------------------------------------------------------------------

MIXED = [
    None,
    -5,
    0,
    3,
    2**53 + 1,
    -(2**63),
    2.5,
    1e300,
    float("inf"),
    "",
    "3",
    "a",
    "A",
    "ä'",
    "x\0y",
    b"",
    b"\x00\xff",
    b"a",
]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_a_key_of_every_storage_class_is_cut_so_that_each_record_is_in_one_chunk(tmp_path, size):
    path = make(tmp_path / "t.db", "create table t (k, n integer)", rows=[(v, n) for n, v in enumerate(MIXED * 2)])
    rows = rows_of(path, key=["k"])
    rows = Rows(copy=path, table="t", rowid="rowid", fields=rows.fields[1:], key=("n",), encoding="UTF-8")
    mixed = rows_of(path, key=["k"])
    found = []
    for chunk in cut(mixed, size):
        batch = SqliteReader(rows).read_where(mixed.where(chunk))
        found += batch.frame["n"].to_list()
    assert sorted(found) == list(range(len(MIXED) * 2))


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
def test_rows_of_one_key_value_stay_together_under_its_collation(tmp_path, encoding):
    words = ["a", "A", "b", "B", "ß", "é"] * 3
    path = make(
        tmp_path / "t.db", f"pragma encoding = '{encoding}'", "create table t (k text collate nocase, n integer)",
        rows=[(word, n) for n, word in enumerate(words)],
    )  # fmt: skip
    rows = rows_of(path, key=["k"])
    assert rows.encoding == encoding
    chunks = cut(rows, 4)
    assert len(chunks) > 3
    seen = {}
    for chunk in chunks:
        for word, number in SqliteReader(rows).read(chunk).frame.rows():
            assert number not in seen
            seen[number] = chunk.number, word
    assert {number: word for number, (_, word) in seen.items()} == dict(enumerate(words))
    for letter in "ab":
        assert len({chunk for chunk, word in seen.values() if word.lower() == letter}) == 1


def test_a_composite_key_without_rowid_is_walked_in_its_order(tmp_path):
    path = make(
        tmp_path / "t.db", "create table t (a text, b int, v real, primary key (a, b)) without rowid",
        rows=[(letter, n, n / 8) for letter in "xyz" for n in range(7)],
    )  # fmt: skip
    rows = rows_of(path)
    assert (rows.key, rows.rowid) == (("a", "b"), "")
    chunks = cut(rows, 4)
    assert [chunk.estimated_rows for chunk in chunks] == [4, 4, 4, 4, 4, 1]
    assert sum(SqliteReader(rows).read(chunk).frame.height for chunk in chunks) == 21
    keys = ('["x","3"]', '["z","6"]', '["z","9"]', '["q","1"]')
    found = SqliteReader(rows).read(Chunk(number=1, kind="keys", keys=keys)).frame
    assert sorted(found.rows()) == [("x", 3, 3 / 8), ("z", 6, 6 / 8)]


@given(value=st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(), st.binary()))
@settings(deadline=None)
def test_a_bound_is_the_value_again_in_its_own_storage_class(value):
    with closing(sqlite3.connect(":memory:")) as conn:
        try:
            sql = literal(written(value), "UTF-8")
        except UnicodeEncodeError:
            return  # a lone surrogate, which no database gives
        assert sql.isascii()
        kind, same = conn.execute(f"select typeof({sql}), {sql} is ?", [value]).fetchone()
        if isinstance(value, float):
            found = conn.execute(f"select {sql}").fetchone()[0]
            assert kind == "real"
            assert found == pytest.approx(value, rel=1e-15)
        else:
            assert (kind, same) == ({int: "integer", str: "text", bytes: "blob"}[type(value)], 1)


# --- types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "pg_type"),
    [
        ("INTEGER", "bigint"), ("int2", "bigint"), ("UNSIGNED BIG INT", "bigint"), ("TINYINT(1)", "bigint"),
        ("REAL", "double precision"), ("double precision", "double precision"), ("FLOAT", "double precision"),
        ("DECIMAL(10, 2)", "numeric(10,2)"), ("numeric(5)", "numeric(5,0)"), ("NUMERIC", "numeric"),
        ("decimal(60,2)", "numeric"), ("DECIMAL(2,5)", "numeric"), ("BOOLEAN", "boolean"), ("Date", "date"),
        ("DATETIME", "timestamp without time zone"), ("TIMESTAMP", "timestamp without time zone"),
        ("TIMESTAMP WITH TIME ZONE", "timestamp with time zone"), ("TIME", "time without time zone"),
        ("NVARCHAR(160)", "text"), ("VARYING CHARACTER(255)", "text"), ("CLOB", "text"), ("JSON", "text"),
        ("UUID", "text"), ("BLOB", "bytea"),
    ],
)  # fmt: skip
def test_a_declared_type_means_one_type_of_postgresql(declared, pg_type):
    assert read_declared(declared).pg_type == pg_type


def test_a_column_without_a_type_has_the_one_of_all_its_values_or_none():
    assert [observe(frozenset(classes)) and observe(frozenset(classes)).kind for classes in (
        [], ["integer"], ["real"], ["integer", "real"], ["text"], ["blob"], ["text", "integer"], ["blob", "text"],
    )] == ["text", "integer", "real", "numeric", "text", "blob", None, None]  # fmt: skip


def test_values_that_do_not_fit_are_rejected_with_the_reason_and_the_others_arrive(tmp_path):
    path = make(
        tmp_path / "t.db", "create table bd_t(id integer primary key, b boolean default false, d date, ts datetime)",
        "insert into bd_t values (1,1,'2024-02-29','2024-02-29 12:34:56'),(2,'false','29/02/2024','2024-02-29T12:34:56Z'),"
        "(3,2,2460369.5,1709210096),(4,0,'0001-01-01','2024-02-29 12:34:56.123456'),(5,null,null,null)",
    )  # fmt: skip
    batch = SqliteReader(rows_of(path, "bd_t")).read(Chunk(number=1))
    assert batch.frame.rows() == [
        (1, True, dt.date(2024, 2, 29), dt.datetime(2024, 2, 29, 12, 34, 56)),  # noqa: DTZ001
        (4, False, dt.date(1, 1, 1), dt.datetime(2024, 2, 29, 12, 34, 56, 123456)),  # noqa: DTZ001
        (5, None, None, None),
    ]
    assert batch.rejected.select("reason", "key", "raw").rows() == [
        ("storage_class", "2", '{"id":"2","b":"false","d":"29/02/2024","ts":"2024-02-29T12:34:56Z"}'),
        ("out_of_range", "3", '{"id":"3","b":"2","d":"2460369.5","ts":"1709210096"}'),
    ]
    assert batch.rejected["message"][0] == (
        "b: got a text, expected 0 or 1 (boolean); "
        "d: got a text of another form or range, expected a text YYYY-MM-DD (date); "
        "ts: got a text of another form or range, expected a text YYYY-MM-DD HH:MM[:SS[.ffffff]] (datetime)"
    )


def test_texts_that_postgresql_cannot_hold_are_rejected(tmp_path):
    path = make(
        tmp_path / "t.db", "create table t (id integer primary key, v text)",
        "insert into t values (1, 'é😀'), (2, cast(x'ff41' as text)), (3, 'a' || char(0)), (4, ''), (5, x'41')",
    )  # fmt: skip
    batch = SqliteReader(rows_of(path)).read(Chunk(number=1))
    assert batch.frame.rows() == [(1, "é😀"), (4, "")]
    assert batch.rejected.select("key", "reason", "raw").rows() == [
        ("2", "encoding", '{"id":"2","v":"\\\\xff41"}'),
        ("3", "encoding", '{"id":"3","v":"a\\u0000"}'),
        ("5", "storage_class", '{"id":"5","v":"\\\\x41"}'),
    ]


def test_decimals_are_the_shortest_number_of_their_double_and_whole_numbers_are_exact(tmp_path):
    values = [0.99, 0.1, 1e15, 12345678.9, 2**53 + 1, -(2**62), 0.1 + 0.2, 0.285, 1e16, None, -0.5]
    path = make(tmp_path / "t.db", "create table t (id integer primary key, n decimal(30,2), free numeric)",
                rows=[(n, value, value) for n, value in enumerate(values)])  # fmt: skip
    batch = SqliteReader(rows_of(path)).read(Chunk(number=1))
    expected = {n: Decimal(repr(value)) for n, value in enumerate(values) if value not in {None, 0.1 + 0.2, 0.285}}
    assert {n: value for n, value, _ in batch.frame.rows() if value is not None} == expected
    assert {n: Decimal(free) for n, _, free in batch.frame.rows() if free is not None} == expected
    assert batch.rejected.select("key", "reason").rows() == [("6", "out_of_range"), ("7", "out_of_range")]
    assert batch.rejected["message"][0].startswith("n: got a real of another form or range, expected a numeric(30,2)")


@pytest.mark.parametrize("value", [2**53 + 1, -(2**62) - 1, 2**63 - 1])
def test_a_whole_number_that_no_double_is_stays_exact_in_a_decimal(tmp_path, value):
    path = make(
        tmp_path / "t.db", "create table t (id integer primary key, n decimal(30,2))", rows=[(1, value), (2, 0.5)]
    )
    assert SqliteReader(rows_of(path)).read(Chunk(number=1)).frame["n"].to_list() == [Decimal(value), Decimal("0.5")]


# --- the fast path and the strict one ------------------------------------------------------------

DECLARED = (
    "integer", "int2", "real", "decimal(10,2)", "decimal(38,5)", "numeric", "boolean", "date", "datetime",
    "timestamptz", "time", "text", "varchar(3)", "string", "json", "blob",
)  # fmt: skip

ISO = st.one_of(
    st.dates().map(str),
    st.datetimes().map(lambda moment: moment.isoformat(sep=" ")),
    st.datetimes().map(lambda moment: moment.isoformat(sep="T") + "Z"),
    st.times().map(str),
    st.sampled_from([
        "2024-02-29", "29/02/2024", "2024-2-9", "0000-01-01", "2024-02-30", " 2024-02-29", "2024-02-29 24:00",
        "2024-02-29 12:34", "2024-02-29 12:34:60", "2024-02-29 12:34:56.1234567", "2024-02-29T12:34:56.5+02:00", "12:30",
        "24:00", "now", "",
    ]),
)  # fmt: skip
VALUE = st.one_of(
    st.none(),
    st.sampled_from([0, 1, 2, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)]),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.integers(-(10**9), 10**9).map(lambda n: n / 100),
    st.text(alphabet=st.characters(codec="utf-8"), max_size=6),
    st.text(alphabet=string.digits + ".e-+", max_size=6),
    st.binary(max_size=4),
    ISO,
)
NORMAL = {
    "integer": st.integers(-5, 2**40), "int2": st.integers(-5, 5), "real": st.floats(allow_nan=False),
    "decimal(10,2)": st.integers(-(10**9), 10**9).map(lambda n: n / 100), "decimal(38,5)": st.integers(-5, 10**6),
    "numeric": st.integers(-(10**6), 10**6).map(lambda n: n / 8), "boolean": st.sampled_from([0, 1]),
    "date": st.dates().map(str), "datetime": st.datetimes().map(lambda moment: moment.isoformat(sep=" ")),
    "timestamptz": st.datetimes().map(lambda moment: moment.isoformat() + "+02:00"), "time": st.times().map(str),
    "text": st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=6), "blob": st.binary(max_size=4),
}  # fmt: skip


@st.composite
def tables(draw):
    declared = draw(st.lists(st.sampled_from(DECLARED), min_size=1, max_size=4))
    columns = []
    for kind in declared:
        usual = NORMAL.get(kind, NORMAL["text"])
        columns.append(st.one_of(st.none(), usual) if draw(st.booleans()) else VALUE)
    return declared, draw(st.lists(st.tuples(*columns), max_size=12))


@given(table=tables())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_the_fast_path_gives_what_the_strict_one_gives_or_nothing(tmp_path, table):
    declared, values = table
    path = tmp_path / f"{random.getrandbits(64):x}.db"
    columns = ", ".join(f"c{n} {kind}" for n, kind in enumerate(declared))
    make(path, f"create table t (id integer primary key, {columns})", rows=[(n, *row) for n, row in enumerate(values)])
    reader = SqliteReader(rows_of(path))
    strict = reader.strictly("true")
    try:
        fast = reader.fast("true")
    except _DoubtError:
        fast = None
    assert strict.frame.height + strict.rejected.height == len(values)
    if fast is not None:
        assert fast.frame.equals(strict.frame)
        assert fast.frame.schema == strict.frame.schema
        assert strict.rejected.height == 0
    with closing(sqlite3.connect(path)) as conn:
        conn.text_factory = bytes
        stored = {row[0]: row[1:] for row in conn.execute("select * from t")}
    arrived = {row[0]: row[1:] for row in strict.frame.rows()}
    rejected = {int(key) for key in strict.rejected["key"]}
    assert arrived.keys() | rejected == stored.keys()
    for key, row in arrived.items():
        for kind, got, had in zip(declared, row, stored[key], strict=True):
            assert same(kind, got, had), (kind, got, had)
    path.unlink()


def same(kind, got, had):  # noqa: PLR0911 - one for each kind
    """Whether a value arrived as it was stored, told without the code under test."""
    if had is None or got is None:
        return got is had
    if kind in {"integer", "int2", "blob", "boolean"}:
        return got == had
    if kind == "real":
        return got == had and isinstance(had, float)
    if kind.startswith(("decimal", "numeric")):
        return float(Decimal(got)) == had if isinstance(had, float) else Decimal(got) == had
    text = had.decode() if isinstance(had, bytes) else str(had)
    if kind == "date":
        return got.isoformat() == text
    if kind == "datetime":
        return got == dt.datetime.fromisoformat(text.rstrip("0") if len(text) > 26 else text)
    if kind == "timestamptz":
        return got == dt.datetime.fromisoformat(text)
    return got == text
