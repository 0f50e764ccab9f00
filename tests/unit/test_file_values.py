"""Texts as values of PostgreSQL types; each expectation is what PostgreSQL stores, or None where it would change it."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import polars as pl
import pytest

from keyhaul.model import Column
from keyhaul.sources.files.infer import infer
from keyhaul.sources.files.values import typed

D = datetime


def read(base_type, texts, time_zone=None, **more):
    column = Column(name="c", pg_type=base_type, base_type=base_type, **more)
    found = typed(pl.DataFrame({"c": texts}, schema={"c": pl.String}), {"c": column}, time_zone=time_zone)
    return found.frame["c"].to_list(), sorted(found.wrong)


@pytest.mark.parametrize(
    ("base_type", "more", "values"),
    [
        ("int4", {}, {"1": 1, " -7 ": -7, "+5": 5, "0123": 123, "2147483647": 2147483647}),
        ("int8", {}, {"9223372036854775807": 9223372036854775807, "-9223372036854775808": -9223372036854775808}),
        ("float8", {}, {"1.5": 1.5, "1e3": 1000.0, ".5": 0.5, "-Infinity": float("-inf"), "0e0": 0.0, "-0": -0.0}),
        ("bool", {}, {"t": True, "FALSE": False, "yes": True, "off": False, "1": True, "0": False}),
        ("date", {}, {"2024-02-29": date(2024, 2, 29), "0001-01-01": date(1, 1, 1), "9999-12-31": date(9999, 12, 31)}),
        ("numeric", {"precision": 12, "scale": 2}, {"1.10": Decimal("1.10"), "1.100": Decimal("1.10"), "-.5": Decimal("-0.50"), "9999999999.99": Decimal("9999999999.99")}),
        ("numeric", {"precision": 38, "scale": 10}, {"9007199254740993.5": Decimal("9007199254740993.5000000000")}),
        ("numeric", {}, {"1.10": "1.10", "+5": "5", "-.5": "-0.5", "7.": "7", "nan": "NaN", "-inf": "-Infinity"}),
        ("timestamp", {}, {"2024-02-29 10:00:00.123456": D(2024, 2, 29, 10, 0, 0, 123456), "2024-02-29T10:00": D(2024, 2, 29, 10), "2024-02-29 24:00:00": D(2024, 3, 1)}),
        ("timestamptz", {}, {"2024-02-29 10:00:00+02": D(2024, 2, 29, 8, tzinfo=UTC), "2024-02-29T10:00:00Z": D(2024, 2, 29, 10, tzinfo=UTC), "2024-02-29 10:00:00-05:30": D(2024, 2, 29, 15, 30, tzinfo=UTC)}),
        ("uuid", {}, {"A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "{a0eebc999c0b4ef8bb6d6bb9bd380a11}": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}),
        ("bytea", {}, {"\\x00FF": b"\x00\xff", "\\x": b""}),
        ("text", {}, {"": "", " a ": " a ", "NULL": "NULL"}),
        ("varchar", {"length": 3}, {"abc": "abc", "äöü": "äöü", "abc  ": "abc  "}),
    ],
)  # fmt: skip
def test_a_text_becomes_the_value_that_postgresql_stores(base_type, more, values):
    found, wrong = read(base_type, list(values), **more)
    assert wrong == []
    assert found == list(values.values())


@pytest.mark.parametrize(
    ("base_type", "more", "texts"),
    [
        ("int4", {}, ["1.5", "1e3", "0x1F", "1_000", "", " ", "2147483648", "one", "1 2", "\u0661"]),
        ("int8", {}, ["9223372036854775808"]),
        ("int2", {}, ["32768"]),
        ("float8", {}, ["1e400", "1e-400", "0x1F", "", "1,5", "--1"]),
        ("bool", {}, ["2", "", "maybe"]),
        ("date", {}, ["2024-02-30", "0000-00-00", "2024-03-01 10:00:00", "01/02/2024", "infinity", "2024-3-1", ""]),
        ("numeric", {"precision": 12, "scale": 2}, ["1.235", "10000000000", "1e2", "NaN", "", "1.2.3"]),
        ("numeric", {}, ["1e3", "1,5", "", "0x1F"]),
        ("timestamp", {}, ["2024-02-29 10:00:00+02", "2024-02-29 10:00:00.1234567", "2024-02-29", "2024-02-29 24:00:01", "2024-02-29 25:00", ""]),
        ("timestamptz", {}, ["2024-02-29 10:00:00", "2024-02-29 10:00:00.1234567+00", "2024-02-29 10:00:00 CET", "2024-02-30 10:00:00Z", "2024-02-29 10:00:00+99"]),
        ("uuid", {}, ["a0eebc99", "", "g0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]),
        ("bytea", {}, ["00ff", "\\x0", "\\xzz"]),
        ("varchar", {"length": 3}, ["abcd", "äöüß"]),
    ],
)  # fmt: skip
def test_what_would_be_changed_or_guessed_is_no_value(base_type, more, texts):
    found, wrong = read(base_type, texts, **more)
    assert (found, wrong) == ([None] * len(texts), list(range(len(texts))))


def test_null_stays_null_and_is_not_wrong():
    for base_type in ("int4", "numeric", "date", "timestamptz", "bool", "uuid", "float8", "text", "bytea"):
        assert read(base_type, [None]) == ([None], [])


def test_a_local_time_is_a_moment_only_in_the_zone_that_the_job_gives_and_never_a_guess():
    texts = ["2024-07-01 10:00:00", "2024-03-31 02:30:00", "2024-10-27 02:30:00", "2024-10-27 02:30:00+02"]
    assert read("timestamptz", texts, time_zone="Europe/Berlin") == (
        [D(2024, 7, 1, 8, tzinfo=UTC), None, None, D(2024, 10, 27, 0, 30, tzinfo=UTC)],
        [1, 2],
    )


@pytest.mark.parametrize(
    ("base_type", "more", "texts", "values"),
    [
        ("numeric", {"precision": 12, "scale": 2}, ["1,5", "-,25", "7", "1.5", "1.234,50"], [Decimal("1.50"), Decimal("-0.25"), Decimal("7.00"), None, None]),
        ("numeric", {}, ["1,50", "1.5", "1,5,0"], ["1.50", None, None]),
        ("float8", {}, ["1,5e3", "1.5"], [1500.0, None]),
        ("int4", {}, ["1", "1,0"], [1, None]),
        ("text", {}, ["1,5", "1.5"], ["1,5", "1.5"]),
    ],
)  # fmt: skip
def test_a_decimal_comma_stands_where_a_point_does_and_a_point_is_none_then(base_type, more, texts, values):
    column = Column(name="c", pg_type=base_type, base_type=base_type, **more)
    found = typed(pl.DataFrame({"c": texts}), {"c": column}, decimal=",")
    assert found.frame["c"].to_list() == values


def test_numbers_with_a_decimal_comma_are_found_in_a_sample():
    assert infer(pl.Series(["1,50", "-2"]), decimal=",").pg_type == "numeric"
    assert infer(pl.Series(["1,5e10"]), decimal=",").pg_type == "double precision"
    assert infer(pl.Series(["1.50"]), decimal=",").pg_type == "text"
    assert infer(pl.Series(["1,50"])).pg_type == "text"
