"""What `etl check` prints and writes: a table for people, JSON, JUnit XML, and annotations for GitHub."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO
from xml.etree import ElementTree as ET  # only written, never parsed

from keyhaul.console import grid, write, write_json
from keyhaul.errors import ConfigError
from keyhaul.redaction import hide
from keyhaul.text import duration, one_line, plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from rich.console import Console, RenderableType
    from rich.table import Table

    from keyhaul.quality.verdict import Verdict, Verdicts

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_COLORS = {"passed": "green", "failed": "red", "warned": "yellow"}


def told(verdict: Verdict) -> str:
    """Return in one line what was found; of rows only the number."""
    counted = ""
    if verdict.failures and not verdict.message:
        limit = "" if verdict.allowed == "0" else f", {verdict.allowed} allowed"
        counted = f"{verdict.failures:,} of {plural(verdict.rows, 'row')}{limit}"
    return one_line(verdict.message or counted)


def offenders_of(verdict: Verdict) -> str:
    """Return a few failing rows as ``id=17; id=18``."""
    return "; ".join(map(_of_row, verdict.offenders))


def _of_row(row: Mapping[str, str | None]) -> str:
    return one_line(" ".join(f"{name}={'NULL' if value is None else value}" for name, value in row.items()))


def print_verdicts(verdicts: Verdicts, stream: TextIO) -> None:
    """Print a line for each check, the offenders of those that fail, and the outcome."""

    def build(_console: Console) -> Iterable[RenderableType]:
        from rich.padding import Padding
        from rich.text import Text

        yield Text(f"{one_line(verdicts.file)}: {one_line(verdicts.source)}, {plural(verdicts.rows, 'row')}")
        listed = verdicts.verdicts
        yield ""
        yield _table(listed)
        yield ""
        bad = [verdict for verdict in listed if verdict.offenders]
        if bad:
            yield Text("Some of the failing rows", "bold")
            yield from (Padding(line, (0, 0, 0, 2)) for verdict in bad for line in _offending(verdict))
            yield ""
        for line in _outcome(verdicts):
            yield Text(line)

    write(stream, build)


def _table(verdicts: Sequence[Verdict]) -> Table:
    """Return status, name and finding of each; on a narrow screen the latter two go on in the next line."""
    from rich.text import Text

    table = grid()
    table.add_column("", no_wrap=True)
    table.add_column("check", overflow="fold")
    table.add_column("found", overflow="fold")
    table.show_header = True
    for verdict in verdicts:
        status = Text(verdict.status, style=_COLORS[verdict.status])
        table.add_row("", status, Text(one_line(verdict.name)), Text(told(verdict)))
    return table


def _offending(verdict: Verdict) -> Iterable[RenderableType]:
    """Yield a few failing rows: with keys alone on one line, else each on its own."""
    from rich.padding import Padding
    from rich.text import Text

    name = one_line(verdict.name)
    if max(len(row) for row in verdict.offenders) == 1:
        yield Text(f"{name}: {offenders_of(verdict)}")
        return
    yield Text(name)
    for row in verdict.offenders:
        yield Padding(Text(_of_row(row)), (0, 0, 0, 2))


def _outcome(verdicts: Verdicts) -> Iterable[str]:
    counts = {status: sum(v.status == status for v in verdicts.verdicts) for status in _COLORS}
    said = ", ".join(f"{number} {status}" for status, number in counts.items() if number or status == "passed")
    yield f"{said} in {duration(verdicts.seconds)}"
    if verdicts.exported is not None:
        yield f"wrote {plural(verdicts.exported, 'offending row')}"
    yield (
        f"results are in {verdicts.kept}"
        if verdicts.kept
        else ("results are not kept: no ledger. Give --ledger URI, or --state FILE")
    )


def print_json(verdicts: Verdicts, stream: TextIO) -> None:
    """Print everything as one JSON object, without secrets."""
    listed = [asdict(verdict) for verdict in verdicts.verdicts]
    whole = {**asdict(verdicts), "good": verdicts.good, "verdicts": listed}
    write_json(stream, whole, indent=2)


def write_junit(verdicts: Verdicts, path: Path) -> None:
    """Write a JUnit report: a test case for each check; a warning passes and is in its output.

    Raises:
        ConfigError: the file cannot be written.
    """
    failed = sum(verdict.status == "failed" for verdict in verdicts.verdicts)
    counts = {"tests": str(len(verdicts.verdicts)), "failures": str(failed), "errors": "0", "skipped": "0"}
    seconds = {"time": f"{verdicts.seconds:.3f}"}
    root = ET.Element("testsuites", {**counts, **seconds})
    suite = ET.SubElement(root, "testsuite", {"name": _xml(verdicts.file), **counts, **seconds})
    for verdict in verdicts.verdicts:
        place = {"name": _xml(verdict.name), "classname": _xml(verdicts.source), "time": "0"}
        case = ET.SubElement(suite, "testcase", place)
        text = _xml("\n".join(part for part in (verdict.at, told(verdict), offenders_of(verdict)) if part))
        if verdict.status == "failed":
            failure = ET.SubElement(case, "failure", {"message": _xml(told(verdict)), "type": verdict.kind})
            failure.text = text
        elif verdict.status == "warned":
            ET.SubElement(case, "system-out").text = f"warning: {text}"
    ET.indent(root)
    try:
        path.write_bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")
    except OSError as error:
        raise ConfigError(f"write {path}: {error.strerror}. Name a file that can be written in --junit") from error


def _xml(text: str) -> str:
    """Return `text` without secrets and without the characters that XML 1.0 cannot hold."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", hide(text))


def github_commands(verdicts: Verdicts) -> list[str]:
    """Return a workflow command of GitHub Actions for each check that did not pass."""
    return [
        f"::{'error' if verdict.status == 'failed' else 'warning'} "
        + ",".join(
            f"{name}={_property(value)}"
            for name, value in (
                ("file", verdicts.file),
                ("line", str(verdict.line or 1)),
                ("title", f"etl check: {verdict.name}"),
            )
        )
        + f"::{_escaped(told(verdict))}"
        for verdict in verdicts.verdicts
        if verdict.status != "passed"
    ]


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")
