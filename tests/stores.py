"""Stores of files that live for a test session: Azurite and s3rver from npm, and a web server with ranges and etags."""

from __future__ import annotations

import fcntl
import hashlib
import http.server
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

import platformdirs
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AZURITE = ("azurite", "3.37.0")
S3RVER = ("s3rver", "3.7.1")
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's own, which everybody knows."""

START_SECONDS = 60


def installed(package: str, version: str) -> Path:
    """Return the folder of an npm package; it is installed once for this user, by name.

    Skips the test where there is no node or npm; an npm that cannot install is a failure.
    """
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {' and '.join(missing)} on this machine, needed for {package}")
    cache = platformdirs.user_cache_path("keyhaul-tests") / f"{package}-{version}"
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / "done").exists():
            cache.mkdir(exist_ok=True)
            command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(cache)]
            done = subprocess.run(
                [*command, f"{package}@{version}"], capture_output=True, text=True, timeout=280, check=False
            )
            assert done.returncode == 0, done.stderr[-2000:]
            (cache / "done").touch()
    return cache / "node_modules" / package


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(*command: str, port: int) -> Iterator[None]:
    """Run a server until the end; it answers at once."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None, f"{command[1]} ended with {process.returncode}"
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, f"{command[1]} does not answer"
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


@dataclass(frozen=True)
class Azurite:
    """A running Azurite.

    Attributes:
        endpoint: of its blobs. connection: string.
    """

    endpoint: str

    @property
    def connection(self) -> str:
        return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={self.endpoint};"

    @property
    def environ(self) -> dict[str, str]:
        return {"AZURE_STORAGE_CONNECTION_STRING": self.connection}

    def service(self):
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient.from_connection_string(self.connection)

    def container(self, name: str) -> None:
        self.service().create_container(name)

    def put(self, container: str, name: str, text: bytes) -> None:
        self.service().get_blob_client(container, name).upload_blob(text, overwrite=True)


@contextmanager
def running_azurite(folder: Path) -> Iterator[Azurite]:
    """Azurite on a free port, with its data in `folder`."""
    main = installed(*AZURITE) / "dist" / "src" / "blob" / "main.js"
    port = free_port()
    options = ("--silent", "--skipApiVersionCheck", "--disableTelemetry", "--blobHost", "127.0.0.1")
    with started("node", str(main), *options, "--location", str(folder), "--blobPort", str(port), port=port):
        yield Azurite(f"http://127.0.0.1:{port}/{ACCOUNT}")


@dataclass(frozen=True)
class S3:
    """A running s3rver: it speaks S3, but takes every key, and does not look at If-Match."""

    endpoint: str

    @property
    def environ(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "S3RVER",
            "AWS_SECRET_ACCESS_KEY": "S3RVER",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def put(self, bucket: str, name: str, text: bytes) -> None:
        import obstore
        from obstore.store import S3Store

        store = S3Store(
            bucket,
            endpoint=self.endpoint,
            access_key_id="S3RVER",
            secret_access_key="S3RVER",
            client_options={"allow_http": True},
        )
        obstore.put(store, name, text)


@contextmanager
def running_s3(folder: Path) -> Iterator[S3]:
    """s3rver on a free port, with a bucket called bucket."""
    main = installed(*S3RVER) / "bin" / "s3rver.js"
    port = free_port()
    options = ("-d", str(folder), "-a", "127.0.0.1", "-p", str(port), "--silent", "--configure-bucket", "bucket")
    with started("node", str(main), *options, port=port):
        yield S3(f"http://127.0.0.1:{port}")


@dataclass
class Web:
    """Files behind a web address, with faults.

    Attributes:
        files: path → bytes. signature: that the query must have; empty: none. ranges: whether it gives parts.
        etags: whether it gives them. cut: so many answers end in their middle. before: called with each GET's number.
        asked: GETs, as path and bytes. port: on 127.0.0.1. begun: GETs that have begun.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    signature: str = ""
    ranges: bool = True
    etags: bool = True
    cut: int = 0
    before: object = None
    asked: list[tuple[str, int]] = field(default_factory=list)
    port: int = 0
    begun: int = 0

    def passed(self) -> int:
        """Count this GET."""
        self.begun += 1
        return self.begun

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}" + (f"?{self.signature}" if self.signature else "")


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, *, body):
        web: Web = self.server.web
        path, _, query = self.path.partition("?")
        if body and web.before is not None:
            web.before(web.passed())
        text = web.files.get(unquote(path).lstrip("/"))
        if query != web.signature:
            return self._send(403, b"", {})
        if text is None:
            return self._send(404, b"", {})
        etag = f'"{hashlib.md5(text, usedforsecurity=False).hexdigest()}"'
        headers = {"ETag": etag} if web.etags else {"Last-Modified": "Tue, 01 Sep 2026 10:00:00 GMT"}
        if web.etags and self.headers.get("If-Match") not in {None, etag}:
            return self._send(412, b"", {})
        given = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        status, part = 200, text
        if given and web.ranges:
            low, high = int(given[1]), min(int(given[2]) + 1, len(text))
            status, part = 206, text[low:high]
            headers["Content-Range"] = f"bytes {low}-{high - 1}/{len(text)}"
        if body:
            web.asked.append((path, len(part)))
        return self._send(status, part, headers, body=body)

    def _send(self, status, part, headers, *, body=True):
        web: Web = self.server.web
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if not body:
            return
        if web.cut > 0 and len(part) > 1:
            web.cut -= 1
            part = part[: len(part) // 2]
            self.close_connection = True
        self.wfile.write(part)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that has gone is no error here."""


@contextmanager
def running_web() -> Iterator[Web]:
    """A web server on a free port."""
    web = Web()
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.web = web
        web.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield web
        finally:
            server.shutdown()
            thread.join()


WITHOUT_KEYS = {name: None for name in os.environ if name.startswith(("AZURE_", "AWS_"))}
"""An environment's changes, so that no key of the machine is taken."""
