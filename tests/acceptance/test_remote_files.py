"""Files of az://, s3:// and web addresses, through the command line, against real servers."""

from __future__ import annotations

import gzip
import signal
import threading
import time

import polars as pl
import psycopg
import pyarrow as pa
import pytest
import xlsxwriter
from stores import WITHOUT_KEYS, free_port

from keyhaul.embedded.flights import flights_path

SUM = "select count(*), sum(hashtextextended(f::text, 0)::numeric) from public.flights f"
ROWS = 20_000


def ask(uri, query):
    with psycopg.connect(uri, autocommit=True, options="-c timezone=UTC") as conn:
        return conn.execute(query).fetchall()


def ledger(uri):
    """Everything that a run has left in its target, as one text."""
    tables = ask(uri, "select format('%I.%I', table_schema, table_name) from information_schema.tables "
                      "where table_schema not in ('pg_catalog', 'information_schema')")  # fmt: skip
    return "\n".join(str(ask(uri, f"select t::text from {table} t")) for (table,) in tables)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The first 20,000 flights in each format."""
    made = tmp_path_factory.mktemp("flights")
    flights = pl.read_parquet(flights_path()).head(ROWS).with_columns(pl.col("time_hour").dt.replace_time_zone(None))
    flights.write_csv(made / "flights.csv", datetime_format="%Y-%m-%d %H:%M:%S")
    (made / "flights.csv.gz").write_bytes(gzip.compress((made / "flights.csv").read_bytes()))
    flights.write_parquet(made / "flights.parquet", row_group_size=7_000)
    flights.write_ipc(made / "flights.arrow", record_batch_size=3_000)
    lines = flights.with_columns(pl.col("time_hour").dt.to_string("%Y-%m-%d %H:%M:%S")).write_ndjson().encode()
    (made / "flights.jsonl").write_bytes(lines)
    (made / "flights.ndjson.zst").write_bytes(pa.compress(lines, "zstd", asbytes=True))
    (made / "flights.json").write_bytes(b"[\n" + b",\n".join(lines.splitlines()) + b"\n]\n")
    book = xlsxwriter.Workbook(made / "flights.xlsx", {"default_date_format": "yyyy-mm-dd hh:mm:ss"})
    sheet = book.add_worksheet("Flights")
    sheet.write_row(0, 0, flights.columns)
    for number, row in enumerate(flights.head(2_000).iter_rows(), start=1):
        sheet.write_row(number, 0, row)
    book.close()
    return made


@pytest.fixture(scope="module")
def blobs(azurite, folder):
    """Azurite with all of them in a container, and the flights in four parts."""
    azurite.container("flights")
    for path in sorted(folder.iterdir()):
        azurite.put("flights", f"each/{path.name}", path.read_bytes())
    head, *lines = (folder / "flights.csv").read_bytes().splitlines(keepends=True)
    for number in range(4):
        part = gzip.compress(head + b"".join(lines[number * 5_000 : (number + 1) * 5_000]))
        azurite.put("flights", f"in/2024/part {number}.csv.gz", part)
    azurite.put("flights", "in/2024/readme.txt", b"no table")
    azurite.put("flights", "in/2024/.hidden.csv.gz", b"no table")
    return azurite


@pytest.fixture
def target(server, database):
    return database(server, "remote")


FORMATS = ("csv", "csv.gz", "parquet", "arrow", "jsonl", "ndjson.zst", "json", "xlsx")


@pytest.mark.parametrize("name", [f"flights.{ending}" for ending in FORMATS])
def test_each_format_gives_the_same_table_from_azure_as_from_this_machine(
    etl, folder, blobs, server, database, name, tmp_path
):
    local, remote = database(server, "local"), database(server, "remote")
    for uri, source in ((local, str(folder / name)), (remote, f"az://flights/each/{name}")):
        done = etl(
            "chunked", "--source", source, "--target", uri, "--into", "public.flights", "--chunk", "3000",
            env={**blobs.environ, "ETL_WORK_DIR": str(tmp_path / "work")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert ask(remote, SUM) == ask(local, SUM)
    work = tmp_path / "work"
    assert not work.exists() or [*work.iterdir()] == []


@pytest.mark.parametrize(
    "path", ["in/2024/*.csv.gz", "in/**/part ?.csv.gz", "in", "in/2024/", "in/2024/part [0-3].csv.gz"]
)
def test_patterns_and_folders_mean_the_objects_that_are_there(etl, folder, blobs, target, path):
    done = etl("chunked", "--source", f"az://flights/{path}", "--target", target, "--into", "public.flights",
               env=blobs.environ)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ask(target, "select count(*), count(distinct id) from public.flights") == [(ROWS, ROWS)]


def test_s3_gives_the_same_table(etl, folder, s3, target):
    s3.put("bucket", "in/a.csv", (folder / "flights.csv").read_bytes())
    done = etl("chunked", "--source", "s3://bucket/in/*.csv", "--target", target, "--into", "public.flights",
               "--chunk", "3000", env={**WITHOUT_KEYS, **s3.environ})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ask(target, "select count(*), count(distinct id) from public.flights") == [(ROWS, ROWS)]


def test_of_a_parquet_file_only_the_footer_and_the_groups_are_read_and_none_twice(etl, folder, web, target):
    web.files["flights.parquet"] = (folder / "flights.parquet").read_bytes()
    done = etl("chunked", "--source", web.address("flights.parquet"), "--target", target, "--into", "public.flights")
    assert done.returncode == 0, done.stderr
    assert sum(size for _, size in web.asked) < len(web.files["flights.parquet"]) + 2 * 65_536
    assert len(web.asked) < 10


def test_of_a_csv_file_each_block_is_fetched_once(etl, folder, web, target):
    head, _, lines = (folder / "flights.csv").read_bytes().partition(b"\n")
    web.files["flights.csv"] = head + b"\n" + lines * 8
    done = etl("chunked", "--source", web.address("flights.csv"), "--target", target, "--into", "public.flights",
               "--chunk", "5000")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ask(target, "select count(*) from public.flights") == [(8 * ROWS,)]
    assert sum(size for _, size in web.asked) == len(web.files["flights.csv"])


def test_an_object_that_changed_between_two_sittings_is_refused(etl, folder, web, target):
    web.files["a.csv"] = b"id,n\n" + b"".join(b"%d,%d\n" % (n, n) for n in range(10_000))
    job = ("chunked", "--source", web.address("a.csv"), "--target", target, "--into", "public.a", "--chunk", "1000")
    stopped = etl(*job, env={"KEYHAUL_FAULT": "commit.after:3:kill"})
    assert stopped.returncode != 0
    web.files["a.csv"] = web.files["a.csv"].replace(b"77,77", b"77,78", 1)
    done = etl(*job)
    assert done.returncode == 2
    assert "etag" in done.stderr
    assert "--fresh" in done.stderr


@pytest.mark.parametrize("etags", [True, False])
def test_an_object_that_changes_in_the_middle_of_a_run_stops_it(etl, web, target, etags):
    web.files["a.csv"] = b"id,n\n" + b"".join(b"%d,%d\n" % (n, n) for n in range(2_000_000))
    web.etags = etags

    def change(number):
        if number == 5:
            web.files["a.csv"] += b"1,1\n"

    web.before = change
    done = etl(
        "chunked", "--source", web.address("a.csv"), "--target", target, "--into", "public.a", "--chunk", "50000"
    )
    assert done.returncode not in {0, 2}
    assert "a.csv: the object has changed since the run began" in done.stderr
    assert "--fresh" in done.stderr


def test_an_answer_that_is_cut_off_is_asked_for_again_and_never_a_shorter_file(etl, folder, web, target):
    web.files["flights.csv"] = (folder / "flights.csv").read_bytes()
    web.cut = 2
    done = etl("chunked", "--source", web.address("flights.csv"), "--target", target, "--into", "public.flights")
    assert done.returncode == 0, done.stderr
    assert ask(target, "select count(*) from public.flights") == [(ROWS,)]
    web.cut = 10_000
    done = etl("chunked", "--source", web.address("flights.csv"), "--target", target, "--into", "public.other")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert ask(target, "select to_regclass('public.other')") == [(None,)]


SECRET = "sv=2026-01-01&sr=b&sig=Zm9yLXRoZS10ZXN0LW9ubHk%3D&token=Qx81LmNop22"


def test_the_query_of_a_web_address_is_nowhere_and_another_one_is_the_same_job(etl, folder, web, target, tmp_path):
    web.files["flights.csv"] = (folder / "flights.csv").read_bytes()
    web.signature = SECRET
    into = ("--target", target, "--into", "public.flights", "--chunk", "3000")
    log = tmp_path / "log.jsonl"
    told = []
    for command in (("plan",), ("chunked", "--log-file", str(log))):
        done = etl(*command, "--source", web.address("flights.csv"), *into)
        assert done.returncode == 0, done.stderr
        told.append(done.stdout + done.stderr)
    web.signature = SECRET.replace("Zm9y", "Yv8y")
    again = etl("chunked", "--source", web.address("flights.csv"), *into)
    told.append(again.stdout + again.stderr)
    page = etl("report", "last", "--target", target, "--output", str(tmp_path / "page.html"))
    assert page.returncode == 0, page.stderr
    assert ask(target, "select count(*) from (select distinct fingerprint, config from keyhaul.runs) t") == [(1,)]
    web.signature = "another"
    refused = etl("chunked", "--source", f"{web.address('flights.csv').partition('?')[0]}?{SECRET}", *into, "--fresh")
    assert refused.returncode == 2
    assert "403" in refused.stderr
    told += [refused.stdout + refused.stderr, etl("show", "last", "--target", target).stdout, ledger(target)]
    told += [path.read_text() for path in tmp_path.iterdir() if path.is_file()]
    for text in told:
        assert not [word for word in ("LXRoZS10ZXN0", "Qx81LmNop22", "sig=Z", "sr=b") if word in text]
    assert "flights.csv" in ledger(target)


def test_neither_the_account_key_nor_the_connection_string_is_told(etl, blobs, target, tmp_path):
    job = ("--source", "az://flights/each/flights.csv", "--target", target, "--into", "public.flights")
    done = etl("chunked", *job, "--log-file", str(tmp_path / "log.jsonl"), env=blobs.environ)
    assert done.returncode == 0, done.stderr
    key = blobs.connection.partition("AccountKey=")[2].partition(";")[0]
    for text in (done.stdout, done.stderr, ledger(target), (tmp_path / "log.jsonl").read_text()):
        assert key[:20] not in text


def wrong_key(blobs):
    return {"AZURE_STORAGE_CONNECTION_STRING": blobs.connection.replace("Eby8", "Abc8")}


def nobody(blobs):
    port = free_port()
    return {"AZURE_STORAGE_CONNECTION_STRING": blobs.connection.replace("BlobEndpoint=http://127.0.0.1:",
                                                                       f"BlobEndpoint=http://127.0.0.1:{port}/")}  # fmt: skip


MISTAKES = {
    "no container": ("az://nobox/a.csv", lambda blobs: blobs.environ, "no container nobox"),
    "no container for a pattern": ("az://nobox/*.csv", lambda blobs: blobs.environ, "no container nobox"),
    "no object": ("az://flights/in/none.csv", lambda blobs: blobs.environ, "there is no such object"),
    "no match": ("az://flights/in/2024/*.tsv", lambda blobs: blobs.environ, "no object has such a name"),
    "wrong key": ("az://flights/in/2024/*.csv.gz", wrong_key, "the store refuses it (403"),
    "wrong key for one": ("az://flights/each/flights.csv", wrong_key, "the store refuses it (403"),
    "cut key": ("az://flights/a.csv", lambda _: {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=a;AccountKey=abc"}, "key is cut off"),
    "no string": ("az://flights/a.csv", lambda _: {"AZURE_STORAGE_CONNECTION_STRING": "hello"}, "no AccountName"),
    "no account": ("az://flights/a.csv", lambda _: {"AZURE_STORAGE_CONNECTION_STRING": None}, "no storage account"),
    "nobody there": ("az://flights/a.csv", nobody, "the store does not answer"),
    "a pattern of a web server": ("http://127.0.0.1:9/*.csv", lambda _: {}, "a web server has no listing"),
    "a web server that is not there": ("http://127.0.0.1:9/a.csv", lambda _: {}, "the store does not answer"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_message_that_says_what_to_change_and_nothing_is_created(etl, blobs, target, case):
    source, environ, expected = MISTAKES[case]
    begun = time.monotonic()
    done = etl(
        "chunked", "--source", source, "--target", target, "--into", "public.a", env={**WITHOUT_KEYS, **environ(blobs)}
    )
    assert (done.returncode, expected in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr
    assert time.monotonic() - begun < 30
    assert ask(target, "select count(*) from pg_class c join pg_namespace n on n.oid = relnamespace where nspname in "
                       "('public', 'keyhaul')") == [(0,)]  # fmt: skip


def test_a_server_without_ranges_is_told(etl, web, target):
    web.files["a.csv"] = b"id,n\n" + b"1,2\n" * 100
    web.ranges = False
    done = etl("chunked", "--source", web.address("a.csv"), "--target", target, "--into", "public.a")
    assert done.returncode == 2
    assert "gives no parts of a file" in done.stderr


def test_without_obstore_the_message_has_the_command(etl, tmp_path, target):
    from keyhaul.embedded import server as module

    (tmp_path / "obstore.py").write_text("")
    source = module.__file__.rpartition("/keyhaul/")[0]
    done = etl("chunked", "--source", "az://flights/a.csv", "--target", target, "--into", "public.a",
               env={"PYTHONPATH": f"{tmp_path}:{source}"}, fresh=True)  # fmt: skip
    assert done.returncode == 2
    assert "pip install 'keyhaul[cloud]'" in done.stderr


def test_a_run_that_is_killed_goes_on_with_the_same_objects(start_etl, etl, folder, web, server, database):
    clean, killed = database(server, "clean"), database(server, "killed")
    head, _, lines = (folder / "flights.csv").read_bytes().partition(b"\n")
    web.files["flights.csv"] = head + b"\n" + lines * 20
    job = ("chunked", "--source", web.address("flights.csv"), "--into", "public.flights", "--chunk", "5000", "--target")
    assert etl(*job, clean).returncode == 0
    process = start_etl(*job, killed)
    deadline = time.monotonic() + 60
    while not ask(killed, "select 1 where to_regclass('public.flights') is not null") or ask(
        killed, "select count(*) from public.flights"
    ) == [(0,)]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send(signal.SIGKILL)
    process.end()
    done = etl(*job, killed)
    assert done.returncode == 0, done.stderr
    assert ask(killed, SUM) == ask(clean, SUM)


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("name", "from_request"), [("a.csv.gz", 1), ("a.csv", 6)], ids=["a copy", "a chunk"])
def test_a_signal_ends_a_run_within_seconds_while_the_store_hangs(
    start_etl, web, target, which, name, from_request, tmp_path
):
    text = b"id,n\n" + b"".join(b"%d,%d\n" % (n, n * 7919 % 104729) for n in range(3_000_000))
    web.files[name] = gzip.compress(text, 1) if name.endswith("gz") else text
    hangs, goes_on = [], threading.Event()

    def hang(number):
        if number >= from_request:
            hangs.append(number)
            goes_on.wait(30)

    web.before = hang
    process = start_etl("chunked", "--source", web.address(name), "--target", target, "--into", "public.a",
                        "--work-dir", str(tmp_path / "work"), "--chunk", "50000")  # fmt: skip
    deadline = time.monotonic() + 30
    while not hangs:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.5)
    begun = time.monotonic()
    process.send(which)
    if name == "a.csv":  # the first lets chunks under way come to their end
        time.sleep(1)
        process.send(which)
    process.end(25)
    took = time.monotonic() - begun
    goes_on.set()
    assert took < 6
    work = tmp_path / "work"
    assert not work.exists() or [*work.iterdir()] == []
