from __future__ import annotations

from decimal import Decimal

import polars as pl
import pytest

from keyhaul.errors import RefusedError
from keyhaul.model import RECORD, Column
from keyhaul.transform.compiled import OutputColumn
from keyhaul.transform.mapping import as_text, build_mapping, split, write_column

NUMERIC = {"pg_type": "numeric(12,2)", "base_type": "numeric", "precision": 12, "scale": 2}


def column(name="x", pg_type="integer", base_type="int4", **more):
    return Column(name=name, **{"pg_type": pg_type, "base_type": base_type, **more})


def copy(dtype, source=None):
    return OutputColumn(dtype=dtype, source=source)


def fitting(dtype, values, target, origin=None):
    """Which of `values` are written, as the wire has them."""
    written = write_column("x", dtype, origin, target)
    frame = pl.DataFrame(
        {RECORD: range(len(values)), "x": pl.Series(values, dtype=dtype)}, schema_overrides={RECORD: pl.Int64}
    )
    accepted, _ = split(frame, [written])
    return accepted.select(written.value.alias("x"))["x"].to_list()


# --- which column goes where ----------------------------------------------------------------------


def test_columns_are_matched_by_name():
    output = {"b": copy(pl.Int32(), "b"), "a": copy(pl.String(), "a")}
    sources = {"a": column("a", "text", "text"), "b": column("b")}
    mapped = build_mapping(
        output, sources, [column("a", "text", "text"), column("b"), column("c", has_default=True)], "t"
    )
    assert [(c.name, c.target.name) for c in mapped] == [("b", "b"), ("a", "a")]


def test_every_column_that_has_no_place_is_told_at_once():
    output = {"a": copy(pl.Int32(), "a"), "g": copy(pl.Int64()), "d": copy(pl.Date(), "d")}
    targets = [
        column("g", generated=True),
        column("d", "boolean", "bool"),
        column("must", not_null=True),
        column("has_default", not_null=True, has_default=True),
        column("may_be_null"),
    ]
    with pytest.raises(RefusedError) as caught:
        build_mapping(output, {"a": column("a"), "d": column("d", "date", "date")}, targets, "public.t")
    first, second, third, fourth = str(caught.value).splitlines()
    assert first.startswith("write public.t.a: the target has no such column. Add it there, or drop it")
    assert second.startswith("write public.t.g: the target computes this column itself")
    assert third.startswith("write public.t.d: got date, expected boolean. ")
    assert fourth.startswith("write public.t.must: it is NOT NULL without a default, and the source has no such column")


@pytest.mark.parametrize(
    ("dtype", "pg_type", "base_type"),
    [
        (pl.String(), "bigint", "int8"),
        (pl.Boolean(), "integer", "int4"),
        (pl.Int64(), "text", "text"),
        (pl.Int64(), "boolean", "bool"),
        (pl.Float64(), "text", "text"),
        (pl.Date(), "timestamp with time zone", "timestamptz"),
        (pl.Datetime("us"), "timestamp with time zone", "timestamptz"),
        (pl.Datetime("us", "UTC"), "timestamp without time zone", "timestamp"),
        (pl.Datetime("us"), "date", "date"),
        (pl.Duration("us"), "interval", "interval"),
        (pl.Binary(), "text", "text"),
    ],
)
def test_a_computed_column_of_another_kind_is_never_silently_converted(dtype, pg_type, base_type):
    target = column("x", pg_type, base_type)
    try:
        written = build_mapping({"x": copy(dtype)}, {}, [target], "t")
    except RefusedError as error:
        assert str(error).startswith(f"write t.x: got a computed {dtype}, expected {pg_type}. ")  # noqa: PT017
    else:
        assert (dtype, written[0].wire) == (pl.String(), "text")  # the target reads it, or the chunk fails


@pytest.mark.parametrize(
    ("have", "want"),
    [
        (("date", "date"), ("timestamp with time zone", "timestamptz")),
        (("text", "text"), ("integer", "int4")),
        (("integer", "int4"), ("boolean", "bool")),
        (("integer", "int4"), ("text", "text")),
        (("timestamp without time zone", "timestamp"), ("timestamp with time zone", "timestamptz")),
        (("bytea", "bytea"), ("text", "text")),
        (("text", "text"), ("jsonb", "jsonb")),
        (("interval", "interval"), ("interval hour", "interval", 67174399)),
        (("interval", "interval"), ("interval(0)", "interval", 2147418112)),
        (("interval", "interval"), ("public.a_domain_over_interval_hour", "interval", 67174399)),
        (("bit(3)", "bit", 3), ("bit(5)", "bit", 5)),
        (("bit varying(9)", "varbit", 9), ("bit varying(5)", "varbit", 5)),
        (("numeric(12,2)[]", "_numeric", 786438), ("numeric(12,1)[]", "_numeric", 786437)),
    ],
)
def test_a_copied_column_of_another_type_that_could_lose_something_is_refused(have, want):
    dtypes = {"int4": pl.Int32(), "date": pl.Date(), "timestamp": pl.Datetime("us"), "bytea": pl.Binary()}
    output = {"x": copy(dtypes.get(have[1], pl.String()), "x")}
    origin, target = (
        column("x", *kind[:2], **dict(zip(["modifier"], kind[2:], strict=False))) for kind in (have, want)
    )
    with pytest.raises(RefusedError, match=r"write t\.x: got "):
        build_mapping(output, {"x": origin}, [target], "t")


# --- NOT NULL ---------------------------------------------------------------------------------------


def test_a_null_does_not_fit_a_target_that_is_not_null():
    frame = pl.DataFrame({RECORD: [0, 1], "x": [1, None]}, schema={RECORD: pl.Int64, "x": pl.Int32})
    accepted, rejected = split(frame, [write_column("x", pl.Int32(), column(), column(not_null=True))])
    assert accepted[RECORD].to_list() == [0]
    assert rejected.rows() == [(1, ["type:x"], "x does not fit integer not null")]


def test_a_source_that_is_not_null_needs_no_check():
    assert write_column("x", pl.Int32(), column(not_null=True), column(not_null=True)).fits is None


def test_a_record_with_several_misfits_names_them_all():
    frame = pl.DataFrame(
        {RECORD: [5], "x": [70000], "y": [None]}, schema={RECORD: pl.Int64, "x": pl.Int32, "y": pl.Int32}
    )
    small = column("x", "smallint", "int2")
    columns = [
        write_column("x", pl.Int32(), column(), small),
        write_column("y", pl.Int32(), column("y"), column("y", not_null=True)),
    ]
    assert split(frame, columns)[1].rows() == [
        (5, ["type:x", "type:y"], "x does not fit smallint; y does not fit integer not null")
    ]


# --- copies: never rounded ---------------------------------------------------------------------------


def test_a_copied_integer_fits_a_narrower_type_or_does_not():
    target = column("x", "smallint", "int2")
    assert fitting(pl.Int64(), [1, 32768, -32769, None, -32768], target, column("x", "bigint", "int8")) == [
        1,
        None,
        -32768,
    ]


def test_a_copied_numeric_is_never_rounded():
    target = column("x", "numeric(4,1)", "numeric", precision=4, scale=1)
    values = [Decimal("1.50"), Decimal("1.55"), Decimal("999.90"), Decimal("1000.00"), None]
    assert fitting(pl.Decimal(12, 2), values, target, column("x", **NUMERIC)) == [
        Decimal("1.5"),
        Decimal("999.9"),
        None,
    ]


def test_a_numeric_with_more_decimals_than_digits_holds_only_small_numbers():
    target = column("x", "numeric(2,4)", "numeric", precision=2, scale=4)
    origin = column("x", "numeric(9,4)", "numeric", precision=9, scale=4)
    values = [Decimal("0.0099"), Decimal("0.0100"), Decimal("0.5000"), Decimal("-0.0099")]
    assert fitting(pl.Decimal(9, 4), values, target, origin) == [Decimal("0.0099"), Decimal("-0.0099")]


def test_a_numeric_that_travels_as_text_is_never_rounded():
    target = column("x", "numeric(4,1)", "numeric", precision=4, scale=1)
    values = ["1.5", "1.50", "-0001.5", "1.55", "1000", "NaN", "Infinity", "0.0000", None]
    assert fitting(pl.String(), values, target, column("x", "numeric", "numeric")) == [
        "1.5", "1.50", "-0001.5", "NaN", "0.0000", None,
    ]  # fmt: skip


def test_a_numeric_of_hundreds_takes_no_text_that_it_would_round():
    target = column("x", "numeric(5,-2)", "numeric", precision=5, scale=-2)
    assert fitting(pl.String(), ["123", "0"], target, column("x", "numeric", "numeric")) == ["0"]


def test_a_copied_text_is_never_cut_and_its_length_is_in_characters():
    target = column("x", "character varying(3)", "varchar", length=3)
    assert fitting(pl.String(), ["äöü", "äöüx", "ab  ", "", None], target, column("x", "text", "text")) == [
        "äöü",
        "",
        None,
    ]


def test_a_blank_at_the_end_does_not_vanish_in_a_padded_column():
    target = column("x", "character(3)", "bpchar", length=3)
    assert fitting(pl.String(), ["ab", "ab ", "abc"], target, column("x", "text", "text")) == ["ab", "abc"]


def test_a_copied_timestamp_keeps_every_digit_of_its_seconds():
    from datetime import datetime

    origin = column("x", "timestamp without time zone", "timestamp")
    target = column("x", "timestamp(3) without time zone", "timestamp", precision=3, modifier=3)
    exact, finer = datetime(2020, 1, 1, 0, 0, 0, 1000), datetime(1960, 1, 1, 0, 0, 0, 1)  # noqa: DTZ001
    assert fitting(pl.Datetime("us"), [exact, finer, None], target, origin) == [exact, None]


def test_a_domain_over_a_narrower_type_is_checked_like_the_type():
    origin = column("x", "timestamp without time zone", "timestamp")
    target = column("x", "public.seconds", "timestamp", precision=0, modifier=0)
    from datetime import datetime

    whole, half = datetime(2020, 1, 1), datetime(2020, 1, 1, 0, 0, 0, 500_000)  # noqa: DTZ001
    assert fitting(pl.Datetime("us"), [whole, half], target, origin) == [whole]


# --- computed: rounded as PostgreSQL does (tests/integration/test_target.py asks the server) -------------


@pytest.mark.parametrize(
    ("dtype", "value", "target", "stored"),
    [
        (pl.Decimal(9, 2), Decimal("2.50"), ("integer", "int4"), 3),
        (pl.Decimal(9, 2), Decimal("-2.50"), ("integer", "int4"), -3),
        (pl.Decimal(9, 2), Decimal("32767.50"), ("smallint", "int2"), "misfit"),
        (pl.Float64(), 2.5, ("integer", "int4"), 2),
        (pl.Float64(), 3.5, ("integer", "int4"), 4),
        (pl.Float64(), -0.5, ("integer", "int4"), 0),
        (pl.Float64(), float("nan"), ("integer", "int4"), "misfit"),
        (pl.Float64(), float("inf"), ("bigint", "int8"), "misfit"),
        (pl.Float64(), 2.0**63, ("bigint", "int8"), "misfit"),
        (pl.Float64(), 1e39, ("real", "float4"), "misfit"),
        (pl.Int64(), 2**31, ("integer", "int4"), "misfit"),
        (pl.Int64(), 2**31 - 1, ("integer", "int4"), 2**31 - 1),
        (pl.String(), "abcd", ("character varying(3)", "varchar"), "misfit"),
    ],
)
def test_a_computed_value_is_rounded_or_does_not_fit(dtype, value, target, stored):
    found = fitting(dtype, [value], column("x", *target, length=3 if "(3)" in target[0] else None))
    assert found == ([] if stored == "misfit" else [stored])


def test_a_computed_decimal_is_rounded_half_away_from_zero():
    target = column("x", "numeric(6,2)", "numeric", precision=6, scale=2)
    values = [Decimal("0.005"), Decimal("-0.005"), Decimal("9999.994"), Decimal("9999.995"), Decimal("0.004")]
    assert fitting(pl.Decimal(12, 3), values, target) == [
        Decimal("0.01"),
        Decimal("-0.01"),
        Decimal("9999.99"),
        Decimal("0.00"),
    ]


def test_a_computed_integer_of_any_size_fits_a_numeric_of_38_digits():
    target = column("x", "numeric(38,0)", "numeric", precision=38, scale=0)
    assert fitting(pl.Int64(), [2**63 - 1, None], target) == [Decimal(2**63 - 1), None]


# --- a chunk in which some columns are text --------------------------------------------------------------


def test_a_chunk_of_texts_is_written_through_the_target_and_still_checked():
    origin, target = column("x", **NUMERIC), column("x", "numeric(4,1)", "numeric", precision=4, scale=1)
    columns = [
        write_column("x", pl.Decimal(12, 2), origin, target),
        write_column("y", pl.Int32(), column("y"), column("y")),
    ]
    changed = as_text(columns, {"x": origin, "y": column("y")}, {"x": "x"}, None)
    assert [c.wire for c in changed] == ["text", "direct"]
    frame = pl.DataFrame({RECORD: [0, 1, 2], "x": ["NaN", "1.55", "1.5"], "y": [1, 1, 1]})
    assert split(frame, changed)[0][RECORD].to_list() == [0, 2]
