"""skip and upsert: what is there already is kept or updated, and counted apart."""

import pytest
from moving import move, rows, run_sql

from keyhaul.errors import RefusedError

TABLE = "create table public.t (id int primary key, amount numeric(10,2), note text, doc json, updated_at timestamp)"


@pytest.fixture
def filled(databases):
    run_sql(
        databases[0],
        TABLE,
        "insert into public.t select g, g, 'note ' || g, '{\"a\": 1}', '2024-01-02' from generate_series(1, 1000) g",
    )
    run_sql(
        databases[1],
        TABLE,
        "insert into public.t select g, g, 'note ' || g, '{\"a\": 1}', '2024-01-02' from generate_series(1, 600) g",
        "update public.t set note = 'old' where id % 100 = 0",
        "update public.t set note = null, updated_at = '2025-01-01' where id = 7",
    )
    return databases


def counts(report):
    c = report.counts
    return {"loaded": c.loaded, "updated": c.updated, "unchanged": c.unchanged, "duplicate": c.duplicate}


@pytest.mark.parametrize("loader", ["copy", "adbc"])
def test_skip_keeps_what_is_there_and_counts_it_as_unchanged(filled, loader):
    report = move(filled, "public.t", mode="skip", loader=loader, chunk="300")
    assert counts(report) == {"loaded": 400, "updated": 0, "unchanged": 600, "duplicate": 0}
    assert rows(filled[1], "select count(*), count(*) filter (where note = 'old') from public.t") == [(1000, 6)]


@pytest.mark.parametrize("loader", ["copy", "adbc"])
def test_upsert_updates_only_what_differs(filled, loader):
    report = move(filled, "public.t", mode="upsert", loader=loader, chunk="300")
    assert counts(report) == {"loaded": 407, "updated": 7, "unchanged": 593, "duplicate": 0}
    assert report.counts.balanced
    everything = "select * from public.t order by id"
    assert [tuple(map(str, row)) for row in rows(filled[1], everything)] == [
        tuple(map(str, row)) for row in rows(filled[0], everything)
    ]
    again = move(filled, "public.t", mode="upsert", loader=loader)
    assert counts(again) == {"loaded": 0, "updated": 0, "unchanged": 1000, "duplicate": 0}


def test_upsert_with_newer_by_keeps_the_newer_row(filled):
    report = move(filled, "public.t", mode="upsert", newer_by="updated_at")
    assert counts(report) == {"loaded": 400, "updated": 0, "unchanged": 600, "duplicate": 0}
    run_sql(filled[0], "update public.t set updated_at = '2026-01-01', note = 'new' where id <= 10")
    report = move(filled, "public.t", mode="upsert", newer_by="updated_at")
    assert counts(report) == {"loaded": 10, "updated": 10, "unchanged": 990, "duplicate": 0}
    assert rows(filled[1], "select count(*) from public.t where note = 'new'") == [(10,)]


def test_of_two_rows_with_one_conflict_key_the_newest_is_loaded_and_the_other_counts_as_duplicate(databases):
    run_sql(
        databases[0],
        "create table public.t (n int primary key, code text, at int)",
        "insert into public.t values (1, 'a', 5), (2, 'a', 9), (3, 'b', 1), (4, null, 1), (5, null, 2)",
    )
    run_sql(databases[1], "create table public.t (n int, code text unique, at int)")
    report = move(databases, "public.t", key="n", mode="upsert", conflict="code", newer_by="at")
    assert counts(report) == {"loaded": 4, "updated": 0, "unchanged": 0, "duplicate": 1}
    assert rows(databases[1], "select n from public.t order by n") == [(2,), (3,), (4,), (5,)]


def test_a_row_that_another_constraint_rejects_is_quarantined_and_the_rest_is_upserted(filled):
    run_sql(filled[1], "alter table public.t add constraint small check (amount < 990)")
    report = move(filled, "public.t", mode="upsert")
    assert (report.counts.loaded, report.counts.quarantined, report.counts.balanced) == (396, 11, True)


def test_a_missing_table_is_created_and_upserted_into(databases):
    run_sql(databases[0], TABLE, "insert into public.t (id) select generate_series(1, 10)")
    assert counts(move(databases, "public.t", mode="upsert"))["loaded"] == 10
    assert counts(move(databases, "public.t", mode="upsert"))["unchanged"] == 10


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"mode": "upsert", "conflict": "note"}, "no unique index on exactly note"),
        ({"mode": "upsert", "newer_by": "nothing"}, "looks at nothing, which the job does not write"),
        ({"mode": "skip", "newer_by": "updated_at"}, "newer_by is given with mode skip"),
        ({"mode": "append", "conflict": "id"}, "conflict is given, expected it with mode skip or upsert"),
    ],
)
def test_a_mode_that_cannot_work_is_refused_before_the_first_row(filled, flags, message):
    with pytest.raises(RefusedError, match=message):
        move(filled, "public.t", **flags)
