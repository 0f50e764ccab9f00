"""Files into PostgreSQL, through the command line: moves, bad lines, kills, resumes and comparisons."""

from __future__ import annotations

import gzip
import signal

import polars as pl
import psycopg
import pyarrow as pa
import pytest
import xlsxwriter

from keyhaul.embedded.flights import flights_path

COLUMNS = (
    "id bigint, year int, month int, day int, dep_time int, sched_dep_time int, dep_delay int, arr_time int, "
    "sched_arr_time int, arr_delay int, carrier text, flight int, tailnum text, origin text, dest text, air_time int, "
    "distance int, hour int, minute int, time_hour timestamptz"
)
SUM = "select count(*), sum(hashtextextended(f::text, 0)::numeric) from flights f"


def ask(uri, query):
    with psycopg.connect(uri, autocommit=True, options="-c timezone=UTC") as conn:
        return conn.execute(query).fetchall()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The first 20,000 flights in each format."""
    made = tmp_path_factory.mktemp("flights")
    flights = pl.read_parquet(flights_path()).head(20_000)
    flights.write_parquet(made / "flights.parquet", row_group_size=7_000)
    flights.write_ipc(made / "flights.arrow", record_batch_size=3_000)
    flights.write_csv(made / "flights.csv", datetime_format="%Y-%m-%d %H:%M:%S%:z")
    (made / "flights.csv.gz").write_bytes(gzip.compress((made / "flights.csv").read_bytes()))
    lines = flights.with_columns(pl.col("time_hour").dt.to_string("%Y-%m-%d %H:%M:%S%:z")).write_ndjson().encode()
    (made / "flights.jsonl").write_bytes(lines)
    (made / "flights.ndjson.zst").write_bytes(pa.compress(lines, "zstd", asbytes=True))
    (made / "flights.json").write_bytes(b"[\n" + b",\n".join(lines.splitlines()) + b"\n]\n")
    (made / "flights.tsv").write_bytes((made / "flights.csv").read_bytes().replace(b",", b"\t"))
    return made


@pytest.fixture(scope="module")
def expected(server, folder):
    """What PostgreSQL's own COPY makes of the CSV file."""
    from support import database_of

    with database_of(server, "copied", f"create table flights ({COLUMNS})") as uri:
        with psycopg.connect(uri) as conn, conn.cursor().copy("copy flights from stdin (format csv, header)") as copy:
            copy.write((folder / "flights.csv").read_bytes())
        yield ask(uri, SUM)


@pytest.fixture
def target(server, database):
    uri = database(server, "files")
    ask_nothing = f"create table flights ({COLUMNS})"
    with psycopg.connect(uri, autocommit=True) as conn:
        conn.execute(ask_nothing)
    return uri


FORMATS = ("csv", "csv.gz", "tsv", "parquet", "arrow", "jsonl", "ndjson.zst", "json")


@pytest.mark.parametrize("name", [f"flights.{ending}" for ending in FORMATS])
def test_each_format_gives_the_table_that_copy_makes(etl, folder, target, expected, name):
    done = etl("chunked", "--source", str(folder / name), "--target", target, "--into", "flights", "--chunk", "3000")
    assert (done.returncode, done.stderr) == (0, done.stderr)
    assert ask(target, SUM) == expected
    assert "20,000 rows" in done.stdout + done.stderr
    compared = etl("verify", "last", "--source", str(folder / name), "--target", target)
    assert (compared.returncode, "verified 20,000 rows" in compared.stdout) == (0, True), compared.stderr


def test_bad_lines_are_quarantined_with_line_and_text_and_the_others_load(etl, tmp_path, target):
    path = tmp_path / "bad.csv"
    path.write_bytes(b'id,n\n1,10\n2,20,extra\n3,"never closed\n4,forty\n5,50\n6,caf\xe9\n')
    file = tmp_path / "bad.yaml"
    file.write_text(f"job: bad\nsource: {{path: {path}, columns: {{id: int, n: int}}}}\n")
    done = etl("run", str(file), "--target", target, "--into", "bad", "--chunk", "2")
    assert done.returncode == 1, done.stderr
    assert ask(target, "select id, n from bad order by id") == [(1, 10), (5, 50)]
    found = ask(target, "select rules[1], data->>'place', message, data->>'raw' from keyhaul.quarantine order by 2")
    quoted = "text after a closing quote, or a quote that is not closed"
    whole = "n: expected a whole number from -2147483648 to 2147483647"
    assert found == [
        ("malformed_record", "bad.csv line 3, record 2", "3 fields, expected 2", "2,20,extra"),
        ("malformed_record", "bad.csv line 4, record 3", quoted, '3,"never closed'),
        ("wrong_value", "bad.csv line 5, record 4", whole, "4,forty"),
        ("malformed_record", "bad.csv line 7, record 6", "bytes that are not UTF-8", "6,caf\\xe9"),
    ]
    assert ask(target, "select distinct stage from keyhaul.quarantine") == [("read",)]
    shown = etl("quarantine", "last", "--target", target)
    assert "bad.csv line 5, record 4" in shown.stdout


@pytest.fixture(scope="module")
def workbook(folder):
    """The first 3,000 flights as a workbook writes them: numbers are doubles, moments have no zone."""
    flights = pl.read_parquet(flights_path()).head(3_000).with_columns(pl.col("time_hour").dt.replace_time_zone(None))
    book = xlsxwriter.Workbook(folder / "flights.xlsx", {"default_date_format": "yyyy-mm-dd hh:mm:ss"})
    sheet = book.add_worksheet("Flights")
    sheet.write_row(0, 0, flights.columns)
    for number, row in enumerate(flights.iter_rows(), start=1):
        sheet.write_row(number, 0, row)
    book.close()
    return folder / "flights.xlsx"


def test_a_workbook_gives_the_table_that_copy_makes(etl, folder, workbook, target, server):
    from support import database_of

    command = ("chunked", "--source", str(workbook), "--target", target, "--into", "flights", "--chunk", "700")
    environ = {"ETL_TIME_ZONE": "UTC"}
    killed = etl(*command, env={"KEYHAUL_FAULT": "commit.before:3:kill", **environ})
    assert killed.returncode == -signal.SIGKILL
    done = etl(*command, env=environ)
    assert (done.returncode, "3,000 rows" in done.stdout + done.stderr) == (0, True), done.stderr
    with database_of(server, "copied_some", f"create table flights ({COLUMNS})") as uri:
        with psycopg.connect(uri) as conn, conn.cursor().copy("copy flights from stdin (format csv, header)") as copy:
            copy.write(b"".join((folder / "flights.csv").read_bytes().splitlines(keepends=True)[:3_001]))
        assert ask(target, SUM) == ask(uri, SUM)
    compared = etl("verify", "last", "--source", str(workbook), "--target", target, env=environ)
    assert (compared.returncode, "verified 3,000 rows" in compared.stdout) == (0, True), compared.stderr


def test_a_bad_cell_is_quarantined_with_its_place_and_the_others_load(etl, tmp_path, target):
    book = xlsxwriter.Workbook(tmp_path / "orders.xlsx")
    sheet = book.add_worksheet("Orders 2024")
    for number, row in enumerate((["Our orders"], ["id", "due"], [1, 10], [2, 20], [3, "soon"])):
        sheet.write_row(number, 0, row)
    sheet.write_formula("B4", "=1/0", None, "#DIV/0!")
    book.close()
    file = tmp_path / "orders.yaml"
    columns = "columns: {id: int, due: int}, excel: {sheet: Orders 2024, header_row: 2}"
    file.write_text(f"job: orders\nsource: {{path: {tmp_path}/orders.xlsx, {columns}}}\n")
    done = etl("run", str(file), "--target", target, "--into", "orders")
    assert done.returncode == 1, done.stderr
    assert ask(target, "select id, due from orders") == [(1, 10)]
    found = ask(target, "select rules[1], data->>'place', message, data->>'raw' from keyhaul.quarantine order by 2")
    whole = "expected a whole number from -2147483648 to 2147483647"
    assert found == [
        (
            "cell_error",
            "orders.xlsx sheet Orders 2024 row 4, record 2",
            "due (cell B4): the error #DIV/0!, expected a value",
            '{"id": "2", "due": "#DIV/0!"}',
        ),
        (
            "wrong_value",
            "orders.xlsx sheet Orders 2024 row 5, record 3",
            f"due (cell B5): {whole}",
            '{"id": "3", "due": "soon"}',
        ),
    ]


@pytest.mark.parametrize("name", ["flights.csv.gz", "flights.ndjson.zst", "flights.json"])
@pytest.mark.parametrize("point", ["read.after:2", "commit.before:2", "commit.after:3"])
def test_killed_at_a_point_the_same_command_makes_what_one_run_makes(etl, folder, target, expected, name, point):
    command = ("chunked", "--source", str(folder / name), "--target", target, "--into", "flights")
    command = (*command, "--chunk", "2500", "--workers", "2")
    killed = etl(*command, env={"KEYHAUL_FAULT": f"{point}:kill", "ETL_RELAY": "false"})
    assert killed.returncode == -signal.SIGKILL
    done = etl(*command)
    assert done.returncode == 0, done.stderr
    assert ask(target, SUM) == expected


def test_bad_json_records_are_quarantined_and_the_others_load(etl, tmp_path, target):
    path = tmp_path / "bad.jsonl"
    good = "".join(f'{{"id":{n},"n":{n}.50,"at":"2024-02-29T10:00:00Z","more":{{"k":[{n}]}}}}\n' for n in range(20_000))
    bad = '{"id":-1,"id":-2}\n{"id":-3,"n":"x"}\n{"id":-4,\n'
    path.write_text(good[: len(good) // 3] + good[len(good) // 3 :].replace("\n", "\n" + bad, 1), newline="")
    file = tmp_path / "bad.yaml"
    file.write_text(f"job: bad\nsource: {{path: {path}, columns: {{n: numeric}}}}\n")
    assert "jsonb: 20,000 values looked at" in etl("plan", str(file), "--target", target).stdout
    done = etl("run", str(file), "--target", target, "--into", "bad", "--chunk", "3000")
    assert done.returncode == 1, done.stderr
    whole = "select count(*), sum(n), min(at)::text, min(more->'k'->>0), pg_typeof(min(n))::text from bad"
    assert ask(target, whole) == [(20_000, 20_000 * 9999.5 + 10_000, "2024-02-29 10:00:00+00", "0", "numeric")]
    found = ask(target, "select rules[1], message, data->>'raw' from keyhaul.quarantine order by data->>'place'")
    assert sorted(row[:2] for row in found) == [
        ("malformed_record", "broken JSON: Input data was truncated"),
        ("malformed_record", 'key "id" twice, expected each key once'),
        ("wrong_value", "n: expected a number without an exponent"),
    ]


def test_a_key_that_is_no_column_is_refused_by_name_or_left_out_and_told(etl, tmp_path, target):
    path = tmp_path / "late.jsonl"
    lines = [f'{{"id":{n},"text":"{"x" * 300}"}}' for n in range(20_000)]
    lines[6_000] = '{"id":6000,"late":true}'
    path.write_text("\n".join(lines))
    command = ("chunked", "--source", str(path), "--target", target, "--into", "later", "--chunk", "3000")
    refused = etl(*command)
    assert refused.returncode == 1, refused.stderr
    assert ask(target, "select rules[1], data->>'place' from keyhaul.quarantine") == [
        ("extra_key", "late.jsonl line 6001, record 6001")
    ]
    assert ask(target, "select count(*) from later") == [(19_999,)]
    file = tmp_path / "late.yaml"
    file.write_text(f"job: late\nsource: {{path: {path}, extra_columns: ignore}}\n")
    done = etl("run", str(file), "--target", target, "--into", "all_of_them")
    assert (done.returncode, 'key "late", first in record 6,001, is no column: left out' in done.stderr) == (0, True)
    assert ask(target, "select count(*) from all_of_them") == [(20_000,)]


def test_a_run_is_not_gone_on_with_when_its_file_has_changed(etl, tmp_path, target):
    path = tmp_path / "t.csv"
    path.write_text("id,n\n" + "".join(f"{n},{n}\n" for n in range(1000)))
    command = ("chunked", "--source", str(path), "--target", target, "--chunk", "100")
    assert etl(*command, env={"KEYHAUL_FAULT": "commit.after:2:kill"}).returncode == -signal.SIGKILL
    whole = path.read_text()
    path.write_text(whole + "1000,1000\n")
    refused = etl(*command)
    assert refused.returncode == 2
    assert "has changed since the run was planned" in refused.stderr


def test_transform_rules_dedup_and_several_files_work_as_for_any_source(etl, tmp_path, target):
    (tmp_path / "a.csv").write_text("id,name,n\n1,a,10\n2,b,-1\n3,a,30\n")
    (tmp_path / "b.csv").write_text("n,id,name\n40,4,d\n10,5,a\n")
    done = etl(
        "chunked", "--source", str(tmp_path / "*.csv"), "--target", target, "--into", "several", "--where", "id < 5",
        "--set", "name = upper(name)", "--rule", "positive: n > 0", "--allow-quarantined", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ask(target, "select * from several order by id") == [(1, "A", 10), (3, "A", 30), (4, "D", 40)]


MISTAKES = {
    "no such file": (["nope.csv"], "there is no such file, expected one"),
    "a pattern without a match": (["*.arrow"], "no file has such a name"),
    "an empty file": (["empty.csv"], "an empty file, expected a first line with the columns' names"),
    "a column twice": (["twice.csv"], "the header has id twice"),
    "a key": (["good.csv", "--key", "id"], "got a key, expected none for kind files"),
    "a table": (["good.csv", "--table", "t"], "got a table for a source of kind files"),
    "a file cut off": (["cut.csv.gz"], "Is it cut off, or still being written?"),
    "an array cut off": (["cut.json"], "line 1: the array has no end, expected a closing bracket. Is it cut off"),
    "no workbook": (["no.xlsx"], "expected a whole workbook. Is it cut off, or packed?"),
    "no JSON records": (["no.jsonl"], "no record looked at is a JSON object (a number, expected an object)"),
    "no Parquet": (["wrong.parquet"], "expected a whole Parquet file"),
    "incremental": (["good.csv", "--incremental", "id"], "cannot be asked for what is new"),
    "checksums": (["good.csv", "--checksum"], "Leave out --checksum"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_told_before_anything_is_created(etl, tmp_path, target, what):
    (tmp_path / "empty.csv").touch()
    (tmp_path / "good.csv").write_text("id,t\n1,a\n")
    (tmp_path / "twice.csv").write_text("id,id\n1,2\n")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"id,t\n" * 1000)[:-20])
    (tmp_path / "cut.json").write_text('[{"id":1},{"id":2}')
    (tmp_path / "no.xlsx").write_text("no workbook")
    (tmp_path / "no.jsonl").write_text("1\n2\n")
    (tmp_path / "wrong.parquet").write_text("no parquet")
    (name, *more), told = MISTAKES[what]
    done = etl("chunked", "--source", str(tmp_path / name), "--target", target, "--into", "made", *more)
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr
    assert ask(target, "select to_regclass('made'), to_regclass('keyhaul.runs')") == [(None, None)]


def test_a_plan_shows_the_first_records_as_the_job_leaves_them_and_what_is_wrong(etl, tmp_path, target):
    (tmp_path / "job.yaml").write_text(
        'job: eu\nsource: {path: eu.csv, csv: {delimiter: ";", decimal: ",", comment: "#"}, '
        'columns: {amount: "numeric(10,2)"}}\ntransform:\n- set: {twice: amount * 2}\n- where: id <> 2\n'
        f"target: {{uri: '{target}', table: public.eu}}\n"
    )
    (tmp_path / "eu.csv").write_text(
        '# export\nid;amount;name\n1;1,50;"two\nlines"\n2;9,00;x\n3;1.5;y\n4;;z\n5;-2,00;\n6;1,00;' + "w" * 60 + "\n"
    )
    planned = etl("plan", "job.yaml", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    lines = [line.split() for line in planned.stdout.splitlines()]
    for expected in (
        ["column", "record", "1", "record", "2", "record", "3"],
        ["id", "1", "4", "5"],
        ["amount", "1.50", "NULL", "-2.00"],
        ["name", "two\\nlines", "z", "NULL"],
        ["twice", "3.00", "NULL", "-4.00"],
    ):
        assert expected in lines
    assert "1 record of the first part would be quarantined: wrong_value" in planned.stdout
    assert ask(target, "select to_regclass('public.eu')") == [(None,)]


@pytest.mark.parametrize(
    ("name", "relay", "first", "last"),
    [
        ("flights.csv", "true", "flights.csv, lines 2 to ", " to 20,001"),
        ("flights.csv", "false", "flights.csv, lines 2 to ", " to 20,001"),
        ("flights.jsonl", "true", "flights.jsonl, lines 1 to ", " to 20,000"),
        ("flights.parquet", "true", "flights.parquet, records 1 to 7,000", "flights.parquet, records 14,001 to 20,000"),
    ],
)
def test_it_is_shown_which_lines_of_which_file_a_chunk_has(etl, folder, target, name, relay, first, last):
    source = ("--source", str(folder / name), "--into", "flights", "--chunk", "7000")
    done = etl("chunked", *source, "--target", target, env={"ETL_RELAY": relay})
    assert done.returncode == 0, done.stderr
    told = etl("show", "last", "--target", target)
    places = [line for line in told.stdout.splitlines() if name in line and " done " in line]
    assert len(places) >= 3
    assert first in places[0]
    assert last in places[-1]


def test_a_type_is_declared_on_the_command_line_and_known_to_the_ledger(etl, tmp_path, target):
    (tmp_path / "c.csv").write_text("id,my col,n\n007,x,1.5\n08,y,no\n")
    columns = ("--column", "id bigint", "--column", '"my col" varchar(3)', "--column", "n numeric(10,2)")
    done = etl("chunked", "--source", "c.csv", "--target", target, "--into", "public.c", *columns, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    types = "select string_agg(format_type(atttypid, atttypmod), ',' order by attnum) from pg_attribute"
    assert ask(target, f"{types} where attrelid = 'public.c'::regclass and attnum > 0") == [
        ("bigint,character varying(3),numeric(10,2)",)
    ]
    assert [str(value) for row in ask(target, "select * from public.c") for value in row] == ["7", "x", "1.50"]
    verified = etl(
        "verify", "last", "--source", "c.csv", "--target", target, cwd=tmp_path
    )  # the types are the ledger's
    assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (["id"], "--column \"id\": got no type, expected a column and its type, such as 'id bigint'"),
        (["id int", "id text"], '--column "id text": got column id twice, expected a column and its type'),
        (["id money"], "read source.columns.id: type 'money', expected "),
        (["no int"], "no column no, expected one of id"),
    ],
)
def test_a_wrong_column_is_one_message_and_nothing_is_created(etl, tmp_path, target, columns, told):
    (tmp_path / "c.csv").write_text("id\n1\n")
    words = [word for column in columns for word in ("--column", column)]
    done = etl("chunked", "--source", "c.csv", "--target", target, "--into", "public.c", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert ask(target, "select to_regclass('public.c')") == [(None,)]
