"""The command `etl verify`: which job and run are meant, and what the comparison found, for people or as JSON."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyhaul.cli.options import given, with_settings
from keyhaul.cli.outlet import hurry
from keyhaul.cli.recalling import recalled
from keyhaul.cli.shell import app
from keyhaul.comparison.differences import FIRST_DIFFERENCES, MOST_DIFFERENCES
from keyhaul.console import write_json, write_line
from keyhaul.errors import ConfigError
from keyhaul.text import duration, one_line, plural

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from keyhaul.comparison.differences import Difference, Verification
    from keyhaul.comparison.ledgercompare import LedgerComparison, Place

EQUAL, DIFFERENT = 0, 1
_OF_THE_LEDGER = frozenset({"job", "target", "workers", "home"})
"""Options with which a comparison with the stored checksums can do something."""

MOST_WORKERS = 1024
_WORDS = {"changed": "changed", "missing": "missing in the target", "extra": "extra in the target"}


@app.command("verify", help="Compare a run's target with its source, row by row; exit code 1 when they differ.")
@with_settings("verify")
def verify(
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN|last] [JOB.yaml]", help="Run [the job's last]; a job file (.yaml, .yml)."),
    ] = None,
    *,
    allow_python: Annotated[bool, typer.Option("--allow-python", help="Run the job's Python steps.")] = False,
    extra: Annotated[
        bool | None, typer.Option("--extra/--no-extra", help="Whether rows that only the target has count.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", "-n", min=0, max=MOST_DIFFERENCES, help=f"How many differences are named [{FIRST_DIFFERENCES}]."
        ),
    ] = None,
    against_ledger: Annotated[
        bool, typer.Option("--against-ledger", help="With the checksums of a run with --checksum; needs no source.")
    ] = False,
    show_values: Annotated[bool, typer.Option("--show-values", help="Print the values that differ.")] = False,
    changed: Annotated[bool, typer.Option("--changed", help="The job may differ from the run's.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    **flags: Any,  # noqa: ANN401 - the settings'
) -> None:
    """Compare a run's target with its source, row by row; exit code 1 when they differ."""
    run, job_file = _named(what or [])
    asked = given({**flags, "allow_python": allow_python})
    if against_ledger:
        _refuse_useless(asked, extra=extra, limit=limit)
        from keyhaul.comparison.ledgercompare import compare_ledger

        with _ended_by_signals():
            compared = compare_ledger(_place(job_file, asked), run or "last", _notice, show_values=show_values)
        _print(compared, as_json=as_json)
        raise typer.Exit(EQUAL if compared.equal else DIFFERENT)
    from keyhaul.comparison.comparing import verify as compare

    named = FIRST_DIFFERENCES if limit is None else limit
    loaded, run = recalled("verify", run or "last", job_file, asked)
    if not as_json:
        write_line(sys.stderr, "comparing with the source as it is now; what was written there since the run differs")
    with _ended_by_signals():
        found = compare(
            loaded, run, extra=extra, limit=named, show_values=show_values, changed=changed, observe=_notice
        )
    _print(found, as_json=as_json)
    raise typer.Exit(EQUAL if found.equal else DIFFERENT)


def _refuse_useless(asked: dict[str, Any], *, extra: bool | None, limit: int | None) -> None:
    """Refuse what says how the source is read: stored checksums are compared without it."""
    useless = asked.keys() - _OF_THE_LEDGER
    useless |= {name for name, value in (("extra", extra), ("limit", limit)) if value is not None}
    if useless:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(useless))
        msg = (
            f"verify --against-ledger: got {flags}, expected none of what says how the source is read or which rows "
            "are named: the ledger has what was loaded, by chunk. Leave it out"
        )
        raise ConfigError(msg)


def _place(job_file: Path | None, asked: dict[str, Any]) -> Place:
    from keyhaul.comparison.ledgercompare import Place
    from keyhaul.config.job import load_job
    from keyhaul.sessions.connecting import find_ledger

    if job_file is not None:
        # Nothing of the job is run, so that no permission for its Python steps is needed.
        return Place.of(load_job(job_file, {**asked, "allow_python": True}, os.environ, reads_source=False))
    workers: str | None = asked.get("workers") or os.environ.get("ETL_WORKERS")
    if workers and not (workers.isdecimal() and 0 < int(workers) <= MOST_WORKERS):
        raise ConfigError(f"--workers: got {workers!r}, expected a whole number from 1 to {MOST_WORKERS}")
    ledger = find_ledger(asked.get("target"), asked.get("home"), None, os.environ)
    place = Place(ledger=ledger, job=asked.get("job"), workers=int(workers) if workers else None)
    return place.within(os.environ)


def _print(found: Verification | LedgerComparison, *, as_json: bool) -> None:
    from keyhaul.comparison.differences import Verification

    if as_json:
        compared = {"compared": found.rows} if isinstance(found, Verification) else {}
        told = {"equal": found.equal, "different": found.different, **compared, **asdict(found)}
        write_json(sys.stdout, told)
        return
    for line in _lines(found) if isinstance(found, Verification) else _chunk_lines(found):
        write_line(sys.stdout, line)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End with 128 + the signal, after the statements under way are cancelled; Typer's own code would be 1."""
    from keyhaul.control import as_interrupt

    got: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        got.append(number)
        hurry(sys.stdout, sys.stderr)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    try:
        with as_interrupt(lambda: bool(got)):
            yield
    except KeyboardInterrupt:
        write_line(sys.stderr, "error: interrupted: nothing is known of the chunks that were not compared")
        raise typer.Exit(128 + (*got, signal.SIGINT)[0]) from None


def _notice(event: object) -> None:
    from keyhaul.events import Notice

    if isinstance(event, Notice):
        write_line(sys.stderr, f"{event.level}: {event.message}")


def _named(words: list[str]) -> tuple[str | None, Path | None]:
    files = [word for word in words if word.endswith((".yaml", ".yml"))]
    runs = [word for word in words if word not in files]
    if len(files) > 1 or len(runs) > 1:
        msg = f"verify: got {' '.join(words)}, expected at most one run and one job file. Remove one"
        raise ConfigError(msg)
    return runs[0] if runs else None, Path(files[0]) if files else None


def _lines(found: Verification) -> Iterator[str]:
    for tally in found.by_chunk:
        counts = [(tally.changed, "changed"), (tally.missing, "missing"), (tally.extra, "extra")]
        told = ", ".join(f"{number:,} {word}" for number, word in counts if number)
        yield f"{f'chunk {tally.chunk}' if tally.chunk else 'the whole table'}: {told}"
    for difference in found.differences:
        yield from _row(found, difference)
    if found.different > len(found.differences):
        yield f"and {plural(found.different - len(found.differences), 'more difference')}: --limit shows more"
    if found.whole:
        yield f"compared as a whole: {found.whole}"
    if not found.extra_checked:
        yield "rows that only the target has were not looked for, because others may have been there: --extra does"
    if told := _left_out(found):
        yield told
    if found.rejected:
        yield f"{plural(found.rejected, 'row')} that the target rejected {_is(found.rejected)} in the quarantine"
    if found.unloaded:
        yield f"{plural(found.unloaded, 'chunk')} of run {one_line(found.run_id)} {_is(found.unloaded)} not loaded"
    end = plural(found.different, "difference") if found.different else "equal" if found.equal else "not complete"
    rows, chunks = plural(found.rows, "row"), plural(found.chunks, "chunk")
    yield f"verified {rows} in {chunks} of {found.target} in {duration(found.seconds)}: {end}"


def _left_out(found: Verification) -> str:
    """Say what became of the source's rows that are not compared, beside what the run left out; empty without any."""
    run = found.run
    counted = [
        (found.quarantined, f"would be quarantined now (the run quarantined {run.quarantined:,})"),
        (found.filtered, f"filtered (by the run {run.filtered:,})"),
        (found.duplicate, f"left out as duplicates (by the run {run.duplicate:,})"),
        (found.older, "older than the target's"),
    ]
    told = [f"{number:,} {words}" for number, words in counted if number]
    return ", ".join([f"{plural(found.read, 'row')} read", f"{found.rows:,} compared", *told]) if told else ""


def _chunk_lines(found: LedgerComparison) -> Iterator[str]:
    from keyhaul.comparison.checksummed import NULL_KEYS

    for one in found.by_chunk:
        name = "NULL keys" if one.chunk == NULL_KEYS else f"chunk {one.chunk}"
        told = f"{plural(one.rows_stored, 'row')} when it was loaded, {one.rows_found:,} now"
        if one.rows_stored == one.rows_found:
            told = f"{plural(one.rows_found, 'row')} as when it was loaded, with other values"
        bounds = [", ".join(bound) if bound else "…" for bound in (one.lower, one.upper)]
        yield f"{name}: {told}" + (f" ({one_line(' to '.join(bounds))})" if one.lower or one.upper else "")
    if found.unloaded:
        yield f"{plural(found.unloaded, 'chunk')} of run {one_line(found.run_id)} {_is(found.unloaded)} not loaded"
    differ = f"{plural(found.different, 'chunk')} differ{'s' if found.different == 1 else ''}"
    end = differ if found.different else "equal" if found.equal else "not complete"
    rows, chunks = plural(found.rows, "row"), plural(found.chunks, "chunk")
    yield f"verified {rows} in {chunks} of {found.target} against the ledger in {duration(found.seconds)}: {end}"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _row(found: Verification, difference: Difference) -> Iterator[str]:
    names = found.key if difference.key else ()
    key = ", ".join(f"{name}={_cell(value)}" for name, value in zip(names, difference.key, strict=True))
    columns = f": {', '.join(difference.columns)}" if difference.columns else ""
    yield f"  {key or 'a row'}  {_WORDS[difference.kind]}{columns}"
    for name in dict.fromkeys([*difference.expected, *difference.found]):
        sides = [
            f"{side} {_cell(values[name])}"
            for side, values in (("source", difference.expected), ("target", difference.found))
            if name in values
        ]
        yield f"      {name}: {', '.join(sides)}"


def _cell(value: str | None) -> str:
    return "NULL" if value is None else one_line(value) or "''"
