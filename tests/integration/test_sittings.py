"""What others do to the source between two sittings of a run: it goes on with the same table, or says what has changed."""

import pytest
from moving import job, rows, run_sql

from keyhaul.control import Control
from keyhaul.errors import RefusedError
from keyhaul.events import ChunkDone, Notice
from keyhaul.execution.engine import run

TABLE = "create table public.t (id int primary key, a int, b text, c numeric)"
FILLED = "insert into public.t select g, g * 3, 'b' || g, g / 7.0 from generate_series(1, 1000) g"


def begun(databases, *source, **flags):
    """Move three of ten chunks of public.t, and stop."""
    run_sql(databases[0], *(source or (TABLE, FILLED)))
    given = job(databases, **{"chunk": 100, "workers": 1, "mode": "append", **flags})
    control, count = Control(), 0

    def observe(event):
        nonlocal count
        count += isinstance(event, ChunkDone)
        if count == 3:
            control.stop("enough")

    report = run(given, observe, control)
    assert (report.outcome, report.counts.loaded) == ("stopped", 300)
    return given, report.run_id


AGAIN = (
    "create table public.s as select * from public.t",
    "drop table public.t",
    "alter table public.s rename to t",
    "alter table public.t add primary key (id)",
)

OTHERS = {
    "a column is dropped": (["alter table public.t drop c"], "column c is gone"),
    "a column is added": (["alter table public.t add d int"], "column d is new"),
    "a column is renamed": (["alter table public.t rename a to e"], "column a is gone; column e is new"),
    "a column has another type": (["alter table public.t alter a type bigint"], "column a was integer and is bigint"),
    "another table of the name": (AGAIN, "it is another table of that name"),
    "emptied": (["truncate public.t"], "its rows were all removed or written anew (TRUNCATE, VACUUM FULL"),
    "emptied and filled": (["truncate public.t", FILLED], "its rows were all removed or written anew (TRUNCATE"),
    "written anew": (["vacuum full public.t"], "its rows were all removed or written anew (TRUNCATE, VACUUM FULL"),
}


@pytest.mark.parametrize(("statements", "told"), OTHERS.values(), ids=OTHERS.keys())
def test_a_run_does_not_go_on_with_another_table_than_it_began_with(databases, statements, told):
    given, run_id = begun(databases)
    run_sql(databases[0], *statements)
    run_sql(databases[1], "alter table public.t add d int, add e int")  # where the new ones would go
    with pytest.raises(RefusedError) as refused:
        run(given, lambda _event: None, Control())
    assert str(refused.value).startswith(f"resume run {run_id}: public.t in ")
    assert f"has changed since the run was planned: {told}" in str(refused.value)
    assert str(refused.value).endswith(f"etl resume {run_id} --changed")
    assert rows(databases[1], "select count(*) from public.t") == [(300,)]


@pytest.mark.parametrize(
    "statement",
    [
        "update public.t set a = a + 1 where id > 990",
        "delete from public.t where id > 990",
        "insert into public.t select g, 0, 'new', 0 from generate_series(1001, 1010) g",
        "analyze public.t",
        "reindex table public.t",
        "create index on public.t (a)",
        "alter table public.t alter c set default 7",
        "alter table public.t set (fillfactor = 50)",
        "vacuum public.t",
    ],
)
def test_a_run_goes_on_with_the_same_table_whatever_its_rows_are(databases, statement):
    given, _ = begun(databases)
    run_sql(databases[0], statement)
    report = run(given, lambda _event: None, Control())
    assert report.outcome == "done"
    same = "select id::text, a::text, b, c::text from public.t order by id"
    assert rows(databases[1], same) == rows(databases[0], same)


def test_what_is_meant_is_told_and_goes_on(databases):
    given, run_id = begun(databases)
    run_sql(databases[0], "vacuum full public.t")
    told = []
    report = run(given, told.append, Control(), only=run_id, changed=True)
    assert (report.outcome, report.counts.loaded) == ("done", 1000)
    notices = [event.message for event in told if isinstance(event, Notice)]
    assert any("has changed since the run was planned: its rows were all removed" in message for message in notices)


PARTED = (
    TABLE + " partition by range (id)",
    "create table public.t_1 partition of public.t for values from (1) to (500)",
    "create table public.t_2 partition of public.t for values from (500) to (2000)",
    FILLED,
)


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("alter table public.t detach partition public.t_1", "t_1 is no partition of it any more"),
        ("drop table public.t_1", "t_1 is no partition of it any more"),
        ("truncate public.t_1", "the rows of its partition t_1 were all removed or written anew"),
    ],
)
def test_a_partition_of_which_rows_may_be_loaded_stays(databases, statement, told):
    given, _ = begun(databases, *PARTED)
    run_sql(databases[0], statement)
    with pytest.raises(RefusedError) as refused:
        run(given, lambda _event: None, Control())
    assert told in str(refused.value)


def test_a_partition_that_comes_is_read(databases):
    given, _ = begun(databases, *PARTED)
    run_sql(
        databases[0],
        "create table public.t_3 partition of public.t for values from (2000) to (3000)",
        "insert into public.t values (2500, 1, 'late', 1)",
    )
    report = run(given, lambda _event: None, Control())
    assert (report.outcome, report.counts.loaded) == ("done", 1001)


def test_a_view_has_the_definition_that_it_had(databases):
    view = "create or replace view public.v as select id, a, b, c from public.t"
    given, _ = begun(databases, TABLE, FILLED, view, table="public.v", into="public.t")
    run_sql(databases[0], view + " where id % 2 = 0")
    with pytest.raises(RefusedError, match="the view has another definition"):
        run(given, lambda _event: None, Control())


def test_a_materialized_view_may_be_refreshed(databases):
    view = "create materialized view public.v as select id, a, b, c from public.t"
    given, _ = begun(
        databases, TABLE, FILLED, view, "create unique index on public.v (id)", table="public.v", into="public.t"
    )
    run_sql(databases[0], "refresh materialized view public.v")
    report = run(given, lambda _event: None, Control())
    assert (report.outcome, report.counts.loaded) == ("done", 1000)


def test_fresh_gives_up_no_run_of_another_table(databases):
    given, run_id = begun(databases)
    run_sql(databases[0], "create table public.other as select 1 as id")
    with pytest.raises(RefusedError) as refused:
        run(job(databases, table="public.other"), lambda _event: None, Control(), fresh=True)
    assert str(refused.value) == (
        f"start job move: run {run_id} of this name is unfinished and loads public.t, not public.other; --fresh would "
        "give it up. Give this job a name of its own (--job NAME)"
    )
    assert run(given, lambda _event: None, Control()).counts.loaded == 1000
    done = run(job(databases, table="public.other"), lambda _event: None, Control(), fresh=True)
    assert done.outcome == "done"
