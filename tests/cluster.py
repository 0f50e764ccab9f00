"""A PostgreSQL server of a test's own, that may be crashed, filled, or followed by a standby."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import support

if TYPE_CHECKING:
    from keyhaul.embedded.server import EmbeddedServer

NOBODY = 65534


class Cluster:
    """One server; `stop` it in either way and `start` it again on the same port.

    Attributes:
        port: on 127.0.0.1.
    """

    def __init__(self, folder: Path, binaries: Path, **settings: str) -> None:
        """Take a folder that every user can reach; nothing runs before `start`."""
        self.data = folder
        self._binaries = binaries
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "autovacuum": "off",
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    def uri(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def run(self, program: str, *args: str) -> None:
        """Run one of the server's programs as its user."""
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        done = subprocess.run(
            [str(self._binaries / program), *args], cwd="/", env={"PATH": "/usr/bin", "LC_ALL": "C"},
            capture_output=True, text=True, check=False, timeout=120, **user,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def make(self) -> None:
        """Make an empty cluster that trusts everybody on this machine."""
        self.own(self.data)
        self.run(
            "initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"
        )

    def follow(self, primary: Cluster) -> None:
        """Make a streaming standby of `primary`."""
        self.own(self.data)
        self.run("pg_basebackup", "-D", str(self.data), "-R", "-X", "stream", "-c", "fast", "-d", primary.uri())

    @staticmethod
    def own(folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)

    def start(self) -> None:
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        settings = [f"--{name}={value}" for name, value in self._settings.items()]
        log = (self.data.parent / f"{self.data.name}.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(self.data), f"--port={self.port}", *settings],
                cwd="/", env={"LC_ALL": "C"}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **user,
            )  # fmt: skip
        support.wait_until(self._accepts, "the server to accept connections", 60)

    def _accepts(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.data.parent / f"{self.data.name}.log").read_text()[-2000:]
        try:
            psycopg.connect(self.uri(), connect_timeout=2).close()
        except psycopg.OperationalError:
            time.sleep(0.05)
            return False
        return True

    def stop(self, number: int = signal.SIGQUIT) -> None:
        """Stop: SIGINT is a fast shutdown, SIGQUIT an immediate one."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None


def binaries_of(server: EmbeddedServer) -> Path:
    """Return the folder of a running server's programs."""
    for pid_file in server.home.rglob("postmaster.pid"):
        return Path(f"/proc/{pid_file.read_text().splitlines()[0]}/exe").resolve().parent
    raise AssertionError(server.home)
