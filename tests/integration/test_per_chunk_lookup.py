"""`per_chunk: true`: what a held lookup and plain SQL would say, without holding the lookup."""

import uuid

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moving import rows, run_sql

from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.errors import ConfigError
from keyhaul.execution.engine import run

FOUND = "select id, taken from public.t order by id"


def go(databases, path, lookup, **flags):
    file = path / "job.yaml"
    source, target = databases
    file.write_text(
        f"job: j\nkey: id\nsource: {{table: public.t}}\ntransform:\n  - lookup: {{{lookup}}}\n", encoding="utf-8"
    )
    job = load_job(file, {"source": source, "target": target, "chunk": "40", "mode": "upsert", **flags}, {})
    return run(job, lambda _event: None, Control(), fresh=True)


@pytest.fixture
def filled(databases):
    run_sql(
        databases[0],
        "create table public.t (id int primary key, k bigint)",
        "insert into public.t select g, case when g % 10 = 0 then null when g % 7 = 0 then -g else g end"
        " from generate_series(1, 200) g",
        "create table public.l (k int primary key, v text)",
        "insert into public.l select g, 'value ' || g from generate_series(1, 100000) g",
        "analyze",
    )
    return databases


@pytest.mark.parametrize("reader", ["connectorx", "adbc"])
@pytest.mark.parametrize("missing", ["keep", "quarantine"])
def test_it_takes_what_sql_would_and_reads_only_the_rows_of_the_chunks_keys(filled, tmp_path, reader, missing):
    fetched = "select coalesce(idx_tup_fetch, 0) + seq_tup_read from pg_stat_user_tables where relname = 'l'"
    before = rows(filled[0], fetched)[0][0]
    lookup = f"source: {{table: public.l}}, on: k, take: {{taken: v}}, missing: {missing}, per_chunk: true"
    report = go(filled, tmp_path, lookup, reader=reader)
    join = "left join" if missing == "keep" else "join"
    expected = rows(filled[0], f"select id, v from public.t {join} public.l using (k) order by id")
    assert rows(filled[1], FOUND) == expected
    assert (report.outcome, report.counts.quarantined, report.counts.balanced) == ("done", 200 - len(expected), True)
    if missing == "quarantine":
        held = rows(filled[1], "select key::int, stage, rules, message from keyhaul.quarantine order by 1")
        assert held == [
            (n, "lookup", ["lookup:l"], "k is null" if k is None else "k not found in l")
            for n, k in rows(filled[0], "select id, k from public.t where k is null or k < 0 order by id")
        ]
    run_sql(filled[0], "select pg_stat_clear_snapshot()")
    assert 0 < rows(filled[0], fetched)[0][0] - before < 1000  # with this test's own joins; it has 100,000 rows


def test_it_is_read_in_the_runs_snapshot(filled, tmp_path):
    lookup = "source: {query: 'select k, v from public.l'}, on: k, take: {taken: v}, per_chunk: true"
    file = tmp_path / "job.yaml"
    file.write_text(
        f"job: j\nkey: id\nsource: {{table: public.t}}\ntransform:\n  - lookup: {{{lookup}}}\n", encoding="utf-8"
    )
    flags = {"source": filled[0], "target": filled[1], "chunk": "40", "workers": "1"}
    changed = []

    def change(event):
        if type(event).__name__ == "ChunkDone" and not changed:
            changed.append(event)
            run_sql(filled[0], "update public.l set v = 'too late' where k <= 200")

    assert run(load_job(file, flags, {}), change, Control()).outcome == "done"
    assert rows(filled[1], "select count(*) from public.t where taken = 'too late'") == [(0,)]
    assert changed


def test_several_rows_with_one_key_fail_the_chunk_unless_first_decides(filled, tmp_path):
    run_sql(
        filled[0], "alter table public.l drop constraint l_pkey", "insert into public.l values (51, 'a'), (150000, 'b')"
    )
    lookup = "source: {table: public.l}, on: k, take: {taken: v}, per_chunk: true"
    report = go(filled, tmp_path, lookup)
    assert [(failed.chunk, "1 key has several rows" in failed.error) for failed in report.failed] == [(2, True)]
    assert go(filled, tmp_path, f"{lookup}, first: v").outcome == "done"
    assert rows(filled[1], "select taken from public.t where id = 51") == [("a",)]


@pytest.mark.parametrize(
    ("lookup", "message"),
    [
        ("source: {file: a.csv}, on: k, take: {taken: v}, per_chunk: true", "line 5: .*true for a file"),
        (
            "source: {table: public.l, uri: 'postgresql://h/d'}, on: k, take: {taken: v}, per_chunk: true",
            "line 5: .*true for another database",
        ),
        ("source: {table: public.l}, on: k, take: {taken: v}, per_chunk: 1", "line 5: .*expected true or false"),
        (
            "source: {table: public.l}, on: {k: v}, take: {taken: v}, per_chunk: true",
            "line 5: .*got String, expected Int64",
        ),
        (
            "source: {query: 'select 1.5::numeric(4,2) as k, 2 as v'}, on: k, take: {taken: v}, per_chunk: true",
            "line 5: .*got k numeric",
        ),
        ("source: {table: public.l}, on: k, take: {taken: w}, per_chunk: true", "line 5: .*it has no column w"),
    ],
)
def test_what_cannot_be_fetched_by_key_is_refused_with_its_line(filled, tmp_path, lookup, message):
    with pytest.raises(ConfigError, match=message):
        go(filled, tmp_path, lookup)


UUIDS = [str(uuid.UUID(int=n)) for n in range(4)]
INTEGERS = st.sampled_from([None, 0, 1, -1, 32767, -32768, 2**31 - 1, 2**31, 2**62])
TEXTS = st.sampled_from(
    [None, "", "a", "A", "a ", "ä", "it's", 'say "x"', "{1,2}", "NULL", "\\", *UUIDS, UUIDS[0].upper()]
)
KINDS = {
    "smallint": (INTEGERS, lambda v: v is None or -(2**15) <= v < 2**15),
    "int": (INTEGERS, lambda v: v is None or -(2**31) <= v < 2**31),
    "bigint": (INTEGERS, lambda _: True),
    "text": (TEXTS, lambda _: True),
    "varchar(60)": (TEXTS, lambda _: True),
    "uuid": (TEXTS, lambda v: v is None or v in UUIDS),
}
PAIRS = [(a, b) for a in KINDS for b in KINDS if KINDS[a][0] is KINDS[b][0]]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), types=st.tuples(st.sampled_from(PAIRS), st.sampled_from(PAIRS)), both=st.booleans())
def test_it_gives_what_the_held_lookup_gives(databases, tmp_path, data, types, both):
    pairs = types if both else types[:1]

    def values(side, most):
        columns = [KINDS[pair[side]][0].filter(KINDS[pair[side]][1]) for pair in pairs]
        return data.draw(st.lists(st.tuples(*columns), max_size=most))

    for uri in databases:
        run_sql(uri, "drop table if exists public.t, public.l", "drop schema if exists keyhaul cascade")
    with psycopg.connect(databases[0], autocommit=True) as conn:
        for table, side, number in (("t", 0, "id int primary key"), ("l", 1, "v int")):
            names = ", ".join(f"k{n} {pair[side]}" for n, pair in enumerate(pairs))
            conn.execute(f"create table public.{table} ({number}, {names})")
            for n, row in enumerate(values(side, 100 if side == 0 else 12)):
                conn.execute(f"insert into public.{table} values ({', '.join(['%s'] * (len(row) + 1))})", (n, *row))
    on = ", ".join(f"k{n}" for n in range(len(pairs)))
    lookup = f"source: {{table: public.l}}, on: [{on}], take: {{taken: v}}, first: v"
    found = []
    for more in ("", ", per_chunk: true"):
        assert go(databases, tmp_path, lookup + more).outcome == "done"
        found.append(rows(databases[1], FOUND))
        run_sql(databases[1], "drop table public.t")
    assert found[0] == found[1]
