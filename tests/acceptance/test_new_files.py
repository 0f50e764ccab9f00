"""Only the files that are new: each is loaded once, whatever is killed, and none of them changes without a word."""

import signal

import pytest
from moving import rows, run_sql
from process import Process

ALL = "select count(*), count(distinct id), coalesce(sum(id), 0)::bigint from public.sales"


def write(folder, name, first, last):
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / name).write_text("id,t\n" + "".join(f"{n},row {n}\n" for n in range(first, last + 1)))


@pytest.fixture
def nightly(etl, database, server, tmp_path):
    """``nightly(*flags, code=0)`` runs the nightly job in its folder, and returns what it printed."""
    target = database(server, "sales")

    def run(*flags, code=0, command="chunked", only=True):
        source = ("--source", str(tmp_path / "in"), "--into", "public.sales", "--chunk", "100", "--job", "sales")
        done = etl(command, *source, *(["--only-new"] if only else []), "--target", target, *flags, cwd=tmp_path)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    run.target, run.folder = target, tmp_path
    return run


def told(nightly, last):
    return rows(nightly.target, ALL) == [(last, last, last * (last + 1) // 2)]


def test_each_night_the_new_files_are_loaded_and_nothing_twice(nightly):
    write(nightly.folder, "a.csv", 1, 250)
    assert "reads 1 new file, 0 files loaded already" in nightly("--progress", "plain")
    assert told(nightly, 250)
    assert "nothing is new: 1 file loaded already" in nightly("--progress", "plain")
    write(nightly.folder, "c.csv", 251, 300)
    write(nightly.folder, "0.csv", 301, 420)  # before the others in the listing
    planned = nightly(command="plan")
    assert "reads 2 new files, 1 file loaded already" in planned
    assert "reads 2 new files, 1 file loaded already" in nightly("--progress", "plain")
    assert told(nightly, 420)


def test_a_run_that_was_killed_goes_on_with_its_own_files(nightly, etl_home):
    write(nightly.folder, "b.csv", 1, 2000)
    source = ("--source", str(nightly.folder / "in"), "--into", "public.sales", "--chunk", "100", "--job", "sales")
    slow = ("--rate-limit", "2000", "--workers", "1", "--progress", "json")
    run = Process(etl_home, "chunked", *source, "--only-new", "--target", nightly.target, *slow, cwd=nightly.folder)
    try:
        run.wait_for("ChunkDone", 3)
        run.send(signal.SIGKILL)
        run.end()
    finally:
        run.close()
    write(nightly.folder, "a.csv", 2001, 2100)  # comes meanwhile, and before it in the listing
    assert "would load again" in nightly("--fresh", code=2)
    nightly()
    assert told(nightly, 2000)
    nightly()
    assert told(nightly, 2100)


def test_a_file_that_has_changed_since_it_was_loaded_is_refused_with_what_to_do(nightly):
    write(nightly.folder, "a.csv", 1, 10)
    nightly()
    write(nightly.folder, "a.csv", 1, 20)
    refused = nightly(code=2)
    assert "a.csv: it has changed since run " in refused
    assert "Put what is new into a file of its own and this one back as it was" in refused
    assert told(nightly, 10)


def test_a_target_that_was_emptied_is_not_taken_for_one_that_has_everything(nightly):
    write(nightly.folder, "a.csv", 1, 10)
    nightly()
    run_sql(nightly.target, "truncate public.sales")
    write(nightly.folder, "b.csv", 11, 20)
    assert "it is empty, though runs have loaded 1 files into it" in nightly(code=2)
    nightly("--full")
    assert told(nightly, 20)


def test_without_it_all_files_are_read_each_time(nightly):
    write(nightly.folder, "a.csv", 1, 10)
    nightly(only=False)
    assert "already holds rows" in nightly(only=False, code=2)


def test_mode_replace_is_refused(nightly):
    write(nightly.folder, "a.csv", 1, 10)
    assert "replace with only_new, expected append, skip or upsert" in nightly("--mode", "replace", code=2)


def test_the_table_that_is_there_decides_what_the_next_files_columns_are(nightly):
    (nightly.folder / "in").mkdir()
    (nightly.folder / "in" / "a.csv").write_text("id,t\n1,x\n2,5\n")
    nightly()
    (nightly.folder / "in" / "b.csv").write_text("id,t\n3,6\n4,7\nfive,8\n")  # t seems a number, id a text
    assert "text: as in the target" in nightly(command="plan")
    nightly(code=1)
    assert rows(nightly.target, "select id, t from public.sales order by id") == [
        (1, "x"),
        (2, "5"),
        (3, "6"),
        (4, "7"),
    ]
    message = rows(nightly.target, "select message, data->>'raw' from keyhaul.quarantine")
    assert message == [("id: expected a whole number from -9223372036854775808 to 9223372036854775807", "five,8")]


def test_a_declared_type_and_one_that_an_expression_works_on_stay_what_they_are(nightly):
    run_sql(nightly.target, "create table public.sales (id bigint, t numeric)")
    (nightly.folder / "in").mkdir()
    (nightly.folder / "in" / "a.csv").write_text("id,t\n1,EUR5\n")
    nightly("--set", "t = cast(replace(t, 'EUR', '') as decimal(10, 2))")
    assert rows(nightly.target, "select id, t::text from public.sales") == [(1, "5.00")]
