"""What makes two jobs the same, and the code of Python steps."""

from __future__ import annotations

import hashlib
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyhaul.config import steps
from keyhaul.differing import difference
from keyhaul.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyhaul.config.steps import Step


def check_same(run_id: str, was: tuple[str, Mapping[str, Any]], now: tuple[str, Mapping[str, Any]]) -> None:
    """Refuse to go on with the run of a job that has changed since.

    Args:
        run_id: the unfinished run.
        was: fingerprint and identity of its job.
        now: those of the job as it is given.

    Raises:
        RefusedError: it is another job; says what differs.
    """
    if was[0] == now[0]:
        return
    changed = "; ".join(difference(was[1], now[1])) or "its fingerprint"
    msg = (
        f"resume run {run_id}: the job has changed since it was planned: {changed}. "
        "Undo the change to go on, or give --fresh to start a new run"
    )
    raise RefusedError(msg)


def with_contents(identity: Mapping[str, Any], contents: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the ledger keeps of a job, with what makes its source the same beside its address."""
    return {**identity, **({"contents": dict(contents)} if contents else {})}


def check_contents(run_id: str, changed: Sequence[str], source: str, *, can_be_meant: bool) -> None:
    """Refuse to go on with the run of a source that has changed since.

    Args:
        run_id: the unfinished run.
        changed: what differs, a few words each.
        source: for people.
        can_be_meant: whether the plan's chunks mean the same in another one.

    Raises:
        RefusedError: something does.
    """
    if changed:
        msg = (
            f"resume run {run_id}: {source} has changed since the run was planned: {'; '.join(changed)}. Put it back "
            "as it was to go on, or give --fresh to start a new run"
        )
        if can_be_meant:
            msg += f". If what is loaded is right all the same: etl resume {run_id} --changed"
        raise RefusedError(msg)


def module_digest(module: str) -> str | None:
    """Return the SHA-256 of a module's file; nothing is imported (`find_spec` would import the parents).

    It is looked for in the current folder and on ``sys.path``; None when it is not found there.
    """
    search: list[str] | None = [str(Path.cwd()), *sys.path]
    name, spec = "", None
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        spec = PathFinder.find_spec(name, search) if search is not None else None
        search = list(spec.submodule_search_locations or []) if spec else None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return None
    return file_digest(spec.origin)


def file_digest(path: str) -> str | None:
    """Return the SHA-256 of a file, read in pieces; None when there is no such file or it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def step_identity(step: Step) -> dict[str, Any]:
    """Return what makes a step the same, with the digest of the code or file that it names."""
    digest = module_digest(step.python.partition(":")[0]) if step.kind == "python" else None
    if step.lookup and step.lookup.file:
        digest = file_digest(step.lookup.file)
    return steps.step_identity(step) | ({"sha256": digest} if digest else {})
