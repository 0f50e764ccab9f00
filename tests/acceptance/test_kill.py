"""SIGKILL, again and again, and the same command after each: the target is as if nothing had happened.

``KEYHAUL_KILL_ROWS``, ``KEYHAUL_KILL_ROUNDS`` and ``KEYHAUL_KILL_SEED`` make it larger, longer or the same again.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter

import psycopg
import pytest
import support
from aftermath import check_ledger, checksum, fetch, files_in, value, wait_until_nothing_is_left
from proxy import losing

pytestmark = pytest.mark.thorough

ROWS = int(os.environ.get("KEYHAUL_KILL_ROWS", "200000"))
ROUNDS = int(os.environ.get("KEYHAUL_KILL_ROUNDS", "3"))
SEED = int(os.environ.get("KEYHAUL_KILL_SEED", str(random.randrange(10**9))))  # noqa: S311 - printed, to be repeated
CHUNKS = 100

# No primary key, so that the table which keyhaul makes has none: a row loaded twice would stay and be seen.
TABLE = """
create table public.items (
    id bigint not null, version int not null, name text, amount numeric(12,2), made timestamptz, large bigint, doc jsonb
);
insert into public.items
select (g - (g % 10 = 0)::int) * 7, (g % 10 = 0)::int, 'name ' || g, (g % 1000 - 5) / 4.0,
       timestamptz '2020-01-01 00:00Z' + g * interval '1 minute',
       case when g % 9973 = 0 then 9223372036854775807 else g end, jsonb_build_object('g', g)
  from generate_series(1, {rows}) g;
create unique index on public.items (id, version);
analyze public.items;
"""

RULES = [
    *("--key", "id"),
    *("--set", "larger = large + 1", "--set", "name = upper(name)", "--where", "id % 11 <> 0"),
    *("--rule", "amount_positive: amount >= 0", "--dedup", "id", "--order-by", "version"),
]
DRIVERS = {
    "connectorx and copy": ["--key", "id,version", "--reader", "connectorx", "--loader", "copy"],
    "adbc and adbc": ["--key", "id,version", "--reader", "adbc", "--loader", "adbc"],
}
AUTO = f"chunk: {{target_seconds: 60, min_rows: {max(1, ROWS // 400)}, max_rows: {max(4, ROWS // 40)}}}\n"
"""Each sitting merges these cuts anew, by its own pace."""


@pytest.fixture(scope="module")
def source(server):
    uri = support.make_database(server, "kill")
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(TABLE.format(rows=ROWS))
    yield uri
    support.drop_database(server, uri)


def command(source, target, *more, auto=None):
    """Return a command with chunks of fixed size, or with auto chunks by a job file in the folder `auto`."""
    chunk = ["--chunk", str(max(1, ROWS // CHUNKS))]
    if auto is not None:
        (auto / "auto.yaml").write_text(AUTO, encoding="utf-8")
        chunk = [str(auto / "auto.yaml")]
    where = ("--source", source, "--target", target, "--table", "public.items")
    return ["chunked", *chunk, *where, "--workers", "2", "--progress", "json", *more]


def run_uninterrupted(start_etl, args, code):
    """Return the seconds from the first read to the end, and those before it."""
    run = start_etl(*args)
    assert run.end() == code, run.stderr
    begun, ended = run.wait_for("RunStarted")["received_at"], run.wait_for("RunFinished")["received_at"]
    return ended - begun, begun - run.started_at


def run_killed(start_etl, args, code, seconds, startup_seconds):
    """Kill the command once before its first read and `ROUNDS` times after it; then let it end.

    Returns:
        The steps that the workers were in when the kills came.
    """
    print(f"seed {SEED}")
    target = args[args.index("--target") + 1]
    chance = random.Random(SEED)  # noqa: S311 - moments, no secrets
    early = start_etl(*args)
    time.sleep(chance.uniform(0.5, 1.0) * startup_seconds)
    early.send(signal.SIGKILL)
    early.end()
    hit = Counter()
    for _ in range(ROUNDS):
        run = start_etl(*args)
        run.wait_for("RunStarted")
        time.sleep(chance.uniform(0, 1.3 * seconds / ROUNDS))
        run.send(signal.SIGKILL)
        if run.end() != -signal.SIGKILL:
            break
        hit.update(steps_under_way(run))
        if fetch(target, "select 1 from keyhaul.runs where status = 'done'"):
            return hit  # killed between its last word and its exit: nothing is left to go on with
    else:
        run = start_etl(*args)
    assert run.end() == code, run.stderr
    report = run.wait_for("RunFinished")["report"]
    assert (report["outcome"], report["resumed"], report["chunks_done"]) == ("done", True, report["chunks_planned"])
    print(f"killed in {dict(hit)}")
    return hit


def steps_under_way(run):
    """Return the last step of each chunk that had begun and not ended when the process was killed."""
    done = {event["chunk"] for event in run.named("ChunkDone")}
    last = {event["chunk"]: event["step"] for event in run.named("StepStarted")}
    return [step for chunk, step in last.items() if chunk not in done]


@pytest.mark.thin(2)
@pytest.mark.parametrize("drivers", DRIVERS.values(), ids=DRIVERS)
def test_killed_runs_that_are_resumed_give_the_same_table_as_one_run(
    start_etl, source, server, database, tmp_path, drivers
):
    whole, killed = database(server, "whole"), database(server, "killed")
    seconds, startup = run_uninterrupted(start_etl, command(source, whole, *drivers), 0)
    hit = run_killed(start_etl, command(source, killed, *drivers), 0, seconds, startup)
    assert sum(hit.values()) >= min(ROUNDS, 2)
    assert checksum(killed, "public.items") == checksum(whole, "public.items") == checksum(source, "public.items")
    assert value(killed, "select count(distinct (id, version)) from public.items") == ROWS
    assert check_ledger(killed, "public.items") == check_ledger(whole, "public.items")
    wait_until_nothing_is_left(source, killed)
    assert files_in(tmp_path) == []


def test_rows_duplicates_and_quarantine_are_exactly_once_over_kills(start_etl, source, server, database, tmp_path):
    whole, killed = database(server, "whole"), database(server, "killed")
    seconds, startup = run_uninterrupted(start_etl, command(source, whole, *RULES), 1)
    run_killed(start_etl, command(source, killed, *RULES), 1, seconds, startup)
    assert checksum(killed, "public.items") == checksum(whole, "public.items")
    records = "(select chunk, record, stage, rules, message, key, data from keyhaul.quarantine)"
    assert checksum(killed, records) == checksum(whole, records)
    counts = check_ledger(killed, "public.items")
    assert counts == check_ledger(whole, "public.items")
    # What should have become of the rows, from the source's own SQL: one of each id stays, of those that are good.
    (wanted,) = fetch(
        source,
        "select count(*), count(*) filter (where filtered), count(*) filter (where bad and not filtered),"
        " count(distinct id) filter (where not bad and not filtered)"
        " from (select id, large = 9223372036854775807 or amount < 0 as bad,"
        " id % 11 = 0 and large < 9223372036854775807 as filtered from public.items) s",
    )
    assert (counts["read"], counts["filtered"], counts["quarantined"], counts["loaded"]) == wanted
    assert counts["duplicate"] > 0
    wait_until_nothing_is_left(source, killed)
    assert files_in(tmp_path) == []


def test_killed_runs_of_auto_chunks_merge_anew_and_give_the_same_table_as_one_run(
    start_etl, source, server, database, tmp_path
):
    whole, killed = database(server, "whole"), database(server, "killed")
    done = command(source, whole, *RULES, auto=tmp_path)
    seconds, startup = run_uninterrupted(start_etl, done, 1)
    run_killed(start_etl, command(source, killed, *RULES, auto=tmp_path), 1, seconds, startup)
    assert checksum(killed, "public.items") == checksum(whole, "public.items")
    records = "(select stage, rules, message, key, data from keyhaul.quarantine)"  # other chunks, the same records
    assert checksum(killed, records) == checksum(whole, records)
    assert check_ledger(killed, "public.items") == check_ledger(whole, "public.items")
    merged = "select sum(cuts), count(*) from keyhaul.chunks"
    for uri in (whole, killed):
        cuts, chunks = fetch(uri, merged)[0]
        assert cuts > chunks
    wait_until_nothing_is_left(source, killed)


@pytest.mark.parametrize(
    ("drivers", "lose", "auto"),
    [
        ("connectorx and copy", "answer", False),
        ("connectorx and copy", "commit", False),
        ("adbc and adbc", "answer", False),
        ("connectorx and copy", "answer", True),
    ],
)
def test_a_run_killed_at_its_commit_repeats_and_loses_nothing(
    start_etl, source, server, database, tmp_path, drivers, lose, auto
):
    target, auto = database(server, "killed"), tmp_path if auto else None
    for times in (1, 2):
        with losing(server.port, times=times, lose=lose) as proxy:
            through = target.replace(f":{server.port}/", f":{proxy.port}/")
            run = start_etl(*command(source, through, *DRIVERS[drivers], auto=auto))
            support.wait_until(lambda proxy=proxy, times=times: proxy.cut == times, "a COMMIT")
            run.send(signal.SIGKILL)  # before the worker has asked the ledger, or while it asks
            assert run.end() == -signal.SIGKILL
    run = start_etl(*command(source, target, *DRIVERS[drivers], auto=auto))
    assert run.end() == 0, run.stderr
    assert checksum(target, "public.items") == checksum(source, "public.items")
    assert check_ledger(target, "public.items")["read"] == ROWS
    assert value(target, "select sittings from keyhaul.runs") == 3
    wait_until_nothing_is_left(source, target)
