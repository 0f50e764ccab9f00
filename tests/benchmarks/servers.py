"""The two databases of a benchmark: on a scratch PostgreSQL that flushes as a real one, or those that are given."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from keyhaul.embedded import server as embedded

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
    "max_connections": "200",
}
"""Durable as PostgreSQL's defaults (fsync, full pages, synchronous commits). No checkpoint and no autovacuum of its
own falls into a run: the benchmark makes a checkpoint before each."""


@contextmanager
def databases(source: str | None, target: str | None) -> Iterator[tuple[str, str, str]]:
    """Give the URIs of source and target and what they are on, in words; a server of our own is removed at the end."""
    if source and target:
        yield source, target, "given servers"
        return
    folder = Path(tempfile.mkdtemp(prefix="keyhaul-bench-", dir="/var/tmp"))
    folder.chmod(0o711)
    try:
        server = embedded.start(folder / "home", settings=SETTINGS)
        try:
            with psycopg.connect(server.uri("postgres"), autocommit=True) as conn:
                conn.execute("create database bench_source")
                conn.execute("create database bench_target")
            told = ", ".join(f"{name} {value}" for name, value in SETTINGS.items())
            yield server.uri("bench_source"), server.uri("bench_target"), f"one scratch server ({told})"
        finally:
            server.close()
            while embedded.is_running(folder / "home"):
                time.sleep(0.05)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
