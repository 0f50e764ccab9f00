"""A money means what each database's own lc_monetary says: it arrives as the same amount, or is refused by name."""

import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest
import support
from moving import job, move, rows, run_sql

from keyhaul.comparison.comparing import verify
from keyhaul.errors import RefusedError
from keyhaul.postgres.shapes import money_problem


@pytest.fixture(scope="module")
def server_yen():
    """Debian's PostgreSQL in a process that finds the locale ja_JP.UTF-8, whose money has no decimals."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    localedef = shutil.which("localedef")
    if not found or localedef is None:
        pytest.skip("no server with locales of our own: apt install postgresql")
    with support.open_folder() as folder:
        folder.chmod(0o755)
        made = subprocess.run(
            [localedef, "-i", "ja_JP", "-f", "UTF-8", str(folder / "ja_JP.UTF-8")], capture_output=True, check=False
        )
        if made.returncode:
            pytest.skip("no locale ja_JP can be made: apt install locales")
        programs = folder / "bin"
        programs.mkdir()
        for program in found[-1].parent.iterdir():
            (programs / program.name).symlink_to(program)
        (programs / "postgres").unlink()
        script = f'#!/bin/sh\nLOCPATH={folder} exec {found[-1]} "$@"\n'
        (programs / "postgres").write_text(script, encoding="ascii")
        (programs / "postgres").chmod(0o755)
        with support.running_server(bindir=programs) as running:
            yield running


@pytest.fixture
def ends(server_yen):
    """``ends("C", "ja_JP.UTF-8")`` are a source and a target whose money is so."""
    made = []

    def make(*locales):
        for locale in locales:
            made.append(support.make_database(server_yen, "money"))
            name = psycopg.conninfo.conninfo_to_dict(made[-1])["dbname"]
            run_sql(made[-1], f"alter database {name} set lc_monetary = '{locale}'")
        return tuple(made)

    yield make
    for uri in made:
        support.drop_database(server_yen, uri)


TABLE = "create table public.t (id int primary key, c money)"


def fill(uri, *, kind="money", value="12.34"):
    run_sql(uri, TABLE.replace("c money", f"c {kind}"), f"insert into public.t values (1, '{value}')")


def number(uri, expression="c::numeric"):
    """As a session without our settings reads it."""
    with psycopg.connect(uri) as conn:
        return [str(row[0]) for row in conn.execute(f"select {expression} from public.t order by id").fetchall()]


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("kind", ["money", "money[]", "public.price", "public.pair"])
def test_money_of_other_decimals_is_refused_by_name_before_the_first_row(ends, there, kind):
    databases = ends("C", "ja_JP.UTF-8")
    types = ("create domain public.price as money", "create type public.pair as (a int, b money)")
    run_sql(databases[0], *types)
    fill(databases[0], kind=kind, value={"money[]": "{12.34}", "public.pair": "(1,12.34)"}.get(kind, "12.34"))
    if there:
        run_sql(databases[1], *types, TABLE.replace("c money", f"c {kind}"))
    with pytest.raises(
        RefusedError, match=r"write public.t.c: a money has 2 decimals in the source and 0 in the target"
    ):
        move(databases, "public.t")
    assert rows(databases[1], "select count(*) from pg_class where relname in ('t', 'runs')") == [(int(there),)]


def test_what_the_refusal_says_brings_the_right_amount(ends):
    databases = ends("C", "ja_JP.UTF-8")
    fill(databases[0])
    with pytest.raises(RefusedError) as refused:
        move(databases, "public.t")
    assert "12.34 would be 1,234" in str(refused.value)
    assert "in a query: c::numeric as c" in str(refused.value)
    assert move(databases, None, query="select id, c::numeric as c from public.t", into="public.t").counts.loaded == 1
    assert number(databases[1], "c") == ["12.34"]


def test_what_the_refusal_says_of_money_without_decimals_brings_the_right_amount(ends):
    databases = ends("ja_JP.UTF-8", "C")
    with psycopg.connect(databases[0]) as conn:  # a yen is a yen in its own database
        conn.execute(TABLE)
        conn.execute("insert into public.t values (1, '1234')")
    run_sql(databases[1], "create table public.t (id int primary key, c text)")
    told = r"0 decimals in the source.*Read it as a number, in a query: c::numeric \* 100"
    with pytest.raises(RefusedError, match=told):
        move(databases, "public.t", set=["c = cast(c as varchar)"])
    run_sql(databases[1], "drop table public.t")
    move(databases, None, query="select id, c::numeric * 100 as c from public.t", into="public.t")
    assert [float(text) for text in number(databases[1], "c")] == [1234.0]


@pytest.mark.parametrize("locale", ["C", "ja_JP.UTF-8"])
def test_money_of_the_same_decimals_arrives_as_the_same_amount(ends, locale):
    databases = ends(locale, locale)
    with psycopg.connect(databases[0]) as conn:
        conn.execute(TABLE)
        conn.execute("insert into public.t values (1, 1234.5::numeric::money), (2, (-7)::numeric::money), (3, null)")
    move(databases, "public.t")
    assert number(databases[1]) == number(databases[0])


def test_a_text_or_number_for_a_money_of_other_decimals_is_refused(ends):
    databases = ends("C", "ja_JP.UTF-8")
    fill(databases[0], kind="text")
    run_sql(databases[1], TABLE)
    with pytest.raises(RefusedError, match=r"write public.t.c: a money has 2 decimals as text and 0 in the target"):
        move(databases, "public.t", set=["c = cast(c as varchar)"])


def test_verify_refuses_money_that_meant_the_same_when_it_was_loaded(ends):
    databases = ends("C", "C")
    fill(databases[0])
    report = move(databases, "public.t")
    name = psycopg.conninfo.conninfo_to_dict(databases[1])["dbname"]
    run_sql(databases[1], f"alter database {name} set lc_monetary = 'ja_JP.UTF-8'")
    with pytest.raises(RefusedError, match="a money has 2 decimals in the source and 0 in the target"):
        verify(job(databases), report.run_id)


def test_an_infinite_interval_into_a_server_without_one_is_quarantined_by_name(databases, server16):
    older = support.make_database(server16, "intervals")
    table = "create table public.t (id int primary key, c interval, a interval[])"
    run_sql(databases[0], table, "insert into public.t values (1, 'infinity', null), (2, '1 day', '{1 day}')")
    run_sql(databases[0], "insert into public.t values (3, '1 hour', '{1 day,-infinity}')")
    run_sql(older, table)
    report = move((databases[0], older), "public.t")
    assert (report.counts.loaded, report.counts.quarantined) == (1, 2)
    found = rows(older, "select key, stage, rules from keyhaul.quarantine order by 1")
    assert found == [("1", "load", ["sqlstate:22007"]), ("3", "load", ["sqlstate:22007"])]
    assert verify(job((databases[0], older)), report.run_id).equal
    support.drop_database(server16, older)


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        (2, 2, ""),
        (0, 0, ""),
        (None, 2, ""),
        (2, None, ""),
        (None, None, ""),
        (2, 0, "12.34 would be 1,234. "),
        (0, 2, "1234 would be 12.34. "),
        (3, 2, "12.340 would be 123.40. "),
        (3, 2, "c::numeric / 10 as c"),
        (0, 3, "c::numeric * 100 as c"),
        (None, 0, "2 decimals as text and 0 in the target"),
        (0, None, "would be written as if it had 2. Read it as a number, in a query: c::numeric * 100 as c"),
    ],
)
def test_the_decimals_of_both_ends_decide(ours, theirs, told):
    problem = money_problem("c", ours, theirs)
    assert told in problem
    assert bool(problem) == bool(told)
