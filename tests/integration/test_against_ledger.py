"""Checksums that a load stores say later, without the source, in which chunks the target is not what it was."""

import json
from collections import Counter
from functools import partial

import moving
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moving import rows, run_sql
from psycopg import sql

import keyhaul
from keyhaul import events
from keyhaul.comparison.comparing import verify
from keyhaul.comparison.ledgercompare import NULL_KEYS
from keyhaul.control import Control
from keyhaul.errors import RefusedError, StopRunError
from keyhaul.execution.engine import run
from keyhaul.model import Chunk
from keyhaul.replay.resending import replay
from keyhaul.targets.rowhash import Hashing

ODD = {
    "at": ("timestamptz", "timestamptz '2020-01-01 00:00Z' + g * interval '1 second'", "at + interval '1 microsecond'"),
    "local": ("timestamp", "timestamp '2020-01-01' + g * interval '1 second'", "null"),
    "day": ("date", "date '2020-01-01' + g", "'infinity'"),
    "span": ("interval", "interval '1 mon' * g", "make_interval(days => 30 * id)"),
    "f4": ("real", "g / 7.0", "f4 + 0.01"),
    "f8": ("double precision", "g / 7.0", "f8 + 1e-12"),
    "zero": ("double precision", "0", "'-0'"),
    "raw": ("bytea", "decode(md5(g::text), 'hex')", "raw || '\\x00'"),
    "price": ("money", "g::money / 7", "price + '0.01'::money"),
    "scale": ("numeric", "1.5", "1.50"),
    "padded": ("char(5)", "'ab'", "'abc'"),
    "blank": ("bpchar", "'ab'", "'ab '"),
    "kind": ("regclass", "'public.t'::regclass", "'pg_class'"),
    "doc": ("json", "'{\"a\": 1}'", "'{\"a\":1}'"),
    "list": ("timestamptz[]", "array[timestamptz '2020-01-01Z', null]", "array[null, timestamptz '2020-01-01Z']"),
    "host": ("inet", "'10.0.0.1'", "'10.0.0.1/31'"),
    "empty": ("text", "null", "''"),
}
"""Column → its type, its values, and what one row gets later; what most are as text depends on the session."""


def job(databases, *, file=None, **flags):
    return moving.job(databases, file=file, **{"chunk": "100", "checksum": True, **flags})


def move(databases, observe=lambda _event: None, *, fresh=True, **flags):
    report = run(job(databases, **flags), observe, Control(), fresh=fresh)
    assert report.outcome == "done", report.failed
    return report


def look(databases, name="last", **more):
    return keyhaul.verify_ledger(name, target=databases[1], **more)


def differing(found):
    return [(one.chunk, one.rows_stored, one.rows_found) for one in found.by_chunk]


def fill(databases, number=1000, key="int primary key"):
    run_sql(
        databases[0],
        f"create table public.t (id {key}, ref int, name text)",
        f"insert into public.t select g, g % 100, 'n' || g from generate_series(1, {number}) g",
    )


def in_the_target(databases, *statements):
    run_sql(databases[1], *statements)


@pytest.mark.parametrize("loader", ["copy", "adbc"])
def test_a_value_of_any_type_that_changed_is_found_and_the_sessions_settings_are_no_matter(databases, loader):
    columns = ", ".join(f"{name} {kind}" for name, (kind, _, _) in ODD.items())
    values = ", ".join(f"({value})::{kind}" for kind, value, _ in ODD.values())
    run_sql(databases[0], f"create table public.t (id int primary key, {columns})")
    run_sql(databases[0], f"insert into public.t select g, {values} from generate_series(1, 360) g")
    move(databases, loader=loader, chunk="20")
    name = databases[1].rpartition("/")[2].partition("?")[0]
    other = {
        "timezone": "Asia/Tokyo", "datestyle": "German", "intervalstyle": "iso_8601", "extra_float_digits": "-3",
        "bytea_output": "escape", "search_path": "pg_catalog", "lc_monetary": "C.UTF-8", "default_transaction_read_only": "on",
    }  # fmt: skip
    with psycopg.connect(databases[1], autocommit=True) as conn:
        for setting, value in other.items():
            conn.execute(
                sql.SQL("alter database {} set {} = {}").format(
                    sql.Identifier(name), sql.SQL(setting), sql.Literal(value)
                )
            )
    found = look(databases)
    assert (found.equal, found.rows, found.chunks, found.different) == (True, 360, 18, 0)
    with psycopg.connect(databases[1], autocommit=True) as conn:
        conn.execute("set default_transaction_read_only = off; set timezone = 'UTC'; set datestyle = 'ISO'")
        for number, (column, (_, _, change)) in enumerate(ODD.items()):
            conn.execute(f"update public.t set {column} = {change} where id = {number * 20 + 10}")
    assert differing(look(databases)) == [(number, 20, 20) for number in range(1, len(ODD) + 1)]


DAMAGE = {
    "a changed value": ("update public.t set name = 'x' where id = 50", 0),
    "a missing row": ("delete from public.t where id = 150", -1),
    "an extra row": ("insert into public.t values (250, 7, 'n')", 1),
    "a row twice": ("insert into public.t select * from public.t where id = 350", 1),
    "a row twice in place of another": (
        "update public.t set (id, ref, name) = (select t.id, t.ref, t.name from public.t t where t.id = 451) where id = 450",
        0,
    ),
    "two rows that swap a value": (
        "update public.t set name = case id when 550 then 'n551' else 'n550' end where id in (550, 551)",
        0,
    ),
    "two columns that swap their values": ("update public.t set name = other, other = name where id = 650", 0),
    "a character that moves to the next column": (
        "update public.t set name = 'n75', other = '0o750' where id = 750",
        0,
    ),
    "a NULL that becomes an empty text": ("update public.t set note = '' where id = 850", 0),
    "an empty text that becomes NULL": ("update public.t set note = null where id = 949", 0),
    "two equal rows that change alike": ("update public.t set name = 'x' where id = 1050", 0),
}
"""What is done to the n-th chunk, and by how much its rows become more."""


def test_each_kind_of_damage_is_found_in_its_chunk_and_nowhere_else(databases):
    fill(databases, 1100, key="int")
    run_sql(
        databases[0],
        "alter table public.t add other text, add note text",
        "update public.t set other = 'o' || id, note = case id % 2 when 1 then '' end",
        "insert into public.t select * from public.t where id = 1050",
    )
    move(databases)
    assert look(databases).equal
    expected = []
    for number, (what, (statement, more)) in enumerate(DAMAGE.items(), start=1):
        in_the_target(databases, statement)
        expected.append((number, more))
        found = look(databases)
        assert [(chunk, now - before) for chunk, before, now in differing(found)] == expected, what
        assert all(one.lower is None is one.upper for one in found.by_chunk)
    shown = look(databases, show_values=True).by_chunk[3]
    assert (shown.lower, shown.upper) == (("301",), ("401",))
    in_the_target(databases, "update public.t set id = 1080 where id = 101")
    moved = [(chunk, now - before) for chunk, before, now in differing(look(databases))]
    assert moved == [(1, 0), (2, -2), (3, 1), (4, 1), *((number, 0) for number in range(5, 11)), (11, 1)]


TEXTS = st.one_of(st.none(), st.text(alphabet='a",()\\ ', max_size=3))
ROWS = st.lists(st.tuples(TEXTS, TEXTS), max_size=4)


@pytest.fixture(scope="module")
def small(server):
    with psycopg.connect(server.uri("postgres"), autocommit=True) as conn:
        conn.execute("create temp table small (a text, b text)")
        yield conn


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, ROWS)
def test_two_sets_of_rows_have_one_checksum_when_they_are_equal_and_only_then(small, one, other):
    query = Hashing(columns=("a", "b"), key=()).state(sql.Identifier("pg_temp", "small"), Chunk(number=1))

    def checksum(values):
        small.execute("delete from small")
        with small.cursor() as cursor:
            cursor.executemany("insert into small values (%s, %s)", values)
        return small.execute(query).fetchone()

    assert (checksum(one) == checksum(other)) == (Counter(one) == Counter(other))
    assert checksum(one) == checksum(one[::-1])


@pytest.mark.parametrize("mode", ["append", "skip", "upsert", "replace"])
def test_rows_that_were_there_before_belong_to_the_checksum_of_every_mode_but_replace(databases, mode):
    fill(databases)
    in_the_target(
        databases,
        "create table public.t (id int primary key, ref int, name text)",
        "insert into public.t values (-5, 1, 'mine'), (70000, 2, 'mine')",
    )
    if mode in {"skip", "upsert"}:
        in_the_target(databases, "insert into public.t select g, -1, 'there' from generate_series(40, 60) g")
    move(databases, mode=mode)
    found = look(databases)
    assert (found.equal, found.rows) == (True, 1000 if mode == "replace" else 1002)
    in_the_target(
        databases, "update public.t set ref = -2 where id = 50", "insert into public.t values (-6, 1, 'late')"
    )
    in_the_target(databases, "delete from public.t where id = 450")
    assert [(chunk, now - before) for chunk, before, now in differing(look(databases))] == [(1, 1), (5, -1)]
    assert rows(databases[1], "select count(*) from pg_class where relname like '\\_keyhaul%'") == [(0,)]


def test_what_others_write_into_a_chunks_range_before_it_is_loaded_is_in_its_checksum_and_later_is_not(databases):
    fill(databases)
    in_the_target(databases, "create table public.t (id int, ref int, name text)")

    def write(event):
        if isinstance(event, events.ChunkDone) and event.chunk == 3:
            in_the_target(databases, "insert into public.t values (250, 0, 'late'), (950, 0, 'in time')")

    move(databases, write, workers="1")
    assert differing(look(databases)) == [(3, 100, 101)]


def test_a_replay_keeps_the_checksums_true_and_what_was_wrong_before_stays_so(databases):
    fill(databases)
    in_the_target(
        databases,
        "create table public.parent (id int primary key)",
        "insert into public.parent select g from generate_series(0, 89) g",
        "create table public.t (id int primary key, ref int references public.parent, name text)",
        # What the replay writes must run this with the user's search_path.
        "create table public.seen (id int)",
        "create function public.see() returns trigger language plpgsql as"
        " 'begin insert into seen values (new.id); return null; end'",
        "create trigger see after insert on public.t for each row execute function public.see()",
    )
    assert move(databases).counts.quarantined == 100
    assert look(databases).rows == 900
    in_the_target(databases, "insert into public.parent select g from generate_series(90, 99) g")
    in_the_target(databases, "update public.t set name = 'wrong' where id = 205")
    replay(job(databases, chunk="15", workers="4"), "last", lambda _event: None, Control())
    found = look(databases)
    assert (found.rows, differing(found)) == (1000, [(3, 100, 100)])
    in_the_target(databases, "update public.t set name = 'n205' where id = 205")
    assert look(databases).equal
    in_the_target(databases, "delete from public.t where id = 595")
    assert differing(look(databases)) == [(6, 100, 99)]
    with pytest.raises(RefusedError, match="it is a replay of run"):
        look(databases, rows(databases[1], "select run_id from keyhaul.runs where kind = 'replay'")[0][0])


def test_a_replay_that_cannot_keep_them_says_so_and_they_are_refused_from_then_on(databases, tmp_path):
    fill(databases)
    in_the_target(databases, "create table public.t (id int primary key, ref int check (ref < 99), name text)")
    assert move(databases).counts.quarantined == 10
    in_the_target(
        databases, "alter table public.t drop constraint t_ref_check", "alter table public.t alter ref type bigint"
    )
    told = []
    replay(job(databases), "last", told.append, Control())
    (notice,) = [e.message for e in told if isinstance(e, events.Notice) and e.level == "warning"]
    assert "the checksums of run" in notice
    assert "ref was integer and is bigint" in notice
    with pytest.raises(RefusedError, match="has loaded the same table since"):
        look(databases)


def test_keys_of_two_columns_and_null_keys_are_checked(databases):
    run_sql(
        databases[0],
        "create table public.t (a int, b text, v int)",
        "insert into public.t select nullif(g % 50, 0), nullif('b' || g % 7, 'b0'), g % 3 from generate_series(1, 2000) g",
    )
    move(databases, key="a,b")
    found = look(databases)
    assert (found.equal, found.rows) == (True, 2000)
    in_the_target(databases, "update public.t set v = 9 where ctid = (select min(ctid) from public.t where a is null)")
    assert differing(look(databases)) == [(found.chunks, found_nulls(databases), found_nulls(databases))]
    in_the_target(databases, "insert into public.t values (7, 'b1', 1)")
    assert len(look(databases).by_chunk) == 2


def found_nulls(databases):
    return rows(databases[1], "select count(*) from public.t where a is null or b is null")[0][0]


def test_a_row_with_a_null_key_that_no_chunk_has_is_found_where_the_table_was_empty(databases):
    fill(databases)
    move(databases)
    in_the_target(
        databases, "alter table public.t drop constraint t_pkey", "alter table public.t alter id drop not null"
    )
    assert look(databases).equal
    in_the_target(databases, "insert into public.t values (null, 1, 'no key')")
    assert differing(look(databases)) == [(NULL_KEYS, 0, 1)]


def test_a_table_that_is_made_by_the_run_with_text_keys_and_a_dedup_across_chunks(databases):
    run_sql(
        databases[0],
        "create table public.t (code text primary key, grp int, v text)",
        "insert into public.t select 'c' || g, g % 300, 'v' || g from generate_series(1, 1000) g",
    )
    flags = {"key": "code", "dedup": "grp", "order_by": "v", "set": ["v = upper(v)"]}
    assert move(databases, **flags).counts.loaded == 300
    found = look(databases)
    assert (found.equal, found.rows, found.chunks) == (True, 300, 10)
    in_the_target(databases, "update public.t set v = lower(v) where grp = 7")
    assert look(databases).different == 1


def test_a_run_that_is_not_finished_is_not_equal_and_a_job_name_chooses_its_last(databases):
    fill(databases)
    report = move(databases)
    move(databases, job="other", into="public.other", checksum=None)
    with pytest.raises(RefusedError, match=r"its chunks have no checksums\. Give --checksum"):
        look(databases)
    assert look(databases, job="move").run_id == report.run_id
    with pytest.raises(RefusedError, match="it is of job move, expected other"):
        look(databases, report.run_id, job="other")
    with pytest.raises(RefusedError, match="verify job none: no run of this job is in the ledger"):
        look(databases, job="none")
    in_the_target(
        databases, f"update keyhaul.chunks set status = 'planned' where chunk = 3 and run_id = '{report.run_id}'"
    )
    found = look(databases, report.run_id)
    assert (found.equal, found.unloaded, found.chunks, found.different) == (False, 1, 9, 0)


def test_a_later_run_makes_the_checksums_of_an_earlier_one_useless_unless_it_wrote_nothing(databases):
    fill(databases)
    first = move(databases)
    move(databases, mode="skip", checksum=None)
    assert look(databases, first.run_id).equal
    in_the_target(databases, "delete from public.t where id = 5")
    second = move(databases, mode="skip", job="another")
    with pytest.raises(RefusedError, match=f"run {second.run_id} has loaded the same table since. Name that run"):
        look(databases, first.run_id)
    assert look(databases).equal


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("alter table public.t drop column name", "its table has no name any more"),
        ("alter table public.t alter ref type bigint", "ref was integer and is bigint"),
        ("drop table public.t", "public.t is not there any more"),
        ("update keyhaul.chunks set hashed_by = replace(hashed_by, '18 ', '17 ')", r"stored by PostgreSQL 17 \(UTF8\)"),
        ("update keyhaul.chunks set hashed_by = hashed_by || '1'", r"PostgreSQL 18 \(UTF8\) on another platform"),
        ("update keyhaul.chunks set hashed_by = null where chunk = 2", "1 of its 10 loaded chunks have no checksum"),
    ],
)
def test_what_cannot_be_compared_any_more_is_refused_and_never_told_as_a_difference(databases, change, told):
    fill(databases)
    move(databases)
    in_the_target(databases, change)
    with pytest.raises(RefusedError, match=told):
        look(databases)


def test_another_collation_of_the_key_is_refused(server_icu, database):
    ends = database(server_icu, "source"), database(server_icu, "target")
    run_sql(
        ends[0],
        'create table public.t (id text collate "de-x-icu" primary key, g int)',
        "insert into public.t select case g % 2 when 0 then 'a' else 'B' end || g, g from generate_series(1, 500) g",
    )
    move(ends)
    assert look(ends).equal
    run_sql(ends[1], 'alter table public.t alter id type text collate "C"')
    with pytest.raises(RefusedError, match="id is sorted by another collation"):
        look(ends)
    with pytest.raises(RefusedError, match=r"checksum public\.t: id has another collation in the target"):
        move(ends, mode="append")


SEVERAL = """
targets:
  - table: public.t
    columns: {id: id, ref: ref}
  - table: public.u
    columns: {id: id, name: name}
"""


@pytest.mark.parametrize(
    ("text", "flags", "there", "why"),
    [
        ("transform: [{drop: [id]}]", {}, "create table public.t (ref int, name text)", "the key is not among"),
        ("transform: [{set: {id: id + 1}}]", {}, "select 1", "the key is not among"),
        (
            "",
            {"mode": "upsert", "conflict": "name"},
            "create table public.t (id int, ref int, name text unique)",
            "id is not among the conflict columns",
        ),
        (
            SEVERAL,
            {},
            "create table public.t (id int, ref int); create table public.u (id int, name text)",
            "several tables",
        ),
    ],
)
def test_where_a_chunk_has_no_part_of_the_target_a_checksum_is_refused_before_the_first_row(
    databases, tmp_path, text, flags, there, why
):
    fill(databases)
    in_the_target(databases, there)
    file = tmp_path / "job.yaml"
    file.write_text(text or "{}", encoding="utf-8")
    with pytest.raises(RefusedError, match=f"(?s){why}.*Leave out --checksum"):
        move(databases, file=file, **flags)
    assert rows(databases[1], "select to_regclass('keyhaul.runs')") == [(None,)]
    move(databases, file=file, checksum=None, **flags)


def test_a_key_that_may_sort_otherwise_in_a_table_that_is_only_made_is_refused_and_the_table_is_not_made(databases):
    run_sql(
        databases[0],
        "create type public.size as enum ('S', 'M', 'L')",
        "create table public.t (id public.size primary key, name text)",
        "insert into public.t values ('M', 'a'), ('L', 'b')",
    )
    with pytest.raises(RefusedError, match=r"checksum public\.t: id has another type in the target"):
        move(databases, chunk="1")
    left = "select to_regclass('keyhaul.runs'), to_regclass('public.t'), to_regtype('public.size')"
    assert rows(databases[1], left) == [(None, None, None)]
    move(databases, chunk="1", checksum=None)


def test_a_bound_that_the_keys_domain_refuses_is_only_compared_with(databases):
    fill(databases, 300)
    run_sql(
        databases[0],
        "update public.t set id = id - 150 where id <= 150",
        "update public.t set id = id - 151 where id < 1",
    )
    in_the_target(
        databases,
        "create domain public.pos as int check (value > 0)",
        "create table public.t (id public.pos primary key, ref int, name text)",
    )
    report = move(databases, allow_quarantined="100%", chunk="50")
    refused = rows(databases[0], "select count(*) from public.t where id <= 0")[0][0]
    assert report.counts.quarantined == refused > 100
    assert look(databases).equal
    assert verify(job(databases, chunk="50")).equal


def test_a_run_goes_on_with_its_checksums_and_not_when_the_table_has_changed(databases):
    fill(databases)
    run_sql(databases[0], "alter table public.t add v int", "update public.t set v = id")
    in_the_target(databases, "create table public.t (id int primary key, ref int, name text, v int)")
    move_part = partial(run, job(databases, workers="1"), control=Control())

    def stop_after(number, control):
        def watch(event):
            if isinstance(event, events.ChunkDone) and event.chunk == number:
                control.stop("enough")

        return watch

    control = Control()
    assert run(job(databases, workers="1"), stop_after(4, control), control).outcome == "stopped"
    with pytest.raises(RefusedError, match="checksum: true → nothing"):
        run(job(databases, checksum=None), lambda _event: None, Control())
    in_the_target(databases, "alter table public.t alter v type bigint")
    with pytest.raises(RefusedError, match=r"v was integer and is bigint.*--fresh"):
        move_part(lambda _event: None)
    in_the_target(databases, "alter table public.t alter v type int")
    assert move_part(lambda _event: None).outcome == "done"
    found = look(databases)
    assert (found.equal, found.rows, found.chunks) == (True, 1000, 10)


def test_a_run_without_checksums_is_compared_with_its_source_alone_and_the_next_one_may_have_some(databases):
    fill(databases)
    move(databases, checksum=None)
    with pytest.raises(RefusedError, match="its chunks have no checksums"):
        look(databases)
    assert verify(job(databases), "last").equal
    assert len(keyhaul.runs(databases[1])) == 1
    move(databases, mode="replace")
    assert look(databases).equal


def test_a_run_with_checksums_is_compared_with_its_source_whatever_the_job_says_of_them(databases):
    fill(databases)
    move(databases)
    assert verify(job(databases, checksum=None), "last").equal
    assert json.loads(json.dumps(rows(databases[1], "select config->'checksum' from keyhaul.runs"))) == [[True]]


def test_without_an_index_on_the_key_a_person_is_told_what_that_costs(databases):
    fill(databases)
    in_the_target(databases, "create table public.t (id int, ref int, name text)")
    told = []
    move(databases, told.append)
    (notice,) = [e.message for e in told if isinstance(e, events.Notice) and "checksum" in e.message]
    assert notice.startswith("no index of public.t leads with id: the checksum of each of the 10 chunks scans it whole")
    told.clear()
    assert look(databases, observe=told.append).equal
    assert [e.message.partition(":")[0] for e in told] == ["no index of public.t leads with id"]


def test_the_right_to_read_table_and_ledger_is_enough_and_without_it_the_comparison_stops(databases):
    fill(databases)
    move(databases)
    name = f"looker_{databases[1].rpartition('/')[2].partition('?')[0]}"
    in_the_target(
        databases,
        f"create role {name} login password 'looks'",
        f"grant usage on schema public, keyhaul to {name}",
        f"grant select on all tables in schema keyhaul to {name}",
    )
    try:
        place = databases[1].partition("@")[2]
        uri = f"postgresql://{name}:looks@{place}"
        with pytest.raises(StopRunError, match=r"against the ledger: chunk \d: permission denied for table t"):
            keyhaul.verify_ledger(target=uri)
        in_the_target(databases, f"grant select on public.t to {name}")
        assert keyhaul.verify_ledger(target=uri).equal
    finally:
        in_the_target(databases, f"drop owned by {name}", f"drop role {name}")


def test_no_session_of_a_comparison_is_left_and_nothing_is_written(databases):
    fill(databases)
    move(databases)
    state = "select xmin::text, t from keyhaul.chunks t order by chunk"
    before = rows(databases[1], state)
    in_the_target(databases, "update public.t set ref = 1 where id = 4")
    assert look(databases).different == 1
    left = "select count(*) from pg_stat_activity where application_name like 'keyhaul%'"
    assert rows(databases[1], left) == [(0,)]
    assert rows(databases[1], state) == before
