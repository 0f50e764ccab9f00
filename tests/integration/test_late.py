"""Rows that refer to a row of a later chunk of their own run: they wait for it, and come in the same run."""

import pytest
from moving import job, move, rows, run_sql

from keyhaul import events
from keyhaul.comparison.ledgercompare import Place, compare_ledger
from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.execution.engine import run

BOSS = "create table public.t (id int primary key, boss int, name text)"
REFERS = BOSS.replace("boss int", "boss int constraint self references public.t")
DEFERRED = BOSS.replace("boss int", "boss int constraint self references public.t deferrable initially deferred")
STAFF = (
    "insert into public.t select g, case when g = 1 then null when g % 2 = 0 then g / 2 else 101 - g end, 'n' || g"
    " from generate_series(1, 100) g"
)
EVERYTHING = "select id, boss, name from public.t order by id"


def balance(databases, report):
    """What the ledger's chunks have, and the quarantine."""
    of_run = f"where run_id = '{report.run_id}'"
    return rows(
        databases[1],
        "select sum(rows_read)::int, sum(rows_loaded)::int, sum(rows_quarantined)::int,"
        f" (select count(*)::int from keyhaul.quarantine {of_run}), (select count(*)::int from keyhaul.late)"
        f" from keyhaul.chunks {of_run}",
    )[0]


@pytest.mark.parametrize("target", [REFERS, DEFERRED])
@pytest.mark.parametrize("flags", [{}, {"mode": "upsert"}, {"mode": "skip"}, {"mode": "replace"}, {"loader": "adbc"}])
def test_rows_whose_parents_are_in_later_chunks_all_come_in_one_run(databases, target, flags):
    run_sql(databases[0], BOSS, STAFF)
    run_sql(databases[1], target)
    report = move(databases, "public.t", chunk="10", **flags)
    assert (report.outcome, report.counts.loaded, report.counts.quarantined) == ("done", 100, 0)
    assert rows(databases[1], EVERYTHING) == rows(databases[0], EVERYTHING)
    assert balance(databases, report) == (100, 100, 0, 0, 0)
    assert rows(databases[1], "select count(*) from keyhaul.quarantine") == [(0,)]


def test_a_run_says_in_how_many_passes_how_many_rows_came(databases):
    run_sql(databases[0], BOSS, STAFF)
    run_sql(databases[1], REFERS)
    seen = []
    report = run(job(databases, chunk="10", workers=1), seen.append, Control(), fresh=True)
    (late,) = [event for event in seen if isinstance(event, events.LateLoaded)]
    first = sum(event.counts.loaded for event in seen if isinstance(event, events.ChunkDone))
    assert (late.number, late.rows, late.left) == (1, 100 - first, 0)
    assert first < 50
    assert (report.late_passes, report.late_rows) == (1, 100 - first)
    assert rows(databases[1], "select late_passes, late_rows::int from keyhaul.runs") == [(1, 100 - first)]


def test_circles_over_several_chunks_come_and_what_leads_nowhere_stays_with_its_reason(databases):
    run_sql(
        databases[0],
        BOSS,
        # A circle of all rows of 1 to 90, each ten rows on; 91 to 95 lead to 999, 96 to itself, 97 to no row at all.
        "insert into public.t select g, (g + 9) % 90 + 1, 'n' from generate_series(1, 90) g",
        "insert into public.t values (91, 92), (92, 93), (93, 94), (94, 95), (95, 999), (96, 96), (97, 98), (99, 97)",
    )
    run_sql(databases[1], DEFERRED)
    report = move(databases, "public.t", chunk="3")
    assert (report.counts.loaded, report.counts.quarantined, report.counts.balanced) == (91, 7, True)
    found = rows(databases[1], "select key::int, stage, rules from keyhaul.quarantine order by 1")
    assert found == [(key, "load", ["self"]) for key in (91, 92, 93, 94, 95, 97, 99)]
    assert balance(databases, report) == (98, 91, 7, 7, 0)


def test_a_chain_through_all_chunks_backwards_takes_one_pass(databases):
    run_sql(
        databases[0],
        BOSS,
        "insert into public.t select g, case when g <= 480 then g + 20 end, 'n' from generate_series(1, 500) g",
    )
    run_sql(databases[1], REFERS)
    report = move(databases, "public.t", chunk="20")
    assert (report.counts.loaded, report.counts.quarantined) == (500, 0)
    assert report.late_passes == 1


@pytest.mark.parametrize("mode", ["append", "upsert", "skip"])
def test_a_late_row_that_the_target_refuses_for_another_reason_costs_itself_and_what_leads_to_it(databases, mode):
    """Row 60 takes the code of a row that came after it was refused; 10 refers to 60, and the others to what comes."""
    run_sql(
        databases[0],
        "create table public.t (id int primary key, boss int, code int)",
        "insert into public.t select g, nullif(g, 100) + 1, case g when 60 then 95 else g end from generate_series(1, 100) g",
        "update public.t set boss = null where id > 60",
        "update public.t set boss = 100 where id in (60, 50, 30)",
        "update public.t set boss = 60 where id = 10",
    )
    run_sql(
        databases[1],
        "create table public.t (id int primary key, boss int constraint self references public.t, code int constraint code unique)",
    )
    report = move(databases, "public.t", chunk="7", workers=1, mode=mode)
    bad = {*range(1, 11), *range(51, 61)}
    found = rows(databases[1], "select key::int, rules from keyhaul.quarantine order by 1")
    assert {key for key, _ in found} == bad
    assert [rules for key, rules in found if key == 60] == [["code"]]
    assert balance(databases, report) == (100, 100 - len(bad), len(bad), len(bad), 0)


def test_upsert_updates_late_rows_that_are_there_and_leaves_equal_ones_alone(databases):
    run_sql(databases[0], BOSS, STAFF)
    run_sql(
        databases[1],
        REFERS,
        "insert into public.t values (3, null, 'old'), (5, null, 'n5'), (50, null, 'there')",
    )
    report = move(databases, "public.t", chunk="10", mode="upsert")
    assert rows(databases[1], EVERYTHING) == rows(databases[0], EVERYTHING)
    counts = report.counts
    assert (counts.loaded, counts.updated, counts.unchanged, counts.quarantined) == (100, 3, 0, 0)
    again = move(databases, "public.t", chunk="10", mode="upsert").counts
    assert (again.loaded, again.unchanged, again.quarantined) == (0, 100, 0)


def test_late_rows_come_as_the_transform_made_them_and_rules_and_dedup_count_once(databases):
    run_sql(databases[0], BOSS, STAFF, "insert into public.t values (101, 1, null)")
    run_sql(databases[1], REFERS)
    report = move(
        databases,
        "public.t",
        chunk="10",
        set=["name = upper(name)"],
        where="id <> 64",
        rule=["named: name is not null"],
    )
    gone = {64, *(g for g in range(1, 102) if leads_to(g, 64))}
    assert report.counts.filtered == 1
    assert report.counts.quarantined == len(gone)  # all that lead to 64, and 101 without a name
    want = f"select id, boss, upper(name) from public.t where name is not null and not (id = any(array{sorted(gone)}))"
    assert rows(databases[1], EVERYTHING) == rows(databases[0], want + " order by id")


def leads_to(one, other):
    while one not in {1, other}:
        one = 1 if one == 101 else one // 2 if one % 2 == 0 else 101 - one
    return one == other


def test_what_travels_as_text_in_one_chunk_and_not_in_another_waits_as_well(databases):
    table = "create table public.t (id int primary key, boss int{}, at timestamp, num numeric, key text)"
    run_sql(
        databases[0],
        table.format(""),
        "insert into public.t select g, nullif(101 - g, g), case when g % 13 = 0 then 'infinity' else"
        " timestamp '2024-01-01' end, case when g % 17 = 0 then 'NaN' else g * 1.50 end, 'k' from generate_series(1, 100) g",
    )
    run_sql(databases[1], table.format(" constraint self references public.t"))
    report = move(databases, "public.t", chunk="9")
    whole = "select id, boss, at::text, num::text, key from public.t order by id"
    assert (report.counts.loaded, report.counts.quarantined) == (100, 0)
    assert rows(databases[1], whole) == rows(databases[0], whole)


def test_rows_without_a_key_and_with_the_same_key_wait_too(databases):
    run_sql(
        databases[0],
        "create table public.t (k int, id int, boss int)",
        "insert into public.t select case when g % 4 = 0 then null else g / 10 end, g, 101 - g from generate_series(1, 100) g",
    )
    run_sql(databases[1], "create table public.t (k int, id int primary key, boss int references public.t)")
    report = move(databases, "public.t", key="k", chunk="10")
    assert (report.counts.loaded, report.counts.quarantined, report.counts.balanced) == (100, 0, True)


def test_checksums_are_true_after_late_rows(databases):
    run_sql(databases[0], BOSS, STAFF)
    run_sql(databases[1], REFERS)
    report = move(databases, "public.t", chunk="10", checksum=True)
    assert report.counts.loaded == 100
    there = rows(databases[1], "select sum(rows_there)::int from keyhaul.chunks")
    assert there == [(100,)]
    place = Place.of(job(databases))
    assert compare_ledger(place, report.run_id, lambda _message: None).equal
    run_sql(databases[1], "update public.t set name = 'other' where id = 99")
    assert not compare_ledger(place, report.run_id, lambda _message: None).equal


def test_records_of_several_tables_that_refer_to_each_other_wait_whole(databases, tmp_path):
    run_sql(
        databases[0],
        "create table public.raw (id int primary key, unit text, lead int, boss int)",
        "insert into public.raw select g, 'u' || g % 5, case when g = 1 then 1 when g % 2 = 0 then g / 2 else 101 - g end, case when g = 1 then null when g % 2 = 0 then g / 2 else 101 - g end from generate_series(1, 100) g",
        "insert into public.raw values (200, 'u9', 1, 7777)",
    )
    run_sql(
        databases[1],
        "create table public.person (id int primary key, boss int constraint boss references public.person)",
        "create table public.unit (id int primary key, name text, lead int constraint lead references public.person)",
    )
    file = tmp_path / "job.yaml"
    file.write_text(
        f"""
job: units
source: {{uri: "{databases[0]}", table: public.raw}}
target: {{uri: "{databases[1]}"}}
key: id
chunk: 10
targets:
  - table: public.person
    columns: {{id: id, boss: boss}}
    mode: append
  - table: public.unit
    columns: {{id: id, name: unit, lead: lead}}
    mode: append
""",
        encoding="utf-8",
    )
    report = run(load_job(file, {}, {}), lambda _event: None, Control(), fresh=True)
    assert (report.counts.loaded, report.counts.quarantined, report.counts.balanced) == (100, 1, True)
    assert {table.table: table.inserted for table in report.tables} == {"public.person": 100, "public.unit": 100}
    assert rows(databases[1], "select key, rules from keyhaul.quarantine") == [("200", ["boss"])]
    assert rows(databases[1], "select count(*) from keyhaul.late") == [(0,)]
    assert report.late_passes >= 1
