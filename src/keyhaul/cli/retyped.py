"""A command as it can be typed again, or typed next: with the flags that are needed, and without passwords."""

from __future__ import annotations

import os
import re
import shlex
import sys
from typing import TYPE_CHECKING

from keyhaul.cli.options import only_for_moves

if TYPE_CHECKING:
    from keyhaul.config.job import Job


def command_line() -> str:
    """Return the command as typed, with the passwords of URIs taken out."""
    words = ["etl", *(word for word in sys.argv[1:] if word != "--fresh")]
    return shlex.join([without_password(word) for word in words])


def replay_command(run_id: str) -> str:
    """Return the command that sends the quarantined records of a run again, by the flags of the one that was typed."""
    words, dropped = ["etl", "replay", run_id], False
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
    from keyhaul.config.job import EMBEDDED  # 50 ms, and only when a report is printed

    words = []
    if job.target.uri != EMBEDDED and os.environ.get("ETL_TARGET_URL") != job.target.uri:
        words += ["--target", without_password(job.target.uri)]
    if job.home:
        words += ["--home", job.home]
    if job.ledger_schema != "keyhaul":
        words += ["--ledger-schema", job.ledger_schema]
    return shlex.join(words)
