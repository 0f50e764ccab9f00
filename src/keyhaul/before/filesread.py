"""What files are read as and which: the types of the target, and what the job's runs have loaded already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from keyhaul.config.job import FilesSource
from keyhaul.errors import RefusedError
from keyhaul.model import KnownFiles
from keyhaul.postgres import catalog

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psycopg

    from keyhaul.config.job import Job
    from keyhaul.ledger.store import Ledger
    from keyhaul.model import FilesWanted
    from keyhaul.targets.postgres import TargetTable


def known_files(job: Job, ledger: Ledger, wanted: FilesWanted) -> KnownFiles | None:
    """Return what the ledger knows of a job's files; None when all are read."""
    if not isinstance(job.source, FilesSource) or not job.source.only_new or wanted == "all":
        return None
    if not ledger.exists():
        return KnownFiles(loaded={})
    runs = ledger.files_of_runs(job.target.table)
    done = [run for run in runs if run.status == "done"]
    loaded = {file["path"]: {**file, "run": run.run_id} for run in done for file in run.files}
    rows = sum(run.rows for run in done)
    if wanted == "loaded":
        paths = dict.fromkeys(file["path"] for run in runs for file in run.files)
        return KnownFiles(loaded=loaded, only=tuple(paths), rows=rows)
    unfinished = [run for run in runs if run.status != "done"]
    if not unfinished:
        return KnownFiles(loaded=loaded, rows=rows)
    if wanted == "new":
        return KnownFiles(loaded=loaded, only=tuple(file["path"] for file in unfinished[-1].files), rows=rows)
    last = unfinished[-1]
    if last.rows:
        msg = (
            f"start job {job.job}: run {last.run_id} is unfinished and has loaded {last.rows:,} rows of its files, "
            "which a new run would load again. Leave --fresh out to go on with it"
        )
        raise RefusedError(msg)
    return KnownFiles(loaded=loaded, rows=rows)


def check_still_there(known: KnownFiles | None, target: TargetTable) -> None:
    """Refuse to load only new files into a table that does not have what the others gave any more.

    Raises:
        RefusedError: it is gone or empty.
    """
    if known is not None and known.rows and (target.ddl.before or not target.holds_rows):
        what = "not there any more" if target.ddl.before else "empty"
        msg = (
            f"load {target.label}: it is {what}, though runs have loaded {len(known.loaded):,} files into it, and only "
            "new files are read. Give --full to read all files"
        )
        raise RefusedError(msg)


_LEAVING: Final = frozenset({"where", "drop"})
"""Steps after which a column is what it was."""


def types_there(job: Job, conn: psycopg.Connection[Any]) -> Mapping[str, str]:
    """Return the types that the columns of the target table have, where files may be read in them.

    None where the job computes, renames or looks up something: an expression is meant for what the file has.
    """
    if not isinstance(job.source, FilesSource) or job.targets or {step.kind for step in job.transform} - _LEAVING:
        return {}
    found = catalog.resolve(conn, job.target.table)
    if found is None:
        return {}
    return {column.name: column.pg_type for column in catalog.describe_table(conn, *found).columns}
