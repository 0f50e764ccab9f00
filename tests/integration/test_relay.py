"""CSV that goes to COPY as it stands: the same rows and the same quarantine as when it is read."""

from __future__ import annotations

import json

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.execution.engine import run
from keyhaul.sources.columns import column_of
from keyhaul.sources.files.delimited import Delimited
from keyhaul.sources.files.dialect import Dialect
from keyhaul.sources.files.textfile import TextFile
from keyhaul.targets import session, transaction
from keyhaul.targets.session import CopySession

TYPES = {
    "a": "bigint",
    "b": "text",
    "c": "numeric",
    "d": "boolean",
    "e": "timestamp with time zone",
    "f": "uuid",
    "g": "numeric(6,2)",
    "h": "date",
    "i": "timestamp without time zone",
    "j": "smallint",
}
ODD = {
    "a": ["", "1", "+5", " 7 ", "-0", "0x1F", "0b1", "0o7", "1_000", "1.5", "1e3", '"5"', '""', "9223372036854775808", "é", '" 6\t"'],
    "b": ["", '""', "x", " x ", "NULL", "\\.", "\\N", '"a""b"', '"l1\nl2"', '"c\r\nd"', '"a,b"', '5" disk', '"ab"c', ' "q"', "0x1F", "1_0", "é"],
    "c": ["", "1.10", ".5", "5.", "+1", "1e3", "NaN", "nan", "inf", "-Infinity", "1_0.5", "0x1F", " 2 ", "12345678901234567890123.00"],
    "d": ["", "t", "true", "YES", "on", "1", "tru", "of", "0", " t ", "y", "fals"],
    "e": ["", "2024-02-29 10:00:00+00", "2024-02-29T10:00:00.123456Z", "2024-02-29 10:00", "now", "2023-02-29 10:00:00Z", "2024-02-29 23:59:60Z", "2024-02-29 24:00:00Z", "2024-02-29 10:00:00.1234567Z", "2024-02-29 10:00+05:30", "infinity"],
    "f": ["", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}", "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11", "A0EEBC999C0B4EF8BB6D6BB9BD380A11"],
    "g": ["", "1.10", "1.100", "1.101", "12345.6", "-9999.99", "NaN", "1e2", ".5", "007"],
    "h": ["", "2024-02-29", "2023-02-29", "0000-01-01", "29.02.2024", "2024-02-29 10:00", "today", "20240229"],
    "i": ["", "2024-02-29 10:00:00", "2024-02-29T10:00", "2024-02-29 10:00:00+02", "2024-02-29 24:00:00", "epoch", "2024-02-29 10:00:00.9999999"],
    "j": ["", "1", "32768", "-32768", "0X1", "0 1"],
}  # fmt: skip
USUAL = {
    name: (st.sampled_from(words[:2]) if name != "d" else st.sampled_from(["t", "1", ""]))
    for name, words in ODD.items()
}


def records(names):
    """Records of which most are as usual, with each kind of line end."""
    cells = [st.one_of(USUAL[name], USUAL[name], USUAL[name], st.sampled_from(ODD[name])) for name in names]
    line = st.tuples(*cells).map(",".join)
    wild = st.one_of(line, line, line, line, st.sampled_from(["", "\\.", "1", ",,,,,", '"', "a\0b", "a\rb", " "]))
    end = st.sampled_from(["\n", "\n", "\n", "\r\n"])
    mixed = st.lists(st.tuples(wild, end).map("".join), min_size=1, max_size=6).map("".join)
    even = st.tuples(st.lists(line, min_size=1, max_size=6), end).map(lambda given: given[1].join([*given[0], ""]))
    whole = st.one_of(even, even, mixed)
    return st.one_of(whole, whole, whole.map(lambda text: text.rstrip("\n"))).map(str.encode)


@pytest.fixture(params=["server", "server16", "server_icu"])
def relaying(request, database):
    """A session in a database of each server."""
    opened = CopySession(database(request.getfixturevalue(request.param)))
    assert opened.relays
    yield opened
    opened.close()


@pytest.mark.parametrize("names", ["a", "b", "ab", "ac", "bd", "be", "bf", "gb", "hi", "abcdefghij"])
def test_what_copy_takes_of_a_relayed_text_is_what_reading_it_gives(relaying, tmp_path, names):
    types = {name: column_of(name, TYPES[name]) for name in names}
    table = sql.Identifier("pg_temp", "t")
    columns = ", ".join(f"{name} {TYPES[name]}" for name in names)
    relayed = []

    @settings(deadline=None, max_examples=100)
    @given(records(names))
    @example(b"")
    def check(text):
        path = tmp_path / "t.csv"
        path.write_bytes(",".join(names).encode() + b"\n" + text)
        file = Delimited(TextFile(path), Dialect())
        file.settle(types)
        part = ("0", "1000000")
        given_over = file.relay(part)
        found = file.read(part, list(names))
        file.close()
        if given_over is None:
            return
        relaying.execute(sql.SQL(f"set timezone = 'UTC'; create temp table t ({columns}) on commit drop"))
        try:
            relaying.relay(table, given_over)
        except session.ChunkError:
            relaying.roll_back()
            return
        stored = relaying.execute(sql.SQL("select * from pg_temp.t"))
        relaying.roll_back()
        relayed.append(text)
        assert found.rejected.height == 0
        assert len(stored) == given_over.records == found.frame.height
        assert [tuple(map(plain, row)) for row in stored] == [
            tuple(map(plain, row)) for row in found.frame.select(list(names)).iter_rows()
        ]

    check()
    assert relayed


def plain(value):
    """Return a value as both ends write it: numbers with their digits behind the point."""
    text = str(value)
    return text if value is None or not text.endswith("+00:00") else text.removesuffix("+00:00")


# --- whole runs ------------------------------------------------------------------------------------

GOOD = b'id,t,n\n1,a,1.10\n2,,\n3,"x,\ny",-5\n'
FILES = {
    "plain": GOOD,
    "crlf": GOOD.replace(b"\n", b"\r\n"),
    "a_bad_number": GOOD + b"4,b,x\n5,c,2\n",
    "hexadecimal": GOOD + b"0x1F,b,1\n1_000,c,1\n",
    "ragged": GOOD + b"4,b\n5,c,2,3\n6,d,1\n",
    "nul": GOOD + b"4,a\0b,1\n5,c,2\n",
    "blank_lines": GOOD + b"\n\n5,c,2\n",
    "end_of_copy": GOOD + b"\\.\n5,c,2\n6,\\.,1\n",
    "unclosed": GOOD + b'4,"b,1\n5,c,2\n',
    "latin1": GOOD + b"4,\xe9,1\n5,c,2\n",
    "inner_quote": GOOD + b'4,5" disk,1\n5,6" disk,2\n',
    "mixed_ends": GOOD + b"4,b,1\r\n5,c,2\n",
    "too_large": GOOD + b"92233720368547758070,b,1\n5,c,2\n",
}


def move(target, path, *, relay, **flags):
    given = {"source_path": str(path), **flags}
    file = path.with_suffix(".yaml")
    columns = {"id": "bigint", "t": "text", "n": "numeric"}
    job = {"job": "relay", "source": {"path": given["source_path"], "columns": columns}, "chunk": 2, "workers": 1}
    job["target"] = {"uri": target, "table": "public.t", "relay": relay, **flags}
    file.write_text(json.dumps(job))
    return run(load_job(file, {}, {}), lambda _event: None, Control(), fresh=True)


def state(target, run_id):
    with psycopg.connect(target) as conn:
        rows = conn.execute("select id, t, n::text from public.t order by id, t, n").fetchall()
        rejected = conn.execute(
            "select stage, rules, message, key, data::text from keyhaul.quarantine where run_id = %s order by key",
            [run_id],
        ).fetchall()
        chunks = conn.execute(
            "select chunk, rows_read, rows_loaded, rows_quarantined from keyhaul.chunks where run_id = %s order by 1",
            [run_id],
        ).fetchall()
    return rows, rejected, chunks


@pytest.mark.parametrize("name", FILES)
def test_a_run_with_the_relay_and_one_without_leave_the_same(server, database, tmp_path, name, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_bytes(FILES[name])
    relayed = []
    load = transaction.relay
    monkeypatch.setattr(transaction, "relay", lambda *given: relayed.append(load(*given)) or relayed[-1])
    found = []
    for relay in (False, True):
        target = database(server)
        report = move(target, path, relay=relay)
        found.append(state(target, report.run_id))
        assert bool(relayed) == (relay and name not in {"unclosed", "inner_quote"})
    assert found[0] == found[1]


@pytest.mark.parametrize("mode", ["append", "replace"])
def test_what_the_target_refuses_costs_itself_with_the_relay_too(server, database, tmp_path, mode):
    path = tmp_path / "t.csv"
    path.write_bytes(GOOD + b"3,again,1\n4,b,1\n5,c,-99\n")
    found = []
    for relay in (False, True):
        target = database(server)
        with psycopg.connect(target) as conn:
            conn.execute("create table public.t (id bigint primary key, t text, n numeric check (n > -90))")
        report = move(target, path, relay=relay, mode=mode)
        found.append(state(target, report.run_id))
    assert found[0] == found[1]
    assert [row[0] for row in found[1][0]] == [1, 2, 3, 4]
