"""Nothing is silently wrong, through whole moves: a value arrives exactly, is quarantined, or its column is refused by name.

`test_every_type.py` and `test_type_pairs.py` go through all types; here are the ways round them.
"""

from __future__ import annotations

import pytest
from moving import move, rows, run_sql

from keyhaul.errors import ConfigError, RefusedError

WAYS = [("connectorx", "copy"), ("adbc", "adbc")]
both = pytest.mark.parametrize(("reader", "loader"), WAYS)


def quarantine(uri):
    return rows(uri, "select key, stage, rules, message, data from keyhaul.quarantine order by run_id, chunk, record")


def relations(uri):
    return rows(
        uri,
        "select relname from pg_class c join pg_namespace n on n.oid = relnamespace where nspname = 'public' order by 1",
    )


@both
def test_the_silent_facts_of_the_drivers_do_not_happen(databases, reader, loader):
    source, target = databases
    facts = {
        "n38": ("numeric(38,20)", "0.12345678901234567891"),
        "free": ("numeric", "12345678901234567890123456789012345678901234.5000"),
        "nan": ("numeric(9,2)", "NaN"),
        "inf": ("numeric", "-Infinity"),
        "j": ("json", '{"a": 1, "a": 12345678901234567890.10}'),
        "jb": ("jsonb", '{"b": 12345678901234567890.10}'),
        "midnight": ("time", "24:00:00"),
        "day": ("date", "infinity"),
        "bc": ("timestamp", "0044-03-15 12:00:00.000001 BC"),
        "far": ("timestamptz", "294276-12-31 23:59:59.999999+00"),
        "minus": ("real", "-0"),
        "padded": ("char(5)", "ab"),
    }
    names = ", ".join(f"{name} {kind}" for name, (kind, _) in facts.items())
    values = ", ".join(f"'{value}'" for _, value in facts.values())
    run_sql(
        source,
        f"create table t (id int primary key, {names})",
        f"insert into t values (1, {values}), (2)".replace("(2)", f"(2{', null' * len(facts)})"),
    )
    report = move(databases, "public.t", reader=reader, loader=loader, chunk=1)
    assert (report.counts.loaded, report.counts.quarantined) == (2, 0)
    texts = ", ".join(f"{name}::text" for name in facts)
    arrived = rows(target, f"select {texts} from public.t order by id")
    assert arrived == rows(source, f"select {texts} from public.t order by id")
    assert list(arrived[0][:4]) == [facts[name][1] for name in ("n38", "free", "nan", "inf")]


@both
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("numeric(9,2)", ["NaN", "1.50", "-2.00"]),
        ("numeric", ["NaN", "Infinity", "1.50", "1.5000000000000000000000000000000000000001"]),
        ("date", ["infinity", "-infinity", "4713-01-01 BC", "2020-01-01"]),
        ("timestamptz", ["infinity", "-infinity", "294276-12-31 23:59:59+00", "2020-01-01"]),
        ("double precision", ["NaN", "Infinity", "-Infinity", "0.1", "5e-324"]),
        ("text", ["", " ", "é\U0001f600", "O''Brien \\", "%s {x}"]),
        ("uuid", ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"]),
        ("time", ["24:00", "00:00", "12:34:56.000001"]),
        ("bytea", ["\\x", "\\x00ff", "\\x27"]),
        ("interval", ["1 mon", "29 days", "-1 day"]),
    ],
)
def test_a_key_of_any_type_moves_with_all_its_odd_values(databases, reader, loader, kind, values):
    source, target = databases
    listed = ", ".join(f"('{value}')" for value in [*values, *values[:1]])
    run_sql(source, f"create table t (k {kind})", f"insert into t values {listed}, (null)")
    report = move(databases, "public.t", key="k", reader=reader, loader=loader, chunk=2)
    assert (report.counts.read, report.counts.loaded) == (len(values) + 2, len(values) + 2)
    query = "select k::text, count(*) from public.t group by 1 order by 1"
    assert rows(target, query) == rows(source, query)


@both
def test_columns_that_differ_only_in_case_keep_apart(databases, reader, loader):
    source, target = databases
    run_sql(
        source, 'create table t (id int, "ID" int, "Id" text)', "insert into t values (1, 10, 'x'), (null, 20, null)"
    )
    report = move(databases, "public.t", key="ID", reader=reader, loader=loader, rule=["not_null: Id"])
    assert (report.counts.loaded, report.counts.quarantined) == (1, 1)
    assert rows(target, 'select id, "ID", "Id" from public.t') == [(1, 10, "x")]
    assert quarantine(target) == [
        ("20", "rule", ["not_null:Id"], "Id is null", {"id": None, "ID": 20, "Id": None}),
    ]  # fmt: skip


@both
def test_names_with_every_odd_character_move(databases, reader, loader):
    source, target = databases
    table = '"My %s ""T"" \U0001f600"'
    run_sql(
        source,
        f'create table public.{table} ("100%" int primary key, "select" text, "qu""o\'te" numeric(9,2), "{{x}}" json)',
        f"insert into public.{table} values (1, 'a', 1.50, '{{}}'), (2, 'b', 2.50, '[]'), (3, null, null, null)",
    )
    report = move(databases, f"public.{table}", key="100%", reader=reader, loader=loader, chunk=2)
    assert report.counts.loaded == 3
    query = f'select "100%", "select", "qu""o\'te"::text, "{{x}}"::text from public.{table} order by 1'
    assert rows(target, query) == rows(source, query)


@both
def test_a_value_that_an_expression_cannot_see_costs_its_record_and_never_becomes_another(databases, reader, loader):
    source, target = databases
    run_sql(source, "create table t (id int, n numeric(9,2))", "insert into t values (1, 'NaN'), (2, 1.5), (3, 2.5)")
    report = move(databases, "public.t", set=["n = n * 2"], chunk=2, reader=reader, loader=loader)
    assert (report.outcome, report.counts.loaded, report.counts.quarantined) == ("done", 2, 1)
    assert rows(target, "select id, n::text from public.t order by 1") == [(2, "3.00"), (3, "5.00")]
    ((key, stage, _, message, data),) = quarantine(target)
    assert (key, stage, data) == ("1", "transform", {"id": 1, "n": "NaN"})
    assert message.startswith("n: no expression can see this value")


# --- targets that are there already ----------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("have", "want", "values", "arrive"),
    [
        ("timestamp", "seconds", ["2020-01-01 00:00:00", "2020-01-01 00:00:00.5"], ["2020-01-01 00:00:00"]),
        ("text", "short", ["abc", "abcd"], ["abc"]),
        ("numeric", "cents", ["1.50", "1.555", "1000"], ["1.50"]),
        ("numeric(9,4)", "numeric(2,4)", ["0.0099", "0.0100", "5"], ["0.0099"]),
        ("numeric", "numeric(3,-2)", ["0", "123"], ["0"]),
        ("integer", "smallint", ["1", "40000"], ["1"]),
        ("integer", "integer not null", ["1", None], ["1"]),
    ],
)
def test_a_value_that_a_narrower_target_would_change_is_quarantined(
    databases, reader, loader, have, want, values, arrive
):
    source, target = databases
    run_sql(source, f"create table t (id serial, v {have})")
    for value in values:
        run_sql(source, f"insert into t (v) values ({'null' if value is None else repr(value)})")
    run_sql(
        target,
        "create domain seconds as timestamp(0)",
        "create domain short as varchar(3)",
        "create domain cents as numeric(5,2)",
        f"create table t (id int, v {want})",
    )
    report = move(databases, "public.t", reader=reader, loader=loader)
    assert [value for (value,) in rows(target, "select v::text from public.t order by id")] == arrive
    assert report.counts.quarantined == len(values) - len(arrive)
    assert {(stage, *rules) for _, stage, rules, *_ in quarantine(target)} == {("type", "type:v")}


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ("interval", "interval hour"),
        ("interval", "hours"),
        ("interval", "interval(0)"),
        ("bit(3)", "bit(5)"),
        ("timestamp", "timestamptz"),
        ("text", "integer"),
        ("integer", "text"),
        ("numeric(9,2)[]", "numeric(9,1)[]"),
    ],
)
def test_a_column_that_the_target_would_change_is_refused_by_name(databases, have, want):
    source, target = databases
    run_sql(source, f"create table t (id int, v {have})")
    run_sql(target, "create domain hours as interval hour", f"create table t (id int, v {want})")
    with pytest.raises(RefusedError, match=r"write public\.t\.v: got .*, expected "):
        move(databases, "public.t")
    assert rows(target, "select to_regclass('keyhaul.runs')::text") == [(None,)]


def test_a_generated_column_of_the_target_is_refused_by_name(databases):
    source, target = databases
    run_sql(source, "create table t (id int, v int)")
    run_sql(target, "create table t (id int, v int generated always as (id * 2) stored)")
    with pytest.raises(RefusedError, match=r"write public\.t\.v: the target computes this column itself"):
        move(databases, "public.t")


def test_a_required_column_that_the_source_lacks_is_refused_by_name(databases):
    source, target = databases
    run_sql(source, "create table t (id int)")
    run_sql(target, "create table t (id int, must int not null)")
    with pytest.raises(RefusedError, match=r"write public\.t\.must: it is NOT NULL without a default"):
        move(databases, "public.t")


def test_a_type_outside_the_contract_is_refused_by_name_and_nothing_is_created(databases):
    source, target = databases
    run_sql(source, "create table t (id int, x xid, a aclitem)")
    with pytest.raises(ConfigError) as caught:
        move(databases, "public.t")
    first, second = str(caught.value).splitlines()
    assert first.startswith(
        "read column x: type xid is not in the type contract. Drop the column (transform: - drop: [x])"
    )
    assert second.startswith("read column a: type aclitem is not in the type contract. ")
    assert relations(target) == []


def test_a_refused_column_that_the_job_drops_does_not_stand_in_the_way(databases):
    source, target = databases
    run_sql(source, "create table t (id int, x xid)", "insert into t values (1, '7')")
    query = "select id, x::text as x from public.t"
    move(databases, None, query=query, into="public.t")
    assert rows(target, "select id, x from public.t") == [(1, "7")]


@both
def test_division_by_zero_and_overflow_cost_only_their_records(databases, reader, loader):
    source, target = databases
    run_sql(
        source,
        "create table t (id int primary key, a int, b int)",
        "insert into t values (1, 10, 2), (2, 10, 0), (3, 2147483647, 2147483647), (4, null, 0)",
    )
    move(databases, "public.t", reader=reader, loader=loader, set=["q = a / b", "p = a * b"])
    assert rows(target, "select id, q, p from public.t order by 1") == [
        (1, 5.0, 20),
        (3, 1.0, 4611686014132420609),
        (4, None, None),
    ]
    assert [(key, stage, rules, message) for key, stage, rules, message, _ in quarantine(target)] == [
        ("2", "transform", ["transform"], "division by zero"),
    ]


@pytest.mark.parametrize("kind", ["jsonb", "numeric[]", "float8[]", "pg_catalog.pg_type"])
def test_copies_are_not_told_by_a_text_that_equal_values_do_not_share(databases, kind):
    source, _ = databases
    run_sql(source, f"create table t (id int, v {kind})")
    with pytest.raises(
        RefusedError, match=r"dedup on v: .*: it travels as text, whose order and equality are not the type's"
    ):
        move(databases, "public.t", dedup="id,v")


@both
def test_copies_are_told_by_the_value_of_a_numeric_with_a_scale(databases, reader, loader):
    source, target = databases
    run_sql(source, "create table t (id int, v numeric(9,2))", "insert into t values (1, 1.5), (1, 1.50), (1, 1.51)")
    report = move(databases, "public.t", reader=reader, loader=loader, dedup="id,v")
    assert (report.counts.loaded, report.counts.duplicate) == (2, 1)
    assert rows(target, "select id, v::text from public.t order by 2") == [(1, "1.50"), (1, "1.51")]
