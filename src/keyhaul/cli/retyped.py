"""A command as it can be typed again, or typed next: with the flags that are needed, and without passwords."""

from __future__ import annotations

import os
import re
import shlex
import sys
from typing import TYPE_CHECKING, Final

from keyhaul.cli.options import only_for_moves

if TYPE_CHECKING:
    from keyhaul.config.job import Job


def command_line() -> str:
    """Return the command as typed, with the passwords of URIs taken out."""
    words = ["etl", *(word for word in sys.argv[1:] if word != "--fresh")]
    return shlex.join([without_password(word) for word in words])


EMBEDDED: Final = "embedded"  # as in config.parts, whose import takes 50 ms


def command_about(verb: str, run_id: str, job: Job) -> str:
    """Return the command that does something with a run: its name and the addresses are enough, the ledger has the job.

    Where the ledger does not have it whole, it is the command as typed, with that verb.
    """
    from keyhaul.config.job import hidden_in

    if not job.given or hidden_in(job.given):
        return command_line() if verb == "resume" else typed_again(verb, run_id)
    words = ["etl", verb, run_id]
    if job.source.uri != os.environ.get("ETL_SOURCE_URL") and (place := _place_of(job.source)):
        words += ["--source", without_password(place)]
    if job.target.uri != EMBEDDED and os.environ.get("ETL_TARGET_URL") != job.target.uri:
        words += ["--target", without_password(job.target.uri)]
    words += ["--home", job.home] if job.home and os.environ.get("ETL_HOME") != job.home else []
    words += ["--allow-python"] if any(step.kind == "python" for step in job.transform) else []
    schema = [f"ETL_LEDGER_SCHEMA={job.ledger_schema}"] if _says_schema(job) else []
    return shlex.join([*schema, *words])


def _place_of(source: object) -> str:
    """Return the address of a source; empty for the embedded one."""
    path, uri = getattr(source, "path", None), getattr(source, "uri", None)
    return str(path or uri) if uri != EMBEDDED else ""


def _says_schema(job: Job) -> bool:
    return job.ledger_schema not in {"keyhaul", os.environ.get("ETL_LEDGER_SCHEMA")}


def typed_again(verb: str, run_id: str) -> str:
    """Return the command as typed with another verb, for a run."""
    words, dropped = ["etl", verb, run_id], False
    switches, valued = only_for_moves()
    for word in sys.argv[2:]:
        name, equals, value = word.partition("=")
        if dropped or name in {"--fresh", "--full"} | switches:
            dropped = False
        elif name in valued:
            dropped = not equals
        else:
            words.append(f"--check{equals}{value}" if name == "--rule" else word)
    return shlex.join([without_password(word) for word in words])


def without_password(word: str) -> str:
    """Return a word with the password of the URI that it is, or ends in, as ``…``."""
    if "://" not in word:
        return word
    head, _, rest = word.partition("://")
    rest = re.sub(r"(?<=[?&]password=)[^&]*", "…", rest)
    login, at, place = rest.rpartition("@")
    return f"{head}://{login.partition(':')[0]}:…@{place}" if at and ":" in login else f"{head}://{rest}"


def look_back_options(job: Job) -> str:
    """Return the flags with which `etl show` finds the job's ledger, without those that variables say."""
    words = []
    if job.target.uri != EMBEDDED and os.environ.get("ETL_TARGET_URL") != job.target.uri:
        words += ["--target", without_password(job.target.uri)]
    if job.home:
        words += ["--home", job.home]
    if job.ledger_schema != "keyhaul":
        words += ["--ledger-schema", job.ledger_schema]
    return shlex.join(words)
