"""CSV taken apart: the vectorised way, the strict way and Python's csv module say the same."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhaul.sources.files.dialect import Dialect
from keyhaul.sources.files.records import _vectorised, find_records, strictly
from keyhaul.sources.files.tokens import take_apart

COMMA = Dialect()
HASH = Dialect(comment="#")
odd_text = st.text(alphabet='a",\n\r', max_size=24).map(str.encode)
with_comments = st.text(alphabet='a#",\n\r', max_size=24).map(str.encode)


def told(spans):
    return (
        spans.starts.to_list(),
        spans.ends.to_list(),
        spans.lines.to_list(),
        spans.bad,
        spans.after,
        spans.lines_passed,
    )


@given(odd_text, st.booleans())
def test_the_vectorised_way_finds_what_the_strict_one_finds_or_nothing(text, last):
    found = _vectorised(text, COMMA, last=last)
    if found is not None:
        assert told(found) == told(strictly(text, COMMA, last=last))


@given(with_comments, st.integers(0, 24), st.sampled_from([COMMA, HASH]))
def test_a_text_in_two_parts_has_the_records_of_the_whole(text, cut, dialect):
    whole = find_records(text, dialect, last=True)
    part = find_records(text[:cut], dialect, last=False)
    rest = find_records(text[part.after :], dialect, last=True)
    assert [*part.starts, *(start + part.after for start in rest.starts)] == whole.starts.to_list()
    assert [*part.lines, *(line + part.lines_passed for line in rest.lines)] == whole.lines.to_list()


cells = st.one_of(st.sampled_from(["", "a", 'x"y', "1,2", "two\nlines", "cr\r\nlf", " ", '"']), st.text(max_size=6))


@given(st.lists(st.lists(cells, min_size=2, max_size=2), max_size=12), st.sampled_from(["\n", "\r\n"]))
def test_what_pythons_csv_module_writes_is_read_as_it_reads_it(rows, ending):
    rows = [[cell.replace("\0", "") for cell in row] for row in rows]
    file = io.StringIO()
    csv.writer(file, lineterminator=ending, quoting=csv.QUOTE_ALL).writerows(rows)
    text = file.getvalue().encode("utf-8", "surrogatepass")
    tokens = take_apart(text, ["a", "b"], COMMA)
    whole = [row for row in rows if not any("\ud800" <= c <= "\udfff" for c in "".join(row))]
    assert [list(row) for row in tokens.texts.iter_rows()] == whole
    assert len(tokens.bad) == len(rows) - len(whole)


@given(odd_text)
def test_every_record_is_taken_apart_as_the_csv_module_does_it_strictly_or_is_bad(text):
    tokens = take_apart(text, ["a", "b"], COMMA)
    assert tokens.number.len() + len(tokens.bad) == tokens.spans.starts.len()
    for number, row in zip(tokens.number, tokens.texts.iter_rows(), strict=True):
        record = text[tokens.spans.starts[number] : tokens.spans.ends[number]].decode()
        expected = next(csv.reader(io.StringIO(record, newline=""), strict=True))
        assert ["" if cell is None else cell for cell in row] == expected


def without_comments(text):
    """The text with each comment as a blank line; a line inside quotes is none."""
    lines, inside, kept = io.BytesIO(text).readlines(), False, []
    for line in lines:
        comment = line.startswith(b"#") and not inside
        kept.append(b"\n" if comment else line)
        inside = inside if comment else inside ^ (line.count(b'"') % 2 == 1)
    return b"".join(kept)


@given(st.lists(st.sampled_from(['# it\'s "odd', "#", "a,b", '"x\n# in\n#",y', "#,#", "1,2#", '"#",""', ""]), max_size=12),
       st.sampled_from(["\n", "\r\n"]))  # fmt: skip
def test_comments_are_as_blank_lines(lines, ending):
    text = "".join(line + ending for line in lines).encode()
    tokens, plain = (take_apart(one, ["a", "b"], dialect) for one, dialect in
                     ((text, HASH), (without_comments(text), COMMA)))  # fmt: skip
    assert tokens.texts.equals(plain.texts)
    assert tokens.spans.lines.to_list() == plain.spans.lines.to_list()
    assert tokens.bad == plain.bad == {}


def test_a_record_that_cannot_be_taken_apart_costs_itself():
    text = b'1,plain\n2,"two\nlines"\n3,too,many\n4\n5,"never closed\n6,"ab"cd\n7,5" disk\n8,nul\0here\n9,caf\xe9\n\n10,"q""q"\r\n11,end'
    tokens = take_apart(text, ["id", "t"], COMMA)
    assert list(tokens.texts.iter_rows()) == [
        ("1", "plain"),
        ("2", "two\nlines"),
        ("7", '5" disk'),
        ("10", 'q"q'),
        ("11", "end"),
    ]
    lines = tokens.spans.lines
    assert {lines[number] + 1: why for number, why in tokens.bad.items()} == {
        4: "3 fields, expected 2",
        5: "1 field, expected 2",
        6: "text after a closing quote, or a quote that is not closed",
        7: "text after a closing quote, or a quote that is not closed",
        9: "a NUL byte, which no PostgreSQL text can hold",
        10: "bytes that are not UTF-8",
    }


@pytest.mark.parametrize(
    ("dialect", "text", "rows"),
    [
        (Dialect(delimiter=";"), b"1;a,b\n", [("1", "a,b")]),
        (Dialect(delimiter="\t", quote=None), b'1\t"x\n', [("1", '"x')]),
        (Dialect(quote="'"), b"1,'a,b'\n", [("1", "a,b")]),
        (Dialect(nulls=("NULL", "")), b'NULL,"NULL"\n1,\n', [(None, "NULL"), ("1", None)]),
        (Dialect(nulls=()), b"1,\n", [("1", "")]),
    ],
)
def test_a_dialect_says_what_separates_quotes_and_is_null(dialect, text, rows):
    assert list(take_apart(text, ["a", "b"], dialect).texts.iter_rows()) == rows


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_an_empty_field_at_the_end_is_null_with_and_without_a_line_end(ending):
    rows = list(take_apart(b'"1",\n"2",' + ending, ["a", "b"], COMMA).texts.iter_rows())
    assert rows == [("1", None), ("2", None)]
    assert list(take_apart(b'1,""' + ending, ["a", "b"], COMMA).texts.iter_rows()) == [("1", "")]
