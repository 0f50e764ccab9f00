from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhaul.config.job import Dedup
from keyhaul.config.steps import Rule
from keyhaul.errors import ChunkError, ConfigError, StopRunError
from keyhaul.model import Column, Counts
from keyhaul.staging.rules import compile_rules
from keyhaul.staging.stage import Stager
from keyhaul.transform.mapping import write_column

SCHEMA = {"id": pl.Int64(), "a": pl.Int64(), "s": pl.String()}
NO_FAILURES = pl.DataFrame(schema={"_keyhaul_record": pl.Int64, "message": pl.String, "rule": pl.String})


def rule(check, name="r", on_fail="quarantine"):
    return Rule(name=name, check=check, on_fail=on_fail, at=f"job.yaml line {len(name)}")


def not_null(*columns):
    return Rule(name="not_null", columns=columns, at="job.yaml line 9")


def frame(schema=None, **columns):
    height = len(next(iter(columns.values())))
    types = {"_keyhaul_record": pl.Int64(), **(schema or {})}
    return pl.DataFrame({"_keyhaul_record": range(height), **columns}, schema_overrides=types)


def stage(data, *rules, dedup=None, key=None, failed=NO_FAILURES, source=None, columns=()):
    schema = {name: dtype for name, dtype in data.schema.items() if name != "_keyhaul_record"}
    whole = data if source is None else source
    key = key or whole.columns[1:2]
    stager = Stager(compile_rules(rules, schema), dedup, columns, key)
    try:
        return stager.stage(whole, data, failed)
    finally:
        stager.close()


def records(staged):
    return staged.accepted["_keyhaul_record"].to_list()


def reasons(staged):
    return {
        record: (stage, rules, message)
        for record, stage, rules, message, *_ in staged.rejected.sort("_keyhaul_record").rows()
    }


def stored(source, key=None):
    """The key and the data of the quarantine when the source's only row fails."""
    staged = stage(source, rule("false"), key=key)
    row = staged.rejected.row(0, named=True)
    return row["key"], json.loads(row["data"], parse_float=Decimal)


# --- rules ---------------------------------------------------------------------------------------


def test_a_row_passes_when_the_rule_is_true_or_null():
    staged = stage(frame(a=[1, 0, None]), rule("a > 0"))
    assert records(staged) == [0, 2]
    assert reasons(staged) == {1: ("rule", ["r"], "not (a > 0)")}
    assert staged.counts == Counts(read=3, quarantined=1)


def test_not_null_fails_for_null_and_is_named_after_its_column():
    staged = stage(frame(a=[1, None], s=[None, "x"]), not_null("a", "s"))
    assert reasons(staged) == {
        0: ("rule", ["not_null:s"], "s is null"),
        1: ("rule", ["not_null:a"], "a is null"),
    }


def test_a_row_that_fails_several_rules_names_them_all():
    staged = stage(frame(a=[-1], s=["x"]), rule("a > 0", "positive"), rule("s <> 'x'", "known"), rule("a < 5", "small"))
    assert reasons(staged) == {0: ("rule", ["positive", "known"], "not (a > 0); not (s <> 'x')")}


def test_a_warning_counts_and_loads_the_row():
    staged = stage(frame(a=[1, -1, -2]), rule("a > 0", "positive", "warn"))
    assert records(staged) == [0, 1, 2]
    assert dict(staged.warned) == {"positive": 2}
    assert staged.counts == Counts(read=3)


def test_a_row_that_fails_a_rule_and_a_warning_is_rejected_with_both():
    staged = stage(frame(a=[-1]), rule("a > 0", "positive", "warn"), rule("a > -1", "more"))
    assert reasons(staged) == {0: ("rule", ["positive", "more"], "not (a > 0); not (a > -1)")}
    assert dict(staged.warned) == {"positive": 1}


def test_a_rule_that_says_stop_stops_the_run():
    with pytest.raises(StopRunError, match="check rule positive: 2 rows of this chunk fail it"):
        stage(frame(a=[1, -1, -2]), rule("a > 0", "positive", "stop"))


def test_a_rule_that_raises_for_a_row_costs_only_that_row():
    staged = stage(frame(s=["1", "x", "3", "-4"]), rule("cast(s as int) > 0", "positive"))
    assert records(staged) == [0, 2]
    found = reasons(staged)
    assert found[3] == ("rule", ["positive"], "not (cast(s as int) > 0)")
    assert found[1][:2] == ("rule", ["rule_error"])
    assert found[1][2].startswith("Conversion Error")


def test_an_overflow_in_a_rule_costs_only_its_row_and_does_not_tell_the_value():
    staged = stage(frame(a=[1, 2**62]), rule("cast(a as int) > 0"))
    assert records(staged) == [0]
    assert reasons(staged)[1][1] == ["rule_error"]
    assert "4611686018427387904" not in reasons(staged)[1][2]


def test_a_rule_that_raises_for_too_many_rows_fails_the_chunk(monkeypatch):
    monkeypatch.setattr("keyhaul.staging.stage.MAX_ISOLATED_RECORDS", 20)
    with pytest.raises(ChunkError, match="they cannot be evaluated for more than 20 records"):
        stage(frame(s=["x"] * 21), rule("cast(s as int) > 0"))


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ("a in (select 1)", "it has a subquery"),
        ("exists (from read_text('/etc/hostname'))", "it has a subquery"),
        ("sum(a) > 1", "aggregates"),
        ("count(*) > 1", "it has a \\*|aggregates"),
        ("row_number() over () = 1", "window functions"),
        ("a > 0; select 1", "it is not one expression"),
        ("a > 0); drop table chunk; select (1", "not one expression|syntax error"),
        ("a > 0) or (id > 0", "syntax error"),
        ("a > 0 from chunk", "syntax error"),
        ("a >", "syntax error"),
        ("zz > 0", '"zz" not found in FROM clause, expected one of id, a, s'),
        ("a + 1", "its type is BIGINT, expected true or false"),
        ("s", "its type is VARCHAR, expected true or false"),
        ("s > 1", r"an explicit cast is required\. s is text: .* cast it, as in s::decimal"),
        ("columns('a') > 0", "it has a \\*"),
        ("read_text('/etc/hostname') is null", "table function"),
        ("getenv('HOME') is null", "it calls getenv"),
        ("nosuch(a)", "does not exist"),
        ("_keyhaul_record > 0", '"_keyhaul_record" not found'),
        ("a > ?", "parameters"),
        ("a > $x", "parameters"),
    ],
)  # fmt: skip
def test_a_rule_that_is_not_a_condition_over_one_row_is_refused_with_its_place(check, message):
    with pytest.raises(ConfigError, match=f"^job.yaml line 4: read rule name: .*({message})"):
        compile_rules([rule(check, "name")], SCHEMA)


@pytest.mark.parametrize(
    "check",
    [
        " + ".join(["a"] * 3_000) + " > 0",
        "not " * 3_000 + "a = 1",
        "abs(" * 3_000 + "a" + ")" * 3_000 + " > 0",
        "a" + " is null" * 1_000,
        "a" + " is null" * 600,
    ],
)
def test_a_rule_that_is_deeper_than_duckdb_allows_is_refused_in_words(check):
    with pytest.raises(ConfigError) as caught:
        compile_rules([rule(check)], SCHEMA)
    assert str(caught.value) == (
        "job.yaml line 1: read rule r: got operators nested too deeply, expected 300 in a row at the most. Write a list "
        "as `in (…)`, put a table of values into a lookup, or compute it in the source's query or a view"
    )


def test_a_rule_that_is_long_and_not_deep_is_judged():
    many = [
        rule(" or ".join(f"a = {n}" for n in range(1_000)), "ors"),
        rule(f"a in ({', '.join(map(str, range(10_000)))})"),
    ]
    deep = [rule(" + ".join(["a"] * 300) + " > 0", "plus"), rule("a" + " is null" * 300 + " or true", "nulls")]
    assert records(stage(frame(id=[1, 2], a=[7, -7], s=["", ""]), *many, *deep)) == [0]


def test_every_wrong_rule_is_told_at_once():
    with pytest.raises(ConfigError) as caught:
        compile_rules([rule("zz > 0", "one"), rule("a >", "three")], SCHEMA)
    assert [line[:16] for line in str(caught.value).splitlines()] == ["job.yaml line 3:", "job.yaml line 5:"]


def test_not_null_of_an_unknown_column_is_refused_with_those_that_are_there():
    with pytest.raises(ConfigError) as caught:
        compile_rules([not_null("a", "zz")], SCHEMA)
    assert str(caught.value) == "job.yaml line 9: check not_null: no column zz, expected one of id, a, s"


def test_a_trailing_comment_does_not_hide_the_rest_of_the_rule():
    assert records(stage(frame(a=[1, -1]), rule("a > 0 -- positive"))) == [0]


def test_a_rule_knows_the_columns_it_looks_at():
    (check,) = compile_rules([rule("A > 0 and s is not null")], SCHEMA)
    assert check.columns == {"a", "s"}


def test_rules_may_be_named_like_columns_like_each_other_or_like_our_own():
    rules = [
        rule("a > 1", "b"),
        rule("b > 1", "a"),
        rule("a > 2", "A"),
        rule("a > 3", "_keyhaul_record"),
        rule("a > 4", "_error"),
    ]
    staged = stage(frame(a=[5, 2], b=[5, 1]), *rules)
    assert records(staged) == [0]
    assert reasons(staged)[1][1] == ["a", "A", "_keyhaul_record", "_error"]


def test_columns_that_differ_only_in_case_keep_apart():
    data = frame(id=[1, None], ID=[2, 2], Id=[None, 3])
    staged = stage(data, not_null("Id"), key=("ID",))
    assert reasons(staged) == {0: ("rule", ["not_null:Id"], "Id is null")}
    assert json.loads(staged.rejected["data"].item()) == {"id": 1, "ID": 2, "Id": None}
    assert staged.rejected["key"].item() == "2"


def test_a_rule_on_a_column_that_another_differs_from_only_in_case_is_refused():
    with pytest.raises(ConfigError, match="ID and id differ only in case, which DuckDB does not see"):
        compile_rules([rule("id > 0")], {"id": pl.Int64(), "ID": pl.Int64()})


# --- locked down ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "select * from read_text('/etc/hostname')",
        "copy (select 1) to '/var/tmp/keyhaul-test.csv'",
        "attach '/var/tmp/keyhaul-test.db'",
        "install httpfs",
        "load 'httpfs'",
        "set enable_external_access = true",
        "set lock_configuration = false",
        "set threads = 8",
        "pragma enable_profiling",
        "select * from outside",
    ],
)
def test_the_database_of_the_stage_is_locked(statement):
    outside = pl.DataFrame({"x": [1]})
    stager = Stager((), None, (), ())
    try:
        with pytest.raises(duckdb.Error):
            stager._con.execute(statement)
    finally:
        stager.close()
    assert outside.height == 1
    assert not list(Path("/var/tmp").glob("keyhaul-test.*"))  # noqa: S108


# --- duplicates --------------------------------------------------------------------------------------


def dedup(*order_by, on=("id",), keep="last"):
    return Dedup(on=on, keep=keep, **({"order_by": order_by} if order_by else {}))


@pytest.mark.parametrize(("keep", "kept"), [("last", [1, 3]), ("first", [0, 3])])
def test_one_copy_stays_by_the_order(keep, kept):
    data = frame(id=[7, 7, 7, 8], a=[1, 3, 2, 0])
    staged = stage(data, dedup=dedup("a", keep=keep))
    assert records(staged) == kept
    assert staged.counts == Counts(read=4, duplicate=2)


@pytest.mark.parametrize("keep", ["first", "last"])
def test_a_copy_without_an_order_value_loses(keep):
    assert records(stage(frame(id=[7, 7], a=[None, 3]), dedup=dedup("a", keep=keep))) == [1]


def test_rows_with_a_null_in_the_dedup_columns_are_nobodys_duplicates():
    data = frame(id=[None, None, 1, 1, 1], b=[1, 1, None, 2, 2])
    staged = stage(data, dedup=dedup("id", on=("id", "b")))
    assert records(staged) == [0, 1, 2, 3]
    assert staged.counts.duplicate == 1


def test_a_rejected_record_does_not_win_over_a_good_duplicate():
    staged = stage(frame(id=[7, 7], a=[1, 9]), rule("a < 5"), dedup=dedup("a"))
    assert records(staged) == [0]
    assert staged.counts == Counts(read=2, quarantined=1)


def test_copies_are_told_by_exact_values():
    data = frame(f=[0.0, -0.0, float("nan"), float("nan")], s=["a", "a", "A", "a"])
    assert records(stage(data, dedup=dedup(on=("f",)))) == [0, 2]
    assert len(records(stage(data, dedup=dedup(on=("s",))))) == 2


copies = st.lists(
    st.tuples(
        st.integers(0, 2) | st.none(),
        st.integers(0, 1) | st.none(),
        st.sampled_from(["x", "y", None]),
        st.integers(0, 5),
    ),
    max_size=8,
)


@given(copies, st.randoms(use_true_random=False), st.sampled_from(["first", "last"]))
@settings(max_examples=20, deadline=None)
def test_the_same_rows_stay_whatever_order_they_come_in(rows, random, keep):
    schema = {"id": pl.Int64(), "o": pl.Int64(), "s": pl.String(), "n": pl.Int64()}
    shuffled = random.sample(rows, len(rows))
    kept = []
    for order in (rows, shuffled):
        columns = dict(zip(schema, zip(*order, strict=True), strict=True)) if order else {name: [] for name in schema}
        staged = stage(frame(schema, **columns), dedup=dedup("o", keep=keep))
        kept.append(sorted(staged.accepted.drop("_keyhaul_record").rows(), key=repr))
        assert staged.counts.duplicate == len(rows) - len(kept[-1])
    assert kept[0] == kept[1]
    ids = [row[0] for row in kept[0] if row[0] is not None]
    assert len(ids) == len(set(ids)) == len({row[0] for row in rows} - {None})


# --- the balance and the records --------------------------------------------------------------------------


def test_every_row_read_is_accounted_for():
    source = frame(id=[1, 1, 2, 3, 4, 5], a=[1, 2, -1, 4, 5, 6])
    after = source.filter(~pl.col("_keyhaul_record").is_in([4, 5]))
    failed = pl.DataFrame(
        {"_keyhaul_record": [5], "message": ["division by zero"], "rule": ["transform"]}, schema=NO_FAILURES.schema
    )
    staged = stage(after, rule("a > 0"), dedup=dedup("a"), source=source, failed=failed)
    assert records(staged) == [1, 3]
    assert staged.counts == Counts(read=6, filtered=1, duplicate=1, quarantined=2)
    assert reasons(staged)[5] == ("transform", ["transform"], "division by zero")


def test_a_value_that_does_not_fit_its_target_column_is_rejected_with_the_reason():
    target = Column(name="a", pg_type="smallint", base_type="int2")
    origin = Column(name="a", pg_type="integer", base_type="int4")
    columns = [write_column("a", pl.Int32(), origin, target)]
    staged = stage(frame({"a": pl.Int32()}, a=[1, 40000, None, -40000]), columns=columns)
    assert records(staged) == [0, 2]
    assert reasons(staged)[1] == ("type", ["type:a"], "a does not fit smallint")


def test_the_record_keeps_the_source_row_not_the_transformed_one():
    source = frame(id=[1], s=["secret"])
    staged = stage(source.with_columns(s=pl.lit("changed")).drop("id"), rule("false"), source=source, key=("id",))
    assert json.loads(staged.rejected["data"].item()) == {"id": 1, "s": "secret"}
    assert staged.rejected["key"].item() == "1"


VALUES = {
    "big": (pl.Int64(), 2**63 - 1, 2**63 - 1),
    "decimal": (pl.Decimal(38, 20), Decimal("-123456789012345678.00000000000000000001"),
                Decimal("-123456789012345678.00000000000000000001")),
    "digits": (pl.Decimal(38, 0), Decimal("9" * 38), int("9" * 38)),
    "double": (pl.Float64(), 0.1, Decimal("0.1")),
    "tiny": (pl.Float64(), 5e-324, Decimal("5e-324")),
    "single": (pl.Float32(), 0.1, Decimal("0.1")),
    "nan": (pl.Float64(), float("nan"), "nan"),
    "infinite": (pl.Float32(), float("-inf"), "-inf"),
    "bytes": (pl.Binary(), b"\x00\xff'", "\\x00ff27"),
    "unicode": (pl.String(), "é\U0001f600\"\\\n\t'", "é\U0001f600\"\\\n\t'"),
    "true": (pl.Boolean(), True, True),
    "nothing": (pl.String(), None, None),
    "day": (pl.Date(), date(2020, 2, 29), "2020-02-29"),
    "moment": (pl.Datetime("us"), datetime(2020, 2, 29, 1, 2, 3, 4), "2020-02-29 01:02:03.000004"),  # noqa: DTZ001
    "instant": (pl.Datetime("us", "UTC"), datetime(2020, 2, 29, tzinfo=UTC), "2020-02-29 00:00:00+00"),
    'na"me\'s {}': (pl.Int64(), 1, 1),
    "per%cent": (pl.Int64(), 1, 1),
    "\U0001f600": (pl.Int64(), 1, 1),
    "json": (pl.String(), '{"a": 1e400}', '{"a": 1e400}'),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_the_record_keeps_a_value_whole(name):
    dtype, value, expected = VALUES[name]
    _, data = stored(frame({name: dtype}, **{name: [value]}))
    assert data == {name: expected}
    assert type(data[name]) is type(expected)


def test_the_key_is_text_a_list_for_several_columns_and_null_when_one_is_null():
    data = frame(k=[12], l=["a,b"], n=[None])
    assert stored(data, ("k",))[0] == "12"
    assert stored(data, ("k", "l"))[0] == '["12","a,b"]'
    assert stored(data, ("k", "n"))[0] is None


@given(copies, st.sampled_from(["first", "last"]))
@settings(max_examples=50, deadline=None)
def test_the_order_of_copies_is_the_same_with_and_without_a_column_that_duckdb_must_order(rows, keep):
    schema = {"id": pl.Int64(), "o": pl.Int64(), "s": pl.String(), "n": pl.Int64()}
    columns = dict(zip(schema, zip(*rows, strict=True), strict=True)) if rows else {name: [] for name in schema}
    plain = frame(schema, **columns)
    floats = frame(schema | {"f": pl.Float64()}, **columns, f=[0.5] * len(rows))
    chosen = dedup("o", "s", keep=keep)
    assert records(stage(plain, dedup=chosen)) == records(stage(floats, dedup=chosen))
