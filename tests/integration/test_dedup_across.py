"""A dedup whose columns do not contain the key: all is gathered, copies are told, each chunk is loaded once."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import stat
import time

import psycopg
import pytest
from aftermath import check_ledger
from moving import rows, run_sql

from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.errors import ConfigError, RefusedError
from keyhaul.events import ChunkDone, ChunkGathered, Notice, RunStarted, StepStarted
from keyhaul.execution.engine import run
from keyhaul.live.follow import follow
from keyhaul.live.progress import status_line
from keyhaul.live.tally import Tally
from keyhaul.replay.resending import replay

ROWS = 5000

# `orders` fails where `trouble` says so, and only when a chunk is read.
SOURCE = f"""
create table public.trouble (id bigint);
create function fails(bigint) returns bool language plpgsql stable as $$
begin
    if current_setting('application_name') like 'keyhaul % chunk %' and exists (select from public.trouble t where t.id = $1)
    then raise 'the disk under row %', $1; end if;
    return false;
end $$;
create table public.t (id bigint primary key, customer int, made timestamptz, amount numeric(12,2), note text);
insert into public.t
select g, nullif(g % 7, 6), timestamptz '2024-01-01 00:00Z' + (g % 450) * interval '1 hour', (g * 7919 % 1000) / 4.0,
       case when g % 13 > 0 then 'note ' || g % 31 end
  from generate_series(1, {ROWS}) g;
create view public.orders as select * from public.t where not fails(id);
"""


@pytest.fixture
def work(tmp_path):
    return tmp_path / "work"


@pytest.fixture
def ends(databases):
    run_sql(databases[0], SOURCE)
    return databases


def job(ends, work, **flags):
    given = {
        "source": ends[0], "target": ends[1], "table": "public.orders", "into": "public.orders", "key": "id",
        "job": "move", "chunk": "600", "dedup": "customer,made", "order_by": "amount", "work_dir": str(work), **flags,
    }  # fmt: skip
    return load_job(None, {name: value for name, value in given.items() if value is not None}, {})


def move(ends, work, *, fresh=False, stop_at=None, count=1, seen=None, **flags):
    """Run the job; told to stop at the `count`-th event of the kind `stop_at`."""
    control, events = Control(), [] if seen is None else seen

    def observe(event):
        events.append(event)
        if stop_at and sum(isinstance(e, stop_at) for e in events) == count:
            control.stop("the test says so")

    return run(job(ends, work, **flags), observe, control, fresh=fresh)


def winners(uri, order="amount desc nulls last, id", where="true", table="public.t"):
    query = (
        f"select * from (select *, row_number() over (partition by customer, made order by {order}) as place"
        f" from {table} where {where}) s where place = 1 or customer is null or made is null"
    )
    return sorted((row[:-1] for row in rows(uri, query)), key=str)


def loaded(uri):
    return sorted(rows(uri, "select * from public.orders"), key=str)


ORDERS = {
    None: "id",
    "amount": "amount desc nulls last, id",
    "note": 'note collate "C" desc nulls last, id',
    "note,amount": 'note collate "C" desc nulls last, amount desc nulls last, id',
}


@pytest.mark.parametrize("order_by", ORDERS)
@pytest.mark.parametrize("workers", ["1", "4"])
def test_the_answer_is_that_of_one_query(ends, work, order_by, workers):
    report = move(ends, work, order_by=order_by, workers=workers)
    expected = winners(ends[0], ORDERS[order_by])
    assert loaded(ends[1]) == expected
    assert (report.counts.read, report.counts.loaded) == (ROWS, len(expected))
    assert report.counts.duplicate == ROWS - len(expected) > 1000
    check_ledger(ends[1], "public.orders")
    assert list(work.iterdir()) == []


def test_the_plan_the_order_and_the_drivers_do_not_matter(ends, work):
    expected = winners(ends[0])
    for flags in (
        {"chunk": "5000"},
        {"chunk": "37", "order": "desc", "workers": "3"},
        {"reader": "adbc", "loader": "adbc", "workers": "2"},
    ):
        run_sql(ends[1], "drop table if exists public.orders")
        move(ends, work, fresh=True, **flags)
        assert loaded(ends[1]) == expected


def test_without_a_unique_key_the_other_columns_decide_by_value(ends, work):
    run_sql(
        ends[0],
        "create table public.many as select nullif(id % 50, 49) as k, customer, made,"
        " 'note ' || id % 2 as note, id / 50 * 7919 % 1000 as z, md5(id::text) as w from public.t order by md5(id::text)",
        "update public.many set made = timestamptz '2024-01-01 00:00Z' + z % 3 * interval '1 hour', z = z % 10",
    )
    move(ends, work, table="public.many", key="k", order_by="note")
    order = 'note collate "C" desc nulls last, k nulls last, z, w'
    assert loaded(ends[1]) == winners(ends[0], order, table="public.many")


def test_a_quarantined_record_never_wins_and_one_that_the_target_refuses_is_kept_whole(ends, work):
    run_sql(
        ends[1],
        "create table public.orders (id bigint primary key, customer int, made timestamptz, amount numeric(12,2),"
        " note text constraint no_threes check (note <> 'note 3'))",
    )
    report = move(ends, work, rule="cheap: amount < 200", set="note = note", where="id % 10 <> 0")
    expected = winners(ends[0], where="amount < 200 and id % 10 <> 0")
    refused = [row for row in expected if row[4] == "note 3"]
    assert loaded(ends[1]) == [row for row in expected if row[4] != "note 3"]
    assert report.quarantined_by_reason["no_threes"] == len(refused) > 0
    kept = "select key::bigint, (data->>'amount')::numeric from keyhaul.quarantine where 'no_threes' = any(rules)"
    assert sorted(rows(ends[1], kept)) == sorted((row[0], row[3]) for row in refused)
    check_ledger(ends[1], "public.orders")


def test_values_that_send_a_column_through_text_in_some_chunks_come_through(ends, work):
    run_sql(
        ends[0],
        'create table public.odd (at timestamp, customer int, made timestamptz, n numeric(8,2), "N" float8)',
        "insert into public.odd select timestamp '2024-01-01' + id * interval '1 s', customer, made,"
        " case when id % 900 = 0 then 'NaN' else amount end, id / 3.0 from public.t",
        "insert into public.odd values ('infinity', 1, '2024-01-01 00:00Z', 1, 'NaN'),"
        " ('-infinity', 1, '2024-01-01 00:00Z', 1, '-0'), ('infinity', 5, '1999-01-01 00:00Z', 'NaN', '-Infinity')",
        "create unique index on public.odd (at, customer)",
    )  # fmt: skip
    move(ends, work, table="public.odd", key="at", order_by=None)
    query = (
        'select at::text, customer, made::text, n::text, "N"::text from (select *, row_number() over'
        " (partition by customer, made order by at in ('infinity', '-infinity'), at) place from {}) s {} order by 1, 2"
    )
    got = rows(ends[1], query.format("public.orders", ""))
    assert got == rows(ends[0], query.format("public.odd", "where place = 1 or customer is null"))


@pytest.mark.parametrize("mode", ["skip", "upsert"])
def test_modes_see_only_the_winners(ends, work, mode):
    run_sql(
        ends[1],
        "create table public.orders (id bigint, customer int, made timestamptz, amount numeric(12,2), note text,"
        " unique (customer, made))",
        "insert into public.orders values (-1, 1, '2024-01-01 01:00Z', -1, 'old')",
    )
    report = move(ends, work, mode=mode, conflict="customer,made")
    assert (report.counts.unchanged, report.counts.updated) == ((1, 0) if mode == "skip" else (0, 1))
    assert len(loaded(ends[1])) == len(winners(ends[0]))


# --- watched -----------------------------------------------------------------------------------------


class Enough(Exception):  # noqa: N818 - no error
    """One look is enough."""


def line_of(uri, run_id):
    """Return what `etl show --follow` says at first."""
    stream = io.StringIO()

    def stop(_seconds):
        raise Enough

    with psycopg.connect(uri, autocommit=True) as conn, contextlib.suppress(Enough):
        follow(conn, "keyhaul", run_id, stream, wait=stop)
    return stream.getvalue().splitlines()[1]


def test_whoever_watches_a_run_sees_how_far_it_has_gathered(ends, work):
    seen, lines, tally = [], {}, Tally()

    def observe(event):
        seen.append(event)
        tally(event)
        gathered = sum(isinstance(e, ChunkGathered) for e in seen)
        if (isinstance(event, ChunkGathered) and gathered == 5) or isinstance(event, ChunkDone):
            run_id = next(e.run_id for e in seen if isinstance(e, RunStarted))
            deadline = time.monotonic() + 10
            while not lines and time.monotonic() < deadline:
                ((told,),) = rows(ends[1], "select coalesce((gathered->>'chunks')::int, 0) from keyhaul.runs")
                if told == 5:
                    break
                time.sleep(0.05)
            lines.setdefault(type(event).__name__, (line_of(ends[1], run_id), status_line(tally.view())))

    report = run(job(ends, work, workers="1"), observe, Control())
    assert report.outcome == "done"
    gathering, own = lines["ChunkGathered"]
    assert re.search(r"\] 3\d %: gathered 5 of 10 chunks before any is loaded, read 3,000 of about 5,000", gathering)
    assert "ETA" not in gathering
    assert re.search(
        r"\] 3\d %: read 3,000 of about 5,000 \(3,000 gathered, to be loaded when all are\), loaded 0", own
    )
    loading, own = lines["ChunkDone"]
    assert re.search(r"\] 6\d %: 1 of 10 chunks, read 5,000 of about 5,000", loading)
    assert " gathered" not in loading
    assert rows(ends[1], "select gathered from keyhaul.runs") == [({"chunks": 10, "rows": 5000},)]


# --- stopped and resumed -----------------------------------------------------------------------------


def test_stopped_while_gathering_nothing_is_loaded_and_what_is_there_is_not_read_again(ends, work):
    report = move(ends, work, stop_at=ChunkGathered, count=5, workers="1")
    assert (report.outcome, report.chunks_done, loaded(ends[1])) == ("stopped", 0, [])
    (folder,) = work.iterdir()
    assert folder.name == report.run_id
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "rows.duckdb")}
    assert modes == {0o700, 0o600}
    run_sql(ends[0], "insert into public.trouble values (1), (300), (1400)")
    seen = []
    report = move(ends, work, seen=seen)
    assert (report.outcome, report.resumed) == ("done", True)
    gathered = {event.chunk for event in seen if isinstance(event, ChunkGathered)}
    assert len(gathered) == report.chunks_planned - 5
    assert any("5 of them are there already" in e.message for e in seen if isinstance(e, Notice))
    assert loaded(ends[1]) == winners(ends[0])
    assert list(work.iterdir()) == []


def test_stopped_while_loading_the_source_is_not_read_again(ends, work):
    report = move(ends, work, stop_at=ChunkDone, count=4, workers="1")
    assert (report.outcome, report.chunks_done) == ("stopped", 4)
    expected = winners(ends[0])
    run_sql(ends[0], "update public.t set amount = -id", "insert into public.trouble select id from public.t")
    seen = []
    report = move(ends, work, seen=seen)
    assert report.outcome == "done"
    assert any("the source is not read again" in e.message for e in seen if isinstance(e, Notice))
    assert {event.step for event in seen if isinstance(event, StepStarted)} == {"stage", "load"}
    assert loaded(ends[1]) == expected
    assert list(work.iterdir()) == []


def test_a_chunk_that_cannot_be_read_stops_the_run_before_anything_is_loaded(ends, work):
    run_sql(ends[0], "insert into public.trouble values (700), (4000)")
    report = move(ends, work)
    assert (report.outcome, report.chunks_done, len(report.failed)) == ("stopped", 0, 2)
    assert "2 chunks could not be read" in report.stop_reason
    assert loaded(ends[1]) == []
    run_sql(ends[0], "truncate public.trouble")
    seen = []
    assert move(ends, work, seen=seen).outcome == "done"
    assert sum(isinstance(event, ChunkGathered) for event in seen) == 2
    assert loaded(ends[1]) == winners(ends[0])
    check_ledger(ends[1], "public.orders")


def spoil(folder):
    """Make the file one of another job."""
    (folder / "rows.duckdb").unlink()
    (folder / "rows.duckdb").write_bytes(b"nothing that DuckDB knows")


@pytest.mark.parametrize("lose", [shutil.rmtree, spoil])
def test_what_was_gathered_is_lost_before_anything_is_loaded_so_all_is_read_anew(ends, work, lose):
    move(ends, work, stop_at=ChunkGathered, count=5, workers="1")
    lose(next(work.iterdir()))
    seen = []
    assert move(ends, work, seen=seen).outcome == "done"
    assert any("read anew" in e.message for e in seen if isinstance(e, Notice))
    assert sum(isinstance(event, ChunkGathered) for event in seen) == 10
    assert loaded(ends[1]) == winners(ends[0])


@pytest.mark.parametrize("lose", [shutil.rmtree, spoil])
def test_what_was_gathered_is_lost_when_some_is_loaded_so_the_run_is_refused(ends, work, lose):
    move(ends, work, stop_at=ChunkDone, count=4, workers="1")
    before = loaded(ends[1])
    lose(next(work.iterdir()))
    with pytest.raises(RefusedError, match=r"4 of its chunks are loaded, and .* --fresh"):
        move(ends, work)
    assert loaded(ends[1]) == before
    assert rows(ends[1], "select sittings, status from keyhaul.runs") == [(1, "stopped")]


def test_a_run_that_is_given_up_leaves_nothing_and_other_jobs_keep_theirs(ends, work):
    move(ends, work, stop_at=ChunkGathered, count=2, workers="1")
    move(ends, work, stop_at=ChunkGathered, count=2, workers="1", job="other", into="public.other")
    strange = work / "not a run"
    strange.mkdir()
    assert len(list(work.iterdir())) == 3
    assert move(ends, work, fresh=True).outcome == "done"
    other = rows(ends[1], "select run_id from keyhaul.runs where job = 'other'")
    assert {path.name for path in work.iterdir()} == {strange.name, other[0][0]}


def test_a_folder_that_others_could_have_changed_is_refused(ends, work):
    move(ends, work, stop_at=ChunkGathered, count=2, workers="1")
    next(work.iterdir()).chmod(0o755)
    with pytest.raises(ConfigError, match="others could have changed it"):
        move(ends, work)


def exchange(folder):
    """Let a folder be everybody's, or another user's, as far as we may."""
    folder.chmod(0o777)
    yield "everybody may write there"
    folder.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(folder, 12345, -1)
        yield "it belongs to uid 12345"


def test_rows_are_not_put_into_a_folder_that_others_could_exchange(ends, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    for why in exchange(folder):
        for work in (folder, tmp_path / "link"):
            with pytest.raises(ConfigError, match=f"use work folder .*: {why}, expected a folder of this user"):
                move(ends, work)
    assert list(folder.iterdir()) == []
    os.chown(folder, os.geteuid(), -1)
    folder.chmod(0o1777)  # as /tmp: nobody can exchange what is another's
    assert move(ends, folder).outcome == "done"


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_made(ends, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"use work folder .*Not a directory.*--work-dir"):
        move(ends, tmp_path / "file" / "work")
    assert rows(ends[1], "select nspname from pg_namespace where nspname = 'keyhaul'") == []


def test_a_key_in_the_dedup_needs_no_folder(ends, work):
    assert move(ends, work, dedup="customer,id").outcome == "done"
    assert not work.exists()


# --- replay ------------------------------------------------------------------------------------------


def test_a_replay_that_could_load_a_second_copy_is_refused(ends, work):
    source = {"table": "public.t"}
    assert move(ends, work, rule="cheap: amount < 200", **source).counts.quarantined > 0
    before = loaded(ends[1])
    for flags in ({}, {"mode": "append"}, {"mode": "upsert"}):
        with pytest.raises(RefusedError, match="copies of the records could be loaded already"):
            replay(job(ends, work, **source, **flags), "last", lambda _event: None, Control(), changed=True)
    assert loaded(ends[1]) == before


def test_a_replay_in_mode_skip_loads_no_second_copy(ends, work):
    source = {"table": "public.t", "into": "public.orders"}
    move(ends, work, rule="cheap: amount < 200", **source)
    run_sql(ends[1], "create unique index on public.orders (customer, made)")
    mended = job(ends, work, **source, mode="skip", conflict="customer,made", chunk="50")
    done = replay(mended, "last", lambda _event: None, Control(), changed=True)
    assert done.left == 0
    pairs = "select count(*) from public.orders where customer is not null group by customer, made"
    assert set(rows(ends[1], pairs)) == {(1,)}
    assert len(loaded(ends[1])) == len(winners(ends[0]))
