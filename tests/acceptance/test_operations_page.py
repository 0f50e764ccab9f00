"""docs/operations.md: its commands have these flags, its messages are the program's own, its SQL works on a real ledger."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psycopg
import support
from aftermath import value

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
CODE = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
MOVE = ("chunked", "--table", "public.items", "--key", "id", "--progress", "off")


def commands():
    """Each command on the page with the flags that it is given there."""
    found = re.findall(r"\betl (\w+)((?: (?:--?[\w-]+|[\w.$\"{}_]+))*)", PAGE)
    return {(name, flag) for name, rest in found for flag in re.findall(r"(?<= )--[\w-]+", rest)}


def test_every_command_of_the_page_has_the_flags_that_it_is_given():
    assert {name for name, _ in commands()} >= {"run", "quarantine", "show", "check"}
    for name in sorted({name for name, _ in commands()}):
        told = subprocess.run(
            [sys.executable, "-m", "keyhaul", name, "--help"], capture_output=True, text=True, check=True
        ).stdout
        missing = [flag for command, flag in commands() if command == name and flag not in told]
        assert missing == [], name


def test_every_message_that_the_page_quotes_is_one_of_the_programs():
    rows = [line.split("|")[1] for line in PAGE.partition("## When something is wrong")[2].splitlines() if "|" in line]
    quoted = [text for row in rows for text in re.findall(r'"([^"]+)"', row)]
    assert len(quoted) == 10
    joined = re.sub(r'"\s*\n\s*f?"', "", CODE)  # literals that go on in the next line
    for text in quoted:
        words = [part for part in re.split(r"\d+|…|source|target", text) if part.strip()]
        pattern = ".{0,60}".join(re.escape(part.strip()) for part in words)
        assert re.search(pattern, joined), text


def test_its_script_ends_with_the_code_of_what_became_of_the_night(databases, etl_home, tmp_path):
    """Killed once and gone on with, checked; quarantined; wrong."""
    source, target = databases
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute("create table public.items (id int primary key, n int)")
        connection.execute("insert into public.items select g, g from generate_series(1, 10) g")
    script = re.findall(r"```sh\n(.+?)```", PAGE, re.DOTALL)[0].replace("/var/log/", f"{tmp_path}/")
    job = f"source: {{uri: '{source}', table: public.items}}\ntarget: {{uri: '{target}', mode: skip}}\nkey: id\nchunk: 4\n"
    checks = f"source: {{uri: '{target}', table: public.items}}\nchecks:\n  - row_count: {{min: 1}}\n"

    def night(job, **more):
        (tmp_path / "nightly.yaml").write_text(job, encoding="utf-8")
        (tmp_path / "nightly_checks.yaml").write_text(checks, encoding="utf-8")
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        env = support.clean_environment(etl_home, {"ETL_TARGET_URL": target, "PATH": path, **more})
        return subprocess.run(
            ["/bin/sh", "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    done = night(job, KEYHAUL_FAULT="commit.after:2:kill")  # of three chunks: the second try has one left
    assert done.returncode == 0, done.stderr
    assert value(target, "select sittings from keyhaul.runs where status = 'done'") == 2
    assert (tmp_path / "checks.xml").exists()
    assert (tmp_path / "keyhaul.jsonl").exists()
    left = night(job + "rules: {small: n < 9}\n")
    assert left.returncode == 1, left.stderr
    assert "small" in left.stdout
    assert night(job.replace("key: id", "key: nothing")).returncode == 2


def test_its_sql_forgets_old_runs_and_finds_the_sessions(databases, start_etl):
    source, target = databases
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute("create table public.items (id int primary key, n int)")
        connection.execute("insert into public.items select g, g from generate_series(1, 10) g")
    for mode in ("append", "skip"):
        run = start_etl(*MOVE, "--source", source, "--target", target, "--mode", mode, "--rule", "small: n < 9")
        assert run.end() == 1, run.stderr
    forget, sessions = re.findall(r"```sql\n(.+?)\n```", PAGE, re.DOTALL)
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute(
            "update keyhaul.runs set ended_at = now() - interval '2 years' where started_at = (select min(started_at) from keyhaul.runs)"
        )
        connection.execute(forget)
        left = connection.execute(
            "select (select count(*) from keyhaul.runs), (select count(distinct run_id) from keyhaul.chunks),"
            " (select count(distinct run_id) from keyhaul.quarantine)"
        ).fetchone()
        assert left == (1, 1, 1)
        assert connection.execute(sessions).fetchall() == []
    with psycopg.connect(target, application_name="keyhaul look back") as named:
        found = named.execute(sessions).fetchall()
        assert [row[1] for row in found] == ["keyhaul look back"]
