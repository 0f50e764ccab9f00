"""Several tables from one record, as a process: killed at any moment, planned, shown, and its mistakes told."""

import os
import random
import signal
import time

import pytest
import support
import tables
from aftermath import fetch, value, wait_until_nothing_is_left
from moving import run_sql
from proxy import losing

SEED = int(os.environ.get("KEYHAUL_KILL_SEED", str(random.randrange(10**9))))  # noqa: S311 - printed, to be repeated
ORDERS = int(os.environ.get("KEYHAUL_KILL_ROWS", "20000"))
ROUNDS = 4

LINES = "public.raw_orders o, jsonb_array_elements(o.lines) with ordinality e(l, n)"
BAD = "o.id % 1000 = 17"


@pytest.fixture
def orders(databases, tmp_path):
    """Both ends, with one bad line in each thousandth order, and the job file."""
    tables.create(databases, orders=ORDERS)
    run_sql(
        databases[0],
        f"update public.raw_orders o set lines = lines || jsonb_build_object('sku', 'bad', 'qty', 0) where {BAD}",
    )
    return tables.write(tmp_path / "orders.yaml", databases)


def assert_exactly_once(databases):
    """No duplicate, no half record: by plain SQL at both ends."""
    source, target = databases
    wanted = fetch(
        source, f"select o.id, n::int, l->>'sku', (l->>'qty')::int from {LINES} where not {BAD} order by 1, 2"
    )
    assert fetch(target, "select order_id, line_no, sku, qty from public.order_lines order by 1, 2") == wanted
    emails = fetch(source, f"select id, customer_email from public.raw_orders o where not {BAD} order by 1")
    got = "select o.id, c.email from public.orders o join public.customers c on c.id = o.customer_id order by 1"
    assert fetch(target, got) == emails
    assert value(target, "select count(*) from public.customers") == len({email for _, email in emails})
    keys = fetch(target, "select key::int from keyhaul.quarantine order by 1")
    assert keys == fetch(source, f"select id from public.raw_orders o where {BAD} order by 1")
    sums = fetch(
        target, "select sum(rows_read)::int, sum(rows_loaded)::int, sum(rows_quarantined)::int from keyhaul.chunks"
    )
    assert sums == [(ORDERS, ORDERS - len(keys), len(keys))]
    stored = fetch(
        target,
        "select t->>'table', sum((t->>'inserted')::int)::int from keyhaul.chunks, jsonb_array_elements(tables) t"
        " where t->>'table' <> 'public.customers' group by 1 order by 1",
    )
    assert stored == [("public.order_lines", len(wanted)), ("public.orders", len(emails))]


def test_three_tables_are_exactly_once_over_kills(start_etl, databases, orders):
    print(f"seed {SEED}")
    chance = random.Random(SEED)  # noqa: S311 - moments, no secrets
    args = ("run", str(orders), "--workers", "2", "--progress", "json")
    killed = 0
    for _ in range(ROUNDS):
        run = start_etl(*args)
        run.wait_for("RunStarted")
        time.sleep(chance.uniform(0, 0.8))
        run.send(signal.SIGKILL)
        killed += run.end() == -signal.SIGKILL
        # At any moment each order has all its lines: what is there of the tables is whole.
        half = fetch(databases[1], "select id from public.orders o where not exists"
                     " (select from public.order_lines where order_id = o.id)")  # fmt: skip
        assert half == []
    run = start_etl(*args)
    assert run.end() == 1, run.stderr  # the quarantined records
    assert killed >= 2
    assert_exactly_once(databases)
    wait_until_nothing_is_left(*databases)


@pytest.mark.thin(2)
@pytest.mark.parametrize("lose", ["answer", "commit"])
def test_a_chunk_killed_at_its_commit_is_in_all_tables_or_in_none(start_etl, server, databases, orders, lose):
    source, target = databases
    with losing(server.port, times=1, lose=lose) as proxy:
        through = target.replace(f":{server.port}/", f":{proxy.port}/")
        run = start_etl("run", str(orders), "--target", through, "--workers", "2", "--progress", "json")
        support.wait_until(lambda: proxy.cut == 1, "a COMMIT")
        run.send(signal.SIGKILL)
        assert run.end() == -signal.SIGKILL
    run = start_etl("run", str(orders), "--workers", "2", "--progress", "json")
    assert run.end() == 1, run.stderr
    assert_exactly_once(databases)
    wait_until_nothing_is_left(source, target)


def test_plan_run_and_show_tell_of_every_table(etl, databases, tmp_path):
    tables.create(databases, orders=100)
    job = str(tables.write(tmp_path / "orders.yaml", databases))
    plan = etl("plan", job)
    assert plan.returncode == 0, plan.stderr
    assert "public.customers: upsert on email, a row for each record" in plan.stdout
    assert "public.order_lines: append, a row for each element of lines" in plan.stdout
    assert "id of public.customers" in plan.stdout
    assert "uuid of id" in plan.stdout
    done = etl("run", job)
    assert done.returncode == 0, done.stderr
    show = etl("show", "last", "--target", databases[1])
    assert show.returncode == 0, show.stderr
    for printed in (done.stdout, show.stdout):
        lines = [line.split() for line in printed.splitlines()]
        assert ["public.customers", "100", "0", "0", "0"] in lines
        assert ["public.orders", "100", "0", "0", "0"] in lines
        assert ["public.order_lines", "300", "0", "0", "0"] in lines


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("conflict: email", "conflict: mail", "line 7: load public.customers: mode upsert looks at mail"),
        ("placed_at: placed_at", "placed_at: placed", "line 16: read expression 'placed': no column placed"),
        ("column: lines", "column: line", "line 17: unnest line: no such column"),
        ("mode: upsert", "mode: replace", 'line 9: targets[0].mode: got "replace", expected one of append, skip, upsert'),
        ("price: line_price", "cost: line_price", "line 17: write public.order_lines.cost: the target has no such column"),
        ("{uuid: [id]}", "{uuid: [no]}", "line 11: uuid of no: no such column"),
        ("parent: public.customers", "parent: public.order_lines", "a table that is no earlier entry"),
        ("customers, column: id", "customers, column: no", "line 11: take no of public.customers: no such column"),
        ("- table: public.orders\n", "- table: public.order\n", "line 11: load public.order: it is not there"),
        ("unnest:", "unest:", "line 18: targets[2].unest: got an unknown key, expected unnest"),
        ('"initcap(customer_name)"', "7", 'targets[0].columns.name: got 7, expected "expression"'),
        ("target: {", "target: {table: public.x, ", "line 3: target.table: got a table beside targets, expected no table here"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_nothing_is_moved(etl, databases, tmp_path, old, new, told):
    tables.create(databases)
    assert tables.JOB.count(old) == 1
    job = tables.write(tmp_path / "orders.yaml", databases, tables.JOB.lstrip().replace(old, new))
    done = etl("plan", str(job))
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert told in " ".join(done.stderr.split())
