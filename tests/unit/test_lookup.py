"""What a lookup takes, keeps, sets aside and refuses; held against a join of plain Python dicts."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhaul.config.job import load_job
from keyhaul.config.lookupstep import Lookup
from keyhaul.config.steps import Step
from keyhaul.errors import ConfigError
from keyhaul.sources.lookups import LookupSource
from keyhaul.staging.stage import Stager
from keyhaul.transform.compiled import compile_transform
from keyhaul.transform.lookup import LookupTable

AIRLINES = pl.DataFrame({"carrier": ["AA", "UA", None], "name": ["American", "United", "Nobody"]})


def lookup(on="carrier", take=("name",), **more):
    pairs = {
        key: value
        if isinstance(value, dict)
        else {name: name for name in ([value] if isinstance(value, str) else value)}
        for key, value in {"on": on, "take": take}.items()
    }
    return Lookup(**{"name": "airlines", "table": "airlines", "at": "job.yaml line 5", **pairs, **more})


def step(of):
    return Step(kind="lookup", lookup=of, at=of.at)


def set_(**expressions):
    return Step(kind="set", set=expressions, at="job.yaml line 7")


def compiled(chunk, rows, *steps):
    return compile_transform(
        [step(s) if isinstance(s, Lookup) else s for s in steps],
        {name: dtype for name, dtype in chunk.schema.items() if name != "_keyhaul_record"},
        lambda _lookup, _keys: LookupTable(frame=rows),
    )


def chunk(**columns):
    return pl.DataFrame(columns).with_row_index("_keyhaul_record").cast({"_keyhaul_record": pl.Int64})


def apply(data, rows, *steps):
    return compiled(data, rows, *steps).apply(data)


def refusal(data, rows, *steps):
    with pytest.raises(ConfigError) as caught:
        compiled(data, rows, *steps)
    return str(caught.value)


# --- what it takes --------------------------------------------------------------------------------


def test_a_taken_column_stands_beside_each_row_in_its_order_and_null_matches_nothing():
    done, failed = apply(chunk(carrier=["UA", None, "AA", "XX", "UA"]), AIRLINES, lookup(take={"airline": "name"}))
    assert done.rows() == [
        (0, "UA", "United"),
        (1, None, None),
        (2, "AA", "American"),
        (3, "XX", None),
        (4, "UA", "United"),
    ]
    assert failed.height == 0


def test_a_record_without_match_is_set_aside_with_the_column_and_without_its_value():
    data = chunk(carrier=["UA", None, "AA", "XX"])
    done, failed = apply(data, AIRLINES, lookup(missing="quarantine"))
    assert done.rows() == [(0, "UA", "United"), (2, "AA", "American")]
    assert failed.rows() == [
        (1, "carrier is null", "lookup:airlines"),
        (3, "carrier not found in airlines", "lookup:airlines"),
    ]


def test_several_columns_match_together_under_other_names():
    rows = pl.DataFrame({"x": [1, 1, 2], "y": ["a", "b", "a"], "v": [10, 11, 20]})
    data = chunk(p=[1, 2, 2, None, 1], q=["b", "a", "b", "a", None])
    of = lookup(on={"p": "x", "q": "y"}, take=["v"], missing="quarantine")
    done, failed = apply(data, rows, of)
    assert done.rows() == [(0, 1, "b", 11), (1, 2, "a", 20)]
    assert [row[1] for row in failed.rows()] == ["p, q not found in airlines", "p is null", "q is null"]


def test_the_lookup_key_itself_can_be_taken():
    done, _ = apply(chunk(carrier=["AA", "XX"]), AIRLINES, lookup(take={"known": "carrier"}))
    assert done["known"].to_list() == ["AA", None]


def test_a_value_that_is_null_in_the_lookup_is_a_match():
    rows = pl.DataFrame({"carrier": ["AA"], "name": [None]}, schema={"carrier": pl.String, "name": pl.String})
    done, failed = apply(chunk(carrier=["AA"]), rows, lookup(missing="quarantine"))
    assert (done.rows(), failed.height) == ([(0, "AA", None)], 0)


def test_an_empty_lookup_and_an_empty_chunk_are_no_mistake():
    done, failed = apply(chunk(carrier=["AA"]), AIRLINES.clear(), lookup(missing="quarantine"))
    assert (done.height, failed.height) == (0, 1)
    done, failed = apply(chunk(carrier=["AA"]).clear(), AIRLINES, lookup(missing="quarantine"))
    assert (done.columns, done.height, failed.height) == (["_keyhaul_record", "carrier", "name"], 0, 0)


def test_a_taken_column_is_computed_and_later_steps_and_lookups_use_it():
    rows = {"airlines": AIRLINES, "homes": pl.DataFrame({"name": ["American"], "home": ["Fort Worth"]})}
    steps = [
        step(lookup(missing="quarantine")),
        step(lookup(name="homes", on="name", take=["home"])),
        set_(shout="upper(home)"),
        Step(kind="drop", drop=("carrier",), at=""),
    ]
    transform = compile_transform(steps, {"carrier": pl.String()}, lambda of, _keys: LookupTable(frame=rows[of.name]))
    done, failed = transform.apply(chunk(carrier=["AA", "UA", "XX"]))
    assert done.select("name", "shout").rows() == [("American", "FORT WORTH"), ("United", None)]
    assert failed["_keyhaul_record"].to_list() == [2]
    assert {name: column.source for name, column in transform.output.items()} == dict.fromkeys(
        ["name", "home", "shout"]
    )
    assert (transform.needed, transform.used) == ({"carrier"}, {"carrier"})


@pytest.mark.parametrize("missing", ["keep", "quarantine"])
def test_the_key_is_read_and_looked_at_even_when_nothing_of_the_lookup_stays(missing):
    gone = Step(kind="drop", drop=("carrier", "name"), at="")
    transform = compiled(chunk(carrier=["AA"], other=[1]), AIRLINES, lookup(missing=missing), gone)
    assert (transform.needed, transform.used) == ({"carrier", "other"}, {"carrier"})


def test_a_record_that_was_filtered_before_is_not_looked_up():
    where = Step(kind="where", where="carrier <> 'XX'", at="")
    done, failed = apply(chunk(carrier=["AA", "XX"]), AIRLINES, where, lookup(missing="quarantine"))
    assert (done.height, failed.height) == (1, 0)


def test_isolation_by_halving_finds_failing_rows_beside_those_without_match_each_once():
    number = 500
    data = chunk(carrier=["AA" if n % 7 else "XX" for n in range(number)], b=[n % 50 for n in range(number)])
    done, failed = apply(data, AIRLINES, lookup(missing="quarantine"), set_(x="100 // b"))
    lost = {n: "lookup:airlines" for n in range(number) if n % 7 == 0}
    zero = {n: "transform" for n in range(number) if n % 50 == 0 and n % 7}
    assert dict(failed.select("_keyhaul_record", "rule").rows()) == lost | zero
    assert failed.height == len(lost) + len(zero)
    assert done["_keyhaul_record"].to_list() == [n for n in range(number) if n not in lost | zero]


def test_the_stage_says_lookup_and_names_it():
    data = chunk(carrier=["AA", "XX"], b=[0, 1])
    done, failed = apply(data, AIRLINES, lookup(missing="quarantine"), set_(x="1 // b"))
    stager = Stager((), None, (), ("carrier",))
    staged = stager.stage(data, done, failed)
    stager.close()
    assert sorted(staged.rejected.select("_keyhaul_record", "stage", "rules", "message", "key").rows()) == [
        (0, "transform", ["transform"], "division by zero", "AA"),
        (1, "lookup", ["lookup:airlines"], "carrier not found in airlines", "XX"),
    ]
    assert (staged.counts.read, staged.counts.quarantined, staged.counts.filtered) == (2, 2, 0)


KEYS = st.one_of(st.none(), st.integers(-3, 3))


@given(
    st.lists(st.tuples(KEYS, KEYS), max_size=30),
    st.lists(st.tuples(KEYS, KEYS, st.one_of(st.none(), st.integers(0, 3)), st.integers(0, 5)), max_size=30),
    st.sampled_from(["keep", "quarantine"]),
)
@settings(max_examples=150, deadline=None)
def test_it_is_the_join_with_a_dict(pairs, rows, missing):
    types = {"a": pl.Int32, "b": pl.Int64}
    data = chunk(a=[a for a, _ in pairs], b=[b for _, b in pairs]).cast(types)
    frame = pl.DataFrame(rows, schema={"x": pl.Int64, "y": pl.Int32, "at": pl.Int64, "v": pl.Int64}, orient="row")
    best: dict[tuple[int, int], tuple[tuple[bool, int], int]] = {}
    for x, y, at, v in rows:
        if x is not None and y is not None:
            rank = ((at is None, at or 0), v)
            best[x, y] = min(best.get((x, y), rank), rank)
    of = lookup(on={"a": "x", "b": "y"}, take=["v"], first="at", missing=missing)
    done, failed = apply(data, frame, of)
    matched = [(n, best.get(pair)) for n, pair in enumerate(pairs)]
    if missing == "keep":
        assert done.select("_keyhaul_record", "v").rows() == [(n, rank[1] if rank else None) for n, rank in matched]
    else:
        assert done.select("_keyhaul_record", "v").rows() == [(n, rank[1]) for n, rank in matched if rank]
        assert failed["_keyhaul_record"].to_list() == [n for n, rank in matched if not rank]


# --- several rows with one key ----------------------------------------------------------------------

TWICE = pl.DataFrame({"carrier": ["AA", "AA", "UA", "UA", "DL"], "name": list("zyxwv"), "since": [2, 1, None, 7, 3]})


def test_several_rows_with_one_key_are_refused_with_their_number():
    assert refusal(chunk(carrier=["AA"]), TWICE, lookup()) == (
        "job.yaml line 5: hold lookup airlines: 2 keys have several rows with the same carrier, expected one each. "
        "Give `first: COLUMN` to take the row with the lowest value there"
    )


def test_several_rows_without_a_key_are_no_mistake():
    rows = pl.DataFrame({"carrier": [None, None, "AA"], "name": ["a", "b", "c"]})
    done, _ = apply(chunk(carrier=["AA", None]), rows, lookup())
    assert done["name"].to_list() == ["c", None]


@pytest.mark.parametrize("rows", [TWICE, TWICE.reverse(), TWICE.sort("name")])
def test_first_takes_the_row_with_the_lowest_value_whatever_their_order(rows):
    done, _ = apply(chunk(carrier=["AA", "UA", "DL"]), rows, lookup(first="since"))
    assert done["name"].to_list() == ["y", "w", "v"]


def test_rows_that_are_equal_in_first_are_decided_by_what_is_taken():
    rows = pl.DataFrame({"carrier": ["AA", "AA"], "name": ["b", "a"], "since": [1, 1]})
    for order in (rows, rows.reverse()):
        done, _ = apply(chunk(carrier=["AA"]), order, lookup(first="since"))
        assert done["name"].to_list() == ["a"]


# --- types ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("have", "values", "want", "key"),
    [
        (pl.Int64, [1, 2**40], pl.Int16, 1),
        (pl.Int16, [1, 2], pl.Int64, 1),
        (pl.UInt32, [1, 2], pl.Int32, 1),
        (pl.Int64, [1, 2], pl.Decimal(10, 2), Decimal("1.00")),
        (pl.Decimal(10, 1), [Decimal("1.5"), Decimal(2)], pl.Decimal(10, 2), Decimal("1.50")),
        (pl.Float32, [0.5, 1.0], pl.Float64, 0.5),
        (pl.String, ["2013-01-01", "2013-01-02"], pl.Date, date(2013, 1, 1)),
        (pl.Date, [date(2013, 1, 1), None], pl.Date, date(2013, 1, 1)),
        (pl.Datetime("ms"), [datetime(2013, 1, 1), None], pl.Datetime("us"), datetime(2013, 1, 1)),  # noqa: DTZ001
        (pl.Datetime("us", "Europe/Berlin"), [datetime(2013, 1, 1, tzinfo=UTC), None], pl.Datetime("us", "UTC"), datetime(2013, 1, 1, tzinfo=UTC)),
        (pl.Categorical, ["a", "b"], pl.String, "a"),
        (pl.Boolean, [True, False], pl.Boolean, True),
        (pl.Binary, [b"a", b"b"], pl.Binary, b"a"),
    ],
)  # fmt: skip
def test_keys_of_types_that_say_the_same_are_equal(have, values, want, key):
    rows = pl.DataFrame({"k": pl.Series(values, dtype=have), "v": ["first", "second"]})
    data = pl.DataFrame({"_keyhaul_record": [0], "k": pl.Series([key], dtype=want)})
    done, _ = apply(data, rows, lookup(on="k", take=["v"]))
    assert (done["v"].to_list(), done.schema["k"]) == (["first"], want)


@pytest.mark.parametrize(
    ("have", "values", "want", "got"),
    [
        (pl.String, ["1"], pl.Int32, "got String, expected Int32"),
        (pl.Int32, [1], pl.String, "got Int32, expected String"),
        (pl.Int32, [1], pl.Date, "got Int32, expected Date"),
        (pl.Float64, [1.0], pl.Int32, "got Float64, expected Int32"),
        (pl.Decimal(10, 3), [Decimal("1.005")], pl.Decimal(10, 2), "with values that have no equal Decimal"),
        (pl.String, ["1 January"], pl.Date, "got String with values that have no equal Date"),
        (pl.Int64, [2**53 + 1], pl.Float64, "got Int64 with values that have no equal Float64"),
        (pl.Float64, [0.1], pl.Float32, "got Float64 with values that have no equal Float32"),
        (pl.Datetime("us"), [datetime(2013, 1, 1)], pl.Datetime("us", "UTC"), "got Datetime"),  # noqa: DTZ001
        (pl.UInt64, [2**63], pl.Int64, "got UInt64 beyond bigint"),
        (pl.List(pl.Int64), [[1]], pl.Int64, "got List"),
    ],
)
def test_keys_of_types_that_do_not_fit_are_refused_by_name(have, values, want, got):
    rows = pl.DataFrame({"key": pl.Series(values, dtype=have), "v": ["x"]})
    data = pl.DataFrame({"_keyhaul_record": [], "k": []}, schema={"_keyhaul_record": pl.Int64, "k": want})
    message = refusal(data, rows, lookup(on={"k": "key"}, take=["v"]))
    assert message.startswith("job.yaml line 5: hold lookup airlines: compare key of airlines: ")
    assert got in message
    assert "as k has in the chunk" in message


def test_taken_columns_have_types_that_postgresql_has():
    rows = pl.DataFrame(
        {
            "carrier": ["AA"],
            "wide": pl.Series([1], dtype=pl.UInt64),
            "kind": pl.Series(["x"], dtype=pl.Categorical),
            "when": pl.Series([datetime(2013, 1, 1)], dtype=pl.Datetime("ns")),  # noqa: DTZ001
            "none": [None],
        }
    )
    done, _ = apply(chunk(carrier=["AA"]), rows, lookup(take=["wide", "kind", "when", "none"]))
    assert done.dtypes[2:] == [pl.Int64, pl.String, pl.Datetime("us"), pl.String]


def test_a_taken_column_of_a_type_that_postgresql_has_not_is_refused():
    rows = pl.DataFrame({"carrier": ["AA"], "parts": [[1, 2]]})
    assert "take parts: got List(Int64), expected one that PostgreSQL has" in refusal(
        chunk(carrier=["AA"]), rows, lookup(take=["parts"])
    )


# --- what does not fit the job ------------------------------------------------------------------------


def test_a_key_column_that_the_chunk_lacks_is_refused_with_those_it_has():
    message = refusal(chunk(a=[1], b=[2]), AIRLINES, lookup())
    assert message == "job.yaml line 5: look up by carrier: no such column, expected one of a, b"


@pytest.mark.parametrize("name", ["carrier", "_keyhaul_record"])
def test_a_column_that_is_there_already_is_not_taken_over(name):
    assert f"take {name}: there is such a column already" in refusal(
        chunk(carrier=["AA"]), AIRLINES, lookup(take={name: "name"})
    )


def test_a_lookup_above_its_limit_is_refused_with_what_to_do():
    rows = pl.DataFrame({"carrier": [f"{n:0100}" for n in range(20_000)], "name": "x"})
    message = refusal(chunk(carrier=["AA"]), rows, lookup(limit_mb=2))
    expected = (
        r"job.yaml line 5: hold lookup airlines: it has \d\.\d MB, expected at most 2 MB. Take fewer columns or rows "
        r"\(a query\), or raise limit_mb if the memory is there"
    )
    assert re.fullmatch(expected, message), message
    assert apply(chunk(carrier=["AA"]), rows, lookup(limit_mb=8))[0].height == 1


# --- files --------------------------------------------------------------------------------------------


def load(path, want=None, **more):
    source = LookupSource(job=None, own=None)
    of = lookup(table=None, file=str(path), **more)
    return source.load(of, want or {name: pl.String() for name in of.on.values()}).frame


def test_a_csv_files_types_are_what_all_its_values_are_and_a_text_key_stays_text(tmp_path):
    path = tmp_path / "codes.csv"
    path.write_text(
        "code,number,day,mixed,unused\n007,1,2013-01-01,1,x\n010,2,,1,x\n" + "011,3,,1,x\n" * 200 + "012,,,NA,x\n"
    )
    frame = load(path, on="code", take=["number", "day", "mixed"])
    assert frame.schema == {"code": pl.String, "number": pl.Int64, "day": pl.String, "mixed": pl.String}
    assert frame.row(0) == ("007", 1, "2013-01-01", "1")
    assert frame.row(-1) == ("012", None, None, "NA")
    assert load(path, {"code": pl.Int32()}, on="code", take=["number"]).schema["code"] == pl.Int64


def test_a_parquet_file_gives_its_own_types_and_only_the_columns_named(tmp_path):
    path = tmp_path / "codes.PARQUET"
    pl.DataFrame({"carrier": ["AA"], "name": ["x"], "since": [date(2013, 1, 1)], "more": [[1]]}).write_parquet(path)
    assert load(path, take=["since"]).rows() == [("AA", date(2013, 1, 1))]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("none.csv", None, "got no such file, expected a CSV or Parquet file"),
        ("empty.csv", b"", "got an empty file, expected a first line with the columns' names"),
        ("other.csv", b"a,b\n1,2\n", "it has no column carrier, name, expected one of a, b. Change on, take or first"),
        ("ragged.csv", b"carrier,name\nAA,x\nUA,y,z,1\n", "expected a readable CSV file"),
        ("none.parquet", None, "got no such file"),
        ("text.parquet", b"carrier,name\nAA,x\n", "expected a readable PARQUET file"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused_with_its_place(tmp_path, name, content, expected):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / name)
    assert str(caught.value).startswith("job.yaml line 5: read lookup ")
    assert expected in str(caught.value)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_above_the_limit_is_refused_before_it_is_read(tmp_path, ending):
    path = tmp_path / f"large.{ending}"
    frame = pl.DataFrame({"carrier": [str(n * 7919 % 10**9) * 3 for n in range(60_000)], "name": "x"})
    frame.write_csv(path) if ending == "csv" else frame.write_parquet(path, compression="uncompressed")
    with pytest.raises(ConfigError, match=r"it has \d\.\d MB, expected at most 1 MB"):
        load(path, limit_mb=1)


# --- the job file -----------------------------------------------------------------------------------


def job(tmp_path, text):
    path = tmp_path / "job.yaml"
    path.write_text(f"key: id\ntransform:\n{text}")
    return load_job(path, {}, {})


def test_a_job_file_says_where_from_by_what_and_which_columns(tmp_path):
    text = "  - lookup: {source: {file: data/airlines.csv}, on: carrier, take: {airline: name}, missing: quarantine}\n"
    (only,) = job(tmp_path, text).transform
    assert only.lookup == Lookup(
        name="airlines",
        file="data/airlines.csv",
        on={"carrier": "carrier"},
        take={"airline": "name"},
        missing="quarantine",
    )
    assert only.lookup.at.endswith("job.yaml line 3")
    text = "  - lookup: {source: {table: public.Planes}, on: [a, b], take: [c], first: d, limit_mb: 9}\n"
    assert job(tmp_path, text).transform[0].lookup == Lookup(
        name="Planes", table="public.Planes", on={"a": "a", "b": "b"}, take={"c": "c"}, first="d", limit_mb=9
    )


GOOD = {"source": "{table: t}", "on": "a", "take": "b"}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"source": "{table: t, query: select 1}"}, "lookup.source: got table and query, expected one of table, query, file"),
        ({"source": "{}"}, "lookup.source: got none of them, expected one of table, query, file"),
        ({"source": "t"}, 'lookup.source: got "t", expected a mapping with table, query or file'),
        ({"source": "{tabel: t}"}, "lookup.source.tabel: got an unknown key, expected table"),
        ({"source": "{file: a.xlsx}"}, 'lookup.source.file: got ".xlsx", expected a file that ends in .csv or .parquet'),
        ({"source": '{file: a.csv, uri: "postgresql://h/d"}'}, "lookup.source.uri: got a database for a file"),
        ({"source": '{table: t, uri: "mysql://u:secret@h/d"}'}, "lookup.source.uri"),
        ({"source": None}, "lookup.source: got nothing"),
        ({"on": None}, "lookup.on: got nothing"),
        ({"on": "[]"}, "lookup.on: got an empty list"),
        ({"on": "{a: x, b: x}"}, "lookup.on: got one column of the lookup twice"),
        ({"take": "{a: 1}"}, "lookup.take.a: got 1, expected new column: column of the lookup"),
        ({"missing": "drop"}, 'lookup.missing: got "drop", expected one of keep, quarantine'),
        ({"first": "[a]"}, "lookup.first: got a list, expected a column of the lookup"),
        ({"limit_mb": "0"}, "lookup.limit_mb: got 0, expected a whole number of MB"),
        ({"limit_mb": "true"}, "lookup.limit_mb: got true"),
        ({"name": "'a b'"}, 'lookup.name: got "a b"'),
        ({"mising": "keep"}, "lookup.mising: got an unknown key, expected missing"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_told_with_its_line_and_key(tmp_path, changed, expected):
    lines = [f"      {key}: {value}" for key, value in {**GOOD, **changed}.items() if value is not None]
    with pytest.raises(ConfigError) as caught:
        job(tmp_path, "  - lookup:\n" + "\n".join(lines) + "\n")
    (message,) = str(caught.value).splitlines()
    assert " line " in message
    assert f"transform[0].{expected}" in message
    assert "secret" not in message


def test_the_content_of_a_lookup_file_and_all_that_it_does_make_the_job_another(tmp_path):
    path = tmp_path / "codes.csv"
    path.write_text("a,b\n1,2\n")
    text = f"  - lookup: {{source: {{file: {path}}}, on: a, take: b}}\n"
    first = job(tmp_path, text).fingerprint()
    assert job(tmp_path, text).fingerprint() == first
    assert job(tmp_path, text.replace("take: b", "take: b, limit_mb: 9")).fingerprint() == first
    for more in ("missing: quarantine", "first: b", "name: other"):
        assert job(tmp_path, text.replace("take: b", f"take: b, {more}")).fingerprint() != first
    path.write_text("a,b\n1,3\n")
    assert job(tmp_path, text).fingerprint() != first


def test_a_lookups_password_is_in_no_repr_and_no_identity(tmp_path):
    text = '  - lookup: {source: {table: t, uri: "postgresql://u:secret@h/d"}, on: a, take: b}\n'
    loaded = job(tmp_path, text)
    assert "secret" not in repr(loaded) + str(loaded.identity())
    assert "h:5432/d" in str(loaded.identity())
