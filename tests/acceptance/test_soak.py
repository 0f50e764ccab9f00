"""SIGKILL at seeded random moments until a run is finished, again and again; a judge looks after each kill and each end.

``KEYHAUL_SOAK_KILLS`` and ``KEYHAUL_SOAK_SEED`` make it longer or the same again; ``just soak`` kills 300 times, and
prints a table of all that it has tried.
"""

from __future__ import annotations

import os
import random
import signal
import time

import psycopg
import pytest
import soak
import support
from aftermath import fetch, sessions, value
from oracle import RECORDS, RECORDS_OF_AUTO_CHUNKS, problems, truth_of

KILLS = int(os.environ.get("KEYHAUL_SOAK_KILLS", "25"))
SEED = int(os.environ.get("KEYHAUL_SOAK_SEED", str(random.randrange(10**9))))  # noqa: S311 - printed, to be repeated
KILLS_PER_RUN = 6
"""At the most, so that many runs are judged and not one long one."""

SOURCE = """
create table public.items (id bigint primary key, grp int not null, twin int, name text, amount numeric(12,2), doc jsonb);
insert into public.items
select g, case when g in (250, 900) then 99 else g % 40 end, g % 1700, 'name ' || g, (g % 50 - 1) / 4.0,
       jsonb_build_object('g', g)
  from generate_series(1, 2000) g;
analyze public.items;
"""
TARGET = """
create table public.groups (grp int primary key);
insert into public.groups select g from generate_series(0, 39) g;
create table public.items (
    id bigint, grp int not null references public.groups, twin int, name text, amount numeric(12,2), doc jsonb
);
"""
"""The foreign key rejects two records. There is no primary key, so that a row loaded twice would stay."""

JOBS = {
    "connectorx and copy": ["--reader", "connectorx", "--loader", "copy"],
    "adbc and adbc": ["--reader", "adbc", "--loader", "adbc"],
    "copies across chunks": ["--dedup", "twin"],
    "auto chunks": [],
}
AUTO = "chunk: {min_rows: 20, target_seconds: 0.05}\n"


def command(source, target, work, job):
    chunk = ["--chunk", "100"]
    if job == "auto chunks":
        chunk = [str(work.parent / "auto.yaml")]
        (work.parent / "auto.yaml").write_text(AUTO, encoding="utf-8")
    where = ("--source", source, "--target", target, "--table", "public.items", "--key", "id")
    return [
        *(
            "chunked",
            *chunk,
            *where,
            "--workers",
            "2",
            "--mode",
            "append",
            "--work-dir",
            str(work),
            "--progress",
            "json",
        ),
        *("--set", "name = upper(name)", "--where", "id % 7 <> 0", "--rule", "amount_positive: amount >= 0"),
        *("--allow-quarantined", "100%", *JOBS[job]),
    ]


@pytest.fixture(scope="module")
def source(server):
    with support.database_of(server, "soak", SOURCE) as uri:
        yield uri


def fresh_target(server):
    uri = support.make_database(server, "soaked")
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(TARGET)
    return uri


def half_done(target):
    """Return what is wrong between two sittings: rows without a ledger row that tells of them, or the reverse."""
    if not value(target, "select to_regclass('keyhaul.chunks') is not null"):
        rows, told = value(target, "select count(*) from public.items"), 0
    else:
        rows, told = fetch(
            target,
            "select (select count(*) from public.items), coalesce((select sum(rows_loaded) from keyhaul.chunks"
            " where status = 'done'), 0)::bigint",
        )[0]
    return [] if rows == told else [f"{rows} rows, of which the ledger tells {told}"]


def is_done(target):
    there = value(target, "select to_regclass('keyhaul.runs') is not null")
    return there and fetch(target, "select status from keyhaul.runs") == [("done",)]


def step_of(run):
    """Return where a killed process was: the last step that it told of."""
    if not run.named("RunStarted"):
        return "before the first read"
    steps = run.named("StepStarted")
    return steps[-1]["step"] if steps else "first chunk"


def kill_somewhere(run, chance, startup, seconds):
    """Kill a process at a random moment of its life; returns whether it was alive."""
    if chance.random() < 0.2:
        time.sleep(chance.uniform(0.4, 1.0) * startup)
    else:
        support.wait_until(lambda: not run.running or run.named("RunStarted"), "the first read", 60)
        time.sleep(chance.uniform(0, 0.8) * seconds)
    run.send(signal.SIGKILL)
    return run.end() == -signal.SIGKILL


def test_runs_that_are_killed_at_random_until_they_are_finished_lose_and_repeat_nothing(
    start_etl, source, server, tmp_path
):
    print(f"seed {SEED}")
    chance = random.Random(SEED)  # noqa: S311 - moments, no secrets
    work = tmp_path / "work"
    truths, lengths = {}, {}
    for job in JOBS:
        whole = fresh_target(server)
        run = start_etl(*command(source, whole, work, job))
        assert run.end() == 0, run.stderr
        begun, ended = run.wait_for("RunStarted")["received_at"], run.wait_for("RunFinished")["received_at"]
        records = RECORDS_OF_AUTO_CHUNKS if job == "auto chunks" else RECORDS
        truths[job] = truth_of(whole, "public.items", records)
        lengths[job] = (begun - run.started_at, ended - begun)
        support.drop_database(server, whole)
    kills, judged, wrong = 0, 0, []
    while kills < KILLS:
        job = list(JOBS)[judged % len(JOBS)]
        target = fresh_target(server)
        left, processes, steps, before = min(KILLS_PER_RUN, KILLS - kills), [], [], len(wrong)
        while not is_done(target):
            run = start_etl(*command(source, target, work, job))
            processes.append(run)
            if left and kill_somewhere(run, chance, *lengths[job]):
                left, kills = left - 1, kills + 1
                steps.append(step_of(run))
            else:
                assert run.end() == 0, run.stderr
            support.wait_until(lambda target=target: not sessions(source) and not sessions(target), "sessions to end")
            wrong += [f"{job}, kill {kills}: {what}" for what in half_done(target)]
        found = problems(truths[job], target, "public.items", key="id", servers=[source, target], processes=processes)
        wrong += [f"{job}, kill {kills}: {what}" for what in found]
        for step in steps:
            # Which of a run's kills did it, nobody knows: all of them count.
            soak.note(soak.AT_RANDOM, job, step, wrong=len(wrong) > before)
        judged += 1
        support.drop_database(server, target)
    print(f"{judged} runs judged, seed {SEED}")
    assert wrong == [], f"seed {SEED}"
