"""Chunks of a run that another process moves: it gets plain data, and no secret."""

import os
import pickle
import sqlite3
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from elsewhere import Elsewhere
from moving import rows, run_sql

from keyhaul.before.joining import join_run, ticket_of
from keyhaul.before.prepare import prepare
from keyhaul.comparison.comparing import verify
from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.errors import ConfigError, RefusedError
from keyhaul.execution.engine import run
from keyhaul.sessions.connecting import find_ends

SECRET = "a-word-that-nobody-prints"
JOB = """
transform:
  - set: {double: "id * 2"}
  - where: "name <> '${SECRET_NAME}'"
rules:
  few: "id % 100 <> 7"
"""


@pytest.fixture
def ends(server, database):
    return database(server, "here"), database(server, "there")


@pytest.fixture
def there(ends):
    run_sql(ends[1], "create table public.t (id bigint primary key, name text, amount numeric(12,2), double bigint)")
    return ends[1]


def of_postgres(ends, _folder):
    run_sql(
        ends[0],
        "create table public.t (id bigint primary key, name text, amount numeric(12,2))",
        "insert into public.t select g, 'name ' || g, g * 0.25 from generate_series(1, 1000) g",
    )
    return {"source": ends[0], "table": "public.t", "key": "id"}


def of_sqlite(_ends, folder):
    with closing(sqlite3.connect(folder / "t.db")) as conn:
        conn.execute("create table t (id integer primary key, name text, amount numeric(12,2))")
        conn.executemany("insert into t values (?, ?, ?)", [(g, f"name {g}", g * 0.25) for g in range(1, 1001)])
        conn.commit()
    return {"source": f"sqlite:///{folder}/t.db", "table": "t"}


def of_files(_ends, folder):
    lines = [f"{g},name {g},{g * 0.25:.2f}\n" for g in range(1, 1001)]
    for number in range(2):
        text = "id,name,amount\n" + "".join(lines[number * 500 : number * 500 + 500])
        (folder / f"t{number}.csv").write_text(text, encoding="utf-8")
    return {"source": f"{folder}/t*.csv"}


@pytest.fixture(params=[of_postgres, of_sqlite, of_files], ids=["postgres", "sqlite", "files"])
def job(request, ends, there, tmp_path):
    given = {"target": there, "into": "public.t", "job": "elsewhere", "chunk": "150", "workers": "1"}
    given |= request.param(ends, tmp_path)
    path = tmp_path / "job.yaml"
    path.write_text(JOB, encoding="utf-8")
    return load_job(path, given, {"SECRET_NAME": SECRET, "ETL_WORK_DIR": str(tmp_path / "work")})


@pytest.fixture
def environ(ends):
    return {
        "ETL_SOURCE_URL": ends[0],
        "ETL_TARGET_URL": ends[1],
        "SECRET_NAME": SECRET,
        "ETL_CHUNK": "of no meaning here",
        "PATH": os.environ["PATH"],
    }


def test_chunks_that_a_spawned_process_moves_are_those_of_the_run(job, environ, there, ends):
    elsewhere = type("There", (Elsewhere,), {"environ": environ, "sent": [], "pids": set()})
    report = run(job, lambda _event: None, Control(), fresh=True, hire=elsewhere)
    assert (report.outcome, report.counts.read, report.counts.loaded, report.counts.quarantined) == (
        "done",
        1000,
        990,
        10,
    )
    assert report.chunks_done == report.chunks_planned > 1
    assert len(elsewhere.pids) == 1
    assert os.getpid() not in elsewhere.pids
    assert rows(there, "select count(*), sum(id), sum(double) from public.t") == rows(
        there, "select 990, sum(g), sum(g * 2) from generate_series(1, 1000) g where g % 100 <> 7"
    )
    found = verify(job, report.run_id)
    assert (found.changed, found.missing, found.extra, found.rows) == (0, 0, 0, 990)
    words = [SECRET, *(urlsplit(uri).password for uri in ends)]
    assert all(words)
    assert not [word for word in words for data in elsewhere.sent if word.encode() in data]


def test_a_process_with_other_variables_does_not_join(job, environ):
    with prepare(job, find_ends(job), run_id="joined") as prepared:
        ticket = pickle.loads(pickle.dumps(ticket_of(prepared)))  # noqa: S301 - our own
        with pytest.raises(RefusedError, match="another one here"):
            join_run(ticket, environ | {"SECRET_NAME": "another"})
        with pytest.raises(RefusedError, match=r"expected the run's target"):
            join_run(ticket, environ | {"ETL_TARGET_URL": environ["ETL_TARGET_URL"] + "_other"})
        with pytest.raises(ConfigError, match="SECRET_NAME"):
            join_run(ticket, {name: value for name, value in environ.items() if name != "SECRET_NAME"})
        assert join_run(ticket, environ).read_columns == prepared.read_columns


def test_a_run_of_which_a_secret_is_written_out_stays_in_its_process(ends, there, tmp_path):
    given = {"target": there, "into": "public.t", **of_postgres(ends, tmp_path)}
    job = load_job(None, {**given, "where": "name <> 'postgresql://me:hidden@host/db'"}, {})
    with prepare(job, find_ends(job), run_id="secret") as prepared, pytest.raises(RefusedError, match="written out"):
        ticket_of(prepared)
