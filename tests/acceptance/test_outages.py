"""A whole link that goes dark, or a server that is gone for good: the run goes on, or ends within a bound that is told."""

from __future__ import annotations

import os
import signal
import time

import pytest
import support
from aftermath import fetch, sessions, value
from cluster import Cluster, binaries_of
from darknet import dark_net
from oracle import problems, truth_of_a_clean_run

from keyhaul.ledger.patience import RECONNECT_SECONDS

pytestmark = pytest.mark.thorough

TIMEOUT_SECONDS = 2
PATIENCE_SECONDS = float(os.environ.get("KEYHAUL_PATIENCE", "8"))
"""How long a target is waited for: 60 in a soak, which is what everybody has; less where it is only a longer wait."""

DARK_SECONDS = PATIENCE_SECONDS / 5 + TIMEOUT_SECONDS
SLACK = float(os.environ.get("KEYHAUL_MATRIX_SLACK", "2"))
READERS = ["connectorx", "adbc"] if PATIENCE_SECONDS >= RECONNECT_SECONDS else ["adbc"]

SOURCE = """
create table public.items (id bigint primary key, name text, amount numeric(12,2), doc jsonb);
insert into public.items
select g, repeat('name ' || g, 20), (g % 50 - 1) / 4.0, jsonb_build_object('g', g) from generate_series(1, 3000) g;
analyze public.items;
create function public.nap() returns bool language plpgsql volatile as $$
begin
    if current_setting('application_name') like 'keyhaul % chunk %' then perform pg_sleep(0.005); end if;
    return true;
end $$;
create view public.slow as select * from public.items where public.nap();
"""
TARGET = "create table public.items (id bigint, name text, amount numeric(12,2), doc jsonb)"


def command(source, target, workers, *more):
    return [
        *("chunked", "--source", source, "--target", target, "--table", "public.slow", "--into", "public.items"),
        *("--key", "id", "--chunk", "100", "--workers", str(workers), "--mode", "append", "--job", "items"),
        *("--rule", "amount_positive: amount >= 0", "--allow-quarantined", "100%", "--progress", "json", *more),
    ]


@pytest.fixture(scope="module")
def source(server):
    with support.database_of(server, "outages", SOURCE) as uri:
        yield uri


@pytest.fixture(scope="module")
def truth(server, source, etl_home):
    return truth_of_a_clean_run(
        server, etl_home, TARGET, lambda target: command(source, target, 4), source, "amount >= 0"
    )


@pytest.fixture
def target(server, database):
    uri = database(server, "target")
    fetch(uri, TARGET)
    return uri


@pytest.fixture
def own(server):
    """A target server of the test's own."""
    with support.open_folder() as folder:
        cluster = Cluster(folder / "own", binaries_of(server))
        cluster.make()
        cluster.start()
        try:
            fetch(cluster.uri(), TARGET)
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture
def env(tmp_path_factory):
    """The variables of a process with that timeout and that patience."""
    folder = tmp_path_factory.mktemp("patience")
    text = f"import keyhaul.ledger.patience\nkeyhaul.ledger.patience.RECONNECT_SECONDS = {PATIENCE_SECONDS}\n"
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
    path = f"{folder}:{support.clean_environment(folder)['PYTHONPATH']}"
    return {"PYTHONPATH": path, "ETL_NETWORK_TIMEOUT_SECONDS": str(TIMEOUT_SECONDS)}


def through(uri, server, proxy):
    return uri.replace(f":{server.port}/", f":{proxy.port}/")


def judge(truth, source, target, folder):
    support.wait_until(lambda: not sessions(source) and not sessions(target), "sessions to end")
    assert problems(truth, target, "public.items", key="id", servers=[source, target], folders=[folder]) == []


@pytest.mark.thin(2)
@pytest.mark.parametrize("loader", ["copy", "adbc"])
def test_an_outage_whose_old_sessions_stay_in_the_server_is_over_when_the_network_is_back(
    start_etl, env, server, source, target, truth, tmp_path, loader
):
    with dark_net(server.port) as proxy:
        args = command(source, through(target, server, proxy), 2, "--loader", loader)
        run = start_etl(*args, env={**env, "ETL_RETRIES": "8"})
        run.wait_for("ChunkDone", 3)
        proxy.dark()
        time.sleep(DARK_SECONDS)
        proxy.heal()
        healed = time.monotonic()
        code = run.end(120)
        took = time.monotonic() - healed
        print(f"code {code}, {took:.1f} s after the network was back")
        assert code == 0, run.printed
        # Before the sessions are closed by the proxy's end: those that the outage left behind are gone.
        assert sessions(target) == []
    assert took < 25 * SLACK
    judge(truth, source, target, tmp_path)


def test_a_run_that_is_gone_on_with_after_an_outage_finds_nobody_in_its_way(
    start_etl, env, etl, server, source, target, truth, tmp_path
):
    with dark_net(server.port) as proxy:
        args = command(source, through(target, server, proxy), 2)
        run = start_etl(*args, env={**env, "ETL_RETRIES": "8"})
        run.wait_for("ChunkDone", 3)
        run.send(signal.SIGINT)
        assert run.end() == 130, run.printed
        run = start_etl(*args, env={**env, "ETL_RETRIES": "8"})  # its lock's session has another run's name
        run.wait_for("ChunkDone", 3)
        proxy.dark()
        time.sleep(DARK_SECONDS)
        proxy.heal()
        assert run.end(120) == 0, run.printed
    judge(truth, source, target, tmp_path)


def test_a_target_whose_link_is_dead_ends_the_run_within_a_minute_and_its_timeout(
    start_etl, env, etl, server, source, target, truth, tmp_path
):
    with dark_net(server.port) as proxy:
        run = start_etl(*command(source, through(target, server, proxy), 4), env=env)
        run.wait_for("ChunkDone", 3)
        proxy.dark()
        broken = time.monotonic()
        code = run.end(300)
        took = time.monotonic() - broken
        print(f"code {code} after {took:.1f} s")
        assert code == 3, run.printed
        assert "Traceback" not in run.printed
    assert took < TIMEOUT_SECONDS + PATIENCE_SECONDS + 10 * SLACK
    support.wait_until(lambda: not sessions(target), "sessions to end")
    assert etl(*command(source, target, 4)).returncode == 0
    judge(truth, source, target, tmp_path)


def test_a_target_that_is_gone_for_good_ends_the_run_within_a_minute(start_etl, env, source, own):
    run = start_etl(*command(source, own.uri(), 4), env=env)
    run.wait_for("ChunkDone", 3)
    own.stop()
    broken = time.monotonic()
    code = run.end(300)
    took = time.monotonic() - broken
    print(f"code {code} after {took:.1f} s")
    assert code == 3, run.printed
    assert "Traceback" not in run.printed
    assert took < PATIENCE_SECONDS + 10 * SLACK


def test_a_second_interrupt_ends_the_wait_for_a_target_that_is_gone(start_etl, env, source, own):
    run = start_etl(*command(source, own.uri(), 4), env=env)
    run.wait_for("ChunkDone", 3)
    own.stop()
    time.sleep(PATIENCE_SECONDS / 4)
    run.send(signal.SIGINT)
    time.sleep(1)
    run.send(signal.SIGINT)
    asked = time.monotonic()
    code = run.end(300)
    took = time.monotonic() - asked
    print(f"code {code} after {took:.1f} s")
    assert code in {3, 130}, run.printed
    assert "Traceback" not in run.printed
    assert took < 5 * SLACK


@pytest.mark.parametrize("reader", READERS)
def test_a_source_whose_link_is_dead_ends_the_run_within_seconds_of_its_timeout(
    start_etl, env, etl, server, source, target, truth, tmp_path, reader
):
    with dark_net(server.port) as proxy:
        args = command(through(source, server, proxy), target, 2, "--reader", reader)
        run = start_etl(*args, env=env)
        run.wait_for("ChunkDone", 3)
        time.sleep(0.2)  # in the middle of the next chunks
        proxy.dark()
        broken = time.monotonic()
        code = run.end(300)
        took = time.monotonic() - broken
        print(f"code {code} after {took:.1f} s")
        assert code == 3, run.printed
        assert "snapshot" in run.printed
        assert "Traceback" not in run.printed
        assert value(target, "select count(*) from keyhaul.chunks where status = 'failed'") == 0
        # connectorx opens a connection again for 30 s, and cannot be told to stop.
        assert took < (30 + 5 * SLACK if reader == "connectorx" else TIMEOUT_SECONDS + 10 * SLACK)
        proxy.heal()
        assert etl(*args).returncode == 0
    judge(truth, source, target, tmp_path)
