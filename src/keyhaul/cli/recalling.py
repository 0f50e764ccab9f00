"""The job of a run that is named alone, as its ledger has it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyhaul.cli.shell import open_ledger
from keyhaul.errors import ConfigError, RefusedError

if TYPE_CHECKING:
    from keyhaul.config.job import Job
    from keyhaul.ledger.reading import GivenJob


def recalled(verb: str, run: str, job_file: Path | None, given: dict[str, Any]) -> tuple[Job, str]:
    """Return the job that a command is about, and the name of the run.

    A job that is given whole, by a file or with its table or query, is taken as it is; whether it is the run's is for
    the command to tell. Else it is the run's own as the ledger has it, with what the flags say in the place of that.

    Raises:
        RefusedError: there is no such run, or the ledger does not have its whole job.
        ConfigError: the job is wrong.
    """
    from keyhaul.config.job import load_job

    if job_file is not None or (verb != "resume" and {"table", "query"} & given.keys()):
        return load_job(job_file, given, os.environ), run
    from keyhaul.ledger.reading import find_named, job_of, ledger_errors

    home = Path(given["home"]) if given.get("home") else None
    with open_ledger(given.get("target"), home, None) as (conn, schema), ledger_errors(conn, schema):
        run_id = find_named(conn, schema, run, given.get("job"), verb)
        found = job_of(conn, schema, run_id)
    what = f"{verb} run {run_id}"
    _check_whole(what, verb, run_id, found)
    if found.config["source"].get("database") != "embedded" and not (
        given.get("source") or os.environ.get("ETL_SOURCE_URL")
    ):
        place = found.config["source"].get("database", "a file")
        msg = f"{what}: it read {place}, and the ledger keeps no connection string. Give --source URI or ETL_SOURCE_URL"
        raise RefusedError(msg)
    try:
        return load_job(None, {"job": found.job, **given}, os.environ, text=found.text), run_id
    except ConfigError as error:
        lines = "\n".join(f"{what}: {line}" for line in str(error).splitlines())
        raise ConfigError(lines) from None


def _check_whole(what: str, verb: str, run_id: str, found: GivenJob) -> None:
    """Refuse a job of which the ledger has not all that a person has given."""
    from keyhaul.config.job import hidden_in

    advice = f"Give the job: etl {verb} {run_id} JOB.yaml, or the same flags as the run"
    if verb == "replay":
        advice += ", with its --rule as --check"
    if not found.text:
        raise RefusedError(f"{what}: the ledger does not have its job. {advice}")
    if hidden := hidden_in(found.text):
        msg = f"{what}: a secret in its {', '.join(hidden)} is hidden in the ledger. {advice}; ${{NAME}} in a job file "
        raise RefusedError(msg + "lets the ledger keep the name of a variable instead")
