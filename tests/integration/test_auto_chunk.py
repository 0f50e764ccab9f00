"""Chunks of the time that they take: what was merged, what the ledger says of it, and that nothing is lost or repeated."""

import psycopg
import pytest
from aftermath import check_ledger, checksum
from moving import rows, run_sql
from proxy import losing

from keyhaul import events
from keyhaul.comparison.comparing import verify
from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.errors import RefusedError
from keyhaul.execution.engine import run
from keyhaul.history import frames as history
from keyhaul.replay.resending import replay

AUTO = {"min_rows": 50, "target_seconds": 60}
"""So long that only growth and the sharing of the end decide: the same chunks on every machine."""
TABLE = (
    "create table public.t (id integer primary key, v text, part integer, changed timestamptz)",
    "insert into public.t select 3 * i, 'v' || i, i % 7, timestamptz '2026-01-01' + i * interval '1 s' from generate_series(1, 2000) i",
    "analyze public.t",
)
SPAN = "select chunk, cuts, status, rows_read, lower_bound, upper_bound from keyhaul.chunks order by chunk"


def job(databases, **flags):
    given = {"source": databases[0], "target": databases[1], "table": "public.t", "key": "id", "job": "t", **flags}
    return load_job(None, {"chunk": AUTO, "workers": 2, **given}, {})


def moved(databases, observe=lambda _event: None, control=None, **flags):
    return run(job(databases, **flags), observe, control or Control())


@pytest.fixture
def filled(databases):
    run_sql(databases[0], *TABLE)
    return databases


def check_ranges(databases):
    """Each ledger row has read what the source has between its bounds."""
    found = rows(databases[1], SPAN)
    for _, _, status, read, lower, upper in found:
        above, below = f"id >= {lower[0]}" if lower else "true", f"id < {upper[0]}" if upper else "true"
        assert (status, read) == (
            "done",
            *rows(databases[0], f"select count(*) from public.t where {above} and {below}")[0],
        )
    return found


def test_neighbouring_cuts_are_merged_and_the_ledger_has_the_ranges_that_were_loaded(filled):
    seen = []
    report = moved(filled, seen.append)
    assert checksum(filled[1], "public.t") == checksum(filled[0], "public.t")
    assert check_ledger(filled[1], "public.t")["read"] == 2000
    found = check_ranges(filled)
    assert found[0][1] == 1
    assert max(cuts for _, cuts, *_ in found) >= 4
    assert rows(filled[1], "select chunks_planned, chunk_rows, config->'chunk' from keyhaul.runs") == [(40, 50, "auto")]
    assert (report.chunks_done, report.chunks_planned) == (len(found), len(found))
    # What is told while it goes on is told in cuts, and adds up to the plan's.
    started = {event.chunk: event.cuts for event in seen if isinstance(event, events.ChunkStarted)}
    assert started == {chunk: cuts for chunk, cuts, *_ in found}
    assert sum(started.values()) == 40


def test_who_looks_back_sees_chunks_and_not_cuts(filled, capsys):
    report = moved(filled)
    (run_row,) = history.runs(filled[1]).rows(named=True)
    chunks = history.chunks(target=filled[1])
    assert run_row["chunks_planned"] == run_row["chunks_done"] == chunks.height == report.chunks_done
    assert chunks["cuts"].sum() == 40
    found = verify(job(filled), observe=lambda _event: None)
    assert (found.equal, found.chunks, found.rows) == (True, chunks.height, 2000)


def test_highest_keys_first_merges_the_same_neighbours(filled):
    order = []
    moved(
        filled,
        lambda event: order.append(event.chunk) if isinstance(event, events.ChunkStarted) else None,
        order="desc",
    )
    assert checksum(filled[1], "public.t") == checksum(filled[0], "public.t")
    check_ledger(filled[1], "public.t")
    check_ranges(filled)
    assert order == sorted(order, reverse=True)


def test_a_key_of_two_columns_with_nulls_is_merged_and_its_nulls_come_first(databases):
    run_sql(
        databases[0],
        "create table public.t (a integer, b text, v integer)",
        "insert into public.t select i % 50, 'é' || i, i from generate_series(1, 1500) i",
        "insert into public.t select null, 'x', i from generate_series(1, 5) i",
        "insert into public.t select i, null, i from generate_series(1, 5) i",
        "create index on public.t (a, b)",
    )
    order = []
    moved(
        databases,
        lambda event: order.append(event.chunk) if isinstance(event, events.ChunkStarted) else None,
        key="a,b",
        workers=1,
    )
    assert checksum(databases[1], "public.t") == checksum(databases[0], "public.t")
    check_ledger(databases[1], "public.t")
    kinds = dict(rows(databases[1], "select chunk, kind from keyhaul.chunks"))
    assert kinds[order[0]] == "nulls"
    assert rows(databases[1], "select rows_read, cuts from keyhaul.chunks where kind = 'nulls'") == [(10, 1)]
    assert rows(databases[1], "select count(*) < 15 from keyhaul.chunks") == [(True,)]


# --- what fails ------------------------------------------------------------------------------------

DROPS = """
create table public.t (id integer, v text, part integer, changed timestamptz);
create function public.fair() returns trigger language plpgsql as
$$ begin if new.id in (1500, 1503, 1653) then return null; end if; return new; end $$;
create trigger fair before insert on public.t for each row execute function public.fair();
"""


def test_a_bad_cut_costs_itself_and_not_the_chunk_that_it_was_merged_into(filled):
    run_sql(filled[1], DROPS)
    seen = []
    report = moved(filled, seen.append, workers=1)
    bad = [10, 11, 12]  # cuts of 50 keys, each the third number
    assert (report.outcome, [one.chunk for one in report.failed]) == ("stopped", bad)
    assert "stored 49 of 50 rows" in report.failed[0].error
    assert report.counts.loaded == 1850
    assert rows(filled[1], "select chunk, cuts from keyhaul.chunks where status <> 'done' order by 1") == [
        (number, 1) for number in bad
    ]
    halved = [event for event in seen if isinstance(event, events.ChunkHalved)]
    assert all(event.chunk <= 12 and event.cuts > 1 for event in halved)
    assert [event for event in seen if isinstance(event, events.ChunkFailed)] != []
    # The same command tries them again, each alone, and then has them.
    run_sql(
        filled[1],
        "create or replace function public.fair() returns trigger language plpgsql as 'begin return new; end'",
    )
    again = []
    assert moved(filled, again.append, workers=1).outcome == "done"
    assert [(event.chunk, event.cuts) for event in again if isinstance(event, events.ChunkStarted)] == [
        (number, 1) for number in bad
    ]
    assert checksum(filled[1], "public.t") == checksum(filled[0], "public.t")
    check_ledger(filled[1], "public.t")


def test_ten_failures_in_a_row_stop_a_run_of_merged_chunks_too(filled):
    run_sql(filled[1], DROPS.replace("new.id in (1500, 1503, 1653)", "new.id % 3 = 0 and new.id > 300"))
    report = moved(filled, workers=1)
    assert report.outcome == "stopped"
    assert "10 chunks in a row failed" in report.stop_reason
    assert [one.chunk for one in report.failed] == list(range(3, 13))
    assert report.counts.loaded == 100


def test_a_merged_chunk_whose_connection_is_lost_each_time_is_not_halved_and_its_cuts_stay_open(filled):
    ends = "pg_terminate_backend(pg_backend_pid())"
    run_sql(
        filled[1],
        DROPS.replace("if new.id in (1500, 1503, 1653) then return null;", f"if new.id = 1500 then perform {ends};"),
    )
    seen = []
    control = Control()
    given = {"source": filled[0], "target": filled[1], "table": "public.t", "key": "id", "job": "t", "workers": 1}
    once = load_job(None, {**given, "chunk": AUTO}, {"ETL_RETRIES": "0"})
    assert run(once, seen.append, control).outcome == "stopped"
    assert [event for event in seen if isinstance(event, events.ChunkHalved)] == []
    (failed,) = [event for event in seen if isinstance(event, events.ChunkFailed)]
    (begun,) = [e for e in seen if isinstance(e, events.ChunkStarted) and e.chunk == failed.chunk]
    assert begun.cuts > 1
    cuts = list(range(failed.chunk, failed.chunk + begun.cuts))
    assert 10 in cuts
    assert rows(filled[1], "select chunk, cuts, attempts from keyhaul.chunks where status = 'failed' order by 1") == [
        (number, 1, 1) for number in cuts
    ]
    run_sql(filled[1], "drop trigger fair on public.t")
    assert moved(filled).outcome == "done"
    assert checksum(filled[1], "public.t") == checksum(filled[0], "public.t")
    check_ledger(filled[1], "public.t")


# --- what somebody else has loaded -----------------------------------------------------------------


def load_beside(target, first, last):
    """Do what a killed process does whose COMMIT comes late: load the keys of some cuts with their ledger row."""
    span = "chunk between %s and %s"
    with psycopg.connect(target) as conn:
        conn.execute(f"select from keyhaul.chunks where {span} order by chunk for update", [first, last])
        # Cuts of 50 keys, each the third number.
        low, high, read = (first - 1) * 150 + 3, last * 150 + 3, 50 * (last - first + 1)
        conn.execute(
            "insert into public.t select i, 'v' || i / 3, i / 3 %% 7 from generate_series(%s, %s, 3) i", [low, high - 1]
        )
        (upper,) = conn.execute("select upper_bound from keyhaul.chunks where chunk = %s", [last]).fetchone()
        conn.execute(f"delete from keyhaul.chunks where {span}", [first + 1, last])
        conn.execute(
            "update keyhaul.chunks set status = 'done', cuts = %s, upper_bound = %s, rows_read = %s, rows_loaded = %s,"
            " sitting = 1 where chunk = %s",
            [last - first + 1, upper, read, read, first],
        )


# The third chunk has the cuts 6 to 21 of 40.
@pytest.mark.parametrize(("first", "last"), [(6, 9), (18, 30), (6, 21), (30, 40)])
def test_a_commit_that_comes_late_is_noticed_whatever_it_had_merged(filled, first, last):
    run_sql(filled[0], "alter table public.t drop column changed")
    run_sql(filled[1], "create table public.t (id integer, v text, part integer)")
    seen, beside = [], []

    def observe(event):
        seen.append(event)
        loads = isinstance(event, events.StepStarted) and (event.step, event.chunk) == ("load", 6)
        if loads and not beside:
            beside.append(event)
            load_beside(filled[1], first, last)

    report = moved(filled, observe, workers=1)
    assert report.outcome == "done", report.stop_reason
    begun = [(event.chunk, event.cuts) for event in seen if isinstance(event, events.ChunkStarted)]
    assert begun[:3] == [(1, 1), (2, 4), (6, 16)]
    assert [event for event in seen if isinstance(event, events.ChunkFailed)] == []
    assert checksum(filled[1], "public.t") == checksum(filled[0], "public.t")
    assert check_ledger(filled[1], "public.t")["read"] == 2000
    check_ranges(filled)
    assert (first, last - first + 1) in rows(filled[1], "select chunk, cuts from keyhaul.chunks")


@pytest.mark.parametrize("lose", ["answer", "commit"])
def test_a_lost_commit_of_a_merged_chunk_or_the_answer_to_it_neither_loses_nor_repeats_rows(server, filled, lose):
    seen = []
    with losing(server.port, times=0, lose=lose) as proxy:

        def observe(event):
            seen.append(event)
            if isinstance(event, events.ChunkDone):
                proxy._times = 2  # from the second chunk on, which is merged

        through = filled[1].replace(f":{server.port}/", f":{proxy.port}/")
        report = moved((filled[0], through), observe, workers=1)
    assert (report.outcome, proxy.cut) == ("done", 2)
    assert len([event for event in seen if isinstance(event, events.ChunkRetried)]) == 2
    assert [event for event in seen if isinstance(event, (events.ChunkFailed, events.ChunkHalved))] == []
    assert rows(filled[1], "select chunk, cuts from keyhaul.chunks order by 1")[:2] == [(1, 1), (2, 4)]
    assert checksum(filled[1], "public.t") == checksum(filled[0], "public.t")
    check_ledger(filled[1], "public.t")


# --- with everything else --------------------------------------------------------------------------


def test_each_sitting_merges_anew_what_is_open(filled):
    control, seen = Control(), []

    def stop(event):
        if isinstance(event, events.ChunkDone) and event.chunk > 5:
            control.stop("the test says so")

    assert moved(filled, stop, control, workers=1).outcome == "stopped"
    before = rows(filled[1], SPAN)
    report = moved(filled, seen.append, chunk={"min_rows": 200, "max_rows": 300})
    assert (report.outcome, report.resumed) == ("done", True)
    after = rows(filled[1], SPAN)
    done = [row for row in before if row[2] == "done"]
    assert after[: len(done)] == done
    assert max(event.cuts for event in seen if isinstance(event, events.ChunkStarted)) <= 6
    assert checksum(filled[1], "public.t") == checksum(filled[0], "public.t")
    check_ledger(filled[1], "public.t")
    check_ranges(filled)


def test_a_fixed_chunk_and_an_auto_one_are_two_jobs(filled):
    control = Control()

    def stop(event):
        if isinstance(event, events.ChunkDone):
            control.stop("the test says so")

    assert moved(filled, stop, control, workers=1).outcome == "stopped"
    with pytest.raises(RefusedError, match='chunk: "auto" → 50'):
        moved(filled, chunk=50)


def test_copies_in_different_chunks_are_refused_with_the_reason(filled):
    with pytest.raises(
        RefusedError, match=r"got auto with dedup on part, whose copies can lie in different chunks.*Give --chunk N"
    ):
        moved(filled, dedup="part")
    assert moved(filled, dedup="id,part").counts.loaded == 2000
    assert rows(filled[1], "select max(cuts) > 1 from keyhaul.chunks") == [(True,)]


def test_an_incremental_run_and_a_replay_and_mode_replace_take_auto_chunks(filled):
    flags = {"incremental": "changed", "rule": ["small: id < 3000"]}
    assert moved(filled, **flags).counts.loaded == 999
    run_sql(filled[0], "update public.t set part = -1, changed = '2026-02-01' where id % 2 = 0 and id < 3000")
    delta = moved(filled, **flags)
    assert (delta.counts.read, delta.counts.updated) == (500, 499)  # the one at the watermark is read again
    newest = "keyhaul.chunks join (select run_id from keyhaul.runs order by started_at desc limit 1) r using (run_id)"
    assert rows(filled[1], f"select sum(rows_read)::int, sum(cuts)::int > count(*) from {newest}") == [(500, True)]
    first = rows(filled[1], "select run_id from keyhaul.runs order by started_at limit 1")[0][0]
    mended = replay(job(filled, incremental="changed"), first, lambda _event: None, Control(), changed=True)
    assert (mended.left, mended.report.counts.loaded) == (0, 1001)
    assert checksum(filled[1], "public.t") == checksum(filled[0], "public.t")
    swapped = moved(filled, mode="replace", job="swap")
    assert swapped.counts.loaded == 2000
    assert checksum(filled[1], "public.t") == checksum(filled[0], "public.t")
