"""The entries under `targets` of a job file: the tables that one record becomes rows of. Nothing is compiled here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from keyhaul.config.entries import ONE_OR_MORE, TEXT, read_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyhaul.config.draft import Draft, Place

Mode = Literal["append", "skip", "upsert"]
MODES: Final[tuple[Mode, ...]] = ("append", "skip", "upsert")

_KEYS: Final = ("table", "columns", "unnest", "where", "mode", "conflict", "newer_by")
_UNNEST_KEYS: Final = ("column", "as", "fields")
_OF_ENTRIES: Final = ("table", "mode", "conflict", "newer_by")
_COLUMN: Final = '"expression", {uuid: [columns]} or {parent: table, column: name}'

_VALUE_SCHEMA: Mapping[str, Any] = {
    "anyOf": [
        TEXT,
        {
            "type": "object",
            "description": "A name-based UUID of these columns' values, the same in every table and every run.",
            "properties": {"uuid": ONE_OR_MORE},
            "required": ["uuid"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "description": "The value that the record's row in an earlier table has there.",
            "properties": {"parent": TEXT, "column": TEXT},
            "required": ["parent", "column"],
            "additionalProperties": False,
        },
    ]
}
TARGETS_SCHEMA: Mapping[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "table": {**TEXT, "description": "A table that is there."},
            "columns": {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": _VALUE_SCHEMA,
                "description": "Column of the table to Polars SQL expression over the record.",
            },
            "unnest": {
                "type": "object",
                "description": "A row for each element of a JSON array or a list.",
                "properties": {
                    "column": TEXT,
                    "as": {
                        **TEXT,
                        "description": "What the element's columns begin with; the column's name by default.",
                    },
                    "fields": ONE_OR_MORE,
                },
                "required": ["column"],
                "additionalProperties": False,
            },
            "where": {**TEXT, "description": "Rows to keep: a Polars SQL condition."},
            "mode": {"enum": list(MODES)},
            "conflict": ONE_OR_MORE,
            "newer_by": TEXT,
        },
        "required": ["table", "columns"],
        "additionalProperties": False,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """What a column of a table gets; one of `expression`, `uuid` and `parent` is given.

    Attributes:
        expression: Polars SQL over the record, and over the element's columns.
        uuid: columns whose values name a UUID.
        parent: an earlier entry's table, and `column`, which that table's row has.
    """

    expression: str = ""
    uuid: tuple[str, ...] = ()
    parent: str = ""
    column: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unnest:
    """A row for each element of `column`.

    Attributes:
        column: holds a JSON array, or a list.
        prefix: begins the names of the element's columns: ``PREFIX_number`` counts from 1; ``PREFIX_FIELD``
            is the text of a field; without `fields` the element itself is ``PREFIX``.
        fields: of the elements, which are JSON objects.
    """

    column: str
    prefix: str
    fields: tuple[str, ...] = ()

    @property
    def number(self) -> str:
        """The column that counts the elements of a record from 1."""
        return f"{self.prefix}_number"

    @property
    def names(self) -> Mapping[str, str]:
        """Column of the row → field of the element."""
        return {f"{self.prefix}_{name}": name for name in self.fields}

    @property
    def rule(self) -> str:
        """What the quarantine calls a value that cannot be taken apart."""
        return f"unnest:{self.column}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableEntry:
    """One of the tables that each record goes to.

    Attributes:
        table: as the job file names it.
        columns: column of the table → what it gets.
        unnest: a row for each element; None for one row for each record.
        where: rows to keep; empty keeps all.
        mode, conflict, newer_by: as in the target of a job with one table; without a mode the table must be empty.
        at: where the entry stands, ``FILE line N``; `places` is the same for each column.
    """

    table: str
    columns: Mapping[str, Value] = field(hash=False)
    unnest: Unnest | None = None
    where: str = ""
    mode: Mode | None = None
    conflict: tuple[str, ...] = ()
    newer_by: str | None = None
    at: str = field(default="", compare=False)
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


def read_targets(draft: Draft) -> tuple[TableEntry, ...]:
    """Return the entries under ``targets``, in order; mistakes are noted in the draft."""
    value = draft.data.get("targets")
    if value is None:
        return ()
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else draft.show(("targets",), value)
        draft.refuse(("targets",), got, "a list of tables", "Begin each with `- `")
        return ()
    for name in _OF_ENTRIES:
        if draft.get(("target", name)) is not None:
            hint = f"Write `{name}:` into the entries under targets"
            draft.refuse(("target", name), f"a {name} beside targets", f"no {name} here", hint)
    entries: list[TableEntry] = []
    for number, item in enumerate(value):
        entry = _entry(draft, ("targets", number), item, entries)
        if entry is not None:
            entries.append(entry)
    return tuple(entries)


def check_neighbours(draft: Draft, tables: Sequence[TableEntry]) -> None:
    """Note what a job with several tables cannot have beside them."""
    if not tables:
        return
    if draft.data.get("run_rules"):
        hint = "Check the tables with `etl check`, or move each with a job of its own"
        draft.refuse(("run_rules",), "rules for one table beside targets", "a job with one table", hint)
    if draft.data.get("incremental") is None:
        return
    for number, entry in enumerate(tables):
        if entry.mode not in {"skip", "upsert"}:
            got = f"{entry.mode or 'no mode'} with incremental"
            hint = "Rows inside the lag are read again, and would be there twice"
            draft.refuse(("targets", number, "mode"), got, "skip or upsert", hint)


def entry_identity(entry: TableEntry) -> dict[str, Any]:
    """Return what an entry does, JSON-ready, without where it stands."""
    unnest = entry.unnest
    return {
        "table": entry.table,
        "columns": {name: _plain(value) for name, value in entry.columns.items()},
        "unnest": {"column": unnest.column, "as": unnest.prefix, "fields": list(unnest.fields)} if unnest else None,
        "where": entry.where,
        "mode": entry.mode,
        "conflict": list(entry.conflict),
        "newer_by": entry.newer_by,
    }


def _plain(value: Value) -> object:
    if value.parent:
        return {"parent": value.parent, "column": value.column}
    return {"uuid": list(value.uuid)} if value.uuid else value.expression


def _entry(draft: Draft, place: Place, item: object, before: Sequence[TableEntry]) -> TableEntry | None:
    if not isinstance(item, dict):
        draft.refuse(place, draft.show(place, item), "a mapping with table and columns")
        return None
    problems = len(draft.problems)
    for key in sorted(item.keys() - set(_KEYS), key=str):
        draft.refuse_unknown((*place, key), _KEYS)
    table = _text(draft, (*place, "table"), item.get("table"), "a table such as public.orders")
    if table in {entry.table for entry in before}:
        draft.refuse((*place, "table"), "a table twice", "each table once")
    columns = _columns(draft, (*place, "columns"), item.get("columns"), before)
    mode = item.get("mode")
    if mode is not None and mode not in MODES:
        draft.refuse((*place, "mode"), draft.show((*place, "mode"), mode), f"one of {', '.join(MODES)}")
    texts = {
        key: _text(draft, (*place, key), item[key], what)
        for key, what in (("where", 'a condition such as "year = 2013"'), ("newer_by", "a column"))
        if key in item
    }
    unnest = _unnest(draft, (*place, "unnest"), item["unnest"]) if "unnest" in item else None
    conflict = read_names(draft, (*place, "conflict"), item["conflict"]) if "conflict" in item else ()
    if len(draft.problems) > problems:
        return None
    return TableEntry(
        table=table,
        columns=columns,
        unnest=unnest,
        where=texts.get("where", ""),
        mode=cast("Mode | None", mode),
        conflict=conflict,
        newer_by=texts.get("newer_by"),
        at=draft.where(place),
        places={name: draft.where((*place, "columns", name)) for name in columns},
    )


def _text(draft: Draft, place: Place, value: object, expected: str) -> str:
    if isinstance(value, str) and value.strip():
        return value
    draft.refuse(place, draft.show(place, value), expected)
    return ""


def _columns(draft: Draft, place: Place, value: object, before: Sequence[TableEntry]) -> dict[str, Value]:
    if not isinstance(value, dict) or not value:
        draft.refuse(place, "an empty mapping" if value == {} else draft.show(place, value), f"column: {_COLUMN}")
        return {}
    return {str(name): _value(draft, (*place, name), item, before) for name, item in value.items()}


def _value(draft: Draft, place: Place, item: object, before: Sequence[TableEntry]) -> Value:
    if isinstance(item, str) and item.strip():
        return Value(expression=item)
    if isinstance(item, dict) and set(item) == {"uuid"}:
        return Value(uuid=read_names(draft, (*place, "uuid"), item["uuid"]))
    if isinstance(item, dict) and set(item) == {"parent", "column"}:
        parent = _text(draft, (*place, "parent"), item["parent"], "the table of an earlier entry")
        column = _text(draft, (*place, "column"), item["column"], "a column of the parent")
        found = next((entry for entry in before if entry.table == parent), None)
        if parent and found is None:
            known = ", ".join(entry.table for entry in before) or "none: this entry is the first"
            draft.refuse(
                (*place, "parent"), "a table that is no earlier entry", f"one of {known}", "Parents come first"
            )
        elif found is not None and found.unnest is not None:
            got, hint = "a table with unnest", "It may have several rows for one record"
            draft.refuse((*place, "parent"), got, "a parent with one row for each record", hint)
        return Value(parent=parent, column=column)
    hint = "" if isinstance(item, dict) else "Put it into quotes"
    draft.refuse(place, draft.show(place, item), _COLUMN, hint)
    return Value()


def _unnest(draft: Draft, place: Place, item: object) -> Unnest | None:
    if not isinstance(item, dict):
        draft.refuse(place, draft.show(place, item), "a mapping with column, as and fields")
        return None
    for key in sorted(item.keys() - set(_UNNEST_KEYS), key=str):
        draft.refuse_unknown((*place, key), _UNNEST_KEYS)
    column = _text(draft, (*place, "column"), item.get("column"), "a column with a JSON array or a list")
    prefix = _text(draft, (*place, "as"), item.get("as", column or "-"), "a name")
    fields = read_names(draft, (*place, "fields"), item["fields"]) if "fields" in item else ()
    if "number" in fields:
        hint = f"Leave it out: {prefix}_number counts the elements. Rename the field in a query"
        draft.refuse((*place, "fields"), "a field called number", "other names", hint)
    return Unnest(column=column, prefix=prefix, fields=fields)
