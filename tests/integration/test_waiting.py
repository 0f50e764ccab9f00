"""The seconds in which a chunk was not moved: in the ledger, the report, the frames and `etl show`."""

import io

import psycopg
import pytest
from moving import move, rows, run_sql

from keyhaul.history import frames as history
from keyhaul.ledger import reading
from keyhaul.printing import lookback

FAILS_ONCE = """
create sequence public.tries;
create function public.fail_once() returns trigger language plpgsql as
$$ begin
    if nextval('public.tries') = 1 then raise exception 'once' using errcode = '40001'; end if;
    return new;
end $$;
create trigger fail_once before insert on public.t for each statement execute function public.fail_once();
"""


@pytest.fixture
def filled(databases):
    run_sql(
        databases[0],
        "create table public.t (id integer primary key); insert into public.t select generate_series(1, 100)",
    )
    run_sql(databases[1], "create table public.t (id integer)")
    return databases


def test_the_sleep_before_another_try_is_waiting(filled):
    run_sql(filled[1], FAILS_ONCE)
    report = move(filled, "public.t", workers=1)
    assert (report.outcome, report.chunks_timed) == ("done", 1)
    assert report.timings.wait_seconds >= 0.2
    [(attempts, waited)] = rows(filled[1], "select attempts, wait_seconds from keyhaul.chunks")
    assert (attempts, waited) == (2, pytest.approx(report.timings.wait_seconds))
    assert history.chunks(target=filled[1])["wait_seconds"].to_list() == [waited]
    assert history.runs(target=filled[1])["wait_seconds"].to_list() == [waited]


def test_a_chunk_that_nothing_held_up_has_waited_for_nothing(filled):
    report = move(filled, "public.t", workers=1)
    assert report.timings.wait_seconds < 0.1


def test_show_says_what_the_bottleneck_was(filled):
    report = move(filled, "public.t", workers=1)
    run_sql(filled[1], "update keyhaul.chunks set read_seconds = 26, load_seconds = 14, stage_seconds = 10")
    assert (
        "reading 52 %, loading 28 %, rules and duplicates 20 % of the workers' time; the source, or the way to it, is "
        "the bottleneck." in " ".join(shown(filled[1], report.run_id).split())
    )


def test_show_says_what_the_limits_did(filled):
    report = move(filled, "public.t", workers=1)
    assert "memory_limit" not in shown(filled[1], report.run_id), "it did nothing"
    run_sql(
        filled[1],
        """update keyhaul.runs set limits = '{"rate_limit": {"setting": "500 rows/s", "waited_seconds": 61, "effect": ""},
        "cpu_limit": {"setting": "60% of all CPUs", "waited_seconds": 0, "effect": "1 active worker at the least"}}'""",
    )
    text = " ".join(shown(filled[1], report.run_id).split())
    assert "rate_limit 500 rows/s: workers waited 61.0 s for it" in text
    assert "cpu_limit 60% of all CPUs: 1 active worker at the least" in text
    run_sql(filled[1], "update keyhaul.chunks set wait_seconds = 61")
    assert "Most of it for rate_limit: a higher one would help." in " ".join(shown(filled[1], report.run_id).split())


def shown(uri, run_id):
    stream = io.StringIO()
    with psycopg.connect(uri) as conn:
        lookback.print_run(reading.show_run(conn, "keyhaul", run_id), stream)
    return stream.getvalue()
