"""Data-quality checks of a table, a query or a file: `check` runs a checks file, or a job's rules on its target.

Nothing is written but the results, in the ledger or in a file, and the offenders when they are asked for.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyhaul.config.checkfile import CheckFile, Expectation, load_checks
from keyhaul.config.checkkinds import KINDS, ROW_KINDS, Where
from keyhaul.config.job import EMBEDDED, load_job
from keyhaul.embedded import server as embedded
from keyhaul.errors import ConfigError
from keyhaul.ledger.store import new_run_id
from keyhaul.postgres.dsn import Dsn
from keyhaul.quality.across import check_across
from keyhaul.quality.drift import drifted, measured
from keyhaul.quality.files import FileSystem
from keyhaul.quality.offenders import Asked, export, samples
from keyhaul.quality.postgres import PostgresSystem
from keyhaul.quality.records import FileRecords, Keep, LedgerRecords, Records, called, records_of
from keyhaul.quality.rules import check_rules
from keyhaul.quality.sql import ROW, System, count_of, distinct_of, overview, sum_of, text_between_numbers
from keyhaul.quality.verdict import Verdict, Verdicts, status_of
from keyhaul.quoting import quote_name
from keyhaul.sessions.connecting import find_ledger, find_target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyhaul.config.job import Job
    from keyhaul.config.steps import Rule


HOURS_TOLD = 48
"""From this age on, days are told."""

__all__ = ["KINDS", "Asked", "Keep", "Verdict", "Verdicts", "check"]


def check(
    file: str | Path,
    *,
    only: Sequence[str] = (),
    keep: Keep | None = None,
    asked: Asked | None = None,
    home: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Verdicts:
    """Run a checks file, or the rules and run_rules of a job file on the job's target.

    Args:
        file: YAML; a file with ``checks`` is a checks file, any other a job.
        only: names of checks; all by default.
        keep: where results go.
        asked: which offenders are wanted, and whether with their values.
        home: of the embedded server.
        environ: for ``${NAME}`` and ``ETL_*``; the process's own is not looked at, give ``os.environ`` for that.

    Returns:
        A verdict for each check, in the order of the file. All see the rows of one moment; a job's run_rules one of
            their own.

    Raises:
        ConfigError: the file, the source or the ledger is wrong; the message names the line.
    """
    started = time.monotonic()
    path, keep, asked, environ = Path(file), keep or Keep(), asked or Asked(), environ or {}
    asked.refuse_existing()
    with ExitStack() as stack:
        checks = load_checks(path, environ)
        if checks is not None:
            found = _check_file(checks, only, keep, asked, home, environ, stack)
        else:
            job = load_job(path, {"home": home} if home else {}, environ)
            found = _check_job(job, path, only, keep, asked, stack)
    return replace(found, file=str(path), seconds=time.monotonic() - started)


def _check_file(
    file: CheckFile,
    only: Sequence[str],
    keep: Keep,
    asked: Asked,
    home: str | None,
    environ: Mapping[str, str],
    stack: ExitStack,
) -> Verdicts:
    checks = _selected(file.checks, only)
    home = home or environ.get("ETL_HOME")
    records = records_of(file, keep, home, environ)
    if records is not None:
        stack.callback(records.close)
    elif any(check.kind == "drift" for check in checks):
        raise ConfigError(
            "\n".join(
                f"{check.at}: check {check.name}: got no place to keep results, expected one to measure drift from. "
                "Give --ledger URI or --state FILE, or ledger: or state: in the file"
                for check in checks
                if check.kind == "drift"
            )
        )
    system = _open(file.source, file, home, checks)
    stack.callback(system.close)
    _bind(checks, file, system)
    accepted = records.accepted(system.label) if records else {}
    verdicts = _Run(file=file, system=system, home=home, accepted=accepted).verdicts(checks)
    failing = [(c, v) for c, v in zip(checks, verdicts, strict=True) if c.kind in ROW_KINDS and v.failures]
    verdicts = samples(system, verdicts, [c for c, _ in failing], asked)
    exported = export(system, [c for c, _ in failing], asked)
    return _kept(records, file.path, system.label, verdicts, keep, exported)


def _check_job(job: Job, path: Path, only: Sequence[str], keep: Keep, asked: Asked, stack: ExitStack) -> Verdicts:
    if not job.rules and not job.run_rules:
        raise ConfigError(f"check {path}: the job has no rules, expected rules:, run_rules: or a checks file. Add one")
    columns = {f"not_null:{name}" for rule in job.rules for name in rule.columns}
    names = columns | {rule.name for rule in job.rules} | {rule.name for rule in job.run_rules}
    unknown = sorted(set(only) - names)
    if unknown:
        msg = f"check {path}: no rule {', '.join(unknown)}, expected one of {', '.join(sorted(names))}"
        raise ConfigError(msg)
    chosen = replace_rules(job, [part for rule in job.rules if (part := _selected_part(rule, only))])
    across = [rule for rule in job.run_rules if rule.name in only or not only]
    dsn = find_target(chosen.target.uri, chosen.home)
    uri = keep.ledger or chosen.target.uri
    schema = keep.schema or chosen.ledger_schema
    kept: Records = LedgerRecords(find_ledger(uri, chosen.home, schema, {}), called(uri))
    if keep.state and not keep.ledger:
        kept.close()
        kept = FileRecords(keep.state)
    stack.callback(kept.close)
    place = EMBEDDED if chosen.target.uri == EMBEDDED else ""
    label, exported = "", None
    verdicts: list[Verdict] = []
    if chosen.rules or asked.export is not None:
        label, verdicts, exported = check_rules(chosen, dsn, place, asked)
    if across:
        label, more = check_across(chosen, dsn, place, across)
        taken = {verdict.name for verdict in verdicts}
        verdicts += [replace(one, name=f"run_rules:{one.name}") if one.name in taken else one for one in more]
    return _kept(kept, path, label, verdicts, keep, exported)


def _selected_part(rule: Rule, only: Sequence[str]) -> Rule | None:
    """Return a rule, or of ``not_null`` the columns that are named as they are printed; None when it is not meant."""
    if not only or rule.name in only:
        return rule
    columns = tuple(name for name in rule.columns if f"not_null:{name}" in only)
    return replace(rule, columns=columns) if columns else None


def replace_rules(job: Job, rules: Sequence[Any]) -> Job:
    """Return the job with these rules alone."""
    return job.model_copy(update={"rules": tuple(rules)})


def _kept(
    records: Records | None, path: Path, label: str, verdicts: Sequence[Verdict], keep: Keep, exported: int | None
) -> Verdicts:
    check_run = new_run_id()
    if records is not None:
        good = {v.name for v in verdicts if v.kind == "drift" and (v.status == "passed" or keep.accept)}
        records.add(check_run, str(path), label, verdicts, frozenset(good))
    return Verdicts(
        check_run=check_run,
        file=str(path),
        source=label,
        rows=max((verdict.rows for verdict in verdicts), default=0),
        verdicts=tuple(verdicts),
        seconds=0.0,
        kept=records.label if records else "",
        exported=exported,
    )


def _selected(checks: Sequence[Expectation], only: Sequence[str]) -> list[Expectation]:
    names = [check.name for check in checks]
    unknown = [name for name in only if name not in names]
    if unknown:
        msg = f"--only: got {', '.join(unknown)}, expected one of {', '.join(names)}. See name: in the file"
        raise ConfigError(msg)
    return [check for check in checks if check.name in only or not only]


def _open(where: Where, file: CheckFile, home: str | None, checks: Sequence[Expectation] = ()) -> System:
    key = file.key if where is file.source else ()
    if where.file is not None:
        others = [check.demand.where for check in checks if check.kind == "references"]
        names = {name for check in checks for name in (*check.demand.columns, *check.demand.other)}
        some = names if checks and all(check.kind != "expression" for check in checks) else None
        return FileSystem(where, key=key, others=[other for other in others if other], looked_at=some)
    if where.uri == EMBEDDED:
        server = embedded.start(Path(home) if home else None)
        embedded.ensure_flights(server)
        dsn = Dsn.parse(server.uri(embedded.SOURCE), EMBEDDED)
    else:
        dsn = Dsn.parse(where.uri, "source.uri")
    place = EMBEDDED if where.uri == EMBEDDED else ""  # its port is another one each time
    return PostgresSystem(dsn, where, key=key, timeout_seconds=file.statement_timeout_seconds, place=place)


def _bind(checks: Sequence[Expectation], file: CheckFile, system: System) -> None:
    """Ask the system whether every check can be asked, before any is.

    Raises:
        ConfigError: all that cannot, each with its line.
    """
    listed = ", ".join(system.columns)
    problems = [
        f"{file.path}: key: no column {name}, expected one of {listed}"
        for name in system.key
        if name not in system.columns
    ]
    told = {check.name: _misfit(check, file, system) for check in checks}
    sound = [check for check in checks if not told[check.name]]
    # All in one question: one for each check costs as much as counting a small file.
    whole = system.refuses(overview(sound, system)[0])
    told |= {check.name: _refused(check, system, one_pass=not whole) for check in sound}
    problems += [
        f"{check.at}: check {check.name}: {told[check.name]}{_types(check, system)}"
        for check in checks
        if told[check.name]
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _misfit(check: Expectation, file: CheckFile, system: System) -> str:
    """Return what is wrong with a check before its query can be written, or an empty string."""
    missing = [name for name in check.demand.columns if name not in system.columns]
    if check.kind == "columns":
        return ""
    if missing:
        return f"no column {', '.join(missing)}, expected one of {', '.join(system.columns)}"
    if check.kind == "matches" and (wrong := system.misread_pattern(check.demand.text)):
        return wrong
    if check.kind == "between" and (wrong := text_between_numbers(check.demand, system)):
        return wrong
    where = check.demand.where
    if check.kind == "references" and where and (where.file is None) != (file.source.file is None):
        return "got a table for a file, or a file for a table, expected the same kind of place"
    return system.misread(check.demand.text) if check.kind == "expression" else ""


def _types(check: Expectation, system: System) -> str:
    """Return the types of a check's columns, for a message: mostly they are what is wrong."""
    named = [f"{name} is {system.columns[name]}" for name in check.demand.columns if name in system.columns]
    return f" ({', '.join(named)})" if named else ""


def _refused(check: Expectation, system: System, *, one_pass: bool) -> str:
    """Return why a check's query cannot be asked; `one_pass` says that the query for all rows can be."""
    if check.kind in {"unique", "references"}:
        return system.refuses(count_of(check, system))
    return "" if one_pass else system.refuses(overview([check], system)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One execution: the numbers are asked for, then each check is judged."""

    file: CheckFile
    system: System
    home: str | None
    accepted: Mapping[str, Mapping[str, float | None]]

    def verdicts(self, checks: Sequence[Expectation]) -> list[Verdict]:
        """Return a verdict for each check."""
        rows, found = self._numbers(checks)
        return [self._judged(check, rows, found.get(check.name, {})) for check in checks]

    def _numbers(self, checks: Sequence[Expectation]) -> tuple[int, dict[str, dict[str, Any]]]:
        query, meanings = overview(checks, self.system)
        try:
            (rows, *values), *_ = self.system.fetch(query)
        except ConfigError as error:
            raise self._guilty(checks) or error from error
        found: dict[str, dict[str, Any]] = {}
        for (name, what), value in zip(meanings, values, strict=True):
            found.setdefault(name, {})[what] = value
        for check in checks:
            if check.kind in {"unique", "references"}:
                found[check.name] = {"failures": self._asked(check, count_of(check, self.system))}
            elif "distinct" in check.demand.tolerances:
                query = distinct_of(check.demand.columns[0], self.system)
                found[check.name]["distinct"] = self._asked(check, query)
        return int(str(rows)), found

    def _asked(self, check: Expectation, query: str) -> int:
        try:
            return int(str(self.system.fetch(query)[0][0]))
        except ConfigError as error:
            raise ConfigError(f"{check.at}: check {check.name}: {error}") from error

    def _guilty(self, checks: Sequence[Expectation]) -> ConfigError | None:
        """Ask each check alone after the one pass failed, for example by a division by zero."""
        problems = []
        for check in checks:
            try:
                self.system.fetch(overview([check], self.system)[0])
            except ConfigError as error:
                told = f"it cannot be evaluated for every row: {error}{_types(check, self.system)}"
                problems.append(f"{check.at}: check {check.name}: {told}")
        return ConfigError("\n".join(problems)) if problems else None

    def _judged(self, check: Expectation, rows: int, found: Mapping[str, Any]) -> Verdict:
        statistics: dict[str, float | None] = {}
        failures, message = 0, ""
        match check.kind:
            case "row_count":
                message = self._counted(check, rows)
            case "columns":
                message = self._typed(check)
            case "fresh":
                message = _late(found)
            case "sum_equals":
                message = self._summed(check, Decimal(str(found["sum"])))
            case "drift":
                statistics = measured(check, rows, found)
                message = drifted(check, statistics, self.accepted.get(check.name))
            case _:
                failures = int(found["failures"])
        if check.kind in ROW_KINDS:
            holds = check.allowed.permits(failures, rows)
        else:
            holds = not message
            failures = int(not holds)
        if check.kind == "drift" and check.name not in self.accepted:
            message = "nothing to compare with yet"
        return Verdict(
            name=check.name,
            kind=check.kind,
            severity=check.severity,
            status=status_of(check.severity, holds=holds),
            rows=rows,
            failures=failures,
            allowed=str(check.allowed),
            message=message,
            statistics=statistics,
            at=check.at,
            line=check.line,
        )

    def _counted(self, check: Expectation, rows: int) -> str:
        low, high = check.demand.low, check.demand.high
        if (low is None or rows >= int(low)) and (high is None or rows <= int(high)):
            return ""
        expected = " and ".join(
            f"{word} {int(n):,}" for word, n in (("at least", low), ("at most", high)) if n is not None
        )
        return f"{rows:,} rows, expected {expected}"

    def _typed(self, check: Expectation) -> str:
        demand, have = check.demand, self.system.columns
        problems = [f"no column {name}" for name in demand.columns if name not in have]
        wanted = {name: text for name, text in demand.types.items() if name in have and text is not None}
        wrong = {name: self.system.has_type(name, text) for name, text in wanted.items()}
        problems += [f"{name} is {problem}" for name, problem in wrong.items() if problem]
        if demand.only:
            problems += [f"{name} is not expected" for name in have if name not in demand.types]
        return "; ".join(problems)

    def _summed(self, check: Expectation, here: Decimal) -> str:
        demand = check.demand
        where = demand.where or self.file.source
        other = _open(where, self.file, self.home)
        try:
            if demand.other[0] not in other.columns:
                raise ConfigError(f"{check.at}: check {check.name}: no column {demand.other[0]} in {other.label}")
            query = f"select {sum_of(f'{ROW}.{quote_name(demand.other[0])}')} from {other.from_item}"
            there = Decimal(str(other.fetch(query)[0][0]))
        finally:
            other.close()
        tolerance = demand.tolerances["sum"]
        if tolerance.permits(here, there):
            return ""
        within = f" ± {tolerance}" if tolerance.amount else ""
        return f"{here:,f}, expected {there:,f}{within} as in {other.label}"


def _late(found: Mapping[str, Any]) -> str:
    if not found["late"]:
        return ""
    if found["age"] is None:
        return "the newest value is -infinity" if found["there"] else "there is no value"
    hours = float(found["age"]) / 3600
    age = f"{hours:,.1f} hours" if hours < HOURS_TOLD else f"{hours / 24:,.1f} days"
    return f"the newest value is {age} old"
