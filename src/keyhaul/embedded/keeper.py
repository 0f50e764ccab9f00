"""Keeps one embedded PostgreSQL running for as long as any process uses its home.

`keyhaul.embedded.server` runs this file as a script (``python -I -S keeper.py SPEC``, standard library
only). It takes ``server.lock``, forks, and the first process exits: from then on that lock says
that the server is there. The second process, the keeper, makes the cluster if it is missing,
starts postgres as its child and waits for an exclusive lock on ``users.lock``. Every user holds
a shared one, which the kernel drops even when the user is killed, so getting it means that
nobody is left; postgres is then stopped.

postgres and initdb inherit ``server.lock`` and die with the keeper. The lock is therefore free
exactly when no process of the cluster is alive, whatever was killed; no process id is trusted.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.005
LOCK_TRIES = 200
PORT_TRIES = 5
FAST_STOP_SECONDS = 30.0
"""How long open transactions are rolled back and the last checkpoint is written before SIGQUIT."""
READY_LINE = 7
"""The line of postmaster.pid (from 0) with the server's state; the port is on line 3 (PostgreSQL, pidfile.h)."""


class _StopError(Exception):
    """The keeper was told to end (SIGTERM, for example at shutdown of the machine)."""


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} keeper[{os.getpid()}]: {text}\n")
    sys.stderr.flush()


def _spawn(argv: list[str], spec: dict[str, Any], death_signal: int, lock: int) -> int:
    """Start `argv` as the cluster's owner, bound to this process's life; `lock` stays open in it.

    The death signal is cleared by a change of user, so it is set after that; the parent may be
    gone before it is set, so the parent is compared after that.
    """
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    keeper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        if spec["uid"] is not None:
            os.setgroups([])
            os.setgid(spec["gid"])
            os.setuid(spec["uid"])
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != keeper:
            os._exit(1)
        os.set_inheritable(lock, True)  # noqa: FBT003 - positional in the standard library
        # Nothing of the user's environment: PGPORT, PGDATA and the like would change the server.
        os.execve(argv[0], argv, {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"})  # noqa: S606 - no shell is wanted
    except OSError as error:
        _say(f"cannot start {argv[0]}: {error}")
    os._exit(127)


def _make_cluster(spec: dict[str, Any], lock: int) -> None:
    """Run initdb in a scratch folder of the home and rename its result: whole, or not there."""
    home, data = Path(spec["home"]), Path(spec["data"])
    for leftover in home.glob("initdb-*"):
        shutil.rmtree(leftover)
    if data.exists():
        return
    scratch = home / f"initdb-{secrets.token_hex(4)}"
    scratch.mkdir(mode=0o700)
    secret = scratch / "password"
    secret.touch(mode=0o600)
    secret.write_text((home / "password").read_text(encoding="ascii"), encoding="ascii")
    if spec["uid"] is not None:
        os.chown(secret, spec["uid"], spec["gid"])
        os.chown(scratch, spec["uid"], spec["gid"])
    made = scratch / "data"
    initdb = [f"{spec['bindir']}/initdb", "-D", str(made), f"--pwfile={secret}", *spec["initdb"]]
    _, status = os.waitpid(_spawn(initdb, spec, signal.SIGKILL, lock), 0)
    if status != 0:
        _say("initdb failed")
        os._exit(1)
    made.rename(data)
    shutil.rmtree(scratch)


def _forget_stale(data: Path) -> None:
    """Remove what a crashed server left; its process id may belong to anything by now."""
    pid_file = data / "postmaster.pid"
    try:
        pid = int(pid_file.read_text(encoding="ascii").split("\n", 1)[0])
        if Path(f"/proc/{pid}/cwd").samefile(data):
            return  # somebody started a server on this folder by hand: ours will refuse to start
    except (OSError, ValueError):
        pass
    pid_file.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_ready(data: Path) -> bool:
    try:
        lines = (data / "postmaster.pid").read_text(encoding="ascii").split("\n")
    except OSError:
        return False
    return len(lines) > READY_LINE and lines[READY_LINE].strip() == "ready"


def _port_was_taken(spec: dict[str, Any], log_start: int) -> bool:
    with Path(spec["log"]).open("rb") as log:
        log.seek(log_start)
        return b"Address already in use" in log.read()


def _start(spec: dict[str, Any], lock: int) -> int:
    """Start postgres and return its process id once it takes connections; another port if one was taken."""
    data = Path(spec["data"])
    for _ in range(PORT_TRIES):
        _forget_stale(data)
        log_start = os.fstat(2).st_size
        settings = {**spec["settings"], "port": str(_free_port())}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        pid = _spawn([f"{spec['bindir']}/postgres", "-D", str(data), *options], spec, signal.SIGQUIT, lock)
        while not _is_ready(data):
            if os.waitpid(pid, os.WNOHANG)[0]:
                break
            time.sleep(POLL_SECONDS)
        else:
            return pid
        if not _port_was_taken(spec, log_start):
            break
    _say("postgres did not start")
    os._exit(1)


def _keep(spec: dict[str, Any], lock: int) -> NoReturn:
    def stop(_number: int, _frame: object) -> None:
        raise _StopError

    users = os.open(f"{spec['home']}/users.lock", os.O_RDWR)
    signal.signal(signal.SIGTERM, stop)
    try:
        _make_cluster(spec, lock)
        pid = _start(spec, lock)
    except _StopError:
        os._exit(0)  # what was started gets its death signal

    def wait() -> NoReturn:
        _, status = os.waitpid(pid, 0)
        _say(f"postgres ended, status {status}")
        os._exit(0)

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    try:
        fcntl.flock(users, fcntl.LOCK_EX)
        _say("no user is left")
    except _StopError:
        _say("told to end")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(pid, signal.SIGINT)
    waiter.join(FAST_STOP_SECONDS)
    os.kill(pid, signal.SIGQUIT)
    waiter.join()
    os._exit(0)


def main() -> None:
    """Become the keeper of the home that the first argument (JSON, see `keyhaul.embedded.server`) describes."""
    spec: dict[str, Any] = json.loads(sys.argv[1])
    os.umask(0o077)
    os.chdir(spec["home"])
    lock = os.open("server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:  # somebody looks whether it is free, which takes microseconds
            time.sleep(POLL_SECONDS)
    else:
        _say("server.lock is held")
        sys.exit(1)
    os.truncate(lock, 0)
    os.write(lock, str(spec["major"]).encode())
    _forget_stale(Path(spec["data"]))
    if os.fork():
        os._exit(0)
    try:
        _keep(spec, lock)
    except Exception as error:  # noqa: BLE001 - the log is the only place left to say it
        _say(f"{type(error).__name__}: {error}")
        os._exit(1)


if __name__ == "__main__":
    main()
