"""Columns that stand in no file: a record's file, line and number, and the parts of its folders."""

from __future__ import annotations

import polars as pl
import pytest
from opened import opened

from keyhaul.errors import ConfigError
from keyhaul.sources.files.dialect import Dialect

PLACE = {"_file": "text", "_line": "bigint", "_record": "bigint"}


@pytest.fixture
def folder(tmp_path):
    for year, text in (("2023", 'id,t\n1,"two\nlines"\n2,x\n'), ("2024", "id,t\n\nbad\n3,y\n")):
        (tmp_path / f"year={year}" / "region=a%2Fb").mkdir(parents=True)
        (tmp_path / f"year={year}" / "region=a%2Fb" / "p.csv").write_text(text)
    return tmp_path


@pytest.mark.parametrize("rows", [1, 2, 50_000])
def test_a_record_has_its_file_its_line_and_its_number(folder, rows):
    file = opened(
        folder / "year=*" / "*" / "*.csv", declared={"id": "integer", **PLACE, "year": "integer", "region": "text"}
    )
    first, second = (str(folder / f"year={year}" / "region=a%2Fb" / "p.csv") for year in (2023, 2024))
    found, left = file.read_all(rows)
    assert found == [
        (1, "two\nlines", first, 2, 1, 2023, "a/b"),
        (2, "x", first, 4, 2, 2023, "a/b"),
        (3, "y", second, 4, 2, 2024, "a/b"),
    ]
    assert [one[0] for one in left] == ["p.csv line 3, record 1"]
    assert not file.source.abilities.relays


def test_nothing_of_it_is_a_column_unless_the_job_asks(folder):
    file = opened(folder / "year=*" / "*" / "*.csv")
    assert [column.name for column in file.source.describe().columns] == ["id", "t"]
    assert file.source.abilities.relays


def test_a_files_own_column_of_the_name_is_its_own(tmp_path):
    (tmp_path / "a.csv").write_text("_line,_record\n7,x\n")
    assert opened(tmp_path / "a.csv", declared={"_line": "integer"}).read_all()[0] == [(7, "x")]


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_formats_without_lines_have_files_and_numbers(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    frame = pl.DataFrame({"id": [1, 2, 3]})
    frame.write_parquet(path, row_group_size=2) if ending == "parquet" else frame.write_ipc(path)
    found, _ = opened(path, declared={"_file": "text", "_record": "bigint"}).read_all(2)
    assert found == [(1, str(path), 1), (2, str(path), 2), (3, str(path), 3)]
    with pytest.raises(ConfigError, match=r"_line: the format has no lines. Take _record in its place"):
        opened(path, declared={"_line": "bigint"})


def test_json_lines_have_them_too(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n\n{"id": 2}\n')
    found, _ = opened(tmp_path / "a.jsonl", declared=PLACE, format="json").read_all()
    assert found == [(1, str(tmp_path / "a.jsonl"), 1, 1), (2, str(tmp_path / "a.jsonl"), 3, 2)]


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({"_line": "text"}, "column _line is declared as text, expected bigint. Change columns, or convert it"),
        ({"year": "boolean"}, "year: expected a boolean such as true, f, yes or 0, got year=2023 in its path"),
        ({"month": "integer"}, "no column month, expected one of id, t"),
    ],
)
def test_what_cannot_be_selected_is_refused(folder, declared, told):
    with pytest.raises(ConfigError) as refused:
        opened(folder / "year=*" / "*" / "*.csv", declared=declared)
    assert told in str(refused.value)


def test_a_path_without_the_part_is_refused_or_null(folder):
    (folder / "p.csv").write_text("id,t\n9,z\n")
    paths = folder / "year=2023" / "*" / "*.csv", folder / "p.csv"
    with pytest.raises(ConfigError, match=r"its path has no part year=…, as others have. Give missing_columns: null"):
        opened(*paths, declared={"year": "integer"})
    found, _ = opened(*paths, declared={"year": "integer"}, missing_columns="null").read_all()
    assert found[-1] == (9, "z", None)


def test_another_process_reads_the_same(folder):
    from keyhaul.sources.files.opening import join

    dialect = Dialect(comment="#", decimal=",")
    file = opened(folder / "year=*" / "*" / "*.csv", declared={**PLACE, "year": "integer"}, dialect=dialect)
    names = [column.name for column in file.source.describe().columns]
    reader = join(file.source.ticket(names))
    chunks = file.source.plan(1000).chunks
    assert [row for chunk in chunks for row in reader.read(chunk).frame.iter_rows()] == file.read_all()[0]
