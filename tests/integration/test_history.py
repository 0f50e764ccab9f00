"""Runs, chunks and quarantine as frames, and moves from Python."""

import json
import os
import pickle
import re
import signal
import threading
import tracemalloc
from pathlib import Path

import polars as pl
import psycopg
import pytest
from historydoc import page
from moving import move, rows, run_sql

import keyhaul
from keyhaul import events
from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.errors import ConfigError, RefusedError
from keyhaul.history.checks import CHECKS
from keyhaul.history.frames import CHUNKS, QUARANTINE, RUNS, _Scan, schema_of
from keyhaul.ledger import versions
from keyhaul.sessions.connecting import find_ledger

PAGE = Path(__file__).parents[2] / "docs" / "history.md"
SECRET = "s3cr3t-of-the-role"


@pytest.fixture
def orders(databases):
    run_sql(
        databases[0],
        "create table public.orders as select n as id, n % 100 as bucket, 'n' || n as note from generate_series(1, 1000) n",
        "alter table public.orders add primary key (id)",
    )
    return databases


@pytest.fixture
def moved(orders):
    return move(orders, "public.orders", chunk=250, rule=["no_seven: bucket <> 7", "no_eight: bucket <> 8"])


def job_of(databases, **more):
    source, target = databases
    return {"source": source, "target": target, "table": "public.orders", "key": "id", "job": "orders", **more}


def checked(databases, path, *, state=None):
    """Check the orders three times, the second time with a rule that is broken, and return the frame of results."""
    source, target = databases
    file = path / "checks.yaml"
    place = {"state": str(state)} if state else {"ledger": target}
    for highest in (99, 50, 99):
        listed = [
            {"between": {"column": "bucket", "max": highest}, "name": "bucket"},
            {"drift": {"column": "bucket", "mean": "1%", "distinct": 0, "null_share": 0}, "name": "stays"},
            {"not_null": "id", "severity": "warn", "name": "an id"},
        ]
        settings = {"source": {"uri": source, "table": "public.orders"}, **place, "checks": listed}
        file.write_text(json.dumps(settings))
        keyhaul.check(file)
    return keyhaul.checks(state=state) if state else keyhaul.checks(target)


def test_the_page_is_what_the_frames_say():
    assert PAGE.read_text(encoding="utf-8") == page()


def test_the_page_names_the_columns_and_types_that_the_frames_have(orders, moved, tmp_path):
    frames = {
        "runs": keyhaul.runs(orders[1]),
        "chunks": keyhaul.chunks(target=orders[1]),
        "quarantine": keyhaul.quarantine(target=orders[1]).collect(),
        "checks": checked(orders, tmp_path),
    }
    for name, frame in frames.items():
        table = PAGE.read_text(encoding="utf-8").split(f"\n## {name}\n")[1].partition("\n## ")[0]
        told = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", table, re.MULTILINE))
        nullable = {column for column, dtype in told.items() if dtype.endswith(" or NULL")}
        plain = {column: re.split(r"[(, ]", dtype)[0] for column, dtype in told.items()}
        assert plain == {column: str(dtype.base_type()) for column, dtype in frame.schema.items()}
        assert {column for column in frame.columns if frame[column].null_count()} <= nullable
        assert frame.height > 0


def test_a_run_is_one_row_with_its_balance_its_times_and_its_job(orders, moved):
    run = keyhaul.runs(orders[1]).row(0, named=True)
    balance = ("read", "loaded", "updated", "unchanged", "duplicate", "filtered", "quarantined", "resolved")
    assert [run[f"rows_{name}"] for name in balance] == [1000, 980, 0, 0, 0, 0, 20, 0]
    assert (run["run_id"], run["state"], run["chunks_done"], run["chunks_retried"]) == (moved.run_id, "done", 4, 0)
    assert run["seconds"] > 0
    assert run["rows_per_second"] == pytest.approx(1000 / run["seconds"])
    assert run["bytes_read"] > 0
    assert json.loads(run["config"])["chunk"] == 250
    assert str(run["started_at"].tzinfo) == "UTC"
    chunks = keyhaul.chunks(target=orders[1])
    for step in ("read", "transform", "stage", "load"):
        assert run[f"{step}_seconds"] == pytest.approx(chunks[f"{step}_seconds"].sum())


def test_chunks_come_in_key_order_with_open_ends_and_moments(orders, moved):
    chunks = keyhaul.chunks(moved.run_id, target=orders[1])
    assert chunks["chunk"].to_list() == [1, 2, 3, 4]
    assert chunks["lower_bound"].to_list() == [None, ["251"], ["501"], ["751"]]
    assert chunks["upper_bound"].to_list() == [["251"], ["501"], ["751"], None]
    assert chunks["rows_read"].to_list() == [250] * 4
    assert (chunks["started_at"] < chunks["ended_at"]).all()
    assert chunks["warned"].to_list() == [[]] * 4


@pytest.mark.parametrize("kept", ["in a ledger", "in a file"])
def test_results_of_checks_come_with_the_newest_execution_first(orders, tmp_path, kept):
    frame = checked(orders, tmp_path, state=tmp_path / "state.json" if kept == "in a file" else None)
    assert frame.schema == schema_of(CHECKS)
    assert frame["name"].to_list() == ["an id", "bucket", "stays"] * 3
    assert frame.group_by("check_run").agg(pl.col("checked_at").n_unique())["checked_at"].to_list() == [1, 1, 1]
    assert frame["checked_at"].is_sorted(descending=True)
    wanted = frame.select("status", "failures", "rows").rows()
    assert wanted[3:6] == [("passed", 0, 1000), ("failed", 490, 1000), ("passed", 0, 1000)]
    assert {row[0] for row in wanted[:3] + wanted[6:]} == {"passed"}
    drift = frame.filter(pl.col("kind") == "drift")
    assert drift.select("null_share", "mean", "distinct", "accepted").rows() == [(0.0, 49.5, 100, True)] * 3
    assert frame.filter(pl.col("kind") != "drift").select("mean", "distinct").unique().rows() == [(None, None)]


def test_results_of_checks_that_are_not_there_are_refused(orders, moved, tmp_path):
    with pytest.raises(RefusedError, match=r"none is kept in .*keyhaul\.checks"):
        keyhaul.checks(orders[1])  # a ledger of runs alone
    with pytest.raises(RefusedError, match="none is kept in "):
        keyhaul.checks(state=tmp_path / "none.json")
    with pytest.raises(ConfigError, match="got a database and a file"):
        keyhaul.checks(orders[1], state=tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"check_run": 1}\n')
    with pytest.raises(ConfigError, match="line 1: got something else"):
        keyhaul.checks(state=tmp_path / "other.json")


def test_a_run_is_verified_from_python(orders):
    job = job_of(orders, chunk=250, rule=["no_seven: bucket <> 7", "no_eight: bucket <> 8"])
    moved, told = keyhaul.run(job), []
    found = keyhaul.verify(job, moved.run_id, told.append)
    assert (found.equal, found.rows, found.chunks) == (True, 980, 4)
    run_sql(orders[1], "update public.orders set note = 'other' where id = 400")
    run_sql(orders[1], "alter table public.orders drop constraint orders_pkey")
    found = keyhaul.verify(job, "last", told.append, show_values=True)
    assert any(isinstance(event, events.Notice) and "An index on the key helps" in event.message for event in told)
    assert (found.equal, found.changed, [one.key for one in found.differences]) == (False, 1, [("400",)])
    assert found.differences[0].expected == {"note": "n400"}
    with pytest.raises(ConfigError, match=r"unknown flags \['chnk'\]"):
        keyhaul.verify(job_of(orders, chnk=5))


def test_rules_that_only_warn_are_counted_by_rule(orders, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        f'source: {{uri: "{orders[0]}", table: public.orders}}\nkey: id\ntarget: {{uri: "{orders[1]}"}}\n'
        'rules: {small: {check: "bucket < 50", on_fail: warn}}\n'
    )
    keyhaul.run(path)
    assert keyhaul.chunks(target=orders[1])["warned"].to_list() == [[{"rule": "small", "rows": 500}]]


def test_the_quarantine_is_read_when_it_is_collected_and_only_as_far_as_it_is_used(orders, moved):
    frame = keyhaul.quarantine("last", target=orders[1])
    assert isinstance(frame, pl.LazyFrame)
    assert frame.collect_schema() == schema_of(QUARANTINE)
    assert frame.select(pl.len()).collect().item() == 20
    by_rule = frame.explode("rules").group_by("rules").len().sort("rules").collect()
    assert by_rule.rows() == [("no_eight", 10), ("no_seven", 10)]
    assert frame.filter(pl.col("key") == "107").select("record", "chunk").collect().rows() == [(106, 1)]
    assert frame.head(3).select("key").collect()["key"].to_list() == ["7", "8", "107"]
    assert frame.filter(pl.col("rules").list.contains("no_eight")).head(2).select("key").collect().rows() == [
        ("8",),
        ("108",),
    ]


def test_a_column_that_no_query_uses_is_not_fetched(orders, moved):
    run_sql(orders[1], "update keyhaul.quarantine set data = jsonb_build_object('x', repeat('x', 1000000))")
    frame = keyhaul.quarantine(target=orders[1])
    tracemalloc.start()
    try:
        assert frame.select(pl.col("message").n_unique()).collect().item() == 2
        without_bytes = tracemalloc.get_traced_memory()[1]
        assert frame.select(pl.col("data").str.len_bytes().sum()).collect().item() == 20 * 1_000_009
        with_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert without_bytes < 2_000_000
    assert with_bytes > 20_000_000


def test_a_quarantine_frame_with_a_login_in_it_refuses_to_be_serialized(orders, moved):
    with pytest.raises(pl.exceptions.ComputeError):
        keyhaul.quarantine(target=orders[1]).serialize()
    with pytest.raises(TypeError, match="it holds the login of its database"):
        pickle.dumps(_Scan(find_ledger(orders[1], None, None, {}), moved.run_id))


def test_types_are_the_same_for_an_empty_ledger(databases):
    with psycopg.connect(databases[1], autocommit=True) as conn:
        versions.create(conn, "keyhaul")
        assert keyhaul.runs(databases[1]).schema == schema_of(RUNS)
        with pytest.raises(RefusedError, match="no run is recorded"):
            keyhaul.chunks(target=databases[1])
        conn.execute(
            "insert into keyhaul.runs (run_id, job, fingerprint, config, status, source, target_table, key, chunk_rows,"
            " chunks_planned, estimated_rows, workers, pid, host, version)"
            " values ('r', 'j', 'f', '{}', 'running', 's', 't', '{id}', 1, 0, 0, 1, 1, 'h', '0')"
        )
        assert keyhaul.chunks("r", target=databases[1]).schema == schema_of(CHUNKS)
        assert keyhaul.quarantine("r", target=databases[1]).collect().schema == schema_of(QUARANTINE)
        assert keyhaul.runs(databases[1])["state"].to_list() == ["interrupted"]


@pytest.mark.parametrize(
    "ask",
    [
        keyhaul.runs,
        lambda target: keyhaul.chunks(target=target),
        lambda target: keyhaul.quarantine(target=target),
    ],
)
def test_a_database_without_a_ledger_is_refused(databases, ask):
    with pytest.raises(RefusedError, match="no run is recorded in"):
        ask(databases[1])


def test_the_environment_counts_only_when_it_is_given(orders, moved, monkeypatch):
    monkeypatch.setenv("ETL_LEDGER_SCHEMA", "elsewhere")
    assert keyhaul.runs(orders[1]).height == 1
    assert keyhaul.runs(environ={"ETL_TARGET_URL": orders[1]}).height == 1
    with pytest.raises(RefusedError, match="schema elsewhere"):
        keyhaul.runs(orders[1], environ={"ETL_LEDGER_SCHEMA": "elsewhere"})


def test_no_frame_holds_a_password(orders):
    run_sql(
        orders[1],
        "drop role if exists history_reader",
        f"create role history_reader superuser login password '{SECRET}'",
    )
    try:
        source, target = (
            uri.replace("//", f"//history_reader:{SECRET}@", 1)
            if "@" not in uri
            else re.sub(r"//[^@]*@", f"//history_reader:{SECRET}@", uri)
            for uri in orders
        )
        keyhaul.run(job_of((source, target), rule=["r: bucket <> 1"]))
        frames = [keyhaul.runs(target), keyhaul.chunks(target=target), keyhaul.quarantine(target=target).collect()]
        assert [frame.height for frame in frames] == [1, 1, 10]
        assert SECRET not in "".join(frame.write_json() for frame in frames)
        assert SECRET not in repr(keyhaul.quarantine(target=target)) + keyhaul.quarantine(target=target).explain()
    finally:
        run_sql(orders[1], "drop owned by history_reader cascade")
        run_sql(orders[0], "drop owned by history_reader cascade", "drop role history_reader")


def test_a_run_from_python_is_watched_and_a_plan_moves_nothing(orders):
    seen = []
    planned = keyhaul.plan(job_of(orders, chunk=400))
    assert [chunk.estimated_rows for chunk in planned.chunks] == [400, 400, 200]
    assert rows(orders[1], "select to_regclass('public.orders') is null and to_regnamespace('keyhaul') is null") == [
        (True,)
    ]
    report = keyhaul.run(job_of(orders, chunk=400), seen.append)
    assert (report.outcome, report.counts.loaded) == ("done", 1000)
    assert type(seen[-1]) is events.RunFinished
    assert sum(isinstance(event, events.ChunkDone) for event in seen) == 3


def test_a_job_is_a_path_settings_or_a_job(orders, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        f'job: orders\nsource: {{uri: "{orders[0]}", table: public.orders}}\nkey: id\n'
        f'target: {{uri: "${{WHERE}}", table: "public.orders"}}\n'
    )
    assert len(keyhaul.plan(path, environ={"WHERE": orders[1]}).chunks) == 1
    assert len(keyhaul.plan(str(path), environ={"WHERE": orders[1]}).chunks) == 1
    assert len(keyhaul.plan(load_job(None, job_of(orders), {})).chunks) == 1
    with pytest.raises(ConfigError, match=r"unknown flags \['chnk'\], expected names of flags"):
        keyhaul.plan(job_of(orders, chnk=5))
    with pytest.raises(ConfigError, match="expected a column or a list"):
        keyhaul.run({"table": "t"})


def test_a_run_in_another_thread_is_stopped_by_its_control_and_resumed(orders):
    control = Control()
    reports = []

    def observe(event):
        if isinstance(event, events.ChunkDone):
            control.stop("enough")

    def work():
        reports.append(keyhaul.run(job_of(orders, chunk=100, workers=1), observe, control=control))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert (reports[0].outcome, reports[0].stop_reason, reports[0].chunks_done) == ("stopped", "enough", 1)
    assert keyhaul.runs(orders[1])["state"].to_list() == ["stopped"]
    again = keyhaul.run(job_of(orders, chunk=100))
    assert (again.resumed, again.outcome, again.counts.loaded) == (True, "done", 1000)
    assert keyhaul.runs(orders[1])["sittings"].to_list() == [2]


def test_ctrl_c_in_the_main_thread_stops_the_run_resumably_and_is_given_back(orders):
    before = signal.getsignal(signal.SIGINT)

    def observe(event):
        if isinstance(event, events.ChunkDone) and event.chunk == 1:
            os.kill(os.getpid(), signal.SIGINT)

    report = keyhaul.run(job_of(orders, chunk=100, workers=1), observe)
    assert (report.outcome, report.signal, report.stop_reason) == ("interrupted", signal.SIGINT, "Ctrl-C")
    assert report.chunks_done < 10
    assert signal.getsignal(signal.SIGINT) is before
