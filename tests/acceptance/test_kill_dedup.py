"""SIGKILL while rows are gathered, while copies are told and while chunks are loaded: the winners are the same.

``KEYHAUL_KILL_SEED`` makes it the same again.
"""

from __future__ import annotations

import os
import random
import signal

import psycopg
import pytest
import support
from aftermath import check_ledger, checksum, files_in, value, wait_until_nothing_is_left

SEED = int(os.environ.get("KEYHAUL_KILL_SEED", str(random.randrange(10**9))))  # noqa: S311 - printed, to be repeated
ROWS = 20_000
CHUNKS = 40

TABLE = f"""
create table public.orders (id bigint primary key, customer int, made timestamptz, amount numeric(12,2), doc jsonb);
insert into public.orders
select g, nullif(g % 9, 8), timestamptz '2024-01-01 00:00Z' + (g % 2000) * interval '1 hour', (g * 7919 % 1000) / 4.0,
       jsonb_build_object('g', g)
  from generate_series(1, {ROWS}) g;
analyze public.orders;
"""

# No primary key, so that a row loaded twice would stay and be seen.
EMPTY = "create table public.orders (id bigint, customer int, made timestamptz, amount numeric(12,2), doc jsonb)"

WINNERS = """(
    select id, customer, made, amount, doc from (
        select *, row_number() over (partition by customer, made order by amount desc, id) as place from public.orders
         where amount < 240 and id % 11 <> 0) s
     where place = 1 or customer is null)"""


@pytest.fixture(scope="module")
def source(server):
    uri = support.make_database(server, "kill_dedup")
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(TABLE)
    yield uri
    support.drop_database(server, uri)


@pytest.mark.thin(2)
@pytest.mark.parametrize("drivers", ["connectorx and copy", "adbc and adbc"])
def test_runs_killed_in_either_phase_load_what_one_query_says(start_etl, source, server, database, tmp_path, drivers):
    print(f"seed {SEED}")
    chance = random.Random(SEED)  # noqa: S311 - moments, no secrets
    target, work = database(server, "killed"), tmp_path / "work"
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute(EMPTY)
    reader, _, loader = drivers.split()
    command = [
        *("chunked", "--source", source, "--target", target, "--table", "public.orders", "--key", "id"),
        *("--chunk", str(ROWS // CHUNKS), "--workers", "2", "--progress", "json", "--where", "id % 11 <> 0"),
        *("--dedup", "customer,made", "--order-by", "amount", "--rule", "cheap: amount < 240"),
        *("--reader", reader, "--loader", loader, "--work-dir", str(work)),
    ]
    # Counts of events in each sitting, whatever earlier ones have done already.
    moments = [
        ("ChunkGathered", chance.randrange(1, 12)),
        ("StepStarted", chance.randrange(1, 40)),
        ("ChunkGathered", chance.randrange(1, 8)),
        ("Notice", 3),  # resumed, gathering, all gathered: between the phases
        ("ChunkDone", chance.randrange(1, 8)),
        ("StepStarted", chance.randrange(1, 16)),
        ("ChunkDone", chance.randrange(1, 8)),
    ]
    loaded = []
    for name, count in moments:
        run = start_etl(*command)
        run.wait_for(name, count)
        run.send(signal.SIGKILL)
        assert run.end() == -signal.SIGKILL, run.stderr
        loaded.append(value(target, "select count(*) from keyhaul.chunks where status = 'done'"))
    assert loaded[:3] == [0, 0, 0]
    assert 0 < loaded[4] <= loaded[5] <= loaded[6] < CHUNKS
    run = start_etl(*command)
    assert run.end() == 1, run.stderr
    report = run.wait_for("RunFinished")["report"]
    assert (report["outcome"], report["resumed"], report["chunks_done"]) == ("done", True, CHUNKS)
    assert run.named("ChunkGathered") == []
    assert checksum(target, "public.orders") == checksum(source, WINNERS)
    counts = check_ledger(target, "public.orders")
    assert counts["read"] == ROWS
    assert counts["duplicate"] > 0
    wait_until_nothing_is_left(source, target)
    assert files_in(work) == []
