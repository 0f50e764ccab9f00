"""The benchmark itself: that it runs, and that it would notice other rows. Nothing here depends on how fast it is."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from benchmarks import checks, measured, orders, rounds
from benchmarks.contenders import Contender, Ends
from benchmarks.link import throttled

from keyhaul.embedded import server as embedded

TESTS = Path(__file__).parents[1]


@pytest.fixture
def ends(databases, tmp_path):
    source, target = databases
    orders.make_source(source, 2_000)
    return Ends(source=source, target=target, folder=tmp_path)


def bench(databases, *args):
    source, target = databases
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "--source", source, "--target", target, "--rounds", "1", *args],
        env={"PYTHONPATH": f"{TESTS}:{Path(embedded.__file__).parents[2]}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_every_variant_gives_the_rows_that_the_database_itself_computes(databases, tmp_path):
    done = bench(databases, "--rows", "2000", "--guarantees", "--docs", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "performance.json").read_text(encoding="utf-8"))
    ran = {one["name"] for one in result["results"] if "median" in one}
    assert len(ran) == 13
    assert not [one["name"] for one in result["results"] if one["absent"]]
    assert [one["wrong"] for one in result["results"]] == [[]] * 13
    page = (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert "| raw COPY |" in page
    assert page.count("| ledger | ") == page.count("| snapshot | ") == 1
    assert "<svg" in (tmp_path / "performance.svg").read_text(encoding="utf-8")
    secret = urlsplit(databases[0]).password
    assert not any(secret in path.read_text(encoding="utf-8") for path in tmp_path.iterdir())


def test_nothing_of_the_benchmark_stays_in_the_databases(databases):
    done = bench(databases, "--rows", "1000", "--only", "raw")
    assert done.returncode == 0, done.stderr
    for uri in databases:
        with psycopg.connect(uri) as conn:
            found = conn.execute("select nspname from pg_namespace where nspname like 'keyhaul%'").fetchall()
        assert found == []


def test_a_contender_with_other_rows_does_not_count(ends):
    want = orders.expected(ends.source, {"finished"})["finished"]
    insert = f"insert into {orders.TARGET_TABLE} (id) values (1)"
    program = f"import psycopg, sys; psycopg.connect(sys.argv[1], autocommit=True).execute({insert!r})"
    wrong = Contender(name="wrong", group="peer", argv=(sys.executable, "-c", program, ends.target))
    assert rounds.run_one(wrong, ends, 1, want).wrong == "it loaded 1 rows, expected 1,988"


def test_a_contender_that_fails_says_with_what(ends):
    want = orders.expected(ends.source, {"finished"})["finished"]
    broken = Contender(name="broken", group="peer", argv=(sys.executable, "-c", "raise SystemExit('no such thing')"))
    assert rounds.run_one(broken, ends, 1, want).wrong == "it ended with 1: no such thing"


def test_the_digest_knows_no_order_but_every_value(ends):
    changed = f"select id, customer_id, status, amount + 0.01 * (id = 5)::int as amount, currency, created_at, updated_at, note, net from {orders.FINISHED_TABLE}"
    with psycopg.connect(ends.source) as conn:
        straight = orders.digest(conn, f"select * from {orders.FINISHED_TABLE} order by id")
        assert orders.digest(conn, f"select * from {orders.FINISHED_TABLE} order by note, id desc") == straight
        other = orders.digest(conn, changed)
    assert other.rows == straight.rows
    assert other.hash != straight.hash


def test_cpu_and_memory_are_those_of_all_processes_of_a_contender(tmp_path):
    inner = "import time; held = b'x' * 100_000_000\nwhile time.process_time() < 0.4: pass"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    usage = measured.run([sys.executable, "-c", outer], {}, tmp_path)
    assert usage.returncode == 0
    assert usage.cpu_seconds > 0.4
    assert usage.peak_bytes > 100_000_000


def test_the_checks_are_timed_with_every_set_of_rows_and_count_what_plain_sql_counts(database, server, tmp_path):
    found = tmp_path / "checks.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.checks", "--source", database(server), "--rows", "2000", "--rounds", "1",
         "--only", "floats a regex on a long text", "--json", str(found)],
        env={"PYTHONPATH": f"{TESTS}:{Path(embedded.__file__).parents[2]}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cells = json.loads(found.read_text(encoding="utf-8"))["cells"]
    assert {(one["place"], one["rows"]) for one in cells} == {("PostgreSQL", "floats"), ("Parquet", "floats")}
    assert all(one["ratio"] > 0 and one["base_cpu_seconds"] >= 0 and one["peak_bytes"] > 50_000_000 for one in cells)
    assert done.stdout.count("**") == 2 * len(cells) == 4


def test_a_check_that_counts_other_rows_does_not_count(tmp_path):
    (tmp_path / "rows.csv").write_text("id\n1\n")
    file = tmp_path / "checks.yaml"
    file.write_text(f"source: {{file: {tmp_path}/rows.csv}}\nchecks:\n- {{not_null: id, name: a}}\n")
    cell = checks.Cell(place="x", kind="y", checks="z", file=file, base=list, failing={"a": 1})
    found = checks.summary(cell, [checks.time_once(cell, checks.Server(None), tmp_path)])
    assert found["wrong"] == ["a"]
    assert "WRONG: a" in checks.table([found])


def test_a_slow_link_holds_each_connection_to_its_rate(databases):
    with throttled(databases[0], 1_000_000) as uri, psycopg.connect(uri) as conn:
        begun = time.monotonic()
        conn.execute("select repeat('x', 1000000)")
        assert time.monotonic() - begun > 0.75
