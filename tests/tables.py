"""Orders that become customers, orders and order_lines: the job, its tables, and a move in this process."""

import json

from moving import run_sql

from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.execution.engine import run

SOURCE = """create table public.raw_orders (
    id bigint primary key, customer_email text, customer_name text, placed_at timestamptz not null, lines jsonb)"""

TARGET = [
    """create table public.customers (
        id bigint generated always as identity primary key, email text unique not null, name text not null check (name <> ''))""",
    """create table public.orders (
        id bigint primary key, customer_id bigint not null references public.customers, public_id uuid unique not null,
        placed_at timestamptz not null)""",
    """create table public.order_lines (
        order_id bigint not null references public.orders, line_no int not null, sku text not null,
        qty int not null check (qty > 0), price numeric(12,2), primary key (order_id, line_no))""",
]

JOB = """
job: orders
source: {table: public.raw_orders, uri: "SOURCE"}
target: {uri: "TARGET"}
key: id
chunk: 1000
targets:
  - table: public.customers
    columns: {email: customer_email, name: "initcap(customer_name)"}
    mode: upsert
    conflict: email
  - table: public.orders
    columns:
      id: id
      customer_id: {parent: public.customers, column: id}
      public_id: {uuid: [id]}
      placed_at: placed_at
  - table: public.order_lines
    unnest: {column: lines, as: line, fields: [sku, qty, price]}
    columns: {order_id: id, line_no: line_number, sku: line_sku, qty: line_qty, price: line_price}
"""


def create(databases, orders=0):
    """Create both ends, and `orders` orders of 100 customers with one to five lines each."""
    source, target = databases
    run_sql(source, SOURCE)
    run_sql(target, *TARGET)
    if orders:
        run_sql(
            source,
            "insert into public.raw_orders select i, 'c' || i % 100 || '@x.org', 'customer ' || i % 100,"
            " timestamptz '2024-01-01 00:00+00' + i * interval '1 minute',"
            " (select jsonb_agg(jsonb_build_object('sku', 'S-' || i || '-' || n, 'qty', n, 'price', i * 0.01 + n))"
            f" from generate_series(1, 1 + i % 5) n) from generate_series(1, {orders}) i",
        )


def insert(uri, *orders):
    """Insert orders as (id, email, name, lines); lines are JSON text, or a value that becomes it."""
    for number, email, name, lines in orders:
        text = lines if isinstance(lines, str) or lines is None else json.dumps(lines)
        quoted = ["null" if value is None else "'" + value.replace("'", "''") + "'" for value in (email, name, text)]
        run_sql(uri, f"insert into public.raw_orders values ({number}, {quoted[0]}, {quoted[1]}, now(), {quoted[2]})")


def write(path, databases, job=JOB):
    """Write the job file; returns its path."""
    source, target = databases
    path.write_text(job.replace("SOURCE", source).replace("TARGET", target), encoding="utf-8")
    return path


def go(tmp_path, databases, job=JOB, **flags):
    """Run the job as a fresh run; returns the report."""
    path = write(tmp_path / "orders.yaml", databases, job)
    return run(load_job(path, flags, {}), lambda _event: None, Control(), fresh=True)
