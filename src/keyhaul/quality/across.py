"""A job's rules across the run (`run_rules`), on the job's target table as it is now."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from keyhaul.before.runcheck import check_run
from keyhaul.errors import ConfigError, first_line
from keyhaul.postgres import catalog
from keyhaul.quality.verdict import Verdict, status_of
from keyhaul.sessions.connecting import connect, find_ends, session_settings
from keyhaul.sources.kinds import open_source
from keyhaul.sources.source import Opening

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyhaul.config.job import Job
    from keyhaul.config.runrules import RunRule
    from keyhaul.model import RunCheck
    from keyhaul.postgres.dsn import Dsn


def check_across(job: Job, dsn: Dsn, place: str, rules: Sequence[RunRule]) -> tuple[str, list[Verdict]]:
    """Evaluate rules across the run with the code of a run, over the whole target table.

    Args:
        job: whose target and, for ``equals_source``, source they speak of.
        dsn: of the target.
        place: what the database is called in results; host, port and name by default.
        rules: those to evaluate.

    Returns:
        What was checked, and a verdict for each rule, in order. All see one moment of the target; the source is read
        at a moment of its own.

    Raises:
        ConfigError: there is no such table, or a rule does not fit it or the source; one line for each.
    """
    if job.targets:
        msg = f"check job {job.job}: its records become rows of several tables, expected one. Write a checks file"
        raise ConfigError(msg)
    settings = session_settings(job, default_transaction_read_only="on", idle_in_transaction_session_timeout="0")
    with ExitStack() as stack:
        conn = stack.enter_context(connect(dsn, "target", application_name="keyhaul check", settings=settings))
        found = catalog.resolve(conn, job.target.table)
        if found is None:
            msg = f"check {job.target.table}: there is no such table in {dsn.label}. Run the job first, or correct it"
            raise ConfigError(msg)
        relation = catalog.describe_table(conn, *found)
        source = None
        if any(rule.kind == "equals_source" for rule in rules):
            opened = open_source(Opening(job=job, run_id="check", dsn=find_ends(job).source))
            stack.callback(opened.close)
            source = opened.abilities.aggregates
        conn.execute("begin isolation level repeatable read read only")
        table = sql.Identifier(*found[1:])
        checks: list[RunCheck] = []
        problems = []
        for rule in rules:
            try:
                with conn.transaction():
                    checks += check_run(conn, table, [rule], source)
            except ConfigError as error:
                problems.append(f"{rule.at}: {error}")
            except psycopg.Error as error:
                told = f"{first_line(error)}, expected what {relation.label} has"
                problems.append(f"{rule.at}: check run rule {rule.name}: {told}")
        if problems:
            raise ConfigError("\n".join(problems))
        row = conn.execute(sql.SQL("select count(*) from {}").format(table)).fetchone()
        rows = int(row[0]) if row else 0
    verdicts = [_judged(rule, check, rows) for rule, check in zip(rules, checks, strict=True)]
    return f"{place or dsn.identity} {relation.label}", verdicts


def _judged(rule: RunRule, check: RunCheck, rows: int) -> Verdict:
    return Verdict(
        name=rule.name,
        kind="run_rule",
        severity=rule.on_fail,
        status=status_of(rule.on_fail, holds=check.passed),
        rows=rows,
        failures=check.offenders or int(not check.passed),
        message=check.message,
        at=rule.at,
        line=int(rule.at.rpartition(" line ")[2] or 0) if " line " in rule.at else 0,
    )
