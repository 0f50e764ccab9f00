"""Every named point of a run: the process is killed there, and the same command makes it whole.

A point that is passed often is tried at the passages 1, 2, 4, 8, …; with ``KEYHAUL_FAULT_ALL=1`` at every one.
``KEYHAUL_FAULT_ACTIONS=kill,raise,stall`` tries the other ways to fail, too.
"""

from __future__ import annotations

import os
import signal
import time
from itertools import count

import psycopg
import pytest
import support
from aftermath import fetch, sessions, value
from oracle import RECORDS, RECORDS_OF_AUTO_CHUNKS, problems, truth_of

from keyhaul import faults

ACTIONS = os.environ.get("KEYHAUL_FAULT_ACTIONS", "kill").split(",")
ALL = os.environ.get("KEYHAUL_FAULT_ALL") == "1"
LIMIT_SECONDS = 60

SOURCE = """
create table public.items (id bigint primary key, grp int not null, name text, amount numeric(12,2), doc jsonb);
insert into public.items
select g, case when g = 251 then 99 else g % 40 end, 'name ' || g, (g % 50 - 1) / 4.0, jsonb_build_object('g', g) from generate_series(1, 600) g;
analyze public.items;
"""
TARGET = """
create table public.groups (grp int primary key);
insert into public.groups select g from generate_series(0, 39) g;
create table public.items (id bigint, grp int not null references public.groups, name text, amount numeric(12,2), doc jsonb);
"""
"""Group 99 is missing: one record of the second chunk is rejected by the foreign key. The table has no primary
key, so a row loaded twice would stay."""


@pytest.fixture(scope="module")
def ends(server):
    """The URI of the source."""
    uri = support.make_database(server, "faults")
    fetch(uri, SOURCE)
    yield uri
    support.drop_database(server, uri)


SCENARIOS = {
    "append": ["--mode", "append", "--checksum"],
    "replace": ["--mode", "replace"],
    "dedup": ["--mode", "append", "--dedup", "grp", "--order-by", "amount"],
    "auto": ["--mode", "append"],
}
AUTO = "chunk: {min_rows: 50, target_seconds: 60}\n"
"""12 cuts, which become chunks of 1, 4 and 5 and what is left; after a kill others, for the first one is small again."""

OF_REPLACE = ("swap.locked", "swap.before", "swap.after", "run.closed")
OF_DEDUP = ("gather.written", "gather.after", "copies.told", "read.after", "commit.before", "commit.after")
OF_AUTO = ("commit.before", "commit.after")
CASES = [
    *(("append", point) for point in faults.POINTS if point not in {*OF_REPLACE[:3], *OF_DEDUP[:3]}),
    *(("replace", point) for point in OF_REPLACE),
    *(("dedup", point) for point in OF_DEDUP),
    *(("auto", point) for point in OF_AUTO),
]
FINISHED = {("append", "run.closed"), ("dedup", "run.closed"), ("replace", "run.closed"), ("replace", "swap.after")}
"""A run that is killed there is done: the same command is then a new run."""


def command(source, target, scenario, work):
    chunk = ["--chunk", "200"]
    if scenario == "auto":
        chunk = [str(work.parent / "auto.yaml")]
        (work.parent / "auto.yaml").write_text(AUTO, encoding="utf-8")
    return [
        *("chunked", *chunk, "--source", source, "--target", target, "--table", "public.items", "--key", "id"),
        *("--workers", "1", "--work-dir", str(work), *SCENARIOS[scenario]),
        *("--set", "name = upper(name)", "--where", "id % 7 <> 0", "--rule", "amount_positive: amount >= 0"),
        *("--allow-quarantined", "100%", "--progress", "off"),
    ]


@pytest.fixture(scope="module")
def truths(server, ends, etl_home, tmp_path_factory):
    """By scenario, what a run that nothing disturbed leaves; that of `append` is what plain SQL says."""
    known = {}
    for scenario in SCENARIOS:
        whole = support.make_database(server, "whole")
        fetch(whole, TARGET)
        done = support.run_etl(etl_home, *command(ends, whole, scenario, tmp_path_factory.mktemp("work")))
        assert done.returncode == 0, done.stderr
        known[scenario] = truth_of(whole, "public.items", RECORDS_OF_AUTO_CHUNKS if scenario == "auto" else RECORDS)
        support.drop_database(server, whole)
    kept = "id % 7 <> 0 and amount >= 0 and grp <> 99"
    assert known["append"].rows[0] == value(ends, f"select count(*) from public.items where {kept}")
    assert known["append"].balance[0] == 600
    assert known["replace"] == known["append"]
    assert (known["auto"].rows, known["auto"].balance) == (known["append"].rows, known["append"].balance)
    assert known["dedup"].rows[0] == value(ends, f"select count(distinct grp) from public.items where {kept}")
    return known


def fresh_target(uri):
    """Make the target's tables in a new database; returns its URI."""
    fetch(uri, TARGET)
    return uri


def fail(start_etl, args, fault):
    """Run a command with a fault until it ends by it, or well; return whether it failed."""
    run = start_etl(*args, env={"KEYHAUL_FAULT": fault})
    if fault.endswith("stall"):
        # It neither ends nor moves: no event, no statement for a while. Then somebody kills it.
        quiet = time.monotonic()
        while run.running and time.monotonic() - quiet < 4:
            time.sleep(0.1)
        if run.running:
            run.send(signal.SIGKILL)
            run.end()
            return True
    code = run.end(LIMIT_SECONDS)
    if code == 0:
        return False
    assert code == (70 if fault.endswith("raise") else -signal.SIGKILL), f"{fault}: {code} {run.stderr}"
    return True


def powers():
    """Yield 1, 2, 4, 8, …"""
    return (2**exponent for exponent in count())


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(("scenario", "point"), CASES)
def test_a_fault_at_every_passage_of_a_point_leaves_a_run_that_the_same_command_completes(
    scenario, point, action, start_etl, etl, server, database, ends, truths, tmp_path
):
    work = tmp_path / "work"
    for passage in count(1) if ALL else powers():
        target = fresh_target(database(server, "hit"))
        args = command(ends, target, scenario, work)
        failed = fail(start_etl, args, f"{point}:{passage}:{action}")
        printed = ""
        if failed:
            if (scenario, point) in FINISHED:
                assert fetch(target, "select status from keyhaul.runs") == [("done",)]
                assert truth_of(target, "public.items") == truths[scenario]
                return
            done = etl(*args)
            printed = done.stdout + done.stderr
            assert done.returncode == 0, f"{point}:{passage}: {printed}"
        support.wait_until(lambda target=target: not sessions(ends) and not sessions(target), "sessions to end")
        wrong = problems(
            truths[scenario], target, "public.items", key="id", servers=[ends, target], folders=[work], printed=printed
        )
        assert wrong == [], f"{point}:{passage}"
        if not failed:
            assert passage > 1, f"{point} is never passed"
            print(f"{scenario} {point}: fewer than {passage} passages")
            return


MUTATIONS = {
    "a row is dropped": "delete from public.items where id = (select max(id) from public.items)",
    "a row is there twice": "insert into public.items select * from public.items where id = 1",
    "a chunk is repeated": "insert into public.items select * from public.items where id <= 200",
    "two columns are swapped": "alter table public.items drop constraint items_grp_fkey; update public.items set grp = id, id = grp where id = 51",
    "a value is changed": "update public.items set amount = amount + 0.01 where id = 8",
    "a NULL becomes a text": "update public.items set name = '' where id = 8",
    "a ledger row is missing": "delete from keyhaul.chunks where chunk = 2",
    "a chunk is not done": "update keyhaul.chunks set status = 'failed' where chunk = 2",
    "a record is not in the quarantine": "delete from keyhaul.quarantine where chunk = 1 and record = (select min(record) from keyhaul.quarantine where chunk = 1)",
    "a reason is changed": "update keyhaul.quarantine set rules = '{other}' where chunk = 3",
    "the run is not closed": "update keyhaul.runs set status = 'running'",
    "a count is wrong": "update keyhaul.chunks set rows_read = rows_read + 1, rows_filtered = rows_filtered + 1 where chunk = 1",
    "a table is left": "create table public.x_keyhaul_new (id int)",
    "a checksum is wrong": "update keyhaul.chunks set hash_there = hash_there + 1 where chunk = 2",
    "a checksum is missing": "update keyhaul.chunks set rows_there = null, hash_there = null where chunk = 2",
    "a range ends too early": "update keyhaul.chunks set upper_bound = '{390}' where chunk = 2",
    "a range begins too late": "update keyhaul.chunks set lower_bound = '{205}' where chunk = 2",
    "a cut is in no chunk": "update keyhaul.chunks set cuts = 2 where chunk = 1",
    "a secret is written": "update keyhaul.runs set stop_reason = 'pass-CANARY-word'",
}


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_the_oracle_sees_each_kind_of_damage(mutation, etl, server, database, ends, truths, tmp_path):
    target = fresh_target(database(server, "hit"))
    done = etl(*command(ends, target, "append", tmp_path / "work"))
    assert done.returncode == 0, done.stderr
    support.wait_until(lambda: not sessions(target), "sessions to end")
    seen = {"key": "id", "servers": [target], "secrets": ["pass-CANARY-word"], "folders": [tmp_path]}
    assert problems(truths["append"], target, "public.items", **seen) == []
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute(mutation)
    assert problems(truths["append"], target, "public.items", **seen) != []
