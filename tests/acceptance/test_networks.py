"""Networks that break: each fault on each link at each step; the run goes on or ends in time, and nothing is lost or twice.

A server that is silent is waited for `TIMEOUT_SECONDS`; from the fault to the end may then take 5 s more. A loaded
machine gets ``KEYHAUL_MATRIX_SLACK`` times as long; ``KEYHAUL_MATRIX_ROUNDS`` does the whole matrix more than once.
"""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import soak
import support
from aftermath import fetch, sessions, value
from badnet import MOMENTS, bad_net
from oracle import LONGEST_SECONDS, problems, truth_of_a_clean_run
from process import Process

TIMEOUT_SECONDS = 2
BOUND_SECONDS = TIMEOUT_SECONDS + 5
SLACK = float(os.environ.get("KEYHAUL_MATRIX_SLACK", "4"))
ROUNDS = int(os.environ.get("KEYHAUL_MATRIX_ROUNDS", "1"))
FAULTS = ("reset", "half close", "stall", "black hole", "terminated")
THOROUGH = ROUNDS > 1 or os.environ.get("KEYHAUL_THOROUGH") == "1"
SOME = ("reset", "black hole", "terminated")
"""What is tried by default, but for the answer to a COMMIT."""

SOURCE = """
create table public.items (id bigint primary key, grp int not null, name text, amount numeric(12,2), doc jsonb);
insert into public.items
select g, g % 40, 'name ' || g, (g % 50 - 1) / 4.0, jsonb_build_object('g', repeat('x', 100)) from generate_series(1, 600) g;
analyze public.items;
create function public.nap() returns bool language plpgsql volatile as $$
begin
    if current_setting('application_name') like 'keyhaul % chunk %' then perform pg_sleep(0.03); end if;
    return true;
end $$;
create view public.slow as select * from public.items where nap();
"""
TARGET = "create table public.items (id bigint, grp int not null, name text, amount numeric(12,2), doc jsonb)"
"""Without a primary key: a row that is loaded twice stays, and is seen."""

DRIVERS = {"connectorx and copy": ("connectorx", "copy"), "adbc and adbc": ("adbc", "adbc")}
SEEN_BY_BOTH = {"read", "load", "commit"} | ({"connect to source", "connect to target"} if ROUNDS > 1 else set())
CELLS = [
    pytest.param(moment, drivers, id=f"{moment}-{name}")
    for moment in MOMENTS
    for name, drivers in DRIVERS.items()
    if name == "connectorx and copy" or moment in SEEN_BY_BOTH
]


def command(source, target, drivers, *more):
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
            "100",
        ),
        *("--workers", "2", "--mode", "append", "--reader", drivers[0], "--loader", drivers[1], "--job", "items"),
        *("--rule", "amount_positive: amount >= 0", "--allow-quarantined", "100%", "--progress", "json", *more),
    ]


@pytest.fixture(scope="module")
def source(server):
    with support.database_of(server, "nets", SOURCE) as uri:
        yield uri


@pytest.fixture(scope="module")
def truth(server, source, etl_home):
    return truth_of_a_clean_run(
        server,
        etl_home,
        TARGET,
        lambda target: command(source, target, DRIVERS["connectorx and copy"]),
        source,
        "amount >= 0",
    )


def through(uri, server, proxy):
    return uri.replace(f":{server.port}/", f":{proxy.port}/")


def cell(home, folder, server, source, target, truth, moment, fault, drivers):
    """Break one connection in one way; return what is wrong afterwards, how the run ended, and how long it took."""
    is_source = moment in {"connect to source", "read", "plan", "snapshot"}
    after = {"read": 3000, "connect to source": 5, "connect to target": 5}.get(moment, 0)
    folder.mkdir()
    env = {"ETL_NETWORK_TIMEOUT_SECONDS": str(TIMEOUT_SECONDS)}
    with bad_net(server, fault, moment, after_bytes=after) as proxy:
        ends = (through(source, server, proxy), target) if is_source else (source, through(target, server, proxy))
        first = Process(home, *command(*ends, drivers), cwd=folder, env=env)
        try:
            code = first.end(BOUND_SECONDS * SLACK + 30)
            ended = time.monotonic()
            processes = [first]
            if not proxy.broken:
                return [f"the moment never came: {first.printed}"], code, 0.0
            took = ended - proxy.broken_at
            wrong = [] if code in {0, 2, 3} else [f"exit code {code}: {first.printed}"]
            if "Traceback" in first.printed:
                wrong.append(f"a traceback: {first.printed}")
            if code == 2 and (
                value(target, "select to_regclass('keyhaul.runs')") or value(target, "select count(*) from items")
            ):
                wrong.append("code 2, and something was written")
            if took > BOUND_SECONDS * SLACK:
                wrong.append(f"{took:.1f} s from the fault to the end")
            if code:
                second = Process(home, *command(*ends, drivers), cwd=folder, env=env)
                processes.append(second)
                try:
                    again = second.end(60)
                    if again:
                        wrong.append(f"the same command ended with {again}: {second.printed}")
                finally:
                    second.close()
        finally:
            first.close()
    support.wait_until(lambda: not left_of(source, target), f"sessions to end: {left_of(source, target)}")
    limit = BOUND_SECONDS * SLACK + LONGEST_SECONDS
    judged = {"servers": [target], "folders": [folder], "processes": processes, "longest_seconds": limit}
    wrong += problems(truth, target, "public.items", key="id", **judged)
    return wrong, code, took


def left_of(source, target):
    """Return the sessions of this run: other cells read the same source at the same time."""
    runs = [run for (run,) in fetch(target, "select run_id from keyhaul.runs")]
    return [name for name, _ in sessions(source) + sessions(target) if any(run in name for run in runs)]


@pytest.mark.thin(2)
@pytest.mark.parametrize(("moment", "drivers"), CELLS)
def test_a_link_that_breaks_costs_at_most_its_timeout_and_no_row(
    moment, drivers, server, database, source, truth, etl_home, tmp_path
):
    found = []
    for number in range(ROUNDS):
        # Before its first message there is no session that could be terminated.
        tried = FAULTS if THOROUGH or moment == "commit" else SOME
        faults = [fault for fault in tried if not (fault == "terminated" and moment.startswith("connect"))]
        targets = [database(server, "target") for _ in faults]
        for target in targets:
            fetch(target, TARGET)
        with ThreadPoolExecutor(len(faults)) as pool:
            cells = [
                pool.submit(
                    cell, etl_home, tmp_path / f"{number}{fault}", server, source, target, truth, moment, fault, drivers
                )
                for fault, target in zip(faults, targets, strict=True)
            ]
        for fault, done in zip(faults, cells, strict=True):
            wrong, code, took = done.result()
            print(f"| {fault} | {moment} | {'-'.join(drivers)} | {code} | {took:.1f} s | {len(wrong)} wrong |")
            soak.note("network broken", " and ".join(drivers), f"{fault} {moment}", wrong=bool(wrong))
            found += [f"{fault}: {what}" for what in wrong]
    assert found == []


# --- what is not to be cut --------------------------------------------------------------------------


@pytest.mark.thin(2)
@pytest.mark.parametrize("drivers", DRIVERS.values(), ids=DRIVERS)
def test_a_server_that_works_for_longer_than_the_networks_timeout_is_left_alone(
    drivers, start_etl, source, server, database
):
    target = database(server, "target")
    fetch(target, TARGET)
    fetch(
        target,
        "create function public.late() returns trigger language plpgsql as"
        " 'begin if new.id in (101, 301) then perform pg_sleep(4); end if; return new; end'",
    )
    fetch(target, "create trigger late before insert on public.items for each row execute function public.late()")
    args = command(source, target, drivers, "--table", "public.slow", "--into", "public.items")
    run = start_etl(*args, env={"ETL_NETWORK_TIMEOUT_SECONDS": "1"})  # a chunk is read for 3 s, two are loaded for 4
    assert run.end() == 0, run.stderr
    assert [event["message"] for event in run.named("Notice") if "was cut" in event["message"]] == []
    assert run.named("ChunkRetried") == []
    # With ADBC, a worker's idle connection to the other end is not touched either.
    assert value(target, "select max(attempts) from keyhaul.chunks") == 1


def test_a_stalled_query_is_ended_on_the_server_and_said(start_etl, source, server, database):
    target = database(server, "target")
    fetch(target, TARGET)
    fetch(source, "create table if not exists public.wide as select g as id, repeat('x', 9000) as doc"
          " from generate_series(1, 3000) g")  # fmt: skip
    args = command(source, target, DRIVERS["connectorx and copy"])
    with bad_net(server, "black hole", "read", after_bytes=3000) as proxy:
        args = [
            *("chunked", "--source", through(source, server, proxy), "--target", target, "--table", "public.wide"),
            *("--key", "id", "--chunk", "3000", "--workers", "1", "--progress", "json"),
        ]
        run = start_etl(*args, env={"ETL_NETWORK_TIMEOUT_SECONDS": "6"})
        support.wait_until(lambda: proxy.broken, "the black hole")
        # 27 MB do not fit between the two: the server stands in the middle of its answer.
        chunk = (
            "select pid from pg_stat_activity where wait_event = 'ClientWrite' and application_name like '%% chunk %%'"
        )
        seen = []
        support.wait_until(lambda: seen.extend(fetch(source, chunk)) or seen, "the server to wait for its client")
        (pid,) = seen[0]
        support.wait_until(
            lambda: not fetch(source, "select from pg_stat_activity where pid = %s", pid),
            "the stalled session to end",
            (6 + 5) * SLACK,
        )
        assert run.end() == 0, run.stderr
    told = [event["message"] for event in run.named("Notice") if "was cut" in event["message"]]
    assert len(told) == 1
    assert "nothing came from the source for 6 s, and it" in told[0]
    assert value(target, "select count(*) from public.wide") == 3000


def test_the_server_notices_within_seconds_that_a_killed_run_is_gone(start_etl, source, server, database):
    target = database(server, "target")
    fetch(source, "create or replace view public.endless as select * from public.items where id < 0 or pg_sleep("
          "case when current_setting('application_name') like 'keyhaul % chunk %' then 60 else 0 end) is null")  # fmt: skip
    run = start_etl(
        *("chunked", "--source", source, "--target", target, "--table", "public.endless", "--key", "id"),
        *("--chunk", "100", "--progress", "json"),
    )
    chunk = "select pid from pg_stat_activity where state = 'active' and application_name like 'keyhaul %% chunk %%'"
    support.wait_until(lambda: fetch(source, chunk), "a chunk to be read")
    run.send(signal.SIGKILL)
    killed = time.monotonic()
    run.end()
    support.wait_until(lambda: not fetch(source, chunk), "the server to notice", 6 * SLACK)
    print(f"noticed after {time.monotonic() - killed:.1f} s")
