"""A comparison finds what was changed in the target, names it, and calls a clean move equal."""

import moving
import psycopg
import pytest
from moving import rows, run_sql

from keyhaul.comparison.comparing import verify
from keyhaul.control import Control
from keyhaul.errors import ConfigError, RefusedError, StopRunError
from keyhaul.events import Notice
from keyhaul.execution.engine import run
from keyhaul.replay.resending import replay

WIDE = {
    "i2": ("smallint", "g % 100", "7::smallint + i2"),
    "i4": ("integer", "g", "i4 + 1"),
    "i8": ("bigint", "g * 10000000000", "i8 + 1"),
    "num": ("numeric", "g / 7.0", "num + 0.0000000001"),
    "scale": ("numeric", "1.5", "1.50"),
    "money2": ("numeric(12,2)", "g / 7.0", "money2 + 0.01"),
    "f4": ("real", "g / 7.0", "f4 + 1"),
    "f8": ("double precision", "g / 7.0", "nextafter"),
    "zero": ("double precision", "0", "'-0'"),
    "nan": ("double precision", "g", "'NaN'"),
    "flag": ("boolean", "g % 2 = 0", "not flag"),
    "txt": ("text", "'n' || g", "txt || ' '"),
    "empty": ("text", "null", "''"),
    "padded": ("char(5)", "'ab'", "'abc'"),
    "blank": ("bpchar", "'ab'", "'ab '"),
    "raw": ("bytea", "decode(md5(g::text), 'hex')", "raw || '\\x00'"),
    "day": ("date", "date '2020-01-01' + g", "'infinity'"),
    "at": ("timestamptz", "timestamptz '2020-01-01 00:00Z' + g * interval '1 second'", "at + interval '1 microsecond'"),
    "local": ("timestamp", "timestamp '2020-01-01' + g * interval '1 second'", "null"),
    "span": ("interval", "interval '1 mon'", "interval '30 days'"),
    "id2": ("uuid", "md5(g::text)::uuid", "md5('x')::uuid"),
    "doc": ("json", "'{\"a\": 1}'", "'{\"a\":1}'"),
    "docb": ("jsonb", "jsonb_build_object('a', g)", "docb || '{\"b\": null}'"),
    "place": ("point", "point(g, g)", "point(g, g + 1e-9)"),
    "list": ("integer[]", "array[g, null]", "array[null, g]::integer[]"),
    "host": ("inet", "'10.0.0.1'", "'10.0.0.1/31'"),
}
"""Column → its type, its values, and what one row gets in the target."""


def job(databases, *, file=None, **flags):
    return moving.job(databases, file=file, **{"chunk": "100", **flags})


def move(databases, **flags):
    report = run(job(databases, **flags), lambda _event: None, Control(), fresh=True)
    assert report.outcome == "done"
    return report


def look(databases, name="last", *, extra=None, limit=20, show_values=False, **flags):
    return verify(job(databases, **flags), name, extra=extra, limit=limit, show_values=show_values)


def fill(databases, number=1000, key="int primary key"):
    run_sql(
        databases[0],
        f"create table public.t (id {key}, ref int, name text)",
        f"insert into public.t select g, g % 100, 'n' || g from generate_series(1, {number}) g",
    )


def told(found):
    return sorted(((one.kind, one.key, one.columns) for one in found.differences), key=repr)


def in_the_target(databases, *statements):
    run_sql(databases[1], *statements)


@pytest.mark.parametrize("reader", ["connectorx", "adbc"])
def test_every_changed_value_is_named_and_nothing_else(databases, reader):
    columns = ", ".join(f"{name} {kind}" for name, (kind, _, _) in WIDE.items())
    values = ", ".join(f"({value})::{kind}" for kind, value, _ in WIDE.values())
    run_sql(
        databases[0],
        f"create table public.t (id int primary key, {columns})",
        f"insert into public.t select g, {values} from generate_series(1, 300) g",
    )
    move(databases, reader=reader)
    found = look(databases, reader=reader)
    assert (found.equal, found.rows, found.chunks, found.differences) == (True, 300, 3, ())
    changes = {name: change for name, (_, _, change) in WIDE.items()}
    changes |= {"f8": "f8 + 1e-12", "place": "place + point(0, 1e-9)", "list": "array[null, id]::integer[]"}
    for number, (name, change) in enumerate(changes.items(), start=1):
        in_the_target(databases, f"update public.t set {name} = {change} where id = {number * 10}")
    found = look(databases, reader=reader, limit=100)
    expected = {("changed", (str(number * 10),), (name,)) for number, name in enumerate(changes, start=1)}
    assert set(told(found)) == expected
    assert (found.changed, found.missing, found.extra) == (len(WIDE), 0, 0)
    assert all(one.expected == {} == one.found for one in found.differences)


def test_missing_extra_repeated_and_swapped_rows_are_named(databases):
    fill(databases)
    run_sql(databases[0], "alter table public.t add other text", "update public.t set other = 'o' || id")
    move(databases)
    in_the_target(
        databases,
        "alter table public.t drop constraint t_pkey",
        "delete from public.t where id = 17",
        "insert into public.t values (5000, 1, 'new')",
        "insert into public.t values (-1, null, null)",
        "insert into public.t select * from public.t where id = 300",
        "update public.t set name = other, other = name where id = 450",
        "update public.t set id = 100000 where id = 999",
        "alter table public.t alter id drop not null",
        "insert into public.t values (null, 1, 'no key')",
    )
    found = look(databases, show_values=True)
    assert told(found) == [
        ("changed", ("450",), ("name", "other")),
        ("extra", ("-1",), ()),
        ("extra", ("100000",), ()),
        ("extra", ("300",), ()),
        ("extra", ("5000",), ()),
        ("extra", (None,), ()),
        ("missing", ("17",), ()),
        ("missing", ("999",), ()),
    ]
    swapped = next(one for one in found.differences if one.kind == "changed")
    assert swapped.expected == {"name": "n450", "other": "o450"}
    assert swapped.found == {"name": "o450", "other": "n450"}
    assert next(one for one in found.differences if one.key == ("17",)).expected["name"] == "n17"


def test_all_differences_are_counted_and_only_the_first_are_named(databases):
    fill(databases)
    move(databases)
    in_the_target(databases, "update public.t set name = 'x' where id > 250")
    found = look(databases, limit=3)
    assert (found.changed, len(found.differences)) == (750, 3)
    assert [(tally.chunk, tally.changed) for tally in found.by_chunk][:2] == [(3, 50), (4, 100)]
    assert look(databases, limit=0).changed == 750


@pytest.mark.parametrize("key", ["7", "null"])
def test_of_a_key_with_many_rows_the_named_kinds_are_those_that_are_counted(databases, key):
    run_sql(
        databases[0],
        "create table public.t (id int, name text)",
        f"insert into public.t select {key}, 'n' || g from generate_series(1, 100) g",
        "insert into public.t select g + 100, 'n' || g from generate_series(1, 10) g",
    )
    move(databases)
    in_the_target(databases, "update public.t set name = name || 'x' where id is null or id < 100")
    found = look(databases, limit=3)
    assert (found.changed, found.missing, found.extra) == (100, 0, 0)
    names = (None if key == "null" else key,)
    assert told(found) == [("changed", names, ("name",))] * 3
    in_the_target(databases, "delete from public.t where (id is null or id < 100) and name > 'n2'")
    found = look(databases, limit=20)
    there = rows(databases[1], "select count(*) from public.t where id is null or id < 100")[0][0]
    assert (found.changed, found.missing, found.extra) == (there, 100 - there, 0)
    assert [one.kind for one in found.differences] == ["changed"] * there + ["missing"] * (20 - there)
    in_the_target(
        databases, f"insert into public.t select {key}, 'extra' || g from generate_series(1, {150 - there}) g"
    )
    found = look(databases, limit=200)
    assert (found.changed, found.missing, found.extra) == (100, 0, 50)
    assert [one.kind for one in found.differences] == ["changed"] * 100 + ["extra"] * 50


def test_the_first_differences_are_first_in_the_order_of_the_keys_own_type(databases):
    fill(databases)
    move(databases)
    in_the_target(databases, "update public.t set name = 'x' where id in (1, 2, 9, 10, 11, 100, 300)")
    keys = [one.key for one in look(databases).differences]
    assert keys == [("1",), ("2",), ("9",), ("10",), ("11",), ("100",), ("300",)]
    assert [one.key for one in look(databases, limit=3).differences] == [("1",), ("2",), ("9",)]


@pytest.mark.parametrize("limit", [-1, 1_000_001, 3_000_000_000_000_000_000])
def test_a_limit_out_of_bounds_is_refused(databases, limit):
    with pytest.raises(ConfigError, match=r"limit: got .*, expected a whole number from 0 to 1000000"):
        look(databases, limit=limit)


def test_what_the_job_would_leave_out_now_is_counted_beside_what_the_run_left_out(databases):
    run_sql(
        databases[0],
        "create table public.t (id int primary key, v int, name text)",
        "insert into public.t select g, g, 'n' || g from generate_series(1, 10) g",
    )
    in_the_target(databases, "create domain public.fine as text check (value <> 'bad')")
    in_the_target(databases, "create table public.t (id int primary key, v int, name public.fine)")
    flags = {"mode": "upsert", "rule": ["small: v < 100"], "where": ["v <> 0"], "dedup": "id", "order_by": "v"}
    move(databases, **flags)
    notices = []
    found = look(databases, **flags)
    assert (found.equal, found.read, found.rows) == (True, 10, 10)
    assert (found.quarantined, found.filtered, found.duplicate, found.older) == (0, 0, 0, 0)
    run_sql(
        databases[0],
        "update public.t set v = 100 where id = 1",
        "update public.t set name = 'bad' where id = 2",
        "update public.t set v = 0 where id in (3, 4, 5)",
    )
    found = verify(job(databases, **flags), observe=notices.append)
    assert (found.equal, found.read, found.rows) == (True, 10, 5)
    assert (found.quarantined, found.filtered, found.duplicate, found.rejected) == (2, 3, 0, 0)
    assert (found.run.read, found.run.loaded, found.run.quarantined, found.run.filtered) == (10, 10, 0, 0)
    assert [one.message for one in notices if isinstance(one, Notice)] == [
        "2 rows of the source would be quarantined now, and the run quarantined 0: they are not compared"
    ]


def test_a_run_that_was_replayed_with_mended_rules_is_equal_by_the_mended_job(databases):
    fill(databases, 300)
    old, new = {"rule": ["small: id < 291"]}, {"rule": ["small: id < 1000"]}
    report = move(databases, **old)
    assert report.counts.quarantined == 10
    assert look(databases, **old).equal
    with pytest.raises(RefusedError, match="rules"):
        look(databases, **new)
    replay(job(databases, **new), "last", lambda _event: None, Control(), changed=True)
    found = look(databases, **new)
    assert (found.equal, found.rows, found.run_id) == (True, 300, report.run_id)
    with pytest.raises(RefusedError, match="rules"):
        look(databases, rule=["small: id < 500"])
    notices = []
    found = verify(job(databases, **old), observe=notices.append)
    assert (found.extra, found.missing, found.changed) == (10, 0, 0)
    assert "was replayed with another job" in next(one.message for one in notices if isinstance(one, Notice))


def test_what_was_filtered_quarantined_or_a_duplicate_is_not_missed(databases):
    run_sql(
        databases[0],
        "create table public.t (id int, v int, name text)",
        "insert into public.t select g / 2, g % 7, 'n' || g from generate_series(1, 1000) g",
    )
    flags = {
        "set": ["double = v * 2", "share = 100 / v"],
        "where": ["id % 10 <> 3"],
        "rule": ["few: double < 12"],
        "dedup": "id",
        "order_by": "name",
    }
    report = move(databases, **flags)
    assert min(report.counts.filtered, report.counts.quarantined, report.counts.duplicate) > 0
    found = look(databases, **flags)
    assert (found.equal, found.rows) == (True, report.counts.loaded)
    counts = report.counts
    assert (found.read, found.run) == (1000, counts)
    assert (found.quarantined, found.filtered, found.duplicate) == (
        counts.quarantined,
        counts.filtered,
        counts.duplicate,
    )
    in_the_target(databases, "update public.t set double = 3 where id = 100")
    assert told(look(databases, **flags)) == [("changed", ("100",), ("double",))]


def test_rows_that_the_target_rejected_are_known_until_a_replay_resolves_them(databases):
    fill(databases)
    in_the_target(
        databases,
        "create table public.parent (id int primary key)",
        "insert into public.parent select g from generate_series(0, 89) g",
        "create table public.t (id int primary key, ref int references public.parent, name text)",
    )
    report = move(databases)
    assert report.counts.quarantined == 100
    found = look(databases)
    assert (found.equal, found.rows, found.rejected) == (True, 900, 100)
    in_the_target(databases, "insert into public.parent values (90)")
    replay(job(databases), "last", lambda _event: None, Control(), changed=True)
    found = look(databases)
    assert (found.equal, found.rows, found.rejected) == (True, 910, 90)
    in_the_target(databases, "delete from public.t where id = 90")
    assert told(look(databases)) == [("missing", ("90",), ())]


def test_a_text_that_the_targets_type_does_not_take_is_known(databases):
    run_sql(
        databases[0],
        "create table public.t (id int primary key, n text)",
        "insert into public.t select g, case when g = 7 then 'x' else repeat('a', g % 5) end from generate_series(1, 50) g",
    )
    in_the_target(databases, "create domain public.short as text check (value <> 'x')")
    in_the_target(databases, "create table public.t (id int primary key, n public.short)")
    assert move(databases).counts.quarantined == 1
    found = look(databases)
    assert (found.equal, found.rows, found.rejected) == (True, 49, 1)


@pytest.mark.parametrize("kind", ["text", 'text collate "C"', "varchar(20)", "numeric(12,2)", "timestamptz", "uuid"])
def test_keys_of_many_types_are_compared_chunk_by_chunk(databases, kind):
    value = {
        "numeric(12,2)": "g / 4.0",
        "timestamptz": "timestamptz '2020-01-01Z' + g * interval '1 second'",
        "uuid": "md5(g::text)::uuid",
    }.get(kind, "chr(97 + g % 26) || g")
    run_sql(
        databases[0],
        f"create table public.t (id {kind} primary key, g int)",
        f"insert into public.t select {value}, g from generate_series(1, 1000) g",
    )
    move(databases)
    found = look(databases)
    assert (found.equal, found.rows, found.chunks, found.whole) == (True, 1000, 10, "")
    in_the_target(databases, "delete from public.t where g = 500", "update public.t set g = -1 where g = 700")
    ((gone,), (changed,)) = rows(databases[0], "select id::text from public.t where g in (500, 700) order by g")
    assert told(look(databases)) == [("changed", (changed,), ("g",)), ("missing", (gone,), ())]


def test_a_key_of_two_columns_with_nulls_and_copies(databases):
    run_sql(
        databases[0],
        "create table public.t (a int, b text, v int)",
        "insert into public.t select nullif(g % 50, 0), nullif('b' || g % 7, 'b0'), g % 3 from generate_series(1, 2000) g",
    )
    move(databases, key="a,b")
    assert look(databases, key="a,b").equal
    in_the_target(
        databases,
        "delete from public.t where ctid = (select min(ctid) from public.t where a = 3 and b = 'b1' and v = 1)",
        "update public.t set v = 9 where ctid = (select min(ctid) from public.t where a is null and b = 'b3')",
        "insert into public.t values (null, null, 77)",
    )
    found = look(databases, key="a,b")
    assert told(found) == [
        ("changed", (None, "b3"), ("v",)),
        ("extra", (None, None), ()),
        ("missing", ("3", "b1"), ()),
    ]


def test_a_swap_between_copies_of_one_key_is_no_difference_and_a_repeat_in_place_of_one_is(databases):
    run_sql(
        databases[0],
        "create table public.t (id int, v int)",
        "insert into public.t select g % 100, g from generate_series(1, 400) g",
    )
    move(databases)
    assert look(databases).equal
    in_the_target(databases, "update public.t set v = 101 where v = 201")
    found = look(databases)
    assert (told(found), found.rows) == ([("changed", ("1",), ("v",))], 400)


def test_one_of_two_equal_rows_that_changed_is_found(databases):
    run_sql(
        databases[0],
        "create table public.t (id int, v int)",
        "insert into public.t select g, g from generate_series(1, 150) g",
        "insert into public.t values (70, 70)",
    )
    move(databases)
    assert look(databases).equal
    in_the_target(databases, "update public.t set v = -1 where ctid = (select min(ctid) from public.t where id = 70)")
    assert told(look(databases)) == [("changed", ("70",), ("v",))]


def test_two_icu_collations_that_sort_otherwise_are_compared_as_a_whole(server_icu, database):
    ends = database(server_icu, "source"), database(server_icu, "target")
    run_sql(
        ends[0],
        'create table public.t (id text collate "de-x-icu" primary key, g int)',
        "insert into public.t select case g % 2 when 0 then 'a' else 'B' end || g, g from generate_series(1, 500) g",
    )
    move(ends)
    found = look(ends)
    assert (found.equal, found.whole, found.chunks) == (True, "", 5)
    run_sql(ends[1], "drop table public.t", 'create table public.t (id text collate "C" primary key, g int)')
    move(ends)
    run_sql(ends[1], "update public.t set g = 0 where id = 'a100'", "delete from public.t where id = 'B101'")
    found = look(ends)
    assert "another collation" in found.whole
    assert told(found) == [("changed", ("a100",), ("g",)), ("missing", ("B101",), ())]


def test_a_target_without_the_key_is_compared_as_a_whole(databases, tmp_path):
    fill(databases)
    in_the_target(databases, "create table public.t (ref int, name text)")
    file = tmp_path / "job.yaml"
    file.write_text("transform:\n  - drop: [id]\n", encoding="utf-8")
    assert move(databases, file=file).counts.loaded == 1000
    found = look(databases, file=file)
    assert (found.equal, found.rows, found.whole) == (True, 1000, "the key is not among the target's columns")
    in_the_target(
        databases,
        "update public.t set name = 'other' where name = 'n5'",
        "insert into public.t select * from public.t where name = 'n6'",
    )
    found = look(databases, file=file, show_values=True)
    assert (found.changed, found.missing, found.extra) == (0, 1, 2)
    assert sorted((one.kind, (one.expected or one.found)["name"]) for one in found.differences) == [
        ("extra", "n6"),
        ("extra", "other"),
        ("missing", "n5"),
    ]


@pytest.mark.parametrize("mode", ["append", "skip", "upsert"])
def test_rows_that_were_there_before_are_extra_only_on_demand(databases, mode):
    fill(databases)
    in_the_target(
        databases,
        "create table public.t (id int primary key, ref int, name text)",
        "insert into public.t values (-5, 1, 'mine'), (70000, 2, 'mine')",
    )
    move(databases, mode=mode)
    found = look(databases, mode=mode)
    assert (found.equal, found.extra_checked) == (True, False)
    assert told(look(databases, mode=mode, extra=True)) == [("extra", ("-5",), ()), ("extra", ("70000",), ())]
    in_the_target(databases, "delete from public.t where id = 3", "update public.t set ref = -1 where id = 4")
    assert told(look(databases, mode=mode)) == [("changed", ("4",), ("ref",)), ("missing", ("3",), ())]


def test_a_replaced_table_has_nothing_but_the_sources_rows(databases):
    fill(databases)
    in_the_target(databases, "create table public.t (id int primary key, ref int, name text)")
    in_the_target(databases, "insert into public.t values (-5, 1, 'old')")
    move(databases, mode="replace")
    found = look(databases, mode="replace")
    assert (found.equal, found.extra_checked, found.rows) == (True, True, 1000)
    in_the_target(databases, "insert into public.t values (-5, 1, 'new')")
    assert told(look(databases, mode="replace")) == [("extra", ("-5",), ())]


@pytest.mark.parametrize("mode", ["skip", "upsert"])
def test_of_rows_with_one_conflict_key_in_a_chunk_the_loaded_one_is_expected(databases, mode):
    run_sql(
        databases[0],
        "create table public.t (id int primary key, code int, v text)",
        "insert into public.t select g, g % 30, 'v' || g from generate_series(1, 90) g",
    )
    in_the_target(databases, "create table public.t (id int, code int primary key, v text)")
    flags = {"mode": mode, "conflict": "code"}
    move(databases, **flags)
    found = look(databases, extra=True, **flags)
    assert (found.equal, found.rows) == (True, 30)
    in_the_target(databases, "update public.t set v = 'x' where code = 4")
    ((loaded,),) = rows(databases[1], "select id::text from public.t where code = 4")
    assert told(look(databases, **flags)) == [("changed", (loaded,), ("v",))]


def test_an_upsert_by_newer_leaves_newer_rows_alone(databases):
    run_sql(
        databases[0],
        "create table public.t (id int primary key, at int, v text)",
        "insert into public.t select g, 10, 'source' from generate_series(1, 300) g",
    )
    in_the_target(databases, "create table public.t (id int primary key, at int, v text)")
    in_the_target(databases, "insert into public.t values (5, 11, 'newer'), (6, 9, 'older'), (7, 10, 'same age')")
    flags = {"mode": "upsert", "newer_by": "at"}
    move(databases, **flags)
    found = look(databases, **flags)
    assert told(found) == [("changed", ("7",), ("v",))]
    assert (found.read, found.rows, found.older, found.run.unchanged) == (300, 299, 1, 2)


def test_what_was_written_into_the_source_since_is_a_difference(databases):
    fill(databases)
    move(databases)
    run_sql(
        databases[0], "update public.t set name = 'later' where id = 1", "insert into public.t values (2000, 0, '')"
    )
    assert told(look(databases)) == [("changed", ("1",), ("name",)), ("missing", ("2000",), ())]


def test_nothing_is_left_in_the_target(databases):
    fill(databases)
    move(databases)
    state = "select xmin::text, ctid::text, * from public.t order by id"
    tables = "select relname from pg_class where relname like '\\_keyhaul%'"
    before = rows(databases[1], state)
    ledger = rows(databases[1], "select * from keyhaul.runs")
    look(databases)
    in_the_target(databases, "update public.t set name = 'x' where id = 1")
    look(databases)
    assert rows(databases[1], tables) == []
    assert rows(databases[1], "select * from keyhaul.runs") == ledger
    assert [row for row in rows(databases[1], state) if row[2] != 1] == [row for row in before if row[2] != 1]


def test_an_unfinished_run_is_not_equal(databases):
    fill(databases)
    report = move(databases)
    in_the_target(
        databases, f"update keyhaul.chunks set status = 'planned' where chunk = 3 and run_id = '{report.run_id}'"
    )
    found = look(databases)
    assert (found.equal, found.unloaded, found.chunks, found.different) == (False, 1, 9, 0)


def test_another_job_a_replay_and_a_read_only_target_are_refused(databases):
    fill(databases)
    with pytest.raises(RefusedError, match="no run is recorded"):
        look(databases)
    in_the_target(databases, "create table public.t (id int primary key, ref int, name text)")
    move(databases)
    with pytest.raises(RefusedError, match="rules"):
        look(databases, rule=["few: id < 3"])
    with pytest.raises(RefusedError, match="no run of this job"):
        look(databases, job="other")
    with pytest.raises(RefusedError, match="is not in the ledger"):
        look(databases, "20200101T000000-0000")
    name = databases[1].rpartition("/")[2].partition("?")[0]
    in_the_target(databases, f"alter database {name} set default_transaction_read_only = on")
    with pytest.raises(RefusedError, match="read-only"):
        look(databases)


def test_a_dedup_across_chunks_is_refused_and_not_judged_chunk_by_chunk(databases):
    fill(databases)
    flags = {"dedup": "name", "order_by": "id"}
    move(databases, **flags)
    with pytest.raises(RefusedError, match="decides among rows of different chunks"):
        look(databases, **flags)


def test_a_chunk_that_cannot_be_read_ends_the_comparison(databases):
    fill(databases)
    move(databases)
    run_sql(
        databases[0],
        "alter table public.t rename to base",
        "create view public.t as select id, ref, case when id = 500 then (1 / (id - 500))::text else name end as name"
        " from public.base",
    )
    with pytest.raises(StopRunError, match="division by zero") as caught:
        look(databases, workers="1")
    told = str(caught.value)
    assert told.startswith("verify public.t: chunk 5: ")
    assert told.endswith("division by zero. Nothing was changed; the same command begins anew")
    in_the_target(databases, "update public.t set name = 'x' where id in (1, 2, 250)")
    with pytest.raises(StopRunError, match="; until then 2 chunks were found to differ"):
        look(databases, workers="1")


def test_no_session_of_a_comparison_is_left(databases):
    fill(databases)
    move(databases)
    look(databases)
    with psycopg.connect(databases[1], autocommit=True) as conn:
        left = conn.execute("select count(*) from pg_stat_activity where application_name like 'keyhaul%'").fetchone()
    assert left == (0,)
