"""The other programs, each in a venv of its own under the user's cache, installed by name from the default index."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import platformdirs

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = {
    "duckdb": ("duckdb==1.5.5", "duckdb-extension-postgres-scanner==1.5.5"),
    "dlt": (
        "dlt[postgres,parquet]",
        "adbc-driver-manager",
        "adbc-driver-postgresql",
        "connectorx==0.4.*",
        "psycopg2-binary",
        "pyarrow",
    ),
    "sling": ("sling==1.3.5",),
    "pool": ("psycopg[binary]",),
}
NAMES = {"duckdb": "DuckDB", "dlt": "dlt", "sling": "Sling", "pool": "psycopg"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A venv with one peer; `missing` says why it cannot run, and is empty when it can."""

    folder: Path
    title: str
    missing: str = ""

    @property
    def python(self) -> str:
        """The venv's interpreter."""
        return self.program("python")

    def program(self, name: str) -> str:
        """Return the path of a program in the venv."""
        return str(self.folder / "bin" / name)


def default_folder() -> Path:
    """Return where the venvs are kept from one benchmark to the next."""
    return platformdirs.user_cache_path("keyhaul-benchmarks")


def install(folder: Path) -> dict[str, Peer]:
    """Make the venvs that are not there yet; what fails is told, and the others go on."""
    return {name: _install(folder / name, name) for name in PACKAGES}


def _install(venv: Path, name: str) -> Peer:
    python = venv / "bin" / "python"
    missing = ""
    if not (venv / "installed").exists():
        print(f"install {NAMES[name]}: {' '.join(PACKAGES[name])}", file=sys.stderr, flush=True)
        base = getattr(sys, "_base_executable", sys.executable)
        for command in (
            [base, "-m", "venv", "--clear", str(venv)],
            [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *PACKAGES[name]],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
                missing = f"pip could not install it: {lines[-1]}"
                break
        else:
            (venv / "installed").touch()
    return Peer(folder=venv, title=_title(python, name) if not missing else NAMES[name], missing=missing)


def _title(python: Path, name: str) -> str:
    package = PACKAGES[name][0].partition("==")[0].partition("[")[0]
    ask = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=False)
    return f"{NAMES[name]} {done.stdout.strip()}".strip()
