"""JSON lines and arrays: the fast way, the strict way and Python's json module say the same, for parts of any size."""

from __future__ import annotations

import json
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opened import opened

from keyhaul.errors import ConfigError
from keyhaul.sources.columns import column_of
from keyhaul.sources.files.dialect import Dialect
from keyhaul.sources.files.json import array as jsonarray
from keyhaul.sources.files.json.fast import read_fast, schema_of
from keyhaul.sources.files.json.tokens import Taker
from keyhaul.sources.files.json.values import infer_values, typed_values
from keyhaul.sources.files.records import find_records

LINES = Dialect(quote=None)
TYPES = {
    "i": "integer", "b": "bigint", "n": "numeric(8,3)", "d": "double precision", "r": "real", "o": "boolean",
    "t": "text", "v": "character varying(3)", "a": "date", "m": "timestamp with time zone", "u": "uuid", "y": "bytea",
}  # fmt: skip
COLUMNS = {name: column_of(name, pg_type) for name, pg_type in TYPES.items()}
SCHEMA = schema_of(COLUMNS)


def strictly(text, columns=COLUMNS, *, ignore_extra=False):
    tokens = Taker(list(columns), (), ignore_extra=ignore_extra).take_apart(text, find_records(text, LINES, last=True))
    return tokens, typed_values(tokens.values, columns, time_zone=None)


tokens = st.sampled_from(
    [
        "1", "-0", "0", "1.0", "1e2", "1E-2", "1.10", "1.1000", "1.23456", "12345678", "9007199254740993", "1e400", "1e-400",
        "-9223372036854775808", "9223372036854775808", "1e39", "1e-60", "0.1", "NaN", "-Infinity", "01", "1.", "+1", ".5", "-",
        '"1"', '"1e2"', '"+5"', '" 5"', '".5"', '"1\\u0030"', '"1\\u0065\\u0031"', '"\\u0031e1"', '"NaN"', '""', '"x"', '"abcd"',
        '"2024-02-29"', '"2024-02-30"', '"2024-02-29T10:00Z"', '"2024-02-29 24:00:00+02"', '"true"', '"\\\\x00ff"', '"\\u0000"',
        '"\\\\u0000"', '"\\ud800"', '"\\udc00"', '"\\ud83d\\ude00"', '"\\x"', '"\t"', '"a\\"b"', '"\\":"', '"é"', '"a:b"', '"{}"',
        '"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"', "true", "false", "null", "nul", "{}", '{"i":1}', "[1,2]", "[", "]", '{"i":1,"i":2}',
    ]
)  # fmt: skip
keys = st.sampled_from([*TYPES, "i", "zzz", "\\u0069", ""])
blank = st.sampled_from(["", "", "", " ", "\t", "\r", "\n"])


@st.composite
def records(draw):
    pairs = [
        f'{draw(blank)}"{draw(keys)}"{draw(blank)}:{draw(blank)}{draw(tokens)}' for _ in range(draw(st.integers(0, 3)))
    ]
    return draw(
        st.sampled_from(["{%s}"] * 12 + ["{%s", "%s}", "{%s,}", "[%s]", "{%s}{%s}", "null%s", " {%s} "])
    ).replace("%s", ",".join(pairs))


texts = st.lists(records(), max_size=4).map("\n".join)


@settings(deadline=None)
@given(texts)
@example('{"i":1}{"i":2}\n  ')
@example('{"d":0.0}\n{"d":1e-400}')
@example('{"i":1,"i":2}')
@example('{"i":1,"i" :2}')
@example('{"n":"1e2"}')
@example('{"t":"\\udc00"}')
@example('{"t":"\\u0000"}')
@example('{"r":1e39}')
@example('{"d":NaN}')
def test_what_the_fast_way_reads_the_strict_way_reads_too_and_nothing_else(text):
    text = text.encode()
    spans = find_records(text, LINES, last=True)
    fast = read_fast(text, spans, SCHEMA, COLUMNS, time_zone=None)
    if fast is None:
        return
    tokens, strict = strictly(text)
    assert (tokens.bad, tokens.number.len()) == ({}, spans.starts.len())
    assert fast.frame.equals(strict.frame)
    assert fast.frame.schema == strict.frame.schema
    assert fast.wrong == strict.wrong


def test_the_fast_way_reads_good_records(tmp_path):
    text = b'{"i":1,"n":1.10,"d":2.5,"t":"\xc3\xa9\\n\\"","o":true,"a":"2024-02-29"}\n{"t":null}\n{"i":-0,"b":9007199254740993}\n'
    found = read_fast(text, find_records(text, LINES, last=True), SCHEMA, COLUMNS, time_zone=None)
    assert found.frame["t"].to_list() == ['é\n"', None, None]
    assert found.frame["n"].to_list() == [Decimal("1.100"), None, None]
    assert found.frame["b"].to_list() == [None, None, 9007199254740993]


@settings(deadline=None)
@given(texts)
def test_the_strict_way_rejects_what_pythons_json_module_does_not_read_as_one_object(text):
    def pairs(found):
        assert len(found) == len(dict(found))
        return dict(found)

    text = text.encode()
    spans = find_records(text, LINES, last=True)
    found = Taker(["i"], (), ignore_extra=True).take_apart(text, spans)
    assert found.number.len() + len(found.bad) == spans.starts.len()
    for number, value in zip(found.number, found.values["i"], strict=True):
        record = json.loads(text[spans.starts[number] : spans.ends[number]], object_pairs_hook=list, parse_constant=int)
        assert [key for key, _ in record].count("i") <= 1
        assert json.loads(value) == json.loads(text[spans.starts[number] : spans.ends[number]]).get("i")
        assert not any("\0" in str(one) or any("\ud800" <= c <= "\udfff" for c in str(one)) for one in record)
    for number in found.bad:
        raw = text[spans.starts[number] : spans.ends[number]]
        try:
            record = json.loads(raw.decode(), object_pairs_hook=list, parse_constant=int)
        except ValueError:
            continue
        whole = isinstance(record, list) and all(isinstance(pair, tuple) for pair in record)
        odd = (
            any(
                "\0" in str(one).encode("unicode_escape").decode().replace("\\x00", "\0")
                or any("\ud800" <= c <= "\udfff" for c in json.dumps(one, ensure_ascii=False))
                for one in record
            )
            if whole
            else True
        )
        names = [key for key, _ in record] if whole else []
        assert not whole or raw.lstrip()[:1] == b"[" or odd or len(set(names)) < len(names)


LOADED = (
    '{"id":1,"t":"a"}\n{"id":2,"t":1.10}\n\n{"id":3}\n{"id":4,"t":null}\n{"t":"x","id":5}\r\n'
    '{"id":6,"t":{"k": [1E400]}}\n{"id" : 7, "t" : true}\n{"id":"8","t":"\\u00e9"}\n{"id":1e1,"t":"end"}'
)  # fmt: skip
ROWS = [
    (1, "a"),
    (2, "1.10"),
    (3, None),
    (4, None),
    (5, "x"),
    (6, '{"k": [1E400]}'),
    (7, "true"),
    (8, "é"),
    (10, "end"),
]
BAD = (
    '{"id":1,"t":"a"}\n{"id":2,"t":"a",}\n{"id":3,"id":4}\n{"id":5,"t":"\\ud800"}\n{"id":6,"t":"\\u0000"}\n[7]\n"eight"\n'
    '{"id":1.9}\n{"id":"x"}\n{"id":11,"late":"z"}\n\n{"id":12,"t":NaN}\n   \n{"id":13}{"id":14}\n{"id":15,"t":"caf\xe9"}\n{"id":16,"t":"b"}\n'
)  # fmt: skip
LEFT = [
    ("a.jsonl line 2, record 2", "broken JSON: trailing comma in object (byte 16)", '{"id":2,"t":"a",}'),
    ("a.jsonl line 3, record 3", 'key "id" twice, expected each key once', '{"id":3,"id":4}'),
    ("a.jsonl line 4, record 4", "an unpaired surrogate", '{"id":5,"t":"\\ud800"}'),
    ("a.jsonl line 5, record 5", "the character \\u0000, which no PostgreSQL text can hold", '{"id":6,"t":"\\u0000"}'),
    ("a.jsonl line 6, record 6", "an array, expected an object", "[7]"),
    ("a.jsonl line 7, record 7", "a text, expected an object", '"eight"'),
    ("a.jsonl line 8, record 8", "id: expected a whole number from -2147483648 to 2147483647", '{"id":1.9}'),
    ("a.jsonl line 9, record 9", "id: expected a whole number from -2147483648 to 2147483647", '{"id":"x"}'),
    ("a.jsonl line 10, record 10", 'key "late": no column of this name, expected only keys that are columns. Declare it under columns, or give extra_columns: ignore', '{"id":11,"late":"z"}'),
    ("a.jsonl line 12, record 11", "broken JSON: invalid character (byte 13)", '{"id":12,"t":NaN}'),
    ("a.jsonl line 13, record 12", "broken JSON: Input data was truncated", "   "),
    ("a.jsonl line 14, record 13", "broken JSON: trailing characters (byte 10)", '{"id":13}{"id":14}'),
    ("a.jsonl line 15, record 14", "bytes that are not UTF-8", '{"id":15,"t":"caf\\xe9"}'),
]  # fmt: skip
TWO = {"id": "integer", "t": "text"}


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 1000])
def test_good_records_load_whatever_the_size_of_the_parts(tmp_path, chunk_rows):
    path = tmp_path / "a.ndjson"
    path.write_text(LOADED, newline="")
    assert opened(path, declared=TWO).read_all(chunk_rows) == (ROWS, [])


def found_late(path, chunk_rows, **more):
    """What a file gives whose key `late` no record of the sample has."""
    source = opened(path, declared=TWO, **more)
    source.source._files[0].settle({name: column_of(name, pg_type) for name, pg_type in TWO.items()})
    source.source._columns.pop("late", None)
    return source.read_all(chunk_rows)


@pytest.mark.parametrize("chunk_rows", [1, 2, 1000])
def test_a_bad_record_costs_itself_and_says_where_it_is_and_why(tmp_path, chunk_rows):
    path = tmp_path / "a.jsonl"
    path.write_bytes(BAD.encode("latin-1"))
    assert found_late(path, chunk_rows) == ([(1, "a"), (16, "b")], LEFT)


def test_an_array_has_the_same_records_and_bad_ones_with_their_own_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(
        '[\n {"id": 1, "t": "a]"},\n {"id": 2,\n  "t": "\\"}{"\n },{"id": 3,\n"id": 4}, 5,\n {"id": nope}\n, {"id": 6}\n]\n'
    )
    for chunk_rows in (1, 2, 1000):
        assert opened(path, declared=TWO).read_all(chunk_rows) == (
            [(1, "a]"), (2, '"}{'), (6, None)],
            [
                ("a.json line 5, record 3", 'key "id" twice, expected each key once', '{"id": 3,\n"id": 4}'),
                ("a.json line 6, record 4", "a number, expected an object", "5"),
                ("a.json line 7, record 5", "broken JSON: invalid character (byte 8)", '{"id": nope}'),
            ],
        )


@settings(deadline=None)
@given(st.lists(st.one_of(st.dictionaries(st.text(max_size=3), st.recursive(st.one_of(st.text(max_size=5), st.integers(), st.none()), lambda inner: st.lists(inner, max_size=3), max_leaves=4), max_size=3), st.integers(), st.text(max_size=4)), max_size=8), st.booleans(), st.sampled_from([None, 1]), st.integers(1, 40), st.integers(1, 4))  # fmt: skip
def test_the_elements_of_an_array_are_found_in_blocks_of_any_size(
    tmp_path_factory, values, ascii_only, indent, block, count
):
    folder = tmp_path_factory.mktemp("array")
    path = folder / "a.json"
    text = json.dumps(values, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "replace")
    path.write_bytes(b" \n" + text + b"\n")
    before, jsonarray._BLOCK = jsonarray._BLOCK, block
    try:
        file = jsonarray_file(path)
        elements = jsonarray.Elements(file, str(folder))
    finally:
        jsonarray._BLOCK = before
    found = []
    for part, _ in elements.parts(count):
        taken = elements.take(part)
        for start, end, line in zip(taken.spans.starts, taken.spans.ends, taken.spans.lines, strict=True):
            raw = taken.text[start:end]
            found.append(json.loads(raw))
            assert (b" \n" + text).splitlines(keepends=True)[line].lstrip().startswith(
                raw.splitlines()[0][:1]
            ) or indent is None
    elements.close()
    file.close()
    assert found == json.loads(text)


def jsonarray_file(path):
    from keyhaul.sources.files.textfile import TextFile

    return TextFile(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[{"id":1}', "line 1: the array has no end, expected a closing bracket"),
        ('[\n{"id":1},\n{"id":"2}]', "line 2: the array has no end, expected a closing bracket"),
        ('[{"id":1},]', "line 1: a comma before the closing bracket"),
        ('[{"id":1}{"id":2}]', "no comma between two elements"),
        ('[{"id":1},,{"id":2}]', "a comma without an element before it"),
        ('[,{"id":1}]', "a comma without an element before it"),
        ('[{"id":1}] x', "text after the closing bracket"),
        ('[{"id":1}]]', "text after the closing bracket"),
        ("[]", "no record with a key"),
        ("", "no record with a key"),
        ('{"id":\n1}\n', r"no record looked at is a JSON object \(broken JSON: .*jq -c"),
        ("[1, 2]", r"no record looked at is a JSON object \(a number, expected an object\)"),
        ('{"_keyhaul_line":1}', "column _keyhaul_line has a name of keyhaul's own"),
    ],
)
def test_what_cannot_be_read_as_records_is_refused_before_the_first(tmp_path, text, told):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        opened(path)


@pytest.mark.parametrize(
    ("values", "pg_type"),
    [
        (["1", "-7", "9007199254740993", "null"], "bigint"),
        (["1", "9223372036854775808"], "numeric"),
        (["1.10", "2"], "numeric"),
        (["1e3", "2.5"], "double precision"),
        (["1E400", "1"], "text"),
        (["1e3", "9007199254740993"], "text"),
        (["true", "false"], "boolean"),
        (["true", "1"], "text"),
        (['"1"', '"2"'], "text"),
        (['"1"', "2"], "text"),
        (['"true"'], "text"),
        (['"2024-02-29"'], "date"),
        (['"2024-02-29T10:00:00Z"'], "timestamp with time zone"),
        (['"2024-02-29T10:00"'], "timestamp without time zone"),
        (['"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"'], "uuid"),
        (['"2024-02-29"', '""'], "text"),
        (["{}", "null"], "jsonb"),
        (["[1]", '"x"', "2"], "jsonb"),
        (["null"], "text"),
        ([], "text"),
    ],
)
def test_a_type_is_inferred_that_every_value_fits_unchanged(values, pg_type):
    assert infer_values(pl.Series(values, dtype=pl.String)).pg_type == pg_type


def test_exact_numbers_stay_exact(tmp_path):
    path = tmp_path / "05.ndjson"
    path.write_text(
        '{"id":1,"d":9007199254740993.5,"b":18446744073709551615,"t":1.10}\n'
        '{"id":2,"d":0.1234567890,"b":9007199254740993,"t":"1.10"}\n{"id":3,"d":1e2,"b":-0,"t":1E400}\n'
        '{"id":4,"d":"12345678901234567890.0123456789","b":1,"t":true}\n'
        '{"id":5,"d":1.12345678901,"b":1.9,"t":null}\n'
    )
    declared = {"id": "integer", "d": "numeric(38,10)", "b": "numeric(20,0)", "t": "text"}
    rows, left = opened(path, declared=declared).read_all()
    assert rows == [
        (1, Decimal("9007199254740993.5"), Decimal(18446744073709551615), "1.10"),
        (2, Decimal("0.1234567890"), Decimal(9007199254740993), "1.10"),
        (3, Decimal(100), Decimal(0), "1E400"),
        (4, Decimal("12345678901234567890.0123456789"), Decimal(1), "true"),
    ]
    assert left == [
        (
            "05.ndjson line 5, record 5",
            "d: expected a number of numeric(38,10); b: expected a number of numeric(20,0)",
            '{"id":5,"d":1.12345678901,"b":1.9,"t":null}',
        )
    ]


def test_objects_keep_their_text_and_an_unbounded_numeric_its_digits(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"j": {"b":1.10, "a": "\\u00e9"} ,"n":1.10}\n{"j":"x","n":1E3}\n{"j":[1E400],"n":12345678901234567890.10}\n'
    )
    described = opened(path).source.describe()
    assert {column.name: column.pg_type for column in described.columns} == {"j": "jsonb", "n": "text"}
    rows, _ = opened(path, declared={"n": "numeric"}).read_all()
    assert rows == [
        ('{"b":1.10, "a": "\\u00e9"}', "1.10"),
        ('"x"', "1000"),
        ("[1E400]", "12345678901234567890.10"),
    ]


def test_keys_of_all_files_are_columns_and_one_that_comes_later_is_refused_or_told(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id":1}\n')
    (tmp_path / "b.jsonl").write_text('{"name":"b","id":2}\n')
    assert opened(tmp_path).read_all() == ([(1, None), (2, "b")], [])
    late = tmp_path / "c.jsonl"
    late.write_text('{"id":1,"t":"a"}\n{"id":2,"late":1,"later":2}\n{"id":3,"late":2}\n')
    source = opened(late, declared=TWO, extra_columns="ignore").source
    source._files[0].settle({name: column_of(name, pg_type) for name, pg_type in TWO.items()})
    reader = source.open(1, ["id", "t"])
    batches = [reader.read(chunk) for chunk in source.plan(1).chunks]
    source.close()
    assert [row for batch in batches for row in batch.frame.iter_rows()] == [(1, "a"), (2, None), (3, None)]
    assert [notice.rpartition(": key")[2] for batch in batches for notice in batch.notices] == [
        ' "late", first in record 2, is no column: left out',
        ' "later", first in record 2, is no column: left out',
    ]


def test_a_declared_column_may_be_in_no_record_that_was_looked_at(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id":1}\n')
    source = opened(path, declared={"rare": "integer"})
    assert source.source.describe().evidence["rare"] == "integer: declared, and in no record looked at"
    assert source.read_all() == ([(1, None)], [])


def test_records_are_read_the_same_way_when_many_parts_had_to_be_read_strictly(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"id":{n},"t":{n if n % 3 else json.dumps(str(n))}}}\n' for n in range(100)))
    assert opened(path, declared=TWO).read_all(2) == ([(n, str(n)) for n in range(100)], [])
