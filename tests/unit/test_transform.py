from __future__ import annotations

import sys
from datetime import date
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhaul.config.steps import Step
from keyhaul.errors import ChunkError, ConfigError
from keyhaul.transform.compiled import MAX_ISOLATED_RECORDS, compile_transform

SOURCE = {
    "a": pl.Int32(),
    "b": pl.Int32(),
    "big": pl.Int64(),
    "small": pl.Int16(),
    "s": pl.String(),
    "f": pl.Float64(),
    "d": pl.Decimal(12, 2),
    "day": pl.Date(),
}
INT32, INT64 = 2**31 - 1, 2**63 - 1


def set_(**expressions):
    return Step(
        kind="set", set=expressions, at="job.yaml line 7", places={n: f"job.yaml line 7 {n}" for n in expressions}
    )


def where(text):
    return Step(kind="where", where=text, at="job.yaml line 8")


def rename(**names):
    return Step(kind="rename", rename=names, at="job.yaml line 9")


def drop(*names):
    return Step(kind="drop", drop=names, at="job.yaml line 10")


def python(name):
    return Step(kind="python", python=name, at="job.yaml line 11")


def frame(**columns):
    height = len(next(iter(columns.values())))
    filled = {name: columns.get(name, [None] * height) for name in SOURCE}
    return pl.DataFrame({"_keyhaul_record": range(height), **filled}, schema={"_keyhaul_record": pl.Int64, **SOURCE})


def apply(*steps, **columns):
    return compile_transform(steps, SOURCE).apply(frame(**columns))


def value_of(expression, **row):
    done, failed = apply(set_(x=expression), **{name: [value] for name, value in row.items()})
    assert failed.rows() == []
    return done["x"].item()


def failure_of(expression, **row):
    done, failed = apply(set_(x=expression), **{name: [value] for name, value in row.items()})
    assert done.height == 0
    return failed["message"].item()


# --- expressions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "row", "expected"),
    [
        ("a * b", {"a": INT32, "b": INT32}, INT32 * INT32),
        ("a + b", {"a": INT32, "b": INT32}, 2 * INT32),
        ("cast(a as int) * cast(b as int)", {"a": INT32, "b": INT32}, INT32 * INT32),
        ("-small", {"small": -32768}, 32768),
        ("abs(small)", {"small": -32768}, 32768),
        ("small * small", {"small": -32768}, 2**30),
        ("100000 * 100000", {"a": 1}, 10**10),
        ("length(s) - 10", {"s": "four"}, -6),
        ("length(s) * 3000000000", {"s": "xy"}, 6_000_000_000),
        ("extract(year from day) * 2000000", {"day": date(2020, 1, 1)}, 4_040_000_000),
        ("extract(day from day) * 10", {"day": date(2020, 1, 31)}, 310),
        ("a // b", {"a": 7, "b": 2}, 3),
        ("a % b", {"a": 7, "b": 4}, 3),
        ("a / b", {"a": 1, "b": 2}, 0.5),
        ("power(a, 2)", {"a": INT32}, float(INT32) ** 2),
        ("d * d", {"d": Decimal("2.55")}, Decimal("6.5025")),
        ("d + 0.001", {"d": Decimal("2.55")}, Decimal("2.551")),
        ("f + 1", {"f": 0.5}, 1.5),
        ("upper(s) || '!'", {"s": "é"}, "É!"),
        ("reverse(s)", {"s": "abc"}, "cba"),
        ("split_part(s, '-', 2)", {"s": "a-b"}, "b"),
        ("strpos(s, 'b')", {"s": "abc"}, 2),
        ("case when b <> 0 then a / b end", {"a": 1, "b": 0}, None),
        ("a / nullif(b, 0)", {"a": 1, "b": 0}, None),
        ("a / b", {"a": None, "b": 0}, None),
        ("a // b", {"a": None, "b": 0}, None),
        ("d / b", {"d": None, "b": 0}, None),
        ("coalesce(a, b)", {"b": 5}, 5),
        ("greatest(a, b)", {"a": 1, "b": 5}, 5),
        ("day + interval '1 month'", {"day": date(2020, 1, 31)}, date(2020, 2, 29)),
        ("1", {"a": 0}, 1),
        ("'it''s'", {"a": 0}, "it's"),
        ("2.50", {"a": 0}, Decimal("2.50")),
        ("true", {"a": 0}, True),
        ("null", {"a": 0}, None),
        ("a + null", {"a": 0}, None),
        ("a", {"a": None}, None),
    ],
)
def test_an_expression_gives_its_exact_value(expression, row, expected):
    assert value_of(expression, **row) == expected


@pytest.mark.parametrize(
    ("expression", "row", "message"),
    [
        ("big * big", {"big": 2**62}, "bigint out of range"),
        ("big * big * big * big", {"big": 2**32}, "bigint out of range"),
        ("big + 1", {"big": INT64}, "bigint out of range"),
        ("-big", {"big": -INT64 - 1}, "bigint out of range"),
        ("abs(big)", {"big": -INT64 - 1}, "bigint out of range"),
        ("big // -1", {"big": -INT64 - 1}, "bigint out of range"),
        ("a / b", {"a": 1, "b": 0}, "division by zero"),
        ("a // b", {"a": 1, "b": 0}, "division by zero"),
        ("a % b", {"a": 1, "b": 0}, "division by zero"),
        ("mod(a, b)", {"a": 0, "b": 0}, "division by zero"),
        ("f / f", {"f": 0.0}, "division by zero"),
        ("1 / f", {"f": -0.0}, "division by zero"),
        ("d / b", {"d": Decimal(1), "b": 0}, "division by zero"),
        ("1.5 / d", {"d": Decimal(0)}, "division by zero"),
        ("case when b = 0 then a / b end", {"a": 1, "b": 0}, "division by zero"),
    ],
)
def test_a_value_that_has_no_exact_result_fails_with_the_reason(expression, row, message):
    assert failure_of(expression, **row) == message


def test_a_failing_cast_does_not_tell_the_value():
    message = failure_of("cast(s as int)", s="secret")
    assert "conversion from `str` to `i32` failed" in message
    assert "secret" not in message


def test_integer_results_are_bigint_whatever_their_width():
    assert compile_transform([set_(x="a + b", y="length(s)")], SOURCE).output["x"].dtype == pl.Int64()


@given(st.integers(-(2**31), INT32), st.integers(-(2**31), INT32), st.integers(-INT64 - 1, INT64))
@settings(max_examples=50, deadline=None)
def test_integer_arithmetic_is_exact_or_fails(a, b, big):
    exact = a * b + big
    done, failed = apply(set_(x="a * b + big"), a=[a], b=[b], big=[big])
    if -INT64 - 1 <= exact <= INT64:
        assert done["x"].to_list() == [exact]
    else:
        assert failed["message"].to_list() == ["bigint out of range"]


def test_a_failing_row_costs_only_itself_and_keeps_the_order():
    done, failed = apply(set_(x="a // b"), a=[10, 20, 30, 40, 50], b=[1, 0, 3, 0, 5])
    assert done.select("_keyhaul_record", "x").rows() == [(0, 10), (2, 10), (4, 10)]
    assert sorted(failed.rows()) == [(1, "division by zero", "transform"), (3, "division by zero", "transform")]


def test_more_failing_rows_than_are_worth_isolating_fail_the_chunk():
    rows = MAX_ISOLATED_RECORDS + 1
    with pytest.raises(ChunkError, match="more than 1000 records fail, the first with: division by zero"):
        apply(set_(x="a // b"), a=[1] * rows, b=[0] * rows)


def test_an_expression_that_can_never_be_evaluated_is_refused_before_the_first_row():
    with pytest.raises(ConfigError, match=r"^job.yaml line 7 x: check expression 'a / 0': division by zero$"):
        compile_transform([set_(x="a / 0")], SOURCE)


@pytest.mark.parametrize(
    "expression",
    [
        "sum(a)", "count(*)", "count(a)", "count(distinct a)", "avg(a)", "min(a)", "median(a)", "stddev(a)",
        "first(a)", "array_agg(a)", "string_agg(s, ',')", "corr(a, b)", "quantile_cont(a, 0.5)",
        "sum(a) over (partition by b)", "row_number() over (order by a)", "rank() over (order by a)",
        "lag(a) over (order by b)", "a - min(a)", "upper(first(s))", "(select 1)", "a in (select 1)",
        "columns('a.*')",
    ],
)  # fmt: skip
def test_an_expression_over_several_rows_is_refused(expression):
    with pytest.raises(ConfigError, match=r"^job.yaml line 7 x: .*it looks at more than one row"):
        compile_transform([set_(x=expression)], SOURCE)


def test_a_column_whose_name_looks_like_an_aggregate_is_no_aggregate():
    source = {"len()": pl.Int64(), ".sum(": pl.String()}
    transform = compile_transform([set_(x='"len()" + 1', y='upper(".sum(")')], source)
    assert list(transform.output) == ["len()", ".sum(", "x", "y"]


def test_every_unknown_column_is_named_with_its_place_and_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        compile_transform([set_(x="nosuch + 1", y="b +"), where("zz = 1")], {"a": pl.Int32(), "b": pl.Int32()})
    first, second, third = str(caught.value).splitlines()
    assert first == "job.yaml line 7 x: read expression 'nosuch + 1': no column nosuch, expected one of a, b"
    assert second.startswith("job.yaml line 7 y: read expression 'b +': ")
    assert third == "job.yaml line 8: read expression 'zz = 1': no column zz, expected one of a, b"


def test_operands_of_types_that_do_not_go_together_are_refused_with_their_place():
    with pytest.raises(ConfigError, match=r"^job.yaml line 7 x: check expression 'day \* 2': "):
        compile_transform([set_(x="day * 2")], SOURCE)


# --- steps ----------------------------------------------------------------------------------------


def test_where_drops_the_rows_for_which_it_is_false_or_null():
    done, failed = apply(where("a > 1"), a=[1, 2, None])
    assert done["a"].to_list() == [2]
    assert failed.height == 0


def test_where_that_is_neither_true_nor_false_is_refused():
    with pytest.raises(ConfigError, match=r"^job.yaml line 8: check expression 'a \+ 1': its type is Int64"):
        compile_transform([where("a + 1")], SOURCE)


def test_a_set_step_sees_the_columns_as_they_were_before_it():
    done, _ = apply(set_(a="b", b="a"), a=[1], b=[2])
    assert done.select("a", "b").row(0) == (2, 1)


def test_steps_run_in_their_order():
    steps = [set_(a="a + 1"), where("a = 2"), rename(a="n"), set_(a="n * 10"), drop("n")]
    done, _ = apply(*steps, a=[1, 2])
    assert done["a"].to_list() == [20]
    assert "n" not in done.columns


def test_rename_swaps_two_columns():
    done, _ = apply(rename(a="b", b="a"), a=[1], b=[2])
    assert done.select("a", "b").row(0) == (2, 1)


def test_rename_onto_a_column_that_stays_is_refused():
    with pytest.raises(ConfigError, match="two columns would be called b"):
        compile_transform([rename(a="b")], SOURCE)


def test_rename_and_drop_of_an_unknown_column_are_refused():
    with pytest.raises(ConfigError) as caught:
        compile_transform([rename(x="y"), drop("z")], {"a": pl.Int32()})
    assert str(caught.value) == (
        "job.yaml line 9: rename x: no such column, expected one of a\n"
        "job.yaml line 10: drop z: no such column, expected one of a"
    )


@pytest.mark.parametrize("step", [set_(_keyhaul_record="1"), rename(a="_keyhaul_record")])
def test_the_hidden_column_cannot_be_made_by_a_step(step):
    with pytest.raises(ConfigError, match="_keyhaul_record"):
        compile_transform([step], SOURCE)


def test_only_the_columns_that_are_used_are_needed():
    transform = compile_transform(
        [where("b > 0"), set_(x="upper(s)"), drop("s", "b", "small", "f", "d", "day")], SOURCE
    )
    assert transform.needed == {"a", "b", "big", "s"}
    assert transform.used == {"b", "s"}


def test_a_dropped_column_is_not_needed_and_need_not_be_in_the_frame():
    transform = compile_transform([rename(f="g"), drop("g")], {"a": pl.Int32(), "f": pl.Float64()})
    assert transform.needed == {"a"}
    done, _ = transform.apply(pl.DataFrame({"_keyhaul_record": [0], "a": [1]}))
    assert done.columns == ["_keyhaul_record", "a"]


def test_a_column_that_is_only_renamed_or_set_to_another_stays_a_copy():
    output = compile_transform([rename(a="n"), set_(m="n", k="n + 0")], SOURCE).output
    assert (output["n"].source, output["m"].source, output["k"].source) == ("a", "a", None)


def test_an_empty_chunk_stays_empty():
    done, failed = apply(set_(x="a // b", y="1"), where("x > 0"), a=[], b=[])
    assert (done.height, failed.height) == (0, 0)


# --- python steps ------------------------------------------------------------------------------------

STEPS = """
import polars as pl

def double(lazy):
    return lazy.with_columns(pl.col("a") * 2)

def odd_only(lazy):
    return lazy.filter(pl.col("a") % 2 == 1)

def forgets(lazy):
    return lazy.drop("_keyhaul_record")

def forgets_later(lazy):
    return lazy.collect().pipe(lambda f: f.drop("_keyhaul_record") if f.height else f).lazy()

def repeats(lazy):
    return pl.concat([lazy, lazy])

def invents(lazy):
    return lazy.with_columns(pl.col("_keyhaul_record") + 100)

def breaks(lazy):
    return lazy.with_columns(pl.col("a").map_batches(lambda s: 1 // (0 if len(s) else 1), return_dtype=pl.Int32))

number = 1
"""


@pytest.fixture
def steps_module(tmp_path, monkeypatch):
    (tmp_path / "own_steps.py").write_text(STEPS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "own_steps"
    sys.modules.pop("own_steps", None)


def test_a_python_step_maps_a_lazy_frame_to_a_lazy_frame(steps_module):
    done, _ = apply(python(f"{steps_module}:double"), a=[1, None])
    assert done["a"].to_list() == [2, None]


def test_a_python_step_may_filter_and_needs_every_column(steps_module):
    transform = compile_transform([python(f"{steps_module}:odd_only")], SOURCE)
    done, failed = transform.apply(frame(a=[1, 2, 3]))
    assert done["_keyhaul_record"].to_list() == [0, 2]
    assert failed.height == 0
    assert transform.needed == set(SOURCE)


def test_a_python_step_that_drops_the_record_column_is_refused_before_the_first_row(steps_module):
    with pytest.raises(ConfigError, match="its result has no column _keyhaul_record"):
        compile_transform([python(f"{steps_module}:forgets")], SOURCE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("forgets_later", "a Python step dropped the column _keyhaul_record"),
        ("repeats", "a Python step repeated or invented values of _keyhaul_record"),
        ("invents", "a Python step repeated or invented values of _keyhaul_record"),
        ("breaks", "a Python step raised "),
    ],
)
def test_a_python_step_that_breaks_its_promise_fails_the_chunk(steps_module, name, message):
    with pytest.raises(ChunkError, match=message):
        apply(python(f"{steps_module}:{name}"), a=[1, 2])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nosuchmodule:f", "No module named 'nosuchmodule'"),
        ("own_steps:nothere", "has no attribute 'nothere'"),
        ("own_steps:number", "got a int, expected a function"),
    ],
)
@pytest.mark.usefixtures("steps_module")
def test_a_python_step_that_cannot_be_called_is_refused_with_its_place(target, message):
    with pytest.raises(ConfigError, match=f"^job.yaml line 11: import {target}: .*{message}"):
        compile_transform([python(target)], SOURCE)


def test_a_column_that_is_set_and_dropped_again_with_its_inputs_is_still_evaluated():
    steps = [set_(x="a + 1"), Step(kind="drop", drop=("x", "a"), at="job.yaml line 8")]
    transform = compile_transform(steps, SOURCE)
    assert "a" in transform.needed


# --- long expressions -------------------------------------------------------------------------------

LONG = {
    "or": " or ".join(f"a = {n}" for n in range(20_000)),
    "or in comments and quotes": "/*'*/ " + " or ".join(f"a = {n}" for n in range(2_000)) + " /*'*/ and s = ''",
    "or behind another way of quoting": "s = q'[''']' or "
    + " or ".join(f"a = {n}" for n in range(2_000))
    + " or s = ''",
    "brackets": "(" * 20_000 + "a" + ")" * 20_000,
    "functions": "abs(" * 3_000 + "a" + ")" * 3_000,
    "branches": "case " + " ".join(f"when a = {n} then {n}" for n in range(3_000)) + " end",
    "nested branches": "case when a = 1 then 1 else " * 3_000 + "0" + " end" * 3_000,
    "concatenations": " || ".join(["s"] * 3_000),
    "sums": "+".join(["1"] * 20_000),
    "casts": "a" + "::bigint" * 6_000,
    "words": "interval " * 2_000 + "'1'",
    "suffixes": "a" + " is null" * 6_000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_an_expression_of_thousands_of_operators_is_refused_before_polars_sees_it(text, monkeypatch):
    monkeypatch.delattr(pl, "sql_expr")
    with pytest.raises(ConfigError) as caught:
        compile_transform([where(text)], SOURCE)
    message = str(caught.value)
    assert message.startswith(f"job.yaml line 8: read expression {text[:300] + '…'!r}: got ")
    assert message.endswith(
        " operators, keywords and brackets, expected 500 at the most. Write a list as `in (…)`, put a table of "
        "values into a lookup, or compute it in the source's query or a view"
    )


@pytest.mark.parametrize(
    "text",
    [
        " or ".join(f"a = {n}" for n in range(64)),
        " + ".join(["a"] * 24),
        " || ".join(["s"] * 40),
        "case " + " ".join(f"when a = {n} then {n}" for n in range(90)) + " end",
        "abs(" * 20 + "a" + ")" * 20,
        "a" + " is null" * 50,
        " or ".join(f"a = {n}" for n in range(160)),
        "a" + " is null" * 240,
    ],
)
def test_an_expression_that_is_deeper_than_polars_reads_back_is_refused_in_words(text):
    with pytest.raises(ConfigError) as caught:
        compile_transform([where(text) if " or " in text else set_(x=text)], SOURCE)
    assert str(caught.value).endswith(
        ": got operators nested too deeply, expected about 60 in a row, or 20 of arithmetic. Write a list as `in (…)`, "
        "put a table of values into a lookup, or compute it in the source's query or a view"
    )


def test_brackets_that_are_deeper_than_polars_parses_are_refused_in_words():
    with pytest.raises(ConfigError) as caught:
        compile_transform([set_(x="(" * 60 + "a" + ")" * 60)], SOURCE)
    message = str(caught.value)
    assert "expected one Polars SQL expression, nested no more than 45 times. Write a list as" in message
    assert len(message) < 1_000


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" or ".join(f"a = {n}" for n in range(62)), True),
        (" + ".join(["a"] * 22), 66),
        (f"a in ({', '.join(map(str, range(10_000)))})", True),
        (f"a in ({','.join(map(str, range(-5_000, 5_000)))})", True),
        (f"s in ({', '.join(repr(f'x or {n} and (') for n in range(10_000))})", False),
        (f"day in ({', '.join(['date ' + repr('2020-01-01')] * 2_000)})", True),
        (f"coalesce({', '.join(['b'] * 5_000)}, a)", 3),
        (f"s = '{'or (' * 30_000}'", False),
        ("case " + " ".join(f"when a = {n} then {n}" for n in range(60)) + " end", 3),
    ],
)
def test_an_expression_that_is_long_and_not_deep_is_computed(text, value):
    done, _ = apply(set_(x=text), a=[3], s=["x"], day=[date(2020, 1, 1)])
    assert done["x"].to_list() == [value]


def test_a_float_that_becomes_infinite_costs_its_record_as_in_postgresql():
    transform = compile_transform([set_(x="f * 10.0", y="f / a")], {"f": pl.Float64(), "a": pl.Int32()})
    given = pl.DataFrame({"_keyhaul_record": [0, 1, 2], "f": [1e308, 2.0, float("inf")], "a": [1, 2, 4]})
    done, lost = transform.apply(given.with_columns(pl.col("a").cast(pl.Int32)))
    assert done["x"].to_list() == [20.0, float("inf")]
    assert lost.select("_keyhaul_record", "message").rows() == [(0, "double precision out of range")]
