from __future__ import annotations

import json
import stat

from moving import run_sql


def test_every_event_is_a_line_with_its_run_and_chunk(databases, etl, tmp_path):
    source, target = databases
    run_sql(source, "create table public.t (id int primary key)", "insert into public.t select generate_series(1, 500)")
    log = tmp_path / "run.jsonl"
    command = [
        "chunked",
        "--table",
        "public.t",
        "--key",
        "id",
        "--chunk",
        "100",
        "--source",
        source,
        "--target",
        target,
    ]
    done = etl(*command, "--log-file", str(log))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    runs = {line["run"] for line in lines if line["event"] != "Notice"}
    assert len(runs) == 1
    assert None not in runs
    assert sorted(line["chunk"] for line in lines if line["event"] == "ChunkDone") == [1, 2, 3, 4, 5]
    assert [line["event"] for line in lines][-1] == "RunFinished"
    assert "keyhaul:" not in log.read_text(), "the password of a URI"
    before = len(lines)
    again = etl(*command, "--log-file", str(log))
    assert again.returncode == 2
    last = log.read_text().splitlines()
    assert len(last) > before, "a log is appended to"
    assert json.loads(last[-1])["error"] == "RefusedError"


def test_a_log_that_cannot_be_written_is_refused_before_anything_is_moved(databases, etl, tmp_path):
    source, target = databases
    run_sql(source, "create table public.t (id int primary key)")
    done = etl(
        "chunked",
        "--table",
        "public.t",
        "--key",
        "id",
        "--source",
        source,
        "--target",
        target,
        "--log-file",
        str(tmp_path / "no" / "log"),
    )
    assert done.returncode == 2
    assert "Change --log-file" in done.stderr


def test_a_full_disk_costs_the_log_and_not_the_run(databases, etl):
    source, target = databases
    run_sql(source, "create table public.t (id int primary key)", "insert into public.t select generate_series(1, 50)")
    done = etl(
        "chunked",
        "--table",
        "public.t",
        "--key",
        "id",
        "--source",
        source,
        "--target",
        target,
        "--log-file",
        "/dev/full",
    )
    assert done.returncode == 0
    assert "The run goes on without its log" in done.stderr


def test_what_looks_like_a_password_in_a_message_leaves_the_lines_json(databases, etl, tmp_path):
    source, target = databases
    log = tmp_path / "run.jsonl"
    done = etl(
        "chunked",
        "--query",
        'select * from "host=h password=abc"',
        "--key",
        "id",
        "--source",
        source,
        "--target",
        target,
        "--into",
        "public.t",
        "--progress",
        "json",
        "--log-file",
        str(log),
    )
    assert done.returncode == 2
    assert 'relation "host=h password=***" does not exist' in done.stderr
    assert 'relation "host=h password=***" does not exist' in json.loads(log.read_text().splitlines()[-1])["message"]
    assert all(json.loads(line) for line in done.stdout.splitlines())


def test_what_looks_like_a_password_in_the_name_of_a_check_leaves_its_results_json(etl, tmp_path):
    (tmp_path / "a.csv").write_text("id,a\n1,2\n")
    (tmp_path / "checks.yaml").write_text(
        f"source: {{file: {tmp_path / 'a.csv'}}}\n"
        "checks:\n"
        "  - expression: a = '5'\n"
        "    name: 'say \"password=abc\" loud'\n"
        "  - expression: a = '6'\n"
        "    name: 'see \"https://h/?password=x\"'\n"
    )
    done = etl("check", str(tmp_path / "checks.yaml"), "--json", "--junit", str(tmp_path / "junit.xml"))
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)["verdicts"]
    assert [one["name"] for one in told] == ['say "password=***" loud', 'see "https://h/?password=***"']
    assert "abc" not in (tmp_path / "junit.xml").read_text()


def test_a_secret_that_is_a_word_of_the_schema_does_not_damage_it(etl):
    plain, with_secret = etl("schema"), etl("schema", env={"API_TOKEN": "order_by"})
    assert "order_by" in plain.stdout
    assert with_secret.stdout == plain.stdout
