"""What others do to the target while a run goes on: its rows are the source's, or the run stops and says what changed."""

import pytest
import tables
from moving import job, rows, run_sql

from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.events import ChunkDone
from keyhaul.execution.engine import run

SOURCE = (
    "create table public.t (id int primary key, a int, b int, w bigint, n text)",
    "insert into public.t select g, g * 3, g * 7, g * 100000000000, 'n' || g from generate_series(1, 1000) g",
)
TARGET = "create table public.t (id int primary key, a int, b int, w bigint, n text)"


def watched(given, uri, *statements, at):
    """Run a job; another session acts in the target after so many of its chunks are committed."""
    count = 0

    def observe(event):
        nonlocal count
        if isinstance(event, ChunkDone):
            count += 1
            if count == at:
                run_sql(uri, *statements)

    return run(given, observe, Control(), fresh=True)


def moved(databases, *statements, at=3, **flags):
    """Move public.t in 10 chunks, while another session acts in the target."""
    given = job(databases, **{"chunk": 100, "workers": 1, "mode": "append", **flags})
    return watched(given, databases[1], *statements, at=at)


def fill(databases, target=TARGET):
    run_sql(databases[0], *SOURCE)
    run_sql(databases[1], target)


SAME = "select id, a::text, b::text, w::text, n from public.t order by id"

STOPPING = {
    "an integer becomes a real": (
        ["alter table public.t alter a type real"],
        "its column a has another type now, real",
    ),
    "a bigint becomes a moment": (
        ["alter table public.t alter w type timestamptz using to_timestamp(w / 1e9)"],
        "its column w has another type now, timestamp with time zone",
    ),
    "two columns change places": (
        [
            "alter table public.t rename a to c",
            "alter table public.t rename b to a",
            "alter table public.t rename c to b",
        ],
        "its column a is another one (renamed, or made anew) and its column b is another one",
    ),
    "a column is renamed": (["alter table public.t rename a to c"], "its column a is gone"),
    "a column is dropped": (["alter table public.t drop a"], "its column a is gone"),
    "dropped and made anew": (["drop table public.t", TARGET], "it is another table than when the run began"),
    "swapped": (
        [
            TARGET.replace("public.t", "public.s"),
            "alter table public.t rename to old",
            "alter table public.s rename to t",
        ],
        "it is another table than when the run began",
    ),
    "numbers become texts": (
        ["alter table public.t alter w type text"],
        "its column w has another type now, text",
    ),
}


@pytest.mark.parametrize(("statements", "told"), STOPPING.values(), ids=STOPPING.keys())
def test_a_table_that_changes_between_two_chunks_stops_the_run_with_what_changed(databases, statements, told):
    fill(databases)
    report = moved(databases, *statements)
    assert report.outcome == "stopped"
    assert told in report.stop_reason
    assert report.counts.loaded == 300
    assert report.counts.quarantined == 0


def test_after_that_the_same_command_goes_on_with_the_table_as_it_is(databases):
    fill(databases)
    moved(databases, "alter table public.t alter a type bigint")
    report = run(job(databases, chunk=100, workers=1, mode="append"), lambda _event: None, Control())
    assert (report.outcome, report.counts.loaded) == ("done", 1000)
    assert rows(databases[1], SAME) == rows(databases[0], SAME)


@pytest.mark.parametrize(
    "statement",
    [
        "alter table public.t add more text",
        "alter table public.t add more int default 7 not null",
        "vacuum full public.t",
        "create index on public.t (a)",
        "reindex table public.t",
        "comment on table public.t is 'x'",
        "alter table public.t set (fillfactor = 50)",
        "analyze public.t",
    ],
)
def test_what_changes_no_value_stops_nothing(databases, statement):
    fill(databases)
    report = moved(databases, statement)
    assert (report.outcome, report.counts.loaded) == ("done", 1000)
    assert rows(databases[1], SAME) == rows(databases[0], SAME)


@pytest.mark.parametrize("at", [3, 10])
def test_a_table_that_is_emptied_meanwhile_is_not_told_as_loaded(databases, at):
    fill(databases)
    report = moved(databases, "truncate public.t", at=at)
    assert report.outcome == "stopped"
    assert "rows by now, though 1,000 were loaded" in report.stop_reason


def test_a_table_that_is_swapped_after_the_last_chunk_is_not_told_as_loaded(databases):
    fill(databases)
    report = moved(databases, "drop table public.t", TARGET, at=10)
    assert (report.outcome, "is another table than when the run began" in report.stop_reason) == ("stopped", True)


def test_rows_that_an_application_deletes_meanwhile_are_its_own_affair(databases):
    fill(databases)
    report = moved(databases, "delete from public.t where id <= 50")
    assert (report.outcome, report.counts.loaded) == ("done", 1000)
    assert rows(databases[1], "select count(*) from public.t") == [(950,)]


@pytest.mark.parametrize("mode", ["upsert", "skip"])
def test_the_other_modes_look_as_well(databases, mode):
    fill(databases)
    report = moved(databases, "alter table public.t alter a type real", mode=mode)
    assert (report.outcome, report.counts.loaded) == ("stopped", 300)
    assert "its column a has another type now, real" in report.stop_reason


def test_a_fresh_table_that_others_change_never_takes_the_place(databases):
    fill(databases)
    run_sql(databases[1], "insert into public.t values (1, 2, 3, 4, 'old')")
    fresh = "(select format('%I.%I', relnamespace::regnamespace, relname) from pg_class where relname like '%keyhaul%' and relkind = 'r' and relnamespace = 'public'::regnamespace)"
    change = f"do $$ begin execute format('alter table %s alter a type real', {fresh}); end $$"
    report = moved(databases, change, mode="replace")
    assert report.outcome == "stopped"
    assert "its column a has another type now, real" in report.stop_reason
    assert rows(databases[1], "select n from public.t") == [("old",)]


def test_several_tables_look_as_well(databases, tmp_path):
    tables.create(databases, orders=600)
    given = load_job(tables.write(tmp_path / "orders.yaml", databases), {"chunk": 100, "workers": 1}, {})
    report = watched(given, databases[1], "alter table public.order_lines alter qty type real", at=2)
    assert (report.outcome, report.counts.loaded) == ("stopped", 200)
    assert "order_lines: its column qty has another type now, real" in report.stop_reason


def test_a_file_that_is_relayed_looks_as_well(databases, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("id,a\n" + "".join(f"{number},{number * 3}\n" for number in range(1, 1001)), encoding="utf-8")
    run_sql(databases[1], "create table public.t (id bigint primary key, a bigint)")
    flags = {"source": str(path), "target": databases[1], "into": "public.t", "chunk": 100, "workers": 1}
    given = load_job(None, {**flags, "mode": "append"}, {})
    report = watched(given, databases[1], "alter table public.t alter a type text", at=2)
    assert report.outcome == "stopped"
    assert "its column a has another type now, text" in report.stop_reason
    assert report.counts.loaded < 1000
