"""The `lookup` step of a job file: where its rows are, what must match, what is taken. Nothing is read here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, Literal

from keyhaul.config.draft import shown
from keyhaul.config.entries import ONE_OR_MORE, PAIRS, TEXT, read_names, read_pairs
from keyhaul.errors import ConfigError
from keyhaul.postgres.dsn import Dsn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyhaul.config.draft import Draft, Place

Missing = Literal["keep", "quarantine"]
MISSING: Final[tuple[Missing, ...]] = ("keep", "quarantine")
DEFAULT_LIMIT_MB: Final = 256
MAX_LIMIT_MB: Final = 1_000_000
FILE_TYPES: Final = (".csv", ".parquet")
LOOKUP_NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,55}"
"""As a rule's name, with room for ``lookup:`` before it."""

_KEYS: Final = ("source", "on", "take", "missing", "first", "limit_mb", "name", "per_chunk")
_PLACES: Final = ("table", "query", "file")

_NAMES_OR_PAIRS: Mapping[str, Any] = {"anyOf": [*ONE_OR_MORE["anyOf"], PAIRS]}
LOOKUP_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "description": "Columns to take from a table, query or file by key.",
    "properties": {
        "source": {
            "type": "object",
            "description": "One of table, query and file; uri for a database that is not the job's source.",
            "properties": {
                "table": TEXT,
                "query": TEXT,
                "file": {**TEXT, "pattern": r"\.([cC][sS][vV]|[pP][aA][rR][qQ][uU][eE][tT])$"},
                "uri": TEXT,
            },
            "oneOf": [{"required": [name]} for name in _PLACES],
            "not": {"required": ["file", "uri"]},
            "additionalProperties": False,
        },
        "on": {**_NAMES_OR_PAIRS, "description": "Columns that match, or column to the lookup's column."},
        "take": {**_NAMES_OR_PAIRS, "description": "Columns to take, or new column to the lookup's column."},
        "missing": {"enum": list(MISSING), "default": "keep", "description": "What becomes of a record without match."},
        "first": {**TEXT, "description": "Of several rows with one key, the one with the lowest value here is taken."},
        "limit_mb": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT_MB, "default": DEFAULT_LIMIT_MB},
        "per_chunk": {"type": "boolean", "default": False, "description": "Read for each chunk, by the keys in it."},
        "name": {"type": "string", "pattern": f"^{LOOKUP_NAME}$", "description": "For the quarantine: lookup:NAME."},
    },
    "required": ["source", "on", "take"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """One lookup; exactly one of `table`, `query` and `file` is given.

    Attributes:
        name: for the quarantine, whose rule is ``lookup:NAME``; the table's or file's name by default.
        uri: the database of `table` or `query`; None is the job's source.
        on: column of the frame → column of the lookup; the values must be equal, and NULL equals nothing.
        take: new column → column of the lookup.
        missing: what becomes of a record without match: NULLs are taken, or it is quarantined.
        first: of several rows with one key, the one with the lowest value in this column is taken.
        limit_mb: the most that the lookup may hold in memory, in units of 1,000,000 bytes.
        per_chunk: the rows are not held, but read for each chunk by the keys in it.
        at: where the step stands, ``FILE line N``.
    """

    name: str
    on: Mapping[str, str] = field(hash=False)
    take: Mapping[str, str] = field(hash=False)
    table: str | None = None
    query: str | None = None
    file: str | None = None
    uri: str | None = field(default=None, repr=False)
    missing: Missing = "keep"
    first: str | None = None
    limit_mb: int = DEFAULT_LIMIT_MB
    per_chunk: bool = False
    at: str = field(default="", compare=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """The lookup's columns that are read, each once."""
        return tuple(dict.fromkeys([*self.on.values(), *self.take.values(), *([self.first] if self.first else [])]))

    @property
    def rule(self) -> str:
        """What the quarantine calls it."""
        return f"lookup:{self.name}"


def read_lookup(draft: Draft, place: Place, value: object) -> Lookup | None:
    """Return the lookup at `place`; None after a mistake, which is noted in the draft."""
    if not isinstance(value, dict):
        draft.refuse(place, draft.show(place, value), "a mapping with source, on and take")
        return None
    before = len(draft.problems)
    for key in sorted(value.keys() - set(_KEYS)):
        draft.refuse_unknown((*place, key), _KEYS)
    for key in ("source", "on", "take"):
        if value.get(key) is None:
            draft.refuse((*place, key), "nothing", f"{key}: of the lookup", f"Add `{key}:` to the step")
    source = _source(draft, (*place, "source"), value.get("source"))
    on = _matched(draft, (*place, "on"), value.get("on"), "column: column of the lookup")
    take = _matched(draft, (*place, "take"), value.get("take"), "new column: column of the lookup")
    if len(set(on.values())) < len(on):
        draft.refuse((*place, "on"), "one column of the lookup twice", "each column once")
    options = _options(draft, place, value, _default_name(source))
    if len(draft.problems) > before:
        return None
    return Lookup(on=on, take=take, at=draft.where(place), **source, **options)


def _options(draft: Draft, place: Place, value: dict[str, Any], default_name: str) -> dict[str, Any]:
    """Return what need not be given as fields of `Lookup`."""
    missing = value.get("missing", "keep")
    if missing not in MISSING:
        draft.refuse((*place, "missing"), draft.show((*place, "missing"), missing), f"one of {', '.join(MISSING)}")
    first = value.get("first")
    if "first" in value and (not isinstance(first, str) or not first):
        draft.refuse((*place, "first"), draft.show((*place, "first"), first), "a column of the lookup")
    limit = value.get("limit_mb", DEFAULT_LIMIT_MB)
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_LIMIT_MB:
        got = draft.show((*place, "limit_mb"), limit)
        draft.refuse((*place, "limit_mb"), got, f"a whole number of MB from 1 to {MAX_LIMIT_MB}")
    per_chunk, source = value.get("per_chunk", False), value.get("source")
    if not isinstance(per_chunk, bool):
        draft.refuse((*place, "per_chunk"), draft.show((*place, "per_chunk"), per_chunk), "true or false")
    elif per_chunk and isinstance(source, dict) and ("file" in source or "uri" in source):
        got = "true for a file" if "file" in source else "true for another database"
        draft.refuse((*place, "per_chunk"), got, "it with a table or query of the job's source only")
    name = value.get("name", default_name)
    if not isinstance(name, str) or not re.fullmatch(LOOKUP_NAME, name):
        draft.refuse((*place, "name"), draft.show((*place, "name"), name), "1 to 56 of letters, digits, _ . -")
    return {"missing": missing, "first": first, "limit_mb": limit, "name": name, "per_chunk": per_chunk}


def lookup_identity(lookup: Lookup) -> dict[str, Any]:
    """Return what a lookup does, JSON-ready and without secrets: not its limit or where it stands."""
    where = {name: text for name in _PLACES if (text := getattr(lookup, name)) is not None}
    database = {"database": Dsn.parse(lookup.uri, "lookup.source.uri").identity} if lookup.uri else {}
    return {
        "source": {**where, **database},
        "on": dict(lookup.on),
        "take": dict(lookup.take),
        "missing": lookup.missing,
        "first": lookup.first,
        "name": lookup.name,
    }


def _source(draft: Draft, place: Place, value: object) -> dict[str, Any]:
    """Return the place of a lookup's rows as fields of `Lookup`."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        draft.refuse(place, draft.show(place, value), "a mapping with table, query or file")
        return {}
    unknown = sorted(value.keys() - {*_PLACES, "uri"})
    for key in unknown:
        draft.refuse_unknown((*place, key), (*_PLACES, "uri"))
    given = [key for key in _PLACES if key in value]
    if len(given) != 1 and not unknown:
        draft.refuse(place, " and ".join(given) or "none of them", f"one of {', '.join(_PLACES)}")
    for key in given:
        text = value[key]
        if not isinstance(text, str) or not text.strip():
            draft.refuse((*place, key), draft.show((*place, key), text), f"a {key}")
        elif key == "file" and not text.lower().endswith(FILE_TYPES):
            draft.refuse((*place, key), shown(PurePath(text).suffix or text), "a file that ends in .csv or .parquet")
    if "uri" in value:
        _check_uri(draft, (*place, "uri"), value["uri"], of_file="file" in value)
    return {key: value[key] for key in (*given, "uri") if isinstance(value.get(key), str)}


def _check_uri(draft: Draft, place: Place, uri: object, *, of_file: bool) -> None:
    if of_file:
        draft.refuse(place, "a database for a file", "no uri beside file", "Remove one")
    elif not isinstance(uri, str):
        draft.refuse(place, draft.show(place, uri), "a postgresql:// URI")
    elif place not in draft.problems:
        try:
            Dsn.parse(uri, draft.heading(place))
        except ConfigError as error:
            draft.problems[place] = str(error)


def _matched(draft: Draft, place: Place, value: object, expected: str) -> dict[str, str]:
    """Return a name, names, or pairs as pairs; empty after a mistake."""
    if value is None:
        return {}
    if isinstance(value, dict):
        return dict(read_pairs(draft, place, value, expected) or ())
    return {name: name for name in read_names(draft, place, value)}


def _default_name(source: Mapping[str, str]) -> str:
    if "query" in source:
        return "query"
    text = PurePath(source.get("file", "")).stem or source.get("table", "").rpartition(".")[2]
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text.replace('"', "")).lstrip(".-")[:56] or "lookup"
