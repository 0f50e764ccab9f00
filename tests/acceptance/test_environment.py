"""What the environment says to libpq must not change values, and what it does not have is said in one line."""

import signal
import subprocess
import sys

import pytest
from moving import job, rows, run_sql

from keyhaul.cli import app
from keyhaul.control import Control
from keyhaul.execution.engine import run


def test_an_encoding_in_the_environment_changes_no_text(etl, databases):
    source, target = databases
    run_sql(
        source,
        "create table public.t (id int primary key, v text, j jsonb, a text[])",
        """insert into public.t values (1, 'é€ü', '{"x": "é"}', '{é}')""",
    )
    for loader in ("copy", "adbc"):
        run_sql(target, "drop table if exists public.t")
        done = etl(
            *("chunked", "--source", source, "--target", target, "--table", "public.t", "--key", "id"),
            *("--loader", loader, "--reader", "adbc", "--fresh"),
            env={"PGCLIENTENCODING": "LATIN1"},
        )
        assert done.returncode == 0, done.stderr
        assert rows(target, "select v, j::text, a::text from public.t") == [("é€ü", '{"x": "é"}', "{é}")]


def limited(uri_pair, limit, folder=None):
    """Run a move in a shell with a limit, or in a folder that is deleted; returns the completed process."""
    source, target = uri_pair
    code = "from keyhaul.cli.start import main; main()"
    words = ["chunked", "--source", source, "--target", target, "--table", "public.t", "--key", "id", "--workers", "2"]
    script = f'{limit} && exec "$@"'
    return subprocess.run(
        ["/bin/bash", "-c", script, "bash", sys.executable, "-c", code, *words],
        capture_output=True, text=True, check=False, timeout=120, cwd=folder,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ("ulimit -n 20", "start 2 workers: at most 20 files may be open, expected 72. Raise it (ulimit -n)"),
        ("ulimit -v 2000000", "start 2 workers: the address space is limited to 2.0 GB, expected at least 3.4 GB. "),
        ("mkdir gone && cd gone && rmdir ../gone", "start in the current folder: it is deleted, expected one that is"),
    ],
)
def test_what_the_machine_must_have_is_one_line_before_anything_is_moved(databases, tmp_path, limit, told):
    run_sql(databases[0], "create table public.t as select g id from generate_series(1, 10) g")
    done = limited(databases, limit, tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {told}")
    assert len(done.stderr.splitlines()) == 1
    assert rows(databases[1], "select to_regclass('public.t')::text") == [(None,)]


def test_a_limit_of_open_files_that_may_be_raised_is(databases):
    run_sql(databases[0], "create table public.t as select g id from generate_series(1, 10) g")
    done = limited(databases, "ulimit -Sn 20")
    assert done.returncode == 0, done.stderr
    assert rows(databases[1], "select count(*) from public.t") == [(10,)]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "memory ran out"),
        (OSError(28, "No space left on device", "/x/y"), "No space left on device: /x/y"),
        (ImportError("lib.so: failed to map segment", name="lib", path="/lib.so"), "load lib: lib.so: failed to map"),
        (RuntimeError("can't start new thread"), "no further thread can be started"),
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_ours(monkeypatch, capsys, error, told):
    def lacks():
        raise error

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(app, "app", lacks)
    try:
        assert app._command() == 3
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.startswith(f"error: {told}")


def test_the_connection_limit_of_a_role_is_found_at_the_start(server, databases):
    run_sql(databases[0], "create table public.t as select g id from generate_series(1, 10) g")
    name = f"few_{databases[1].rpartition('/')[2]}"
    run_sql(
        databases[1],
        f"create role {name} login password 'p' connection limit 4",
        f"grant all on schema public to {name}",
        f"grant create on database {databases[1].rpartition('/')[2]} to {name}",
    )
    ends = databases[0], f"postgresql://{name}:p@127.0.0.1:{server.port}/{databases[1].rpartition('/')[2]}"
    told = []
    try:
        report = run(job(ends, chunk=2, workers=3), told.append, Control())
        assert (report.outcome, report.workers) == ("done", 1)
        assert any("more connections than the target has free for this user" in str(event) for event in told)
    finally:
        run_sql(databases[1], f"drop owned by {name} cascade", f"drop role {name}")
