"""A ledger says of which version its tables are; an older one is brought to the newest, any other is refused by name."""

import psycopg
import pytest
from moving import rows, run_sql

import keyhaul
from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.errors import EtlError, RefusedError
from keyhaul.execution.engine import run
from keyhaul.ledger import versions
from keyhaul.ledger.statements import sections
from keyhaul.quality.checking import Keep, check

ADDED = "alter table {schema}.runs add column mood text not null default 'calm'"


def fill(databases):
    run_sql(databases[0], "create table public.t (id int primary key)", "insert into public.t values (1), (2)")


def move(databases, **flags):
    given = {"source": databases[0], "target": databases[1], "table": "public.t", "key": "id", "mode": "skip", **flags}
    return run(load_job(None, given, {}), lambda _event: None, Control())


def of_version(uri, version):
    run_sql(uri, f"insert into keyhaul.schema_version (version, keyhaul) values ({version}, '9.9')")


def looks(databases, **flags):
    """Return what each way to use the ledger does, by name."""
    given = {"source": databases[0], "target": databases[1], "table": "public.t", "key": "id", "mode": "skip"}
    return {
        "a run": lambda: move(databases, **flags),
        "a plan": lambda: keyhaul.plan(given),
        "a look at the runs": lambda: keyhaul.runs(databases[1]),
        "a look at one": lambda: keyhaul.chunks(target=databases[1]),
        "a comparison": lambda: keyhaul.verify(given),
        "kept checks": lambda: keyhaul.checks(databases[1]),
    }


LOOKS = list(looks(("", "")))


def test_the_versions_are_numbered_from_1_without_a_gap():
    assert list(sections("migrations.sql", "version")) == [str(n + 1) for n in range(len(versions.migrations()))]


def test_a_fresh_ledger_has_the_newest_version_and_says_who_made_it(databases):
    fill(databases)
    move(databases)
    newest = len(versions.migrations())
    found = rows(databases[1], "select version, keyhaul from keyhaul.schema_version order by version")
    assert found == [(n + 1, keyhaul.__version__) for n in range(newest)]
    move(databases)
    assert rows(databases[1], "select count(*) from keyhaul.schema_version") == [(newest,)]


def test_results_of_checks_make_the_whole_ledger(databases, tmp_path):
    fill(databases)
    file = tmp_path / "checks.yaml"
    file.write_text(
        f"source: {{uri: '{databases[0]}', table: public.t}}\nchecks: [{{name: any, row_count: {{min: 1}}}}]\n"
    )
    check(file, keep=Keep(ledger=databases[1]))
    assert keyhaul.runs(databases[1]).height == 0
    assert move(databases).counts.loaded == 2


@pytest.mark.parametrize("name", LOOKS)
def test_a_ledger_of_a_newer_version_is_refused_with_what_to_do(databases, name):
    fill(databases)
    move(databases)
    of_version(databases[1], 99)
    with pytest.raises(RefusedError, match=r"tables are of version 99, expected at most 1: .*Use that one, or name"):
        looks(databases)[name]()
    assert rows(databases[1], "select count(*) from keyhaul.runs") == [(1,)]


@pytest.mark.parametrize("name", LOOKS)
def test_a_ledger_without_a_version_is_refused_with_what_to_do(databases, name):
    fill(databases)
    move(databases)
    run_sql(databases[1], "drop table keyhaul.schema_version")
    with pytest.raises(RefusedError, match=r"do not say of which version they are.* Put them away"):
        looks(databases)[name]()
    run_sql(databases[1], "alter schema keyhaul rename to put_away")
    assert move(databases).outcome == "done"


def test_an_older_ledger_is_brought_to_the_newest_version_and_keeps_what_it_holds(databases):
    fill(databases)
    first = move(databases).run_id
    steps = (*versions.migrations(), ADDED)
    with psycopg.connect(databases[1], autocommit=True) as conn:
        for _ in range(2):
            versions.upgrade(conn, "keyhaul", steps)
            assert versions.version_of(conn, "keyhaul") == len(steps)
        assert versions.check(conn, "keyhaul", len(steps))
    assert rows(databases[1], "select run_id, mood from keyhaul.runs") == [(first, "calm")]


def test_who_only_looks_at_an_older_ledger_is_told_that_the_next_run_brings_it_there(databases):
    fill(databases)
    move(databases)
    with psycopg.connect(databases[1], autocommit=True) as conn:
        newest = len(versions.migrations())
        with pytest.raises(RefusedError, match=rf"version {newest}, expected {newest + 1}. The next run or replay"):
            versions.check(conn, "keyhaul", newest + 1)
        assert versions.version_of(conn, "keyhaul") == newest


def test_a_run_brings_an_older_ledger_to_the_newest_version_before_it_reads_it(databases, monkeypatch):
    fill(databases)
    move(databases)
    steps = (*versions.migrations(), ADDED)
    monkeypatch.setattr(versions, "migrations", lambda: steps)
    with pytest.raises(EtlError, match="The next run or replay"):
        keyhaul.runs(databases[1])
    assert move(databases).outcome == "done"
    assert rows(databases[1], "select mood from keyhaul.runs") == [("calm",), ("calm",)]
    assert keyhaul.runs(databases[1]).height == 2


def test_where_there_is_no_ledger_an_upgrade_makes_none(databases):
    with psycopg.connect(databases[1], autocommit=True) as conn:
        versions.upgrade(conn, "keyhaul")
        assert versions.version_of(conn, "keyhaul") == 0
        assert not versions.check(conn, "keyhaul")


def test_a_step_that_fails_leaves_the_version_before_it_whole(databases):
    fill(databases)
    move(databases)
    before = len(versions.migrations())
    steps = (*versions.migrations(), ADDED, "alter table {schema}.runs drop column nothing")
    with psycopg.connect(databases[1], autocommit=True) as conn:
        with pytest.raises(psycopg.errors.UndefinedColumn):
            versions.upgrade(conn, "keyhaul", steps)
        assert versions.version_of(conn, "keyhaul") == before
    assert move(databases).outcome == "done"


def test_an_older_keyhaul_waits_for_one_that_changes_the_tables_and_is_then_refused(databases):
    fill(databases)
    move(databases)
    steps = (*versions.migrations(), ADDED)
    with (
        psycopg.connect(databases[1], autocommit=True) as mine,
        psycopg.connect(databases[1], autocommit=True) as other,
    ):
        with mine.transaction():
            versions.create(mine, "keyhaul", steps)
            other.execute("set lock_timeout = '200ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                versions.create(other, "keyhaul")
        with pytest.raises(RefusedError, match="a newer keyhaul"):
            versions.create(other, "keyhaul")


def test_a_session_that_looked_before_sees_the_ledger_that_another_has_made_meanwhile(databases):
    """PostgreSQL's to_regclass goes on to say no there: it answers from a cache."""
    with psycopg.connect(databases[1], autocommit=True) as one, psycopg.connect(databases[1], autocommit=True) as other:
        assert versions.version_of(one, "keyhaul") == 0
        with one.transaction():
            assert versions.version_of(one, "keyhaul") == 0
            versions.create(other, "keyhaul")
            assert versions.version_of(one, "keyhaul") == len(versions.migrations())
