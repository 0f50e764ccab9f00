"""A table that others inherit from: what comes along is told, and can be left out."""

import pytest
from moving import job, move, rows, run_sql

from keyhaul import events
from keyhaul.before.preview import preview
from keyhaul.comparison.comparing import verify
from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.errors import ConfigError, RefusedError
from keyhaul.execution.engine import run

FAMILY = (
    "create schema other",
    "create table public.t (id int primary key, v text)",
    "create table other.kid (w int, primary key (id)) inherits (public.t)",
    "create table public.grandkid () inherits (other.kid)",
    "insert into public.t select g, 'own' from generate_series(1, 100) g",
    "insert into other.kid select g, 'kid', 1 from generate_series(101, 150) g",
    "insert into public.grandkid select g, 'grandkid', 1 from generate_series(151, 160) g",
    "create view public.all_of_them as select id, upper(v) as v from public.t",
    "create view public.view_of_it as select * from public.all_of_them where id > 90",
    "create view public.kids as select id, v from other.kid",
)
COME = "the rows of other.kid, public.grandkid come along: they inherit from public.t"


def told(databases, **flags):
    """What a run says, and its report; a plan says the same."""
    seen = []
    asked = job(databases, **flags)
    planned = "\n".join(preview(asked).notes)
    report = run(asked, seen.append, Control(), fresh=True)
    notices = [event.message for event in seen if isinstance(event, events.Notice)]
    assert [note for note in notices if "come along" in note] == [n for n in planned.split("\n") if "come along" in n]
    return "\n".join(notices), report


def test_the_rows_of_heirs_come_along_and_it_is_said_in_plan_and_run(databases):
    run_sql(databases[0], *FAMILY)
    notices, report = told(databases)
    assert f"{COME}. Give --only to leave them out" in notices
    assert report.counts.loaded == 160


def test_only_leaves_them_out_with_chunks_definition_and_verify(databases):
    run_sql(databases[0], *FAMILY, "create index on public.t (v)")
    notices, report = told(databases, only=True, chunk="30")
    assert "come along" not in notices
    assert report.counts.loaded == 100
    assert rows(databases[1], "select count(*), min(v), max(v) from public.t") == [(100, "own", "own")]
    assert rows(databases[1], "select count(*) from pg_index where indrelid = 'public.t'::regclass") == [(2,)]
    assert verify(job(databases, only=True, chunk="30"), report.run_id).equal
    _, report = told(databases, only=True, mode="replace", reader="adbc", chunk="auto")
    assert report.counts.loaded == 100


def test_a_run_with_only_is_not_gone_on_with_without_it(databases):
    whole, alone = job(databases), job(databases, only=True)
    assert whole.fingerprint() != alone.fingerprint()
    assert "only" not in whole.identity()["source"]


@pytest.mark.parametrize("view", ["all_of_them", "view_of_it"])
def test_a_view_over_one_says_it_too(databases, view):
    run_sql(databases[0], *FAMILY)
    notices, report = told(databases, table=f"public.{view}")
    assert f"{COME}, which public.{view} reads, unless it says ONLY. Say ONLY there to leave them out" in notices
    assert report.counts.loaded == (160 if view == "all_of_them" else 70)


def test_an_heir_without_heirs_and_partitions_say_nothing(databases):
    run_sql(
        databases[0],
        *FAMILY,
        "create table public.parts (id int primary key) partition by range (id)",
        "create table public.part1 partition of public.parts for values from (1) to (100)",
        "insert into public.parts select generate_series(1, 50)",
    )
    for table, number in (("public.grandkid", 10), ("public.parts", 50)):
        notices, report = told(databases, table=table)
        assert "come along" not in notices
        assert report.counts.loaded == number
    notices, _ = told(databases, table="public.kids")
    assert "the rows of public.grandkid come along: it inherits from other.kid, which public.kids reads" in notices
    with pytest.raises(
        RefusedError, match=r"public.parts is partitioned, and has no rows of its own. Leave --only out"
    ):
        move(databases, "public.parts", only=True)
    with pytest.raises(RefusedError, match=r"public.kids is no table"):
        move(databases, "public.kids", only=True)


def test_only_is_refused_with_a_query_and_for_other_sources(databases, tmp_path):
    with pytest.raises(ConfigError, match=r"only: got a query, expected a table. Write it in the query"):
        job(databases, table=None, query="select 1 as id", only=True)
    with pytest.raises(ConfigError, match="only"):
        load_job(None, {"source": str(tmp_path / "a.db"), "table": "t", "only": True}, {})
