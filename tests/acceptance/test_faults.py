"""Every named point of a run: the process fails there in each way, and the same command makes it whole.

By default each point is tried at its first passage, and some at a later one, with SIGKILL; of the other ways to fail, and of a replay, some are. ``KEYHAUL_FAULT_ALL=1`` tries every point in every scenario, at every passage, in
every way; ``KEYHAUL_FAULT_ACTIONS=kill,raise,stall`` chooses among them.
"""

from __future__ import annotations

import base64
import os
import signal
import time
from itertools import chain, count
from urllib.parse import quote

import mutants
import psycopg
import pytest
import soak
import support
from aftermath import fetch, sessions, value
from oracle import RECORDS, RECORDS_OF_AUTO_CHUNKS, problems, truth_of

from keyhaul import faults

ALL = os.environ.get("KEYHAUL_FAULT_ALL") == "1"
ACTIONS = os.environ.get("KEYHAUL_FAULT_ACTIONS", "kill,raise,stall" if ALL else "kill").split(",")
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
create index on public.items (id);
create index on public.items (grp);
"""
"""Group 99 is missing: one record of the second chunk is rejected by the foreign key. The table has no primary
key, so a row loaded twice would stay."""


@pytest.fixture(scope="module")
def ends(server):
    """The URI of the source."""
    with support.database_of(server, "faults", SOURCE) as uri:
        yield uri


SCENARIOS = {
    "append": ["--mode", "append", "--checksum"],
    "replace": ["--mode", "replace"],
    "dedup": ["--mode", "append", "--dedup", "grp", "--order-by", "amount"],
    "replay": [],
    "auto": ["--mode", "append"],
}
AUTO = "chunk: {min_rows: 50, target_seconds: 60}\n"
"""12 cuts, which become chunks of 1, 4 and 5 and what is left; after a kill others, for the first one is small again."""
OF_REPLACE = ("fresh.created", "fresh.indexed", "fresh.complete", "swap.locked", "swap.before", "swap.after")
OF_DEDUP = ("gather.written", "gather.after", "copies.told")
OF_REPLAY = ("records.locked", "records.settled")
OF_LATE = ("late.parked", "late.written", "late.committed")
"""See test_late.py."""
OF_ALL = [point for point in faults.POINTS if point not in {*OF_REPLACE, *OF_DEDUP, *OF_REPLAY, *OF_LATE}]
POINTS = {
    "append": OF_ALL,
    "replace": [*OF_REPLACE, "run.closed"],
    "dedup": [*OF_DEDUP, "read.after", "commit.before", "commit.after"],
    "replay": [*(point for point in OF_ALL if point not in {"isolate.halved", "table.finished"}), *OF_REPLAY],
    "auto": ["commit.before", "commit.after"],
}
"""By scenario, the points that are no others' already."""
EVERY = {
    "replace": [point for point in POINTS["append"] if point != "checksum.written"],
    "dedup": [point for point in POINTS["append"] if point != "checksum.written"],
}
"""With KEYHAUL_FAULT_ALL, the other points that a scenario passes as well."""
SOME = [
    *(("replay", point, "kill", 2) for point in ("records.locked", "records.settled")),
    ("replay", "commit.after", "kill", 3),  # of three: nothing is left to be sent again
    ("replay", "run.closed", "kill", 1),
    ("append", "copy.half", "raise", 2),
    ("append", "commit.after", "raise", 2),
    ("append", "checksum.written", "stall", 2),
    ("replay", "records.settled", "raise", 2),
]
"""What is tried by default beside the enumeration: one passage each."""
CASES = [
    (scenario, point, action, None)
    for action in ACTIONS
    for scenario in SCENARIOS
    for point in dict.fromkeys(chain(POINTS[scenario], EVERY.get(scenario, ()) if ALL else ()))
    if ALL or scenario != "replay"
] + ([] if ALL else SOME)
FINISHED = {
    *((scenario, "run.closed") for scenario in ("append", "dedup", "replace")),
    *(("replace", point) for point in ("swap.after", "table.finished")),
}
"""A run that fails there is done: the same command is then a new run."""


def command(source, target, scenario, work, log=None):
    """Return the command that is disturbed, and repeated."""
    mended = scenario == "replay"
    chunk = ["--chunk", "4" if mended else "200"]
    if scenario == "auto":
        chunk = [str(work.parent / "auto.yaml")]
        (work.parent / "auto.yaml").write_text(AUTO, encoding="utf-8")
    return [
        *(("replay", "last") if mended else ("chunked", "--work-dir", str(work), *SCENARIOS[scenario])),
        *("--source", source, "--target", target, "--table", "public.items", "--key", "id"),
        *(*chunk, "--workers", "1", "--allow-quarantined", "100%"),
        *("--set", "name = upper(name)", "--where", "id % 7 <> 0"),
        *(
            ("--check", "amount_positive: amount >= -1", "--changed")
            if mended
            else ("--rule", "amount_positive: amount >= 0")
        ),
        *("--progress", "off", *(("--log-file", str(log)) if log else ())),
    ]


@pytest.fixture(scope="module")
def quarantined(server, ends, etl_home, tmp_path_factory):
    """The URI of a target whose run has quarantined twelve records, of which each will be loaded by a replay."""
    uri = support.make_database(server, "quarantined")
    fetch(uri, TARGET)
    done = support.run_etl(etl_home, *command(ends, uri, "append", tmp_path_factory.mktemp("work")))
    assert done.returncode == 0, done.stderr
    fetch(uri, "insert into public.groups values (99)")
    assert value(uri, "select count(*) from keyhaul.quarantine") == 12
    yield uri
    support.drop_database(server, uri)


@pytest.fixture(scope="module")
def new_target(server, request):
    """``new_target("replay")`` is the URI of a target as the scenario's command finds it; `drop` it afterwards."""

    def make(scenario):
        if scenario == "replay":
            return support.make_database(server, "hit", request.getfixturevalue("quarantined"))
        uri = support.make_database(server, "hit")
        fetch(uri, TARGET)
        return uri

    return make


@pytest.fixture(scope="module")
def truths(server, ends, etl_home, tmp_path_factory, new_target):
    """By scenario, what a run that nothing disturbed leaves; its rows are those that plain SQL says."""
    known = {}
    kept = "id % 7 <> 0 and amount >= 0 and grp <> 99"
    rows = {
        "append": f"select count(*) from public.items where {kept}",
        "auto": f"select count(*) from public.items where {kept}",
        "replace": f"select count(*) from public.items where {kept}",
        "dedup": f"select count(distinct grp) from public.items where {kept}",
        "replay": "select count(*) from public.items where id % 7 <> 0",
    }

    def of(scenario):
        if scenario not in known:
            whole = new_target(scenario)
            done = support.run_etl(etl_home, *command(ends, whole, scenario, tmp_path_factory.mktemp("work")))
            assert done.returncode == 0, done.stderr
            compared = RECORDS_OF_AUTO_CHUNKS if scenario == "auto" else RECORDS
            known[scenario] = truth_of(whole, "public.items", compared)
            assert known[scenario].rows[0] == value(ends, rows[scenario])
            assert known[scenario].balance[0] == 600
            assert known[scenario].replayed[:2] == ((12, 12) if scenario == "replay" else (0, 0))
            support.drop_database(server, whole)
        return known[scenario]

    return of


def fail(start_etl, args, fault):
    """Run a command with a fault until it ends by it, or well; return the process, and whether it failed."""
    point, passage, _ = fault.split(":")
    where = f"{point}, passage {passage}\n"
    run = start_etl(*args, env={"KEYHAUL_FAULT": fault})
    if fault.endswith("stall"):
        # It neither ends nor does anything. Then somebody kills it.
        used, quiet = run.cpu_seconds, time.monotonic()
        while run.running and time.monotonic() - quiet < 1.5:
            time.sleep(0.1)
            if run.cpu_seconds > used + 0.02:
                used, quiet = run.cpu_seconds, time.monotonic()
        if run.running:
            run.send(signal.SIGKILL)
            run.end()
            assert f"stands still at {where}" in run.stderr, f"{fault}: it was never come to"
            return run, True
    code = run.end(LIMIT_SECONDS)
    assert code in {0, 70 if fault.endswith("raise") else -signal.SIGKILL}, f"{fault}: {code} {run.stderr}"
    if code == 70:  # and not by an error of our own
        assert f"fault at {where}" in run.stderr, f"{fault}: {run.stderr}"
    return run, code != 0


LATER = {
    **{
        ("append", point): 2
        for point in ("read.after", "stage.after", "ledger.written", "commit.before", "commit.after")
    },
    **{("append", point): 5 for point in ("copy.begun", "copy.half", "copy.ended")},
    **{(scenario, "commit.after"): 2 for scenario in ("dedup", "auto")},
}
"""By default, what is tried at a later passage as well: in the chunk that is halved, in one that comes after another."""


def passages(scenario, point, once):
    """Yield which passages of a point are tried."""
    if ALL:
        yield from count(1)
    yield once or 1
    if once is None and (scenario, point) in LATER:
        yield LATER[scenario, point]


@pytest.mark.thin(4)
@pytest.mark.parametrize(("scenario", "point", "action", "once"), CASES)
def test_a_fault_at_every_passage_of_a_point_leaves_a_run_that_the_same_command_completes(
    scenario, point, action, once, start_etl, server, ends, truths, new_target, tmp_path
):
    work, log = tmp_path / "work", tmp_path / "log.jsonl"
    for passage in passages(scenario, point, once):
        fault = f"{point}:{passage}:{action}"
        target = new_target(scenario)
        args = command(ends, target, scenario, work, log)
        processes = [None]
        processes[0], failed = fail(start_etl, args, fault)
        whole = failed and (scenario, point) in FINISHED
        if failed and not whole:
            processes.append(start_etl(*args))
            assert processes[1].end(LIMIT_SECONDS) == 0, f"{fault}: {processes[1].printed}"
        support.wait_until(lambda target=target: not sessions(ends) and not sessions(target), "sessions to end")
        left = {"folders": [] if whole else [work], "logs": [log], "processes": processes}
        wrong = problems(truths(scenario), target, "public.items", key="id", servers=[ends, target], **left)
        support.drop_database(server, target)
        soak.note(f"every named point, {action}", scenario, point, tries=int(failed), wrong=bool(wrong))
        assert wrong == [], fault
        if whole or not failed:
            assert whole or passage > 1, f"{point} is never passed"
            return
    assert failed, f"{point} is passed less than {once} times"


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


@pytest.fixture(scope="module")
def clean(server, ends, etl_home, new_target, tmp_path_factory):
    """The URI of a target that is as it should be."""
    target = new_target("append")
    done = support.run_etl(etl_home, *command(ends, target, "append", tmp_path_factory.mktemp("work")))
    assert done.returncode == 0, done.stderr
    support.wait_until(lambda: not sessions(target), "sessions to end")
    yield target
    support.drop_database(server, target)


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_the_oracle_sees_each_kind_of_damage(mutation, server, clean, truths, tmp_path):
    seen = {"key": "id", "secrets": ["pass-CANARY-word"], "folders": [tmp_path]}
    assert problems(truths("append"), clean, "public.items", servers=[clean], **seen) == []
    target = support.make_database(server, "mutated", clean)
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute(mutation)
    assert problems(truths("append"), target, "public.items", servers=[target], **seen) != []
    support.drop_database(server, target)


@pytest.mark.thin(3)
@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_oracle_sees_a_mistake_in_the_tool(mutant, start_etl, server, ends, truths, new_target, tmp_path):
    target, work, log = new_target("append"), tmp_path / "work", tmp_path / "log.jsonl"
    mutants.put(mutant, tmp_path)
    path = f"{tmp_path}:{support.clean_environment(tmp_path)['PYTHONPATH']}"
    run = start_etl(*command(ends, target, "append", work, log), env={"PYTHONPATH": path})
    code = run.end(LIMIT_SECONDS)
    support.wait_until(lambda: not sessions(ends) and not sessions(target), "sessions to end")
    left = {"folders": [work], "logs": [log], "processes": [run]}
    wrong = problems(truths("append"), target, "public.items", key="id", servers=[ends, target], **left)
    assert wrong
    assert mutants.MUTANTS[mutant] in "\n".join([*wrong, run.stderr if code == 3 else ""])
    support.drop_database(server, target)


def test_the_oracle_sees_what_a_run_leaves_on_its_machine_tells_and_takes(
    start_etl, server, ends, truths, new_target, tmp_path
):
    target, log = new_target("append"), tmp_path / "log.jsonl"
    (tmp_path / "sitecustomize.py").write_text("ballast = bytearray(b'x') * 500_000_000")
    path = f"{tmp_path}:{support.clean_environment(tmp_path)['PYTHONPATH']}"
    run = start_etl(*command(ends, target, "append", tmp_path / "work", log), env={"PYTHONPATH": path})
    assert run.end() == 0, run.stderr
    support.wait_until(lambda: not sessions(target), "sessions to end")

    def judged(**more):
        given = {"processes": [run], "most_bytes": 10**10} | more
        return problems(truths("append"), target, "public.items", key="id", servers=[ends, target], **given)

    password = psycopg.conninfo.conninfo_to_dict(target)["password"]
    assert judged() == []
    (heavy,) = judged(most_bytes=400_000_000)
    assert heavy.startswith("process 1 had ")
    (slow,) = judged(longest_seconds=0.1)
    assert slow.startswith("process 1 took ")
    (left,) = judged(folders=[tmp_path / "work", tmp_path])[:1]
    assert left.startswith("a file is left: ")
    assert judged(logs=[log]) == []
    log.write_text(log.read_text() + base64.b64encode(password.encode()).decode())
    assert judged(logs=[log]) == ["a secret is in the log"]
    assert judged(printed=f"postgresql://u:{quote('a/b c', safe='')}@h/d", secrets=["a/b c"]) == [
        "a secret is in the output"
    ]
    with psycopg.connect(target, application_name="keyhaul late") as holder:
        holder.execute("create temp table late (id int)")
        holder.commit()
        holder.execute("select 1")
        assert [what.partition(":")[0] for what in judged()] == [
            "a session is left",
            "1 temporary tables",
            "1 idle transactions",
        ]
