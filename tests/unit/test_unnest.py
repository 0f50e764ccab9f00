"""JSON arrays become rows whose texts are exactly what was written; UUIDs are those of Python's uuid5."""

import json
import uuid

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhaul.config.tablestep import Unnest
from keyhaul.fanout.nameduuid import NAMESPACE, named_uuids
from keyhaul.fanout.unnest import unnest_rows
from keyhaul.staging.rules import locked_down


@pytest.fixture(scope="module")
def con():
    connection = locked_down()
    yield connection
    connection.close()


def unnest(con, texts, *fields):
    frame = pl.DataFrame(
        {"_keyhaul_record": range(len(texts)), "j": texts}, schema={"_keyhaul_record": pl.Int64, "j": pl.String}
    )
    return unnest_rows(con, frame, Unnest(column="j", prefix="e", fields=fields))


def values(con, text):
    rows, rejected = unnest(con, [text])
    assert rejected.height == 0
    assert rows["e_number"].to_list() == list(range(1, rows.height + 1))
    return rows["e"].to_list()


NUMBERS = [
    *("0", "-0", "1.10", "1e400", "-1E-7", "0.12345678901234567890123", "123456789012345678901234567890", "2.50E+02")
]


def test_a_number_comes_out_as_it_was_written(con):
    assert values(con, f"[{', '.join(NUMBERS)}]") == NUMBERS


def test_a_field_that_is_null_or_missing_is_null_and_a_nested_value_is_json(con):
    text = '[{"a": 1, "b": {"x": [1.10, -2, "3 \\" 4"]}}, {"a": null}, {"b": true}, {"a": "null", "b": "1.10"}]'
    rows, rejected = unnest(con, [text], "a", "b", "c")
    assert rejected.height == 0
    assert rows["e_a"].to_list() == ["1", None, None, "null"]
    assert rows["e_b"].to_list() == ['{"x":[1.10,-2,"3 \\" 4"]}', None, "true", "1.10"]
    assert rows["e_c"].to_list() == [None] * 4


@pytest.mark.parametrize("text", [None, "[]", " [ ] ", "null"])
def test_nothing_to_take_apart_gives_no_row(con, text):
    rows, rejected = unnest(con, [text], "a")
    assert (rows.height, rejected.height) == (0, 0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "it is no JSON array"),
        ("7", "it is no JSON array"),
        ("", "it is no JSON"),
        ("[1", "it is no JSON"),
        ("[1,]", "it is no JSON"),
        ("[NaN]", "it is no JSON"),
        ("[-Infinity]", "it is no JSON"),
        ("[01]", "it is no JSON"),
        ("[1.2.3]", "it is no JSON"),
        ("{1}", "it is no JSON"),
        ('["\\ud800"]', "it is no JSON"),
        ("[7]", "j: an element is no JSON object"),
        ("[{}, null]", "j: an element is no JSON object"),
    ],
)
def test_what_is_no_array_of_objects_rejects_its_record_alone(con, text, why):
    rows, rejected = unnest(con, ['[{"a": "nan, ]"}]', text, '[{"a": 2}]'], "a")
    assert rejected.rows() == [(1, why)]
    assert rows["_keyhaul_record"].to_list() == [0, 2]
    assert rows["e_a"].to_list() == ["nan, ]", "2"]


def test_the_mark_of_a_number_never_meets_the_data(con):
    text = '["\ue000", "\\ue001", "\\uE002", "\ue0001", 1]'
    assert values(con, text) == ["\ue000", "\ue001", "\ue002", "\ue0001", "1"]


def test_a_fields_name_may_hold_anything(con):
    names = ["a/b", "~", "'", '"', "ä", "", "0", "$.x"]
    rows, _ = unnest(con, [json.dumps([{name: name for name in names}])], *names)
    assert [rows[f"e_{name}"][0] for name in names] == names


def test_a_list_becomes_rows_too(con):
    frame = pl.DataFrame({"_keyhaul_record": [0, 1, 2, 3], "l": [[1, 2], [], None, [3]]})
    rows, rejected = unnest_rows(con, frame, Unnest(column="l", prefix="e"))
    assert rejected.height == 0
    assert rows.select("_keyhaul_record", "e", "e_number").rows() == [(0, 1, 1), (0, 2, 2), (3, 3, 1)]


TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))


def expected(value):
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)


@settings(max_examples=200, deadline=None)
@given(lists=st.lists(st.lists(JSON, max_size=4), min_size=1, max_size=4), ascii_only=st.booleans())
def test_every_json_value_survives(con, lists, ascii_only):
    rows, rejected = unnest(con, [json.dumps(value, ensure_ascii=ascii_only) for value in lists])
    assert rejected.height == 0
    assert rows["_keyhaul_record"].to_list() == [record for record, value in enumerate(lists) for _ in value]
    for got, value in zip(rows["e"].to_list(), [one for some in lists for one in some], strict=True):
        if isinstance(value, list | dict):
            assert json.loads(got) == value
        else:
            assert got == expected(value)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.none() | TEXTS, min_size=1, max_size=5))
def test_a_uuid_is_that_of_python(con, texts):
    frame = pl.DataFrame({"a": texts}, schema={"a": pl.String})
    wanted = [None if text is None else str(uuid.uuid5(NAMESPACE, text)) for text in texts]
    assert named_uuids(con, frame, ["a"]).to_list() == wanted


def test_a_uuid_of_several_columns_is_that_of_a_json_array_of_texts(con):
    frame = pl.DataFrame({"a": [1, 2, None], "b": ["x", 'y"', "z"], "c": [b"\x00\xff", b"", b""]})
    wanted = [uuid.uuid5(NAMESPACE, r'["1","x","\\x00ff"]'), uuid.uuid5(NAMESPACE, r'["2","y\"","\\x"]')]
    assert named_uuids(con, frame, ["a", "b", "c"]).to_list() == [*map(str, wanted), None]
    assert named_uuids(con, frame, ["a"])[0] == str(uuid.uuid5(NAMESPACE, "1"))


def test_the_namespace_is_that_of_the_url():
    assert uuid.uuid5(uuid.NAMESPACE_URL, "keyhaul") == NAMESPACE
