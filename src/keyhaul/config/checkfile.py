"""A checks file: where the rows are, and what must hold of them. Read strictly; every mistake with its line.

Nothing is connected to here. docs/quality.md has the format.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from keyhaul.config.allowance import Allowance, read_allowance
from keyhaul.config.checkkinds import KINDS, ROW_KINDS, Demand, Where, read_demand, read_where
from keyhaul.config.draft import shown
from keyhaul.config.entries import read_names
from keyhaul.config.parts import EMBEDDED, EMBEDDED_TABLE
from keyhaul.config.yamlfile import read_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyhaul.config.draft import Draft, Place

Severity = Literal["error", "warn"]
SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warn")
_NAME_CHARACTERS: Final = 120
_TOP: Final = ("source", "key", "ledger", "state", "statement_timeout_seconds", "checks")
_MAX_TIMEOUT_SECONDS: Final = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """One check of a checks file.

    Attributes:
        name: unique in its file.
        kind: one of `checkkinds.KINDS`, or ``rule`` for a job's rule.
        severity: whether a failure is an error or a warning.
        allowed: failing rows that still pass; zero for the kinds that hold or do not.
        at: where it stands, ``FILE line N``.
        line: the same as a number; 0 when there is none.
    """

    name: str
    kind: str
    demand: Demand = field(default_factory=Demand)
    severity: Severity = "error"
    allowed: Allowance = field(default_factory=Allowance)
    at: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckFile:
    """A whole checks file.

    Attributes:
        path: as the user named it.
        source: the rows that are checked.
        key: columns that name an offender; empty for the table's primary key.
        ledger_uri, ledger_schema: where results are kept; None when the file does not say.
        state: a file in which results are kept when there is no database.
    """

    path: Path
    source: Where
    checks: tuple[Expectation, ...]
    key: tuple[str, ...] = ()
    ledger_uri: str | None = field(default=None, repr=False)
    ledger_schema: str | None = None
    state: Path | None = None
    statement_timeout_seconds: int = 3600


def load_checks(path: Path, environ: Mapping[str, str]) -> CheckFile | None:
    """Read a checks file; ``${NAME}`` is replaced from `environ` as in a job file.

    Returns:
        None when the file has no ``checks``, and so is a job file.

    Raises:
        ConfigError: anything is wrong; one line for each mistake.
    """
    draft = read_yaml(path, environ)
    if "checks" not in draft.data:
        return None
    for key in sorted(draft.data.keys() - set(_TOP)):
        draft.refuse_unknown((key,), _TOP)
    if "source" not in draft.data:
        places = "a mapping with table, query or file"
        draft.refuse(("source",), "none", places, f"The bundled flights are {{uri: {EMBEDDED}}}")
    source = draft.data.get("source", {"table": EMBEDDED_TABLE})
    if isinstance(source, dict) and source.keys() <= {"uri"} and source.get("uri", EMBEDDED) == EMBEDDED:
        source = {**source, "table": EMBEDDED_TABLE}
    where = read_where(draft, ("source",), source)
    names = read_names(draft, ("key",), draft.data["key"]) if "key" in draft.data else ()
    uri, schema = _ledger(draft)
    state = draft.data.get("state")
    if state is not None and (not isinstance(state, str) or not state.strip()):
        draft.refuse(("state",), draft.show(("state",), state), "a file's name")
    seconds = draft.data.get("statement_timeout_seconds", 3600)
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 1 <= seconds <= _MAX_TIMEOUT_SECONDS:
        at: Place = ("statement_timeout_seconds",)
        draft.refuse(at, draft.show(at, seconds), f"a whole number from 1 to {_MAX_TIMEOUT_SECONDS}")
    checks = _checks(draft)
    draft.raise_if_wrong()
    return CheckFile(
        path=path,
        source=where,
        checks=checks,
        key=names,
        ledger_uri=uri,
        ledger_schema=schema,
        state=Path(str(state)) if state is not None else None,
        statement_timeout_seconds=cast("int", seconds),
    )


def _ledger(draft: Draft) -> tuple[str | None, str | None]:
    value = draft.data.get("ledger")
    if value is None:
        return None, None
    body: dict[str, Any] = value if isinstance(value, dict) else {"uri": value}
    for key in sorted(body.keys() - {"uri", "schema"}):
        draft.refuse_unknown(("ledger", key), ("uri", "schema"))
    # The same reading as a source's, so that a wrong URI gets the same message.
    where = read_where(draft, ("ledger",), {"uri": body.get("uri", EMBEDDED), "table": "-"})
    schema = body.get("schema")
    if schema is not None and (not isinstance(schema, str) or not 1 <= len(schema.encode()) <= 63):  # noqa: PLR2004 - NAMEDATALEN
        draft.refuse(("ledger", "schema"), draft.show(("ledger", "schema"), schema), "a schema's name")
    return where.uri, schema if isinstance(schema, str) else None


def _checks(draft: Draft) -> tuple[Expectation, ...]:
    listed = draft.data.get("checks")
    if not isinstance(listed, list) or not listed:
        draft.refuse(
            ("checks",), "an empty list" if listed == [] else draft.show(("checks",), listed), "a list of checks"
        )
        return ()
    found = [_check(draft, ("checks", number), item) for number, item in enumerate(listed)]
    checks = [check for check in found if check is not None]
    seen: dict[str, Expectation] = {}
    for number, check in enumerate(found):
        if check is not None and seen.setdefault(check.name, check) is not check:
            place = ("checks", number, "name")
            draft.refuse(place, f"a second check {shown(check.name)}", "a name of its own", "Give it a name:")
    return tuple(checks)


def _check(draft: Draft, place: Place, item: object) -> Expectation | None:
    kinds = [key for key in item if key in KINDS] if isinstance(item, dict) else []
    if not isinstance(item, dict):
        draft.refuse(place, draft.show(place, item), f"one of {', '.join(KINDS)}", "Write `- not_null: [id]`")
        return None
    unknown = sorted(key for key in item if key not in {*KINDS, "name", "severity", "max_failures"})
    for key in unknown:
        draft.refuse_unknown((*place, key), (*KINDS, "name", "severity", "max_failures"))
    if len(kinds) != 1:
        if not unknown:
            draft.refuse(place, " and ".join(kinds) or "no kind of check", f"one of {', '.join(KINDS)}")
        return None
    before = len(draft.problems)
    kind = str(kinds[0])
    demand = read_demand(draft, (*place, kind), item[kind])
    severity = item.get("severity", "error")
    if severity not in SEVERITIES:
        draft.refuse((*place, "severity"), draft.show((*place, "severity"), severity), "error or warn")
    allowed = _allowed(draft, (*place, "max_failures"), kind, item.get("max_failures", 0))
    name = item.get("name", _default_name(kind, demand) if demand else kind)
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > _NAME_CHARACTERS:
        at = (*place, "name")
        draft.refuse(at, draft.show(at, name), f"a name of at most {_NAME_CHARACTERS} printable characters")
    if len(draft.problems) > before or demand is None:
        return None
    return Expectation(
        name=str(name),
        kind=kind,
        demand=demand,
        severity=severity,
        allowed=allowed,
        at=draft.where(place),
        line=draft.lines.get(place, 0),
    )


def _allowed(draft: Draft, place: Place, kind: str, value: object) -> Allowance:
    if value != 0 and kind not in ROW_KINDS:
        draft.refuse(place, "a threshold", f"none: {kind} holds or does not", "Remove it")
    try:
        return read_allowance(value)
    except ValueError:
        draft.refuse(place, draft.show(place, value), "a whole number or a percentage such as 0.1%")
        return Allowance()


def _default_name(kind: str, demand: Demand) -> str:
    """Return ``not_null:id,carrier``; an expression's is the expression, cut."""
    about = demand.text if kind == "expression" else "" if kind == "columns" else ",".join(demand.columns)
    text = re.sub(r"\s+", " ", about).strip()
    whole = f"{kind}:{text}" if text else kind
    whole = "".join(character if character.isprintable() else "?" for character in whole)
    return whole if len(whole) <= _NAME_CHARACTERS else f"{whole[: _NAME_CHARACTERS - 1]}…"
