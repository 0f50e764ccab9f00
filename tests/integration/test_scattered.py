"""Many guilty rows among innocent ones: each pays for itself, and what the server says of it is the reason."""

import os

import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moving import move, rows, run_sql
from psycopg import sql

from keyhaul.model import RECORD
from keyhaul.postgres import catalog
from keyhaul.targets import isolate
from keyhaul.targets.rows import Destination
from keyhaul.targets.session import CopySession
from keyhaul.transform.mapping import write_column

T = "create table public.t (id int primary key, email text, ref int, amount int, name text)"
ROWS = "insert into public.t select g, 'e' || g, g % 70, g % 100, 'old' from generate_series(1, {}) g"
PARENT = (
    "create table public.parent (id int primary key)",
    "insert into public.parent select g from generate_series(0, 76) g",
)
STRICT = (
    "create table public.t (id int primary key, email text constraint email_key unique,"
    " ref int constraint parent_fk references public.parent, amount int constraint small check (amount < 1000), name text)"
)


def assert_moved(databases, report, guilty, *, loaded, unchanged=0):
    """Exactly the `guilty` are quarantined, each with the constraint given; all others are loaded or unchanged."""
    query = f"select key::int, rules, message from keyhaul.quarantine where run_id = '{report.run_id}' order by 1"
    found = rows(databases[1], query)
    assert [(key, rules) for key, rules, _ in found] == [(key, [guilty[key]]) for key in sorted(guilty)]
    assert all(f"constraint {guilty[key]}" in message for key, _, message in found)
    c = report.counts
    assert (c.loaded, c.unchanged, c.quarantined, c.balanced) == (loaded, unchanged, len(guilty), True)


def scattered(number, count, first=3):
    return [first + place * (number // count) for place in range(count)]


def among(keys):
    return f"id = any(array{list(keys)})"


@pytest.mark.parametrize(("count", "loader"), [(8, "copy"), (100, "copy"), (100, "adbc")])
def test_a_refused_update_costs_no_row_that_only_meets_its_older_self(databases, count, loader):
    guilty = scattered(5000, count)
    run_sql(databases[1], *PARENT, STRICT, ROWS.format(5000))
    run_sql(
        databases[0],
        T,
        ROWS.format(5000),
        f"update public.t set name = 'new', ref = 77 where {among(guilty)}",
        "update public.t set name = 'new' where id % 50 = 1",
        "cluster public.t using t_pkey",  # else those that were updated would be read last, one after the other
    )
    new = [key for key in range(1, 5001) if key % 50 == 1 and key not in guilty]
    report = move(databases, "public.t", mode="upsert", chunk="5000", loader=loader)
    assert_moved(
        databases, report, dict.fromkeys(guilty, "parent_fk"), loaded=len(new), unchanged=5000 - count - len(new)
    )
    assert rows(databases[1], "select id from public.t where name = 'new' order by 1") == [(key,) for key in new]


@pytest.mark.parametrize("loader", ["copy", "adbc"])
def test_a_row_that_is_kept_is_unchanged_whatever_it_would_break(databases, loader):
    """Of 1,000 rows 800 are there; 100 of those refer to nothing by now, and 100 of the new ones too."""
    guilty, orphans = range(5, 1000, 10), range(7, 1000, 10)
    run_sql(databases[1], *PARENT, STRICT, f"{ROWS.format(1000)} where g % 5 > 0")
    run_sql(
        databases[0],
        T,
        ROWS.format(1000),
        f"update public.t set ref = 77 where {among([*guilty, *orphans])}",
        "cluster public.t using t_pkey",
    )
    report = move(databases, "public.t", mode="skip", chunk="1000", loader=loader)
    assert_moved(databases, report, dict.fromkeys(guilty, "parent_fk"), loaded=100, unchanged=800)


@pytest.mark.parametrize(("mode", "loader"), [("append", "copy"), ("replace", "copy"), ("replace", "adbc")])
def test_a_rival_of_a_row_that_is_refused_is_loaded(databases, mode, loader):
    """Odd rows of the first 200 lack their parent; the next even ones have their e-mails, and so do rows after 800."""
    guilty = dict.fromkeys(range(1, 201, 2), "parent_fk") | dict.fromkeys(range(801, 901), "email_key")
    run_sql(databases[1], *PARENT, STRICT)
    run_sql(
        databases[0],
        T,
        "insert into public.t select g, 'e' || case when g <= 200 and g % 2 = 0 then g - 1"
        " when g between 801 and 900 then g - 500 else g end, case when g < 200 and g % 2 = 1 then 77 end, 1, 'n'"
        " from generate_series(1, 1000) g",
    )
    report = move(databases, "public.t", mode=mode, chunk="1000", loader=loader)
    assert_moved(databases, report, guilty, loaded=800)


NOT_ASKED = {
    "check": ["alter table public.t add constraint loose check (amount < 20) not enforced"],
    "reference": [
        "alter table public.t add constraint loose foreign key (ref) references public.half not enforced",
    ],
    "period": [
        (
            "alter table public.t add valid daterange not null default '[2024-02-01,2024-03-01)',"
            " add at int4range default '[1,2)'"
        ),
        "create table public.times (at int4range, valid daterange, primary key (at, valid without overlaps))",
        "insert into public.times values ('[1,2)', '[2024-01-01,2025-01-01)')",
        (
            "alter table public.t add constraint loose foreign key (at, period valid)"
            " references public.times (at, period valid)"
        ),
    ],
    "triggers": [
        "alter table public.t add constraint loose foreign key (ref) references public.half",
        "alter table public.t disable trigger all",
    ],
    "mended": [
        "alter table public.t add constraint loose foreign key (ref) references public.half",
        (
            "create function public.mend() returns trigger language plpgsql as"
            " $$ begin new.ref = least(new.ref, 1); return new; end $$"
        ),
        "create trigger mend before insert on public.t for each row execute function public.mend()",
    ],
}


@pytest.mark.thin(2)
@pytest.mark.parametrize("mode", ["append", "upsert"])
@pytest.mark.parametrize("kind", NOT_ASKED)
def test_what_the_server_does_not_ask_costs_no_row(databases, kind, mode):
    guilty = scattered(1000, 100)
    run_sql(
        databases[1],
        *PARENT,
        "create table public.half (id int primary key)",
        "insert into public.half values (0), (1)",
        STRICT,
        *NOT_ASKED[kind],
    )
    columns = ", '[2024-02-01,2024-03-01)'::daterange as valid, '[1,2)'::int4range as at" if kind == "period" else ""
    run_sql(
        databases[0],
        f"create table public.t as select g as id, 'e' || g as email, g % 70 as ref,"
        f" case when {among(guilty).replace('id', 'g', 1)} then 1000 else g % 100 end as amount, 'n' as name {columns}"
        " from generate_series(1, 1000) g",
        "alter table public.t add primary key (id)",
    )
    report = move(databases, "public.t", mode=mode, chunk="1000")
    assert_moved(databases, report, dict.fromkeys(guilty, "small"), loaded=900)


SMALL = (
    "create table public.parent (id int primary key)",
    "insert into public.parent values (1), (2)",
    (
        "create table public.t (id int primary key, email text constraint email_key unique,"
        " ref int constraint parent_fk references public.parent, amount int constraint small check (amount < 3), name text)"
    ),
)
MORE = {
    "plain": "",
    "expression": "create unique index lower_key on public.t (lower(name))",
    "partial": "create unique index partial_key on public.t (name) where amount = 1",
    "nulls": "create unique index nulls_key on public.t (name) nulls not distinct",
    "exclusion": "alter table public.t add constraint exclusion_key exclude (name with =)",
    "deferred": "alter table public.t add constraint deferred_key unique (name) deferrable initially deferred",
    "domain": "create domain public.word as text check (value <> 'a'); alter table public.t alter name type public.word",
}

a_row = st.tuples(
    st.integers(1, 9),
    st.sampled_from(["a", "b", "c", "d", "e", None]),
    st.sampled_from([1, 1, 2, 3, None]),
    st.sampled_from([1, 1, 2, 3, None]),
    st.sampled_from(["a", "A", "b", "c", None]),
)
several = st.lists(a_row, max_size=12)


def one_by_one(conn, data, conflict):
    """Insert rows in the order of records, each in a savepoint; return who was refused, why, and the table."""
    refused = []
    insert = f"insert into public.t as old values (%s, %s, %s, %s, %s) {conflict}"
    for record, row in enumerate(data):
        try:
            with conn.transaction():
                conn.execute(insert, row)
                conn.execute("set constraints all immediate")
        except psycopg.IntegrityError as error:
            refused.append((record, error.diag.constraint_name))
    return refused, conn.execute("select * from public.t order by id").fetchall()


UPSERT = (
    "on conflict (id) do update set email = excluded.email, ref = excluded.ref, amount = excluded.amount,"
    " name = excluded.name where (old.*) is distinct from (excluded.*)"
)
ON_CONFLICT = {"append": "", "skip": "on conflict (id) do nothing", "upsert": UPSERT}


@pytest.mark.parametrize("mode", ON_CONFLICT)
@pytest.mark.parametrize("more", MORE)
@given(data=st.data())
@settings(
    max_examples=int(os.environ.get("KEYHAUL_TEST_EXAMPLES", "15")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_who_is_refused_is_what_inserting_one_row_after_the_other_says(scene, mode, more, data):
    conn, session, monkeypatch = scene(more)
    there = data.draw(several, label="there")
    sent = data.draw(several, label="sent")
    if mode == "upsert":  # of two of one key the last is tried, and the other only where they fall apart
        sent = list({row[0]: row for row in sent}.values())
    monkeypatch.setattr(isolate, "FAILED_COPIES", data.draw(st.sampled_from([1, 2, 48]), label="failed copies"))
    conn.execute("truncate public.t")
    one_by_one(conn, there, "")
    with conn.transaction(force_rollback=True):
        wanted = one_by_one(conn, sent, ON_CONFLICT[mode])
    columns = catalog.describe_table(conn, *catalog.resolve(conn, "public.t")).columns
    schema = {"id": pl.Int32(), "email": pl.String(), "ref": pl.Int32(), "amount": pl.Int32(), "name": pl.String()}
    frame = pl.DataFrame(sent, schema=schema, orient="row")
    destination = Destination(
        table=sql.Identifier("public", "t"),
        columns=tuple(write_column(c.name, schema[c.name], c, c) for c in columns),
        mode=mode,
        conflict=() if mode == "append" else ("id",),
    )
    placed = isolate.write_chunk(session, destination, frame.with_row_index(RECORD).cast({RECORD: pl.Int64()}))
    refused = sorted((record, rules[0]) for record, _, rules, _ in placed.invalid.rows())
    stored = session.execute(sql.SQL("select * from public.t order by id"))
    session.roll_back()
    assert (refused, stored) == wanted
    assert placed.inserted + placed.updated + placed.unchanged + len(refused) == len(sent)


@pytest.fixture
def scene(server, database, monkeypatch):
    """``scene(more)``: a connection that commits, a session, and what patches; the tables are made once."""
    uri, open_ones = database(server, "target"), []

    def make(more):
        if not open_ones:
            run_sql(uri, *SMALL, *filter(None, MORE[more].split("; ")))
            open_ones.append(psycopg.connect(uri, autocommit=True))
            open_ones.append(CopySession(uri))
        return (*open_ones, monkeypatch)

    yield make
    for one in open_ones:
        one.close()
