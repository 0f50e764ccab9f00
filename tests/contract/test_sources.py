"""What every source promises, run on each kind; see `keyhaul.sources.source`."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict

import polars as pl
import psycopg
import pytest
import xlsxwriter

from keyhaul.config.job import load_job
from keyhaul.errors import ConfigError, RefusedError, StopRunError
from keyhaul.postgres.dsn import Dsn
from keyhaul.sources.kinds import open_source
from keyhaul.sources.source import REJECTED_BY_SOURCE, Opening, Ticket

TABLE = "create table t (id integer primary key, name text, amount numeric(12,2), made timestamp)"
ROWS = [(n, f"name {n}", f"{n}.25", "2024-02-29 12:34:56") for n in range(1, 101)]

COLUMNS = ("id", "name", "amount", "made")


class Postgres:
    """A table in the embedded PostgreSQL."""

    kind = "postgres"
    key = ("id",)

    def __init__(self, uri):
        self.uri = uri
        self.environ = {"ETL_SOURCE_URL": uri}
        with psycopg.connect(uri, autocommit=True) as conn:
            conn.execute(TABLE)
            with conn.cursor() as cursor:
                cursor.executemany("insert into t values (%s, %s, %s, %s)", ROWS)

    def execute(self, statement):
        with psycopg.connect(self.uri, autocommit=True) as conn:
            conn.execute(statement)

    def open(self, _folder, **flags):
        given = {"source": self.uri, "target": self.uri, "table": "t", "key": "id", "into": "u", **flags}
        return open_source(Opening(job=load_job(None, given, {}), run_id="contract", dsn=Dsn.parse(self.uri, "test")))


class Sqlite:
    """A file."""

    kind = "sqlite"
    key = ("id",)
    environ = {}  # noqa: RUF012

    def __init__(self, path):
        self.path = path
        with closing(sqlite3.connect(path)) as conn:
            conn.execute(TABLE)
            conn.executemany("insert into t values (?, ?, ?, ?)", ROWS)
            conn.commit()

    def execute(self, statement):
        with closing(sqlite3.connect(self.path)) as conn:
            conn.execute(statement)
            conn.commit()

    def open(self, folder, **flags):
        given = {"source": str(self.path), "target": "postgresql://localhost/x", "table": "t", "into": "u", **flags}
        return open_source(Opening(job=load_job(None, given, {"ETL_WORK_DIR": str(folder)}), run_id="contract"))


def flat(path):
    frame().write_csv(path)


def lines(path):
    path.write_text(frame().write_ndjson())


def array(path):
    path.write_text(f"[{frame().write_ndjson().strip().replace(chr(10), ', ')}]")


def sheet(path):
    book = xlsxwriter.Workbook(path)
    written = book.add_worksheet()
    for number, row in enumerate([frame().columns, *frame().iter_rows()]):
        written.write_row(number, 0, row)
    book.close()


def frame():
    return pl.DataFrame([(n, name, float(amount), made) for n, name, amount, made in ROWS], COLUMNS, orient="row")


WRITERS = {
    "csv": flat,
    "jsonl": lines,
    "json": array,
    "xlsx": sheet,
    "parquet": lambda path: frame().write_parquet(path, row_group_size=40),
    "arrow": lambda path: frame().write_ipc(path, record_batch_size=40),
}


class Files:
    """A file of a format: records without a key, found by their number."""

    kind = "files"
    environ = {}  # noqa: RUF012
    key = ("_keyhaul_file", "_keyhaul_number")

    def __init__(self, path):
        self.path = path
        WRITERS[path.suffix[1:]](path)

    def execute(self, _statement):
        self.path.write_bytes(self.path.read_bytes() + b"\n")

    def open(self, folder, **flags):
        given = {"source": str(self.path), "target": "postgresql://localhost/x", "into": "u", **flags}
        return open_source(Opening(job=load_job(None, given, {"ETL_WORK_DIR": str(folder)}), run_id="contract"))


@pytest.fixture(params=["postgres", "sqlite", *WRITERS])
def kind(request, database, tmp_path):
    if request.param == "postgres":
        return Postgres(database(request.getfixturevalue("server"), "sources"))
    return Sqlite(tmp_path / "t.db") if request.param == "sqlite" else Files(tmp_path / f"t.{request.param}")


of_databases = pytest.mark.parametrize("kind", ["postgres", "sqlite"], indirect=True)
of_files = pytest.mark.parametrize("kind", WRITERS, indirect=True)


@pytest.fixture
def source(kind, tmp_path):
    opened = kind.open(tmp_path / "work")
    yield opened
    opened.close()
    opened.close()


def read(source, chunk, columns=COLUMNS):
    reader = source.open(1, columns)
    try:
        return reader.read(chunk)
    finally:
        reader.close()
        reader.close()


def test_its_description_has_a_route_for_each_column_and_the_key_among_them(source, kind):
    described = source.describe()
    assert described == source.describe()
    assert [column.name for column in described.columns] == list(COLUMNS)
    assert set(described.routes) == {*COLUMNS, *described.own}
    assert described.key == kind.key
    assert described.key_unique
    with_key = kind.key == ("id",)
    assert (described.primary_key, described.ranged) == ((("id",), True) if with_key else ((), False))
    assert json.dumps(dict(source.identity(list(COLUMNS)))) == json.dumps(dict(source.identity(list(COLUMNS))))
    assert not source.differs(json.loads(json.dumps(dict(source.identity(list(COLUMNS))))), list(COLUMNS))


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_each_record_is_in_exactly_one_chunk_in_the_types_of_the_description(source, rows):
    plan = source.plan(rows)
    assert plan.estimated_rows == 100
    batches = [read(source, chunk) for chunk in plan.chunks]
    for batch in batches:
        assert dict(batch.frame.schema) == {name: source.describe().routes[name].dtype for name in COLUMNS}
        assert dict(batch.rejected.schema) == REJECTED_BY_SOURCE
    found = pl.concat([batch.frame for batch in batches])
    assert sorted(found["id"].to_list()) == list(range(1, 101))


def test_a_chunk_is_the_same_each_time_and_in_another_process(source, kind):
    chunk = source.plan(30).chunks[1]
    first = read(source, chunk).frame
    assert read(source, chunk).frame.equals(first)
    ticket = Ticket(**json.loads(json.dumps(asdict(source.ticket(COLUMNS)))))
    program = (
        "import json, sys\n"
        "from keyhaul.model import Chunk\n"
        "from keyhaul.sources.kinds import join\n"
        "from keyhaul.sources.source import Ticket\n"
        "given = json.loads(sys.stdin.read())\n"
        "chunk = Chunk(number=2, kind=given['kind'], lower=tuple(given['lower']), upper=given['upper'] and tuple(given['upper']))\n"
        "reader = join(Ticket(**given['ticket']), given['environ'])\n"
        "print(reader.read(chunk).frame.write_json())\n"
        "reader.close()\n"
    )
    for uri in kind.environ.values():
        password = Dsn.parse(uri, "test").password
        assert password
        assert password not in json.dumps(asdict(ticket))
    given = {"ticket": asdict(ticket), "environ": kind.environ}
    given |= {"kind": chunk.kind, "lower": chunk.lower, "upper": chunk.upper}
    other = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(given), capture_output=True, text=True, check=False
    )
    assert other.returncode == 0, other.stderr
    assert json.loads(other.stdout) == json.loads(first.write_json())


@of_databases
def test_what_is_written_after_it_was_opened_is_in_no_chunk(source, kind):
    plan = source.plan(30)
    kind.execute("update t set name = 'later' where id = 50")
    kind.execute("insert into t values (1000, 'later', 1, '2024-01-01 00:00:00')")
    found = pl.concat([read(source, chunk).frame for chunk in plan.chunks])
    assert found.height == 100
    assert "later" not in found["name"]
    source.touch()


@of_files
def test_a_file_that_changes_after_it_was_opened_stops_the_run(source, kind):
    plan = source.plan(30)
    kind.execute("")
    with pytest.raises(StopRunError, match="has changed since the run began"):
        read(source, plan.chunks[1])


def test_records_are_found_again_by_their_keys_and_a_key_that_is_gone_gives_nothing(source, kind):
    keys = ["7", "93", "5000"]
    if kind.kind == "files":
        keys = [json.dumps([str(kind.path), key]) for key in keys]
    plan = source.reread(keys, 2)
    assert [chunk.kind for chunk in plan.chunks] == ["keys", "keys"]
    found = pl.concat([read(source, chunk, tuple(dict.fromkeys((*COLUMNS, *kind.key)))).frame for chunk in plan.chunks])
    assert sorted(found["id"].to_list()) == [7, 93]


def test_a_sample_knows_the_width_of_a_record(source):
    assert 10 < source.sample(COLUMNS).row_bytes < 200


@of_databases
def test_a_table_or_key_that_is_not_there_is_told_before_anything_is_read(kind, tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        kind.open(tmp_path / "work", table="nowhere")
    with pytest.raises((ConfigError, RefusedError), match="nothing"):
        kind.open(tmp_path / "work", key="nothing")


@of_databases
def test_a_value_over_all_records_is_computed_in_the_same_moment(source, kind):
    aggregates = source.abilities.aggregates
    kind.execute("delete from t where id > 50")
    assert aggregates.compute("count(*)") == "100"
    assert aggregates.compute("sum(id)") == "5050"
    with pytest.raises(ConfigError):
        aggregates.check("nonsense(id)")


@of_databases
def test_a_moment_that_is_lost_is_told(kind, tmp_path):
    source = kind.open(tmp_path / "work")
    source.touch()
    source.close()
    with pytest.raises(StopRunError):
        source.touch()
