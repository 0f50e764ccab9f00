"""The whole bundled flights into a table with real foreign keys to airlines, airports and planes, of which some lack."""

from __future__ import annotations

from pathlib import Path

import psycopg
from aftermath import fetch, value

from keyhaul.embedded import flights

DATA = Path(__file__).parents[2] / "data"
PARENTS = """
create table public.airlines (carrier text primary key, name text);
create table public.airports (faa text primary key, name text, lat text, lon text, alt text, tz text, dst text, tzone text);
create table public.planes (tailnum text primary key, year text, type text, manufacturer text, model text, engines text,
                            seats text, speed text, engine text);
"""
CHILD = """
create table public.flights_named (
    id bigint primary key, time_hour timestamptz not null, carrier text not null references public.airlines,
    airline text not null, flight integer not null, plane_type text,
    tailnum text constraint known_plane references public.planes,
    origin text not null constraint known_origin references public.airports,
    dest text not null constraint known_dest references public.airports
);
"""
JOB = """
source: {{uri: '{source}', table: public.flights}}
target: {{uri: '{target}', table: public.flights_named, mode: append}}
key: id
allow_quarantined: 100%
transform:
  - lookup: {{source: {{file: '{data}/airlines.csv'}}, on: carrier, take: {{airline: name}}, missing: quarantine}}
  - lookup: {{source: {{file: '{data}/planes.csv'}}, on: tailnum, take: {{plane_type: type}}}}
  - drop: [year, month, day, dep_time, sched_dep_time, dep_delay, arr_time, sched_arr_time, arr_delay, air_time, distance,
           hour, minute]
"""


def load_parents(uri):
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(PARENTS)
        for name in ("airlines", "airports", "planes"):
            with (
                connection.cursor() as cursor,
                cursor.copy(f"copy public.{name} from stdin (format csv, header)") as copy,
            ):
                copy.write((DATA / f"{name}.csv").read_text(encoding="utf-8"))


def test_flights_without_their_parents_wait_in_quarantine_until_the_parents_are_there(databases, etl, tmp_path):
    source, target = databases
    with psycopg.connect(source) as connection:
        flights.load(connection)
    for uri in (source, target):  # in the source to count by plain SQL
        load_parents(uri)
    fetch(target, CHILD)
    file = tmp_path / "job.yaml"
    file.write_text(JOB.format(source=source, target=target, data=DATA), encoding="utf-8")
    moved = etl("run", str(file))
    assert moved.returncode == 0, moved.stderr

    no_plane = "(tailnum is not null and tailnum not in (select tailnum from public.planes))"
    no_dest = "(dest not in (select faa from public.airports))"
    (both, plane, dest, whole) = fetch(
        source,
        f"select count(*) filter (where {no_plane} and {no_dest}), count(*) filter (where {no_plane} and not {no_dest}),"
        f" count(*) filter (where {no_dest} and not {no_plane}), count(*) filter (where not {no_plane} and not {no_dest})"
        " from public.flights",
    )[0]
    assert (both, plane, dest, whole) == (1_401, 48_693, 6_201, 280_481)
    assert value(target, "select count(*) from public.flights_named") == whole
    guilty = fetch(
        target,
        "select 'known_plane' = any(rules), 'known_dest' = any(rules), count(*) from keyhaul.quarantine group by 1, 2",
    )
    told = {(p, d): n for p, d, n in guilty}
    # Halving stops at the first constraint that PostgreSQL names; the sets name all of them.
    assert told.get((True, False), 0) + told.get((True, True), 0) + told.get((False, True), 0) == both + plane + dest
    assert told.get((True, False), 0) >= plane
    assert told.get((False, True), 0) >= dest
    assert (
        value(target, "select count(*) from keyhaul.quarantine where rules <@ '{known_plane,known_dest}'")
        == both + plane + dest
    )

    fetch(
        target,
        "insert into public.planes (tailnum) select distinct data->>'tailnum' from keyhaul.quarantine"
        " where data->>'tailnum' not in (select tailnum from public.planes)",
    )
    again = etl("replay", "last", str(file))
    assert again.returncode == 0, again.stderr
    assert value(target, "select count(*) from public.flights_named") == whole + plane
    assert value(target, "select count(*) from keyhaul.quarantine where resolved_at is null") == both + dest
    assert (
        value(target, "select count(*) from keyhaul.quarantine where resolved_at is null and rules <> '{known_dest}'")
        == 0
    )
    totals = fetch(
        target,
        "select r.kind, sum(rows_read)::int, sum(rows_loaded)::int, sum(rows_quarantined)::int from keyhaul.chunks"
        " join keyhaul.runs r using (run_id) group by 1 order by 1",
    )
    lost = both + plane + dest
    assert totals == [("replay", lost, plane, both + dest), ("run", 336_776, whole, lost)]
    named = fetch(
        target,
        "select count(distinct airline), count(*) filter (where plane_type is null) > 0 from public.flights_named",
    )
    assert named == [(16, True)]
