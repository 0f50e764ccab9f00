"""Several tables from one record: what arrives, what is counted, and what a bad line keeps out."""

import uuid

import pytest
import tables
from moving import rows, run_sql

from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.errors import ConfigError, RefusedError
from keyhaul.execution.engine import run
from keyhaul.fanout.nameduuid import NAMESPACE
from keyhaul.replay.resending import replay


def test_one_order_becomes_a_customer_an_order_and_its_lines(databases, tmp_path):
    tables.create(databases, orders=2500)
    source, target = databases
    report = tables.go(tmp_path, databases)
    assert report.outcome == "done"
    counts = report.counts
    assert (counts.read, counts.loaded, counts.quarantined, counts.filtered) == (2500, 2500, 0, 0)
    lines = rows(source, "select count(*) from public.raw_orders, jsonb_array_elements(lines)")[0][0]
    stored = {table.table: table for table in report.tables}
    assert list(stored) == ["public.customers", "public.orders", "public.order_lines"]
    assert stored["public.orders"].inserted == 2500
    assert stored["public.order_lines"].inserted == lines
    customers = stored["public.customers"]
    assert (customers.inserted, customers.updated, customers.unchanged) == (100, 0, 200)
    assert rows(target, "select count(*) from public.customers") == [(100,)]
    here = (
        "select o.id, c.email, c.name, l.line_no, l.sku, l.qty, l.price::text, o.placed_at from public.orders o"
        " join public.customers c on c.id = o.customer_id join public.order_lines l on l.order_id = o.id order by 1, 4"
    )
    there = (
        "select o.id, o.customer_email, initcap(o.customer_name), n::int, l->>'sku', (l->>'qty')::int, l->>'price',"
        " o.placed_at from public.raw_orders o, jsonb_array_elements(lines) with ordinality e(l, n) order by 1, 4"
    )
    assert rows(target, here) == rows(source, there)


def test_a_bad_line_keeps_its_whole_order_out_and_nothing_else(databases, tmp_path):
    tables.create(databases)
    good = {"sku": "A", "qty": 1, "price": 1.5}
    tables.insert(
        databases[0],
        (1, "a@x", "a", [good, {**good, "qty": "many"}]),  # no integer
        (2, "b@x", "b", [good, good, {**good, "qty": 0}]),  # a check constraint
        (3, "c@x", "c", [good, {"qty": 3}]),  # sku is not null
        (4, "d@x", "d", {"no": "array"}),
        (5, "e@x", "", [good]),  # the first table's check
        (6, "f@x", "f", [good, 7]),  # an element that is no object
        (7, None, "g", [good]),  # no customer's key: its order has no customer
        (8, "h@x", "h", [good, good]),
        (9, "a@x", "a", [good]),
        (10, "i@x", "i", None),
        (11, "j@x", "j", []),
    )
    report = tables.go(tmp_path, databases)
    target = databases[1]
    assert rows(target, "select id from public.orders order by 1") == [(8,), (9,), (10,), (11,)]
    assert rows(target, "select order_id, line_no from public.order_lines order by 1, 2") == [(8, 1), (8, 2), (9, 1)]
    assert rows(target, "select email from public.customers order by 1") == [("a@x",), ("h@x",), ("i@x",), ("j@x",)]
    assert (report.counts.read, report.counts.loaded, report.counts.quarantined) == (11, 4, 7)
    found = rows(target, "select key, stage, rules from keyhaul.quarantine order by key::int")
    assert found == [
        ("1", "type", ["type:qty"]),
        ("2", "load", ["order_lines_qty_check"]),
        ("3", "type", ["type:sku"]),
        ("4", "transform", ["unnest:lines"]),
        ("5", "load", ["customers_name_check"]),
        ("6", "transform", ["unnest:lines"]),
        ("7", "type", ["type:email"]),
    ]


def test_a_table_that_rejects_costs_the_record_in_all_tables(databases, tmp_path):
    """One guilty record for each table and kind of constraint, the deferred ones too, among 600."""
    tables.create(databases, orders=600)
    source, target = databases
    run_sql(
        target,
        "alter table public.customers add constraint no_ninth check (email <> 'c9@x.org')",
        "create function public.no_line() returns trigger language plpgsql as"
        " $$ begin if new.sku like 'S-33-%' then raise exception 'no'; end if; return new; end $$",
        "create trigger no_line before insert on public.order_lines for each row execute function public.no_line()",
        "insert into public.customers (email, name) values ('mine@x.org', 'Mine')",
        "insert into public.orders overriding system value select 77, id, gen_random_uuid(), now() from public.customers",
        "create table public.skus (sku text primary key)",
        "alter table public.order_lines add constraint known foreign key (sku) references public.skus"
        " deferrable initially deferred",
    )
    skus = rows(source, "select l->>'sku' from public.raw_orders, jsonb_array_elements(lines) l where id <> 44")
    with_skus = ",".join(f"('{sku}')" for (sku,) in skus)
    run_sql(target, f"insert into public.skus values {with_skus}")
    job = tables.JOB.replace("- table: public.orders\n", "- table: public.orders\n    mode: append\n")
    report = tables.go(tmp_path, databases, job)
    found = rows(target, "select rules[1], array_agg(key::int order by key::int) from keyhaul.quarantine group by 1")
    ninth = [i for i in range(1, 601) if i % 100 == 9]
    assert dict(found) == {"known": [44], "no_ninth": ninth, "orders_pkey": [77], "sqlstate:P0001": [33]}
    assert (report.counts.loaded, report.counts.quarantined) == (600 - 9, 9)
    guilty = [44, 77, 33, *ninth]
    assert rows(target, "select id from public.orders where public_id is not null and id <> 77 order by 1") == [
        (i,) for i in range(1, 601) if i not in guilty
    ]
    assert rows(target, "select count(*) from public.order_lines where order_id = any(array[44,77,33,9])") == [(0,)]
    assert rows(target, "select count(*) from public.customers") == [(100,)]
    assert_whole(databases, guilty)


def assert_whole(databases, but_not=()):
    """Each order in the target has all its lines, and no line is without its order: plain SQL at both ends."""
    source, target = databases
    lines = "(select count(*) from jsonb_array_elements(lines))"
    skip = ",".join(map(str, [0, *but_not]))
    wanted = rows(source, f"select id, {lines} from public.raw_orders where id not in ({skip}) order by 1")
    got = rows(
        target,
        "select o.id, count(l) from public.orders o left join public.order_lines l on l.order_id = o.id"
        f" where o.id not in ({skip}) group by 1 order by 1",
    )
    assert got == wanted


@pytest.mark.thin(2)
@pytest.mark.parametrize(
    ("known", "more"),
    [
        ("references public.articles", ()),
        (
            "references public.articles",
            ("add constraint loose foreign key (article) references public.one not enforced",),
        ),
        ("check (article < 9)", ("add constraint loose check (article = 1) not enforced",)),
        (
            "check (article < 9)",
            ("add constraint loose foreign key (article) references public.one", "disable trigger all"),
        ),
    ],
    ids=["asked", "reference", "check", "triggers"],
)
def test_many_guilty_records_are_found_and_only_they(databases, tmp_path, known, more):
    """2,000 records, 200 of them with a line of an unknown article: asked as a set after 48 tries.

    What the server does not ask is no reason.
    """
    tables.create(databases, orders=2000)
    _, target = databases
    run_sql(
        target,
        "create table public.articles (article int primary key)",
        "insert into public.articles select g from generate_series(0, 8) g",
        "create table public.one (article int primary key)",
        f"alter table public.order_lines add article int constraint known {known}",
        *(f"alter table public.order_lines {change}" for change in more),
    )
    job = tables.JOB.replace("price: line_price}", "price: line_price, article: id % 10}").replace("1000", "2000")
    report = tables.go(tmp_path, databases, job)
    guilty = [i for i in range(1, 2001) if i % 10 == 9]
    assert rows(target, "select key::int from keyhaul.quarantine where rules = '{known}' order by 1") == [
        (i,) for i in guilty
    ]
    assert (report.counts.loaded, report.counts.quarantined) == (1800, 200)
    assert_whole(databases, guilty)


def test_what_is_there_already_counts_as_unchanged_by_record(databases, tmp_path):
    tables.create(databases, orders=300)
    source, target = databases
    job = tables.JOB.replace("- table: public.orders\n", "- table: public.orders\n    mode: upsert\n").replace(
        "- table: public.order_lines\n", "- table: public.order_lines\n    mode: upsert\n"
    )
    tables.go(tmp_path, databases, job)
    again = tables.go(tmp_path, databases, job)
    assert (again.counts.loaded, again.counts.unchanged, again.counts.balanced) == (0, 300, True)
    # One line of order 7 and the name of customer 8, whom the orders 8, 108 and 208 name.
    run_sql(
        source,
        "update public.raw_orders set lines = jsonb_set(lines, '{0,qty}', '99') where id = 7",
        "update public.raw_orders set customer_name = 'renamed' where customer_email = 'c8@x.org'",
    )
    third = tables.go(tmp_path, databases, job)
    assert (third.counts.loaded, third.counts.unchanged, third.counts.balanced) == (2, 298, True)
    stored = {one.table.removeprefix("public."): (one.inserted, one.updated, one.unchanged) for one in third.tables}
    lines = rows(source, "select count(*) from public.raw_orders, jsonb_array_elements(lines)")[0][0]
    assert stored == {"customers": (0, 1, 99), "orders": (0, 0, 300), "order_lines": (0, 1, lines - 1)}
    assert third.tables[0].duplicate == 200
    assert rows(target, "select name from public.customers where email = 'c8@x.org'") == [("Renamed",)]
    assert rows(target, "select qty from public.order_lines where order_id = 7 and line_no = 1") == [(99,)]


def test_a_record_without_a_row_in_any_table_is_filtered(databases, tmp_path):
    tables.create(databases, orders=10)
    job = """
job: orders
source: {table: public.raw_orders, uri: "SOURCE"}
target: {uri: "TARGET"}
key: id
targets:
  - table: public.customers
    where: id > 8
    columns: {email: customer_email, name: customer_name}
"""
    report = tables.go(tmp_path, databases, job)
    assert (report.counts.loaded, report.counts.filtered, report.counts.balanced) == (2, 8, True)


def test_children_get_the_serial_and_looked_up_keys_of_their_parents(databases, tmp_path):
    source, target = databases
    run_sql(
        source,
        "create table public.f (id int primary key, carrier text, plane text)",
        "insert into public.f select g, 'C' || g % 3, case when g % 7 > 0 then 'P' || g % 5 end"
        " from generate_series(1, 2000) g",
    )
    run_sql(
        target,
        "create table public.carrier (n smallserial primary key, code varchar(4) unique not null)",
        "insert into public.carrier (code) values ('C1')",
        "create table public.plane (made uuid primary key default gen_random_uuid(), tail text unique)",
        "create table public.flight (no serial primary key, id int not null, carrier int not null references public.carrier,"
        " plane uuid references public.plane)",
        "create table public.leg (flight bigint not null references public.flight, id int not null, again uuid not null)",
    )
    job = """
job: f
source: {table: public.f, uri: "SOURCE"}
target: {uri: "TARGET"}
key: id
chunk: 300
targets:
  - {table: public.carrier, mode: skip, conflict: code, columns: {code: carrier}}
  - {table: public.plane, mode: skip, conflict: tail, where: plane is not null, columns: {tail: plane}}
  - table: public.flight
    mode: append
    columns: {id: id, carrier: {parent: public.carrier, column: n}, plane: {parent: public.plane, column: made}}
  - {table: public.leg, columns: {flight: {parent: public.flight, column: no}, id: id, again: {uuid: [id]}}}
"""
    report = tables.go(tmp_path, databases, job, workers="2")
    assert (report.counts.loaded, report.counts.quarantined) == (2000, 0)
    got = rows(
        target,
        "select l.id, f.id, c.code::text, p.tail from public.leg l join public.flight f on f.no = l.flight"
        " join public.carrier c on c.n = f.carrier left join public.plane p on p.made = f.plane order by 1",
    )
    assert got == rows(source, "select id, id, carrier, plane from public.f order by 1")
    assert rows(target, "select count(distinct no), min(no), max(no) from public.flight") == [(2000, 1, 2000)]
    assert rows(target, "select again from public.leg where id = 5") == [(uuid.uuid5(NAMESPACE, "5"),)]


def test_a_quarantined_record_is_replayed_whole(databases, tmp_path):
    tables.create(databases, orders=50)
    source, target = databases
    run_sql(source, "update public.raw_orders set lines = jsonb_set(lines, '{0,qty}', '\"x\"') where id in (7, 8)")
    first = tables.go(tmp_path, databases)
    assert (first.counts.loaded, first.counts.quarantined) == (48, 2)
    run_sql(source, "update public.raw_orders set lines = jsonb_set(lines, '{0,qty}', '3') where id = 7")
    again = replay(load_job(tmp_path / "orders.yaml", {}, {}), "last", lambda _event: None, Control(), changed=True)
    counts = again.report.counts
    assert (counts.read, counts.loaded, counts.quarantined, again.left) == (2, 1, 1, 1)
    assert_whole(databases, [8])
    assert rows(target, "select count(*) from public.order_lines where order_id = 8") == [(0,)]


def test_a_replay_of_keys_that_may_be_there_twice_asks_for_the_mode_of_each_table(databases, tmp_path):
    tables.create(databases, orders=3)
    run_sql(
        databases[0],
        "alter table public.raw_orders drop constraint raw_orders_pkey, alter id set not null",
        "update public.raw_orders set lines = jsonb_set(lines, '{0,qty}', '\"x\"') where id = 2",
    )
    tables.go(tmp_path, databases)
    advice = r"Create a unique index on id in the source, or give each entry of targets mode: skip or upsert$"
    with pytest.raises(RefusedError, match=advice):
        replay(load_job(tmp_path / "orders.yaml", {}, {}), "last", lambda _event: None, Control(), changed=True)


def test_the_adbc_loader_does_for_several_tables(databases, tmp_path):
    tables.create(databases, orders=20)
    source, target = databases
    run_sql(source, 'update public.raw_orders set lines = lines || \'{"sku": "x", "qty": 0}\' where id = 3')
    tables.go(tmp_path, databases)
    run_sql(target, "truncate public.customers, public.orders, public.order_lines")
    report = tables.go(tmp_path, databases, loader="adbc")
    assert (report.counts.loaded, report.counts.quarantined) == (19, 1)
    assert [one.inserted for one in report.tables] == [19, 19, 56]
    assert_whole(databases, [3])


def test_a_table_that_holds_rows_needs_a_mode(databases, tmp_path):
    tables.create(databases, orders=20)
    tables.go(tmp_path, databases)
    with pytest.raises(RefusedError, match=r"public\.orders: it already holds rows and no mode is given"):
        tables.go(tmp_path, databases)


def test_a_trigger_that_drops_rows_fails_the_chunk_and_not_the_count(databases, tmp_path):
    tables.create(databases, orders=20)
    run_sql(
        databases[1],
        "create function public.drop_it() returns trigger language plpgsql as"
        " $$ begin if new.qty = 2 then return null; end if; return new; end $$",
        "create trigger drop_it before insert on public.order_lines for each row execute function public.drop_it()",
    )
    report = tables.go(tmp_path, databases)
    assert (report.outcome, report.counts.loaded) == ("stopped", 0)
    assert "public.order_lines stored" in report.failed[0].error
    assert rows(databases[1], "select count(*) from public.customers") == [(0,)]


def test_a_child_that_waits_for_another_record_of_the_chunk_is_loaded(databases, tmp_path):
    """Order 1 refers to order 9 of the same chunk; a guilty record among them makes the chunk halve."""
    source, target = databases
    run_sql(
        source,
        "create table public.o (id int primary key, other int)",
        "insert into public.o select g, case when g < 5 then g + 5 when g = 7 then 99 end from generate_series(1, 9) g",
    )
    run_sql(
        target,
        "create table public.o (id int primary key)",
        "create table public.link (id int primary key references public.o, other int references public.o)",
    )
    job = """
job: o
source: {table: public.o, uri: "SOURCE"}
target: {uri: "TARGET"}
key: id
targets:
  - {table: public.o, columns: {id: id}}
  - {table: public.link, columns: {id: id, other: other}}
"""
    report = tables.go(tmp_path, databases, job)
    # 7 refers to nothing, and 2 to 7.
    assert rows(target, "select key::int, rules from keyhaul.quarantine order by 1") == [
        (2, ["link_other_fkey"]),
        (7, ["link_other_fkey"]),
    ]
    assert rows(target, "select id from public.link order by 1") == [(1,), (3,), (4,), (5,), (6,), (8,), (9,)]
    assert (report.counts.loaded, report.counts.quarantined) == (7, 2)


def test_copies_across_chunks_are_told_before_their_rows_go_anywhere(databases, tmp_path):
    tables.create(databases, orders=60)
    source, target = databases
    job = tables.JOB.replace("chunk: 1000", f"chunk: 7\nwork_dir: {tmp_path}/work\ndedup: {{on: customer_name}}")
    run_sql(
        source, "update public.raw_orders set customer_name = 'copy', customer_email = 'copy' where id in (3, 30, 58)"
    )
    report = tables.go(tmp_path, databases, job)
    assert (report.counts.loaded, report.counts.duplicate, report.counts.balanced) == (58, 2, True)
    (kept,) = rows(target, "select id from public.orders where id in (3, 30, 58)")
    assert_whole(databases, {3, 30, 58} - set(kept))


@pytest.mark.parametrize(
    ("beside", "says"),
    [
        ("run_rules: [{unique: id}]", "run_rules: got rules for one table beside targets"),
        (
            "incremental: {column: id, lag: 1}",
            r"targets\[0\]\.mode: got no mode with incremental, expected skip or upsert",
        ),
    ],
)
def test_what_looks_at_one_table_is_refused_beside_several(tmp_path, beside, says):
    job = tmp_path / "job.yaml"
    job.write_text(
        f"source: {{table: public.orders}}\nkey: id\n{beside}\ntargets:\n  - {{table: public.a, columns: {{id: id}}}}\n"
    )
    with pytest.raises(ConfigError, match=says):
        load_job(job, {}, {})


def test_an_incremental_job_notices_that_one_of_its_tables_was_emptied(databases, tmp_path):
    tables.create(databases, orders=50)
    job = tmp_path / "job.yaml"
    job.write_text(
        f"job: some\nsource: {{table: public.raw_orders, uri: '{databases[0]}'}}\ntarget: {{uri: '{databases[1]}'}}\n"
        "key: id\nincremental: {column: placed_at, lag: 5m}\ntargets:\n"
        "  - {table: public.customers, mode: upsert, conflict: email, columns: {email: customer_email, name: customer_name}}\n"
        "  - {table: public.stamps, mode: upsert, conflict: id, columns: {id: id, placed_at: placed_at}}\n"
    )
    run_sql(databases[1], "create table public.stamps (id bigint primary key, placed_at timestamptz)")
    loaded = load_job(job, {}, {})
    assert run(loaded, lambda _event: None, Control()).counts.loaded == 50
    assert run(loaded, lambda _event: None, Control()).outcome == "done"
    run_sql(databases[1], "truncate public.stamps")
    with pytest.raises(RefusedError, match=r"load public\.stamps: it is empty"):
        run(loaded, lambda _event: None, Control())
    assert run(loaded, lambda _event: None, Control(), full=True).outcome == "done"
    assert rows(databases[1], "select count(*) from public.stamps") == [(50,)]
