"""Files in parts: each record in exactly one, the same for every size, in whatever order they are taken."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opened import opened

from keyhaul.errors import ConfigError, StopRunError
from keyhaul.sources.files.dialect import Dialect
from keyhaul.sources.files.opening import type_of
from keyhaul.sources.files.parts import Parts
from keyhaul.sources.files.textfile import TextFile
from keyhaul.sources.files.tokens import take_apart

COMMA = Dialect()
QUOTED = b"".join(
    b'%d,"line one %d\n%d,looks like a row\n""quoted"" end"\n' % (n, n, n) if n % 3 == 0 else b"%d,plain\r\n" % n
    for n in range(300)
)


def records(path, part_bytes, numbers=None, dialect=COMMA):
    """The records by part: rows, physical lines and what is bad."""
    file = TextFile(path)
    parts = Parts(file, dialect, part_bytes)
    found = {}
    for number in numbers if numbers is not None else range(parts.count):
        part = parts.take(number)
        tokens = take_apart(part.text, ["id", "t"], dialect, part.spans)
        lines = [part.begin.line + line + 1 for line in tokens.spans.lines]
        found[number] = (list(tokens.texts.iter_rows()), lines, sorted(tokens.bad.values()), part.begin.record)
    file.close()
    return found


@pytest.mark.parametrize("part_bytes", [7, 64, 1000, 4096, 10**6])
def test_a_file_has_the_same_records_in_parts_of_any_size(tmp_path, part_bytes):
    path = tmp_path / "a.csv"
    path.write_bytes(QUOTED)
    ((rows, lines, bad, _),) = records(path, 10**9).values()
    found = records(path, part_bytes)
    assert (len(rows), bad) == (300, [])
    assert [row for part in found.values() for row in part[0]] == rows
    assert [line for part in found.values() for line in part[1]] == lines
    assert [part[3] for part in found.values()] == [
        sum(len(found[before][0]) for before in range(number)) for number in found
    ]


@settings(deadline=None)
@given(
    st.text(alphabet='a#",\n\r', max_size=60).map(str.encode),
    st.integers(1, 40),
    st.sampled_from([COMMA, Dialect(comment="#")]),
    st.randoms(use_true_random=False),
)
def test_any_text_has_the_same_records_and_bad_ones_in_any_parts_in_any_order(
    tmp_path_factory, text, size, dialect, random
):
    path = tmp_path_factory.mktemp("parts") / "a.csv"
    path.write_bytes(text)
    if not text:
        return
    ((rows, lines, bad, _),) = records(path, 10**9, dialect=dialect).values()
    numbers = list(range(-(-len(text) // size)))
    random.shuffle(numbers)
    found = dict(sorted(records(path, size, numbers, dialect).items()))
    assert [row for part in found.values() for row in part[0]] == rows
    assert [line for part in found.values() for line in part[1]] == lines
    assert sorted(why for part in found.values() for why in part[2]) == bad


def test_several_threads_take_parts_in_any_order(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(QUOTED)
    file = TextFile(path)
    parts = Parts(file, COMMA, 100)
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda number: parts.take(number).text, reversed(range(parts.count))))
    assert b"".join(reversed(texts)) == QUOTED


PACKED = {
    "a.csv.gz": gzip.compress,
    "a.csv.bz2": bz2.compress,
    "a.csv.xz": lzma.compress,
    "a.csv.zst": lambda text: pa.compress(text, "zstd", asbytes=True),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_compressed_file_has_the_text_of_the_plain_one_and_a_cut_off_one_is_refused(tmp_path, name):
    path = tmp_path / name
    packed = PACKED[name](b"id,t\n" + QUOTED)
    path.write_bytes(packed)
    file = TextFile(path, work_dir=str(tmp_path))
    assert file.read(0, file.size) == b"id,t\n" + QUOTED
    file.close()
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ConfigError, match=r"expected a whole .* file\. Is it cut off"):
        TextFile(path, work_dir=str(tmp_path))
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_an_archive_has_one_file(tmp_path):
    path = tmp_path / "a.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.csv", "id,t\n1,a\n")
    file = TextFile(path)
    assert file.read(0, 100) == b"id,t\n1,a\n"
    file.close()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b.csv", "id,t\n")
    with pytest.raises(ConfigError, match="2 files in the archive, expected one"):
        TextFile(path)


def test_a_byte_order_mark_is_no_part_of_the_first_name_and_other_encodings_are_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("id,t\n1,café\n".encode("utf-8-sig"))
    assert opened(path).read_all()[0] == [(1, "café")]
    path.write_bytes("id,t\n1,café\n".encode("utf-16"))
    assert opened(path, encoding="utf-16").read_all()[0] == [(1, "café")]


def test_a_file_that_changes_stops_the_run(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,t\n1,a\n")
    source = opened(path)
    path.write_bytes(b"id,t\n1,a\n2,b\n")
    with pytest.raises(StopRunError, match=r"a.csv: the file has changed since the run began"):
        source.read_all()


@pytest.mark.parametrize("chunk_rows", [1, 2, 1000])
def test_a_bad_record_costs_itself_and_says_where_it_is(tmp_path, chunk_rows):
    path = tmp_path / "odd.csv"
    path.write_bytes(
        b'id,qty,t\n1,10,ok\n2,20\n3,30,x,extra\n\n4,"",b\n5,1.5,c\n6,60,"never closed\n7,70,"two\nlines"\n'
    )
    declared = {"id": "integer", "qty": "integer", "t": "text"}
    rows, left = opened(path, declared=declared).read_all(chunk_rows)
    whole = "expected a whole number from -2147483648 to 2147483647"
    assert rows == [(1, 10, "ok"), (7, 70, "two\nlines")]
    assert left == [
        ("odd.csv line 3, record 2", "2 fields, expected 3", "2,20"),
        ("odd.csv line 4, record 3", "4 fields, expected 3", "3,30,x,extra"),
        ("odd.csv line 6, record 4", f"qty: {whole}", '4,"",b'),
        ("odd.csv line 7, record 5", f"qty: {whole}", "5,1.5,c"),
        ("odd.csv line 8, record 6", "text after a closing quote, or a quote that is not closed", '6,60,"never closed'),
    ]


def test_files_of_a_glob_are_read_by_their_headers_names(tmp_path):
    (tmp_path / "a.csv").write_text("id,name\n1,a\n")
    (tmp_path / "b.csv").write_text("name,id\nb,2\n")
    assert opened(tmp_path / "*.csv").read_all()[0] == [(1, "a"), (2, "b")]
    (tmp_path / "c.csv").write_text("id,name,extra\n3,c,x\n")
    with pytest.raises(ConfigError, match=r"c.csv: column extra is not in .*a.csv"):
        opened(tmp_path / "*.csv")
    assert opened(tmp_path / "*.csv", extra_columns="ignore").read_all()[0] == [(1, "a"), (2, "b"), (3, "c")]
    (tmp_path / "c.csv").write_text("id\n3\n")
    with pytest.raises(ConfigError, match=r"c.csv: column name of .*a.csv is missing"):
        opened(tmp_path / "*.csv")
    assert opened(tmp_path / "*.csv", missing_columns="null").read_all()[0] == [(1, "a"), (2, "b"), (3, None)]


@pytest.mark.parametrize(("name", "record"), [("csv", "{},text\n"), ("jsonl", '{{"id":{},"t":"text"}}\n')])
def test_files_that_are_not_looked_at_are_cut_as_the_others_are(tmp_path, name, record):
    for number in range(45):
        header = "id,t\n" if name == "csv" else ""
        (tmp_path / f"{number}.{name}").write_text(header + "".join(record.format(100 + n) for n in range(10)))
    source = opened(tmp_path)
    assert len(source.source.plan(10).chunks) == (90 if name == "csv" else 45)  # a header makes one more
    assert len(source.read_all()[0]) == 450


@pytest.mark.parametrize(
    ("texts", "pg_type"),
    [
        (["1", "-7", "9007199254740993"], "bigint"),
        (["1", "9223372036854775808"], "numeric"),
        (["007", "1"], "text"),
        (["1.10", "2"], "numeric"),
        (["1e3", "2.5"], "double precision"),
        (["true", "False"], "boolean"),
        (["2024-02-29"], "date"),
        (["2024-02-29 10:00:00Z"], "timestamp with time zone"),
        (["2024-02-29T10:00"], "timestamp without time zone"),
        (["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"], "uuid"),
        (["", ""], "text"),
        (["1", "one"], "text"),
    ],
)
def test_a_type_is_inferred_that_every_value_fits_unchanged(tmp_path, texts, pg_type):
    path = tmp_path / "a.csv"
    path.write_text("c,d\n" + "".join(f"{text},x\n" for text in texts))
    assert opened(path).source.describe().columns[0].pg_type == pg_type


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        (b"", {}, r"a.csv: an empty file, expected a first line with the columns' names"),
        (b"id,id\n1,2\n", {}, r"the header has id twice, expected each name once"),
        (b"id,\n1,2\n", {}, r"column 2 of the header has no name"),
        (b"id,t\n1,a\n", {"declared": {"x": "integer"}}, r"no column x, expected one of id, t"),
    ],
)
def test_a_file_that_cannot_be_a_source_is_refused_with_what_to_change(tmp_path, text, more, message):
    path = tmp_path / "a.csv"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        opened(path, **more)


def test_a_header_alone_is_a_file_without_records(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,t\n")
    assert opened(path).read_all() == ([], [])


def test_columns_of_several_parquet_files_have_the_first_ones_types_or_the_record_is_rejected(tmp_path):
    pl.DataFrame({"id": [1, 2], "x": ["1.5", "a"]}, schema={"id": pl.Int32, "x": pl.String}).write_parquet(
        tmp_path / "a.parquet"
    )
    pl.DataFrame({"id": [3, 2**40, None], "x": ["b", "c", "d"]}).write_parquet(tmp_path / "b.parquet")
    source = opened(tmp_path / "*.parquet")
    assert [column.pg_type for column in source.source.describe().columns] == ["integer", "text"]
    rows, left = source.read_all()
    assert rows == [(1, "1.5"), (2, "a"), (3, "b"), (None, "d")]
    assert left == [("b.parquet record 2", "id: expected a value of integer", '{"id": 1099511627776, "x": "c"}')]


def test_the_batches_of_every_file_have_the_described_types(tmp_path):
    pl.DataFrame({"n": [1.5]}, schema={"n": pl.Float32}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"n": [2.5]}).write_parquet(tmp_path / "b.parquet")
    source = opened(tmp_path / "*.parquet").source
    reader = source.open(1, ["n"])
    kinds = {reader.read(chunk).frame.schema["n"] for chunk in source.plan(10).chunks}
    source.close()
    assert kinds == {source.describe().routes["n"].dtype}


@pytest.mark.parametrize("name", ["_keyhaul_file", "_keyhaul_number", "_keyhaul_line", "_keyhaul_record"])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_column_with_a_name_of_our_own_is_refused_and_never_exchanged(tmp_path, name, ending):
    path = tmp_path / f"a.{ending}"
    frame = pl.DataFrame({"id": [1], name: ["mine"]})
    frame.write_csv(path) if ending == "csv" else frame.write_parquet(path)
    with pytest.raises(ConfigError, match=f"column {name} has a name of keyhaul's own"):
        opened(path)


def test_a_format_that_is_not_there_is_never_read_as_another_one(tmp_path):
    (tmp_path / "a.orc").write_text("id\n1\n")
    for path in (tmp_path / "a.orc", tmp_path):
        with pytest.raises(ConfigError, match=r"expected (one of )?\.csv"):
            opened(path)


def test_a_compressed_files_copy_lies_in_the_work_folder_and_has_no_name(tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir(mode=0o700)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"id\n1\n"))
    seen = []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    source = opened(path, work_dir=str(work))
    seen.extend(work.iterdir())
    assert (source.read_all()[0], seen) == ([(1,)], [])


def test_a_file_with_comments_and_decimal_commas_is_read_with_its_lines(tmp_path):
    path = tmp_path / "eu.csv"
    path.write_text(
        '# export; it\'s "quoted\nid;amount;name\n1;1,50;"two\n# lines"\n# between\n2;-0,25;x\n3;1.5;y\n#',
        encoding="utf-8",
    )
    file = opened(path, declared={}, dialect=Dialect(delimiter=";", comment="#", decimal=","))
    assert {c.name: c.pg_type for c in file.source.describe().columns} == {
        "id": "bigint",
        "amount": "text",
        "name": "text",
    }
    typed = {"amount": type_of("amount", "numeric(10,2)")}
    for rows in (1, 2, 1000):
        file = opened(path, declared=typed, dialect=Dialect(delimiter=";", comment="#", decimal=","))
        found, left = file.read_all(rows)
        assert found == [(1, Decimal("1.50"), "two\n# lines"), (2, Decimal("-0.25"), "x")]
        assert left == [("eu.csv line 7, record 3", "amount: expected a number of numeric(10,2)", "3;1.5;y")]
