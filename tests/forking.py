"""`etl` processes that need no imports: a server imports the program once and forks for each command.

A forked command is a process of its own: arguments, environment, folder, descriptors, signals, memory and exit code are
its own, and nothing that it remembers outlives it. What it shares with ``python -m keyhaul`` is tested
(tests/acceptance/test_forking.py); what it cannot have is an interpreter that started with other variables: see `EARLY`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

SOURCE = Path(__file__).parents[1] / "src"
EARLY = ("PYTHON", "LC_", "LANG", "TZ", "LD_", "MALLOC", "POLARS", "OMP", "DUCKDB", "ARROW", "SSL", "RUST")
"""Beginnings of the names of variables that an interpreter, or a library that is loaded, looks at once."""

LIBRARIES = ("adbc_driver_postgresql.dbapi", "connectorx", "duckdb", "polars", "pyarrow.compute", "pyarrow.parquet")
"""That keyhaul's modules import inside functions, for which a command should not pay at its start."""

LARGEST_BYTES = 100_000
"""Of arguments and environment in one message to the server; a socket takes twice as much."""


class Forked:
    """``etl ARGS``, started by the server of this process; what it has is called as in `subprocess.Popen`."""

    def __init__(self, args, *, env: Mapping[str, str], cwd: Path, stdin: int, stdout: int, stderr: int) -> None:
        """Start it; the descriptors stay the caller's."""
        self.args = args
        self.returncode: int | None = None
        self.stdout: TextIO | None = None
        self.stderr: TextIO | None = None
        self._lock = threading.Lock()
        self._status, told = os.pipe()
        request = json.dumps({"args": args, "env": env, "cwd": str(cwd)}).encode()
        try:
            socket.send_fds(_server(), [request], [stdin, stdout, stderr, told])
        finally:
            os.close(told)
        self.pid = self._told()

    def _told(self) -> int:
        """Read one number that the server writes: the PID, or the exit code at the end."""
        word = b""
        while not word.endswith(b"\n"):
            piece = os.read(self._status, 1)
            assert piece, f"the server that forks ended before {self.args}"
            word += piece
        return int(word)

    def poll(self) -> int | None:
        return self._wait(0)

    def _wait(self, timeout_seconds: float | None) -> int | None:
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while self.returncode is None:
            with self._lock:  # a thread may wait while another polls
                if self.returncode is None and select.select([self._status], [], [], 0)[0]:
                    self.returncode = self._told()
                    os.close(self._status)
            if self.returncode is None:
                if deadline is not None and time.monotonic() >= deadline:
                    break
                time.sleep(0.005)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        code = self._wait(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def can_fork(args, env: Mapping[str, str]) -> bool:
    """Say whether a forked command would be the same as a new interpreter with these arguments and variables.

    With ``KEYHAUL_THOROUGH=1`` every command is a new interpreter.
    """
    if os.environ.get("KEYHAUL_THOROUGH") == "1":
        return False
    names = {name for name in {*env, *os.environ} if name.startswith(EARLY) and name != "PYTHONDONTWRITEBYTECODE"}
    alike = all(env.get(name) == os.environ.get(name) for name in names - {"PYTHONPATH"})
    alike = alike and env.get("PYTHONPATH", str(SOURCE)) == str(SOURCE)  # a folder more may hold a sitecustomize
    return alike and sum(map(len, [*args, *env, *env.values()])) < LARGEST_BYTES


def run(args, *, env: Mapping[str, str], cwd: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run ``etl ARGS`` to its end, as `subprocess.run` with both streams captured."""
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        null = os.open(os.devnull, os.O_RDONLY)
        ends = {"stdout": os.pipe(), "stderr": os.pipe()}
        child = Forked(args, env=env, cwd=cwd, stdin=null, stdout=ends["stdout"][1], stderr=ends["stderr"][1])
        read = {name: bytearray() for name in ends}
        for descriptor in (null, ends["stdout"][1], ends["stderr"][1]):
            os.close(descriptor)
        for name, (end, _) in ends.items():
            stack.callback(os.close, end)
            selector.register(end, selectors.EVENT_READ, name)
        while selector.get_map():
            for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                piece = os.read(key.fd, 1 << 16)
                read[key.data] += piece
                if not piece:
                    selector.unregister(key.fd)
            if time.monotonic() >= deadline:
                child.kill()
                child.wait()
                raise subprocess.TimeoutExpired(args, timeout, bytes(read["stdout"]), bytes(read["stderr"]))
        code = child.wait(max(1.0, deadline - time.monotonic()))
    texts = {name: data.decode().replace("\r\n", "\n").replace("\r", "\n") for name, data in read.items()}
    return subprocess.CompletedProcess(args, code, **texts)


def start(args, *, env: Mapping[str, str], cwd: Path) -> Forked | subprocess.Popen[str]:
    """Start ``etl ARGS`` with pipes for both streams, forked where that is the same."""
    if not can_fork(args, env):
        return subprocess.Popen(
            [sys.executable, "-m", "keyhaul", *args],
            env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    (out, to_out), (err, to_err), null = os.pipe(), os.pipe(), os.open(os.devnull, os.O_RDONLY)
    child = Forked(args, env=env, cwd=cwd, stdin=null, stdout=to_out, stderr=to_err)
    for descriptor in (null, to_out, to_err):
        os.close(descriptor)
    child.stdout, child.stderr = open(out, encoding="utf-8"), open(err, encoding="utf-8")  # noqa: SIM115, PTH123 - closed by the caller
    return child


@cache
def _server() -> socket.socket:
    """Start the server of this process, once; it ends when this process does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
        server = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    def stop() -> None:
        ours.close()
        server.wait()

    atexit.register(stop)
    return ours


# --- in the server ------------------------------------------------------------------------------------------------


def serve(requests: socket.socket):
    """Fork for each request and tell how each command ends; returns in the child, with what was asked."""
    poll, children = select.poll(), {}
    poll.register(requests, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready != requests.fileno():
                pid, told = children.pop(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(BrokenPipeError):
                    os.write(told, b"%d\n" % code)
                poll.unregister(ready)
                os.close(ready)
                os.close(told)
                continue
            message, descriptors, _, _ = socket.recv_fds(requests, 2 * LARGEST_BYTES, 4)
            if not message:
                os._exit(0)
            pid = os.fork()
            if pid == 0:
                requests.close()
                for descriptor in [descriptors[3], *children, *(told for _, told in children.values())]:
                    os.close(descriptor)
                return json.loads(message), descriptors[:3]
            ended = os.pidfd_open(pid)
            children[ended] = (pid, descriptors[3])
            poll.register(ended, select.POLLIN)
            os.write(descriptors[3], b"%d\n" % pid)
            for descriptor in descriptors[:3]:
                os.close(descriptor)


def become(asked, descriptors) -> None:
    """Make this process what ``python -m keyhaul ARGS`` would have started as."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        was = getattr(sys, name)
        stream = open(number, mode, encoding=was.encoding, errors=was.errors, closefd=False)  # noqa: SIM115 - as long as the process
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.path[0] = asked["cwd"]
    sys.argv = ["keyhaul", *asked["args"]]


def load() -> None:
    """Import all that a command may import."""
    import keyhaul

    for module in pkgutil.walk_packages(keyhaul.__path__, "keyhaul."):
        if module.name.rpartition(".")[2] not in {"__main__", "keeper"}:
            importlib.import_module(module.name)
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def finish() -> NoReturn:
    """Do what `etl` was asked to do, and end: as an interpreter does, but for taking apart what was imported."""
    code = 0
    try:
        runpy.run_module("keyhaul", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    load()
    become(*serve(socket.socket(fileno=int(sys.argv[1]))))
    finish()
