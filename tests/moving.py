"""Moves in this process, for tests that look at what arrives and not at the command line."""

import psycopg

from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.execution.engine import run


def job(databases, *, file=None, **flags):
    """Return the job that moves public.t; a flag that is None is left out."""
    source, target = databases
    given = {"source": source, "target": target, "table": "public.t", "key": "id", "job": "move", **flags}
    return load_job(file, {name: value for name, value in given.items() if value is not None}, {})


def move(databases, table, *, key="id", **flags):
    """Move `table` from the first database to the second as a fresh run; returns the report."""
    return run(job(databases, table=table, key=key, **flags), lambda _event: None, Control(), fresh=True)


def rows(uri, query):
    """Return all rows of a query, in a session whose text forms are those of the other end."""
    with psycopg.connect(uri, autocommit=True) as conn:
        conn.execute(
            "set timezone = 'UTC'; set datestyle = 'ISO, YMD'; set extra_float_digits = 1; set search_path = ''"
        )
        return conn.execute(query).fetchall()


def run_sql(uri, *statements):
    """Run statements, each in a transaction of its own."""
    with psycopg.connect(uri, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement)
