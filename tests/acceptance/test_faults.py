"""Every named point of a run: the process is killed there, and the same command makes it whole.

A point that is passed often is tried at the passages 1, 2, 3, 5, 8, …; with ``KEYHAUL_FAULT_ALL=1`` at every one.
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
from oracle import problems, truth_of

from keyhaul import faults

ACTIONS = os.environ.get("KEYHAUL_FAULT_ACTIONS", "kill").split(",")
ALL = os.environ.get("KEYHAUL_FAULT_ALL") == "1"
LIMIT_SECONDS = 60

SOURCE = """
create table public.items (id bigint primary key, grp int not null, name text, amount numeric(12,2), doc jsonb);
insert into public.items
select g, case when g = 250 then 99 else g % 40 end, 'name ' || g, (g % 50 - 1) / 4.0, jsonb_build_object('g', g) from generate_series(1, 600) g;
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
    uris = [support.make_database(server, name) for name in ("faults", "template", "whole")]
    with psycopg.connect(uris[0], autocommit=True) as connection:
        connection.execute(SOURCE)
    for uri in uris[1:]:
        with psycopg.connect(uri, autocommit=True) as connection:
            connection.execute(TARGET)
    yield uris
    for uri in uris:
        support.drop_database(server, uri)


def command(source, target):
    return [
        *(
            "chunked",
            "--source",
            source,
            "--target",
            target,
            "--table",
            "public.items",
            "--key",
            "id",
            "--chunk",
            "200",
        ),
        *("--workers", "1", "--mode", "append", "--set", "name = upper(name)", "--where", "id % 7 <> 0"),
        *("--rule", "amount_positive: amount >= 0", "--allow-quarantined", "100%", "--progress", "off"),
    ]


@pytest.fixture(scope="module")
def truth(ends, etl_home):
    source, _, whole = ends
    done = support.run_etl(etl_home, *command(source, whole))
    assert done.returncode == 0, done.stderr
    known = truth_of(whole, "public.items")
    kept = "id % 7 <> 0 and amount >= 0 and grp <> 99"
    wanted = value(source, f"select count(*) from public.items where {kept}")
    assert known.rows[0] == wanted
    assert known.balance[0] == 600
    return known


def fresh_target(server, database, template):
    """Return a new database with what the template's has, without a copy of a session that may still be there."""
    uri = database(server, "hit")
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(TARGET)
    return uri


def fail(start_etl, args, fault, ends):
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


def fibonacci():
    """Yield 1, 2, 3, 5, 8, …"""
    here, following = 1, 2
    while True:
        yield here
        here, following = following, here + following


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("point", faults.POINTS)
def test_a_fault_at_every_passage_of_a_point_leaves_a_run_that_the_same_command_completes(
    point, action, start_etl, etl, server, database, ends, truth, tmp_path
):
    source = ends[0]
    for passage in count(1) if ALL else fibonacci():
        target = fresh_target(server, database, ends[1])
        failed = fail(start_etl, command(source, target), f"{point}:{passage}:{action}", ends)
        printed = ""
        if failed:
            done = etl(*command(source, target))
            printed = done.stdout + done.stderr
            # A run that is killed after its last word needs nothing more; the table then holds rows of a run
            # that is done, and in mode append the same command is a new run.
            if point == "run.closed":
                assert value(target, "select count(*) from keyhaul.runs where status = 'done'") == 2
                return
            assert done.returncode == 0, f"{point}:{passage}: {printed}"
        support.wait_until(lambda target=target: not sessions(source) and not sessions(target), "sessions to end")
        wrong = problems(
            truth, target, "public.items", key="id", servers=[source, target], folders=[tmp_path], printed=printed
        )
        assert wrong == [], f"{point}:{passage}"
        if not failed:
            assert passage > 1, f"{point} is never passed"
            print(f"{point}: fewer than {passage} passages")
            return


MUTATIONS = {
    "a row is dropped": "delete from public.items where id = (select max(id) from public.items)",
    "a row is there twice": "insert into public.items select * from public.items where id = 1",
    "a chunk is repeated": "insert into public.items select * from public.items where id <= 200",
    "two columns are swapped": "update public.items set grp = id, id = grp where id = 8",
    "a value is changed": "update public.items set amount = amount + 0.01 where id = 8",
    "a NULL becomes a text": "update public.items set name = '' where id = 8",
    "a ledger row is missing": "delete from keyhaul.chunks where chunk = 2",
    "a chunk is not done": "update keyhaul.chunks set status = 'failed' where chunk = 2",
    "a record is not in the quarantine": "delete from keyhaul.quarantine where chunk = 1 and record = (select min(record) from keyhaul.quarantine where chunk = 1)",
    "a reason is changed": "update keyhaul.quarantine set rules = '{other}' where chunk = 3",
    "the run is not closed": "update keyhaul.runs set status = 'running'",
    "a count is wrong": "update keyhaul.chunks set rows_read = rows_read + 1, rows_filtered = rows_filtered + 1 where chunk = 1",
    "a table is left": "create table public.x_keyhaul_new (id int)",
    "a secret is written": "update keyhaul.runs set stop_reason = 'pass-CANARY-word'",
}


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_the_oracle_sees_each_kind_of_damage(mutation, etl, server, database, ends, truth):
    target = fresh_target(server, database, ends[1])
    if mutation is MUTATIONS["a NULL becomes a text"]:
        fetch(target, "alter table public.items alter name drop not null")
    done = etl(*command(ends[0], target))
    assert done.returncode == 0, done.stderr
    support.wait_until(lambda: not sessions(target), "sessions to end")
    seen = {"key": "id", "servers": [target], "secrets": ["pass-CANARY-word"]}
    assert problems(truth, target, "public.items", **seen) == []
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute(mutation)
    assert problems(truth, target, "public.items", **seen) != []
