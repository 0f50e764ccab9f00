"""Sheets of workbooks: each cell arrives as the value that the sheet shows, or its record is rejected with the cell."""

from __future__ import annotations

import sys
import zipfile
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import pytest
import xlsxwriter
from opened import opened

from keyhaul.errors import ConfigError, StopRunError
from keyhaul.sources.files.excel import loading
from keyhaul.sources.files.excel.cells import column_letters

D = datetime


def workbook(path, *sheets, epoch_1904=False):
    """Write sheets of (name, rows); a cell is a value, or a pair of a value and its format; None is empty."""
    book = xlsxwriter.Workbook(path, {"date_1904": epoch_1904, "default_date_format": "yyyy-mm-dd hh:mm:ss.000"})
    formats = {
        form: book.add_format({"num_format": form})
        for form in ("yyyy-mm-dd", "hh:mm:ss", "[h]:mm:ss", "0%", "yyyy-mm-dd hh:mm:ss.000")
    }
    forms = {date: "yyyy-mm-dd", datetime: "yyyy-mm-dd hh:mm:ss.000", time: "hh:mm:ss", timedelta: "[h]:mm:ss"}
    for name, rows in sheets:
        sheet = book.add_worksheet(name)
        for number, row in enumerate(rows):
            for column, cell in enumerate(row):
                if isinstance(cell, str) and cell.startswith("#"):
                    sheet.write_formula(number, column, "=1/0", None, cell)
                elif isinstance(cell, str):
                    sheet.write_string(number, column, cell)
                elif type(cell) in forms:
                    sheet.write_datetime(number, column, cell, formats[forms[type(cell)]])
                elif cell is not None:
                    sheet.write(number, column, cell)
    book.close()
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.xlsx"


KINDS = {
    "whole numbers": ([3, -7, 2.0**52], "bigint", [3, -7, 2**52]),
    "numbers": ([3, 0.1, 1e300], "double precision", [3.0, 0.1, 1e300]),
    "booleans": ([True, False], "boolean", [True, False]),
    "texts": (["007", "x"], "text", ["007", "x"]),
    "texts that are dates": (["2024-02-29"], "date", [date(2024, 2, 29)]),
    "dates": ([date(2024, 2, 29), date(1900, 3, 1)], "date", [date(2024, 2, 29), date(1900, 3, 1)]),
    "moments": ([D(2024, 2, 29, 10, 0, 0, 123000), D(2024, 3, 1)], "timestamp without time zone", [D(2024, 2, 29, 10, 0, 0, 123000), D(2024, 3, 1)]),
    "times": ([time(23, 59, 59), time(10, 30)], "time without time zone", ["23:59:59", "10:30:00"]),
    "durations": ([timedelta(hours=30, minutes=15), timedelta(minutes=1)], "interval", ["30:15:00", "00:01:00"]),
    "mixed": ([1, 1.5, "x", True, date(2024, 2, 29), D(2024, 2, 29, 10)], "text", ["1", "1.5", "x", "true", "2024-02-29", "2024-02-29 10:00:00"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_has_the_type_that_all_its_cells_have(path, kind):
    cells, pg_type, values = KINDS[kind]
    workbook(path, ("S", [["n", "c"], *([number, cell] for number, cell in enumerate(cells))]))
    source = opened(path)
    assert source.source.describe().columns[1].pg_type == pg_type
    assert [row[1] for row in source.read_all()[0]] == values


def test_a_kind_that_comes_late_decides_too(path):
    workbook(path, ("S", [["c"], *([n] for n in range(12_000)), ["late"]]))
    source = opened(path)
    assert source.source.describe().evidence["c"] == "text: cells are texts and whole numbers"
    rows, left = source.read_all(5_000)
    assert (len(rows), rows[-1], left) == (12_001, ("late",), [])


DECLARED = [
    ("text", [3, 1.5, True, "3", 2.0**60], ["3", "1.5", "true", "3", "1152921504606847000"]),
    ("integer", [3, "7", None], [3, 7, None]),
    ("numeric(12,2)", [1.1, "1.10", 3], [Decimal("1.10"), Decimal("1.10"), Decimal("3.00")]),
    ("numeric", [0.1, 1e20, 3], ["0.1", "100000000000000000000", "3"]),
    ("timestamp", [date(2024, 2, 29), D(2024, 2, 29, 10)], [D(2024, 2, 29), D(2024, 2, 29, 10)]),
    ("timestamptz", [D(2024, 2, 29, 10)], [D(2024, 2, 29, 10, tzinfo=UTC)]),
    ("real", [0.5], [0.5]),
]


@pytest.mark.parametrize(("pg_type", "cells", "values"), DECLARED)
def test_a_declared_type_holds(path, pg_type, cells, values):
    from keyhaul.sources.files.opening import type_of

    workbook(path, ("S", [["n", "c"], *([number, cell] for number, cell in enumerate(cells))]))
    rows, left = opened(path, declared={"c": type_of("c", pg_type)}, time_zone="UTC").read_all()
    assert ([row[1] for row in rows], left) == (values, [])


@pytest.mark.parametrize("chunk_rows", [1, 2, 1000])
def test_a_cell_with_an_error_or_a_value_that_does_not_fit_costs_its_record(path, chunk_rows):
    rows = [
        ["id", "due"],
        [1, date(2024, 2, 29)],
        [2, "#DIV/0!"],
        [],
        ["#N/A", "soon"],
        [4.5, None],
        ["five"],
        [None, "#REF!"],
        [6],
    ]
    workbook(path, ("Sheet1", rows))
    found, left = opened(path, declared={"id": "integer", "due": "date"}).read_all(chunk_rows)
    whole = "expected a whole number from -2147483648 to 2147483647"
    assert found == [(1, date(2024, 2, 29)), (6, None)]
    assert left == [
        ("a.xlsx sheet Sheet1 row 3, record 2", "due (cell B3): the error #DIV/0!, expected a value", '{"id": "2", "due": "#DIV/0!"}'),
        ("a.xlsx sheet Sheet1 row 5, record 3", "id (cell A5): the error #N/A, expected a value; due (cell B5): expected a date as 2024-02-29", '{"id": "#N/A", "due": "soon"}'),
        ("a.xlsx sheet Sheet1 row 6, record 4", f"id (cell A6): {whole}", '{"id": "4.5", "due": null}'),
        ("a.xlsx sheet Sheet1 row 7, record 5", f"id (cell A7): {whole}", '{"id": "five", "due": null}'),
        ("a.xlsx sheet Sheet1 row 8, record 6", "due (cell B8): the error #REF!, expected a value", '{"id": null, "due": "#REF!"}'),
    ]  # fmt: skip


def test_dates_of_a_workbook_that_counts_from_1904_are_the_same_days(path):
    days = [date(1904, 1, 2), date(2024, 2, 29)]
    workbook(path, ("S", [["d"], *([day] for day in days)]), epoch_1904=True)
    assert [row[0] for row in opened(path).read_all()[0]] == days


def test_the_header_may_stand_below_a_title_and_right_of_empty_columns(path):
    rows = [
        ["Orders of 2024"],
        [],
        [None, None, "id", " name ", None],
        [None, None, 1, "a"],
        [None, None, "#NUM!", "b"],
    ]
    workbook(path, ("S", rows))
    with pytest.raises(ConfigError, match="column C of the sheet S has no name in row 1"):
        opened(path)
    source = opened(path, header_row=3)
    assert source.source.describe().label == "a.xlsx, sheet S"
    found, left = source.read_all()
    assert found == [(1, "a")]
    assert left[0][:2] == ("a.xlsx sheet S row 5, record 2", "id (cell C5): the error #NUM!, expected a value")


def test_without_a_header_the_columns_are_numbered(path):
    workbook(path, ("S", [[1, "a"], [2, "b"]]))
    source = opened(path, header_row=None)
    assert [column.name for column in source.source.describe().columns] == ["column1", "column2"]
    assert source.read_all()[0] == [(1, "a"), (2, "b")]


def test_a_sheet_is_chosen_by_its_name_and_a_hidden_one_only_so(tmp_path):
    path = tmp_path / "a.xlsx"
    book = xlsxwriter.Workbook(path)
    for name in ("Secret", "Shown", "Other"):
        sheet = book.add_worksheet(name)
        sheet.write(0, 0, "c")
        sheet.write(1, 0, name)
        if name == "Secret":
            sheet.very_hidden()
        if name == "Shown":
            sheet.activate()
    book.close()
    assert opened(path).read_all()[0] == [("Shown",)]
    assert opened(path, sheet="Secret").read_all()[0] == [("Secret",)]
    with pytest.raises(
        ConfigError, match=r"no sheet 'shown', expected one of Secret, Shown, Other\. Change excel\.sheet"
    ):
        opened(path, sheet="shown")


def test_merged_cells_in_the_header_are_told(tmp_path):
    path = tmp_path / "a.xlsx"
    book = xlsxwriter.Workbook(path)
    sheet = book.add_worksheet("S")
    sheet.merge_range("A1:B1", "Both")
    for number, row in enumerate((["x", "y"], [1, 2]), start=1):
        sheet.write_row(number, 0, row)
    book.close()
    with pytest.raises(
        ConfigError, match=r"column B of the sheet S has no name in row 1.*has merged cells: is the header below it\?"
    ):
        opened(path)
    assert opened(path, header_row=2).read_all()[0] == [(1, 2)]


REFUSED = {
    "a name twice": ([["id", "id"], [1, 2]], {}, "the header has id twice, expected each name once"),
    "an empty sheet": ([], {}, "the sheet S is empty, expected a header"),
    "a row that is not there": ([["id"], [1]], {"header_row": 9}, r"has 2 rows, expected a header in row 9\. Change excel\.header_row"),
    "an empty header": ([["id"], [], [1]], {"header_row": 2}, "column A of the sheet S has no name in row 2"),
    "a name of our own": ([["_keyhaul_line"], [1]], {}, "column _keyhaul_line has a name of keyhaul's own"),
    "a column that is not there": ([["id"], [1]], {"declared": {"x": "integer"}}, "no column x, expected one of id"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_sheet_that_cannot_be_a_source_is_refused_with_what_to_change(path, what):
    rows, more, told = REFUSED[what]
    workbook(path, ("S", rows))
    with pytest.raises(ConfigError, match=told):
        opened(path, **more)


@pytest.mark.parametrize("text", [b"", b"no workbook", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_workbook_is_refused(path, text):
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r"expected a whole workbook\. Is it cut off, or packed\?"):
        opened(path)


def test_a_header_alone_is_a_sheet_without_records(path):
    workbook(path, ("S", [["id", "t"]]))
    assert opened(path).read_all() == ([], [])


def test_a_sheet_that_is_too_large_for_the_memory_is_refused_before_it_is_loaded(path, monkeypatch):
    workbook(path, ("S", [["id"], *([n] for n in range(20_000))]))
    monkeypatch.setattr(loading, "machine_memory_bytes", lambda: 2**20)
    with pytest.raises(ConfigError, match=r"needs about \d+ MB of memory, expected at most 0 MB.*Save it as CSV"):
        opened(path)


@pytest.mark.parametrize("module", ["python_calamine", "fastexcel"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(path, monkeypatch, module):
    workbook(path, ("S", [["id"], ["#DIV/0!"]]))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"is not installed.*pip install 'keyhaul\[excel\]'"):
        opened(path)


def test_a_workbook_that_changes_stops_the_run(path):
    workbook(path, ("S", [["id"], [1]]))
    source = opened(path)
    workbook(path, ("S", [["id"], [1], [2]]))
    with pytest.raises(StopRunError, match=r"a.xlsx: the file has changed since the run began"):
        source.read_all()


def test_the_columns_of_several_workbooks_have_the_type_that_holds_all(tmp_path):
    workbook(tmp_path / "a.xlsx", ("S", [["id", "d", "t", "n"], [1, date(2024, 1, 1), 1, None]]))
    workbook(tmp_path / "b.xlsx", ("S", [["d", "id", "t", "n"], [D(2024, 1, 1, 10), 1.5, "x", 3]]))
    source = opened(tmp_path)
    types = [column.pg_type for column in source.source.describe().columns]
    assert types == ["double precision", "timestamp without time zone", "text", "bigint"]
    assert source.read_all()[0] == [(1.0, D(2024, 1, 1), "1", None), (1.5, D(2024, 1, 1, 10), "x", 3)]


OPEN_DOCUMENT = """<?xml version="1.0"?><office:document-content xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0"
xmlns:table="urn:oasis:names:tc:opendocument:xmlns:table:1.0" xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0"
office:version="1.2"><office:body><office:spreadsheet><table:table table:name="T"><table:table-row><table:table-cell office:value-type="string"><text:p>id</text:p></table:table-cell><table:table-cell office:value-type="string"><text:p>d</text:p></table:table-cell></table:table-row><table:table-row><table:table-cell office:value-type="float" office:value="7"><text:p>7</text:p></table:table-cell><table:table-cell office:value-type="date" office:date-value="2024-02-29"><text:p>29.02.24</text:p></table:table-cell></table:table-row></table:table></office:spreadsheet></office:body></office:document-content>"""


def test_an_opendocument_sheet_is_read_as_well(tmp_path):
    path = tmp_path / "a.ods"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        archive.writestr("content.xml", OPEN_DOCUMENT)
        archive.writestr(
            "META-INF/manifest.xml",
            '<?xml version="1.0"?><manifest:manifest xmlns:manifest="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0"/>',
        )
    rows, left = opened(path).read_all()
    assert left == []
    assert rows == [(7, date(2024, 2, 29))]


def test_columns_have_the_letters_that_the_sheet_shows():
    assert [column_letters(number) for number in (0, 25, 26, 701, 702)] == ["A", "Z", "AA", "ZZ", "AAA"]
