"""Every kind of check against a slow, plain-Python version of itself, in PostgreSQL and in a Parquet file."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import psycopg
import pyarrow as pa
import pytest
import support
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from keyhaul.quality import checking as quality

SETTINGS = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TYPES = pa.schema(
    [("id", pa.int64()), ("n", pa.int32()), ("m", pa.int32()), ("s", pa.string()), ("x", pa.float64()),
     ("d", pa.timestamp("us"))]
)  # fmt: skip
START = datetime(2020, 1, 1)  # noqa: DTZ001 - a timestamp without a zone

small = st.none() | st.integers(-2, 3)
texts = st.none() | st.text("ab é\n'%😀\\", max_size=4)
floats = st.none() | st.sampled_from([-1.5, -0.0, 0.0, 0.25, 2.0, math.nan, math.inf, -math.inf])
moments = st.none() | st.integers(0, 5).map(lambda days: START + timedelta(days=days))
tables = st.lists(st.tuples(small, small, texts, floats, moments), max_size=8).map(
    lambda rows: [(number, *row) for number, row in enumerate(rows)]
)
N, M, S, X, D = 1, 2, 3, 4, 5


@pytest.fixture(scope="module")
def home(server, tmp_path_factory):
    """A folder, a database with the tables rows and others, and a connection to it."""
    uri = support.make_database(server, "kinds")
    with psycopg.connect(uri, autocommit=True) as conn:
        for table in ("rows", "others"):
            conn.execute(
                f"create table public.{table} (id bigint primary key, n int, m int, s text, x float8, d timestamp)"
            )
        yield tmp_path_factory.mktemp("kinds"), uri, conn
    support.drop_database(server, uri)


class Place:
    """One of the two systems: rows go in, a check's verdict comes out."""

    def __init__(self, home, kind):
        self.folder, self.uri, self.conn = home
        self.kind = kind
        self.numbers = itertools.count()

    def where(self, table="rows", kind=None):
        if (kind or self.kind) == "file":
            return {"file": str(self.folder / f"{table}.parquet")}
        return {"uri": self.uri, "table": f"public.{table}"}

    def put(self, rows, table="rows", kind=None):
        if (kind or self.kind) == "file":
            columns = list(zip(*rows, strict=True)) or [[] for _ in TYPES]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, TYPES, strict=True)]
            parquet.write_table(pa.Table.from_arrays(arrays, schema=TYPES), self.folder / f"{table}.parquet")
            return
        self.conn.execute(f"truncate public.{table}")
        with self.conn.cursor() as cursor:
            cursor.executemany(f"insert into public.{table} values (%s, %s, %s, %s, %s, %s)", rows)

    def check(self, *checks, **more):
        path = self.folder / "checks.yaml"
        named = [{"name": str(number), **check} for number, check in enumerate(checks)]
        path.write_text(json.dumps({"source": self.where(), "checks": named, **more}))
        return quality.check(path).verdicts


@pytest.fixture(params=["postgres", "file"])
def place(request, home):
    return Place(home, request.param)


def failures(place, rows, *checks):
    place.put(rows)
    found = [verdict.failures for verdict in place.check(*checks)]
    return found[0] if len(checks) == 1 else found


@SETTINGS
@given(rows=tables, names=st.lists(st.sampled_from("nmsxd"), min_size=1, unique=True))
def test_not_null_counts_the_rows_with_a_null_in_one_of_the_columns(place, rows, names):
    where = {"n": N, "m": M, "s": S, "x": X, "d": D}
    expected = sum(any(row[where[name]] is None for name in names) for row in rows)
    assert failures(place, rows, {"not_null": names}) == expected


@SETTINGS
@given(rows=tables)
def test_unique_counts_every_row_whose_values_another_row_has_and_a_null_is_like_no_other(place, rows):
    counts = Counter((row[N], row[S]) for row in rows)
    expected = sum(counts[row[N], row[S]] > 1 and None not in {row[N], row[S]} for row in rows)
    assert failures(place, rows, {"unique": ["n", "s"]}) == expected


def alike(value):
    """A NaN is equal to a NaN, and -0 to 0, in PostgreSQL and in DuckDB."""
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


@SETTINGS
@given(rows=tables, others=tables)
def test_floating_point_numbers_are_compared_by_value_and_a_nan_is_equal_to_a_nan(place, rows, others):
    place.put(others, "others")
    counts = Counter(alike(row[X]) for row in rows)
    there = {alike(row[X]) for row in others}
    where = place.where("others")
    where.pop("uri", None)
    checks = (
        {"unique": "x"},
        {"references": {"columns": "x", "in": where}},
        {"accepted": {"column": "x", "values": [0, 0.25, -1.5]}},
        {"expression": "x < 2 or x = 0"},
    )
    values = [alike(row[X]) for row in rows if row[X] is not None]
    assert failures(place, rows, *checks) == [
        sum(counts[value] > 1 for value in values),
        sum(value not in there for value in values),
        sum(value not in {0, 0.25, -1.5} for value in values),
        sum(value == "NaN" or value >= 2 for value in values),
    ]


@SETTINGS
@given(rows=tables, low=st.text("ab é😀", max_size=2), days=st.integers(0, 5))
def test_between_compares_texts_by_their_bytes_and_moments_by_time(place, rows, low, days):
    moment = START + timedelta(days=days)
    checks = (
        {"between": {"column": "s", "min": low}},
        {"between": {"column": "d", "max": moment.isoformat()}},
    )
    expected = [
        sum(row[S] is not None and row[S].encode() < low.encode() for row in rows),
        sum(row[D] is not None and row[D] > moment for row in rows),
    ]
    if low:
        assert failures(place, rows, *checks) == expected


@SETTINGS
@given(
    rows=tables,
    numbers=st.lists(st.integers(-2, 3), min_size=1),
    words=st.lists(st.text("ab é\n'%😀\\", max_size=2), min_size=1),
)
def test_accepted_counts_the_values_that_are_not_listed_and_a_null_passes(place, rows, numbers, words):
    of_numbers = sum(row[N] is not None and row[N] not in numbers for row in rows)
    of_words = sum(row[S] is not None and row[S] not in words for row in rows)
    checks = ({"accepted": {"column": "n", "values": numbers}}, {"accepted": {"column": "s", "values": words}})
    assert failures(place, rows, *checks) == [of_numbers, of_words]


def above(value, limit):
    """A NaN is above every number, in PostgreSQL and in DuckDB."""
    return math.isnan(value) or value > limit


@SETTINGS
@given(rows=tables, low=st.none() | st.integers(-8, 8), high=st.none() | st.integers(-8, 8))
def test_between_counts_the_values_outside_both_limits_included_and_a_null_passes(place, rows, low, high):
    limits = {name: limit / 4 for name, limit in (("min", low), ("max", high)) if limit is not None}
    if not limits:
        return
    expected = [
        sum(
            (low is not None and not math.isnan(v) and v < low / 4) or (high is not None and above(v, high / 4))
            for row in rows
            if (v := row[index]) is not None
        )
        for index in (X, N)
    ]
    checks = [{"between": {"column": column, **limits}} for column in "xn"]
    assert failures(place, rows, *checks) == expected


@SETTINGS
@given(rows=tables, pattern=st.sampled_from(["^a", "b$", "a.b", "^[ab]*$", "é", r"\\", "^$", "a|'", ".", "^a.*b$"]))
def test_matches_counts_the_texts_in_which_the_pattern_is_nowhere_and_a_null_passes(place, rows, pattern):
    plain = re.compile(pattern.replace("$", r"\Z"), re.DOTALL)
    expected = sum(row[S] is not None and not plain.search(row[S]) for row in rows)
    assert failures(place, rows, {"matches": {"column": "s", "pattern": pattern}}) == expected


@SETTINGS
@given(rows=tables, low=st.integers(0, 3), high=st.integers(0, 3))
def test_length_counts_characters_and_a_null_passes(place, rows, low, high):
    expected = sum(row[S] is not None and not low <= len(row[S]) <= high for row in rows)
    assert failures(place, rows, {"length": {"column": "s", "min": low, "max": high}}) == expected


@SETTINGS
@given(rows=tables, others=tables)
def test_references_counts_the_rows_without_a_match_and_a_null_in_a_column_refers_to_nothing(place, rows, others):
    place.put(others, "others")
    there = {(row[M], row[S]) for row in others if row[M] is not None and row[S] is not None}
    expected = sum(None not in {row[N], row[S]} and (row[N], row[S]) not in there for row in rows)
    where = place.where("others")
    where.pop("uri", None)
    check = {"references": {"columns": ["n", "s"], "in": where, "to": ["m", "s"]}}
    assert failures(place, rows, check) == expected


def is_greater(n, m):
    return None if n is None or m is None else n > m


@pytest.mark.parametrize(
    ("expression", "plain"),
    [
        ("n > m", is_greater),
        ("not (n > m)", lambda n, m: None if is_greater(n, m) is None else not is_greater(n, m)),
        ("n is null or m = 1", lambda n, m: True if n is None else None if m is None else m == 1),
        ("case when n = 1 then m is not null else true end", lambda n, m: m is not None if n == 1 else True),
    ],
)
@settings(SETTINGS, max_examples=8)
@given(rows=tables)
def test_expression_counts_the_rows_for_which_it_is_false_and_null_passes(place, rows, expression, plain):
    expected = sum(plain(row[N], row[M]) is False for row in rows)
    assert failures(place, rows, {"expression": expression}) == expected


@SETTINGS
@given(rows=tables, low=st.integers(0, 8), high=st.integers(0, 8))
def test_row_count_holds_between_its_limits(place, rows, low, high):
    assert failures(place, rows, {"row_count": {"min": low, "max": high}}) == (not low <= len(rows) <= high)


@SETTINGS
@given(rows=tables, days=st.integers(0, 5))
def test_fresh_holds_when_the_newest_value_is_not_before_the_moment_and_without_values_it_fails(place, rows, days):
    since = START + timedelta(days=days)
    newest = max((row[D] for row in rows if row[D] is not None), default=None)
    late = newest is None or newest < since
    assert failures(place, rows, {"fresh": {"column": "d", "since": since.isoformat() + "Z"}}) == late


@SETTINGS
@given(ages=st.lists(st.none() | st.integers(0, 4)), most=st.integers(1, 5))
def test_fresh_counts_an_age_from_now_on(place, ages, most):
    now = datetime.now(UTC).replace(tzinfo=None)
    rows = [
        (number, None, None, None, None, None if age is None else now - timedelta(hours=age, minutes=30))
        for number, age in enumerate(ages)
    ]
    youngest = min((age for age in ages if age is not None), default=None)
    late = youngest is None or youngest + 0.5 > most
    assert failures(place, rows, {"fresh": {"column": "d", "max_age": f"{most}h"}}) == late


NAMED = {
    "postgres": {"id": "bigint", "n": "integer", "m": "int4", "s": "text", "x": "double precision", "d": "timestamp"},
    "file": {"id": "bigint", "n": "integer", "m": "int4", "s": "text", "x": "double", "d": "timestamp"},
}


@SETTINGS
@given(
    wanted=st.dictionaries(st.sampled_from(["id", "n", "m", "s", "x", "d", "zz"]), st.booleans(), min_size=1),
    only=st.booleans(),
)
def test_columns_holds_when_names_and_types_are_as_told(place, wanted, only):
    place.put([])
    right = NAMED[place.kind]
    types = {name: right.get(name, "text") if good else "numeric(7,3)" for name, good in wanted.items()}
    expected = not (
        all(good and name in right for name, good in wanted.items()) and (not only or set(wanted) == set(right))
    )
    assert place.check({"columns": {"types": types, "only": only}})[0].failures == expected


@SETTINGS
@given(rows=tables, others=tables, tolerance=st.integers(0, 4))
def test_sum_equals_compares_the_sums_of_two_systems_and_that_of_no_values_is_zero(place, rows, others, tolerance):
    elsewhere = "file" if place.kind == "postgres" else "postgres"
    place.put(rows)
    place.put(others, "others", elsewhere)
    here, there = (sum(row[column] or 0 for row in data) for data, column in ((rows, N), (others, M)))
    where = place.where("others", elsewhere)
    asked = {"column": "n", "in": where, "to": "m"}
    absolute, relative = place.check(
        {"sum_equals": {**asked, "tolerance": tolerance}}, {"sum_equals": {**asked, "tolerance": f"{tolerance * 20}%"}}
    )
    assert absolute.failures == (abs(here - there) > tolerance)
    assert relative.failures == (abs(here - there) > abs(there) * Decimal(tolerance) / 5)


def measured(rows):
    values = [row[N] for row in rows if row[N] is not None]
    share = 1 - len(values) / len(rows) if rows else None
    return share, sum(values) / len(values) if values else None, len(set(values))


@SETTINGS
@given(before=tables, now=tables, distinct=st.integers(0, 3))
def test_drift_counts_different_floating_point_numbers_as_unique_does(place, before, now, distinct):
    check = {"drift": {"column": "x", "distinct": distinct}}
    state = str(place.folder / f"floats-{place.kind}-{next(place.numbers)}-{id(before)}.json")
    (place.folder / state).unlink(missing_ok=True)
    place.put(before)
    place.check(check, state=state)
    place.put(now)
    values = [len({alike(row[X]) for row in rows if row[X] is not None}) for rows in (before, now)]
    assert (place.check(check, state=state)[0].status == "passed") == (abs(values[0] - values[1]) <= distinct)


def near(now, before, allowed):
    return now is before if now is None or before is None else abs(now - before) <= allowed


@SETTINGS
@given(before=tables, now=tables, share=st.integers(0, 4), mean=st.integers(0, 8), distinct=st.integers(0, 4))
def test_drift_holds_while_each_measure_is_near_what_was_accepted_last(place, before, now, share, mean, distinct):
    tolerances = {"null_share": share / 16 + 0.01, "mean": mean / 4 + 0.01, "distinct": distinct}
    check = {"drift": {"column": "n", **tolerances}}
    state = str(place.folder / f"state-{place.kind}-{next(place.numbers)}-{id(before)}.json")
    (place.folder / state).unlink(missing_ok=True)
    place.put(before)
    assert place.check(check, state=state)[0].status == "passed"
    place.put(now)
    pairs = zip(measured(now), measured(before), tolerances.values(), strict=True)
    expected = all(itertools.starmap(near, pairs))
    assert (place.check(check, state=state)[0].status == "passed") == expected
