"""Rules across the run, as a job file gives them: what must hold of the whole target table after the load."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from keyhaul.config.entries import ONE_OR_MORE, TEXT, read_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyhaul.config.draft import Draft, Place

RunRuleKind = Literal["unique", "references", "row_count", "equals_source"]
RunOnFail = Literal["error", "warn"]
KINDS: Final[tuple[RunRuleKind, ...]] = ("unique", "references", "row_count", "equals_source")
ON_FAIL: Final[tuple[RunOnFail, ...]] = ("error", "warn")
_NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}"
_LARGEST: Final = 2**63 - 1

_COUNT: Final = {"type": "integer", "minimum": 0}
_SCHEMAS: Final[Mapping[str, Any]] = {
    "unique": ONE_OR_MORE,
    "references": {
        "type": "object",
        "properties": {"column": ONE_OR_MORE, "columns": ONE_OR_MORE, "table": TEXT, "to": ONE_OR_MORE},
        "required": ["table"],
        "additionalProperties": False,
    },
    "row_count": {
        "type": "object",
        "properties": {"min": _COUNT, "max": _COUNT},
        "additionalProperties": False,
        "minProperties": 1,
    },
    "equals_source": TEXT,
    "name": {"type": "string", "pattern": f"^{_NAME}$"},
    "on_fail": {"enum": list(ON_FAIL), "default": "error"},
}
_ITEM: Final = {"type": "object", "properties": dict(_SCHEMAS), "additionalProperties": False, "minProperties": 1}
RUN_RULES_SCHEMA: Final[Mapping[str, Any]] = {
    "anyOf": [{"type": "array", "items": _ITEM}, {"type": "object", "additionalProperties": _ITEM}]
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRule:
    """One demand on the whole target table.

    Attributes:
        name: in reports and in the ledger.
        kind: which of the other values count.
        columns: of ``unique`` and ``references``, in the target.
        table, others: of ``references``: where the values must be, and in which columns; `others` is empty for
            the columns of the same names.
        least, most: of ``row_count``, both inclusive; None is open.
        aggregate: of ``equals_source``: an SQL expression over a whole table, the same at both ends.
        on_fail: ``error`` ends the run with exit code 1, ``warn`` is only told; the rows stay in either case.
        at: where it stands.
    """

    name: str
    kind: RunRuleKind
    columns: tuple[str, ...] = ()
    table: str = ""
    others: tuple[str, ...] = ()
    least: int | None = None
    most: int | None = None
    aggregate: str = ""
    on_fail: RunOnFail = "error"
    at: str = field(default="", compare=False)


def read_run_rules(draft: Draft) -> tuple[RunRule, ...]:
    """Return the rules under ``run_rules``, a list or a mapping from name to rule; mistakes are noted."""
    value, place = draft.data.get("run_rules"), ("run_rules",)
    if value is None:
        return ()
    items: list[tuple[Place, object, object]]
    if isinstance(value, dict):
        items = [((*place, name), name, item) for name, item in value.items()]
    elif isinstance(value, list):
        items = [((*place, n), None, item) for n, item in enumerate(value)]
    else:
        draft.refuse(place, draft.show(place, value), "a list of rules", "Write `- unique: [id]`")
        return ()
    rules: list[RunRule] = []
    for at, name, item in items:
        rule = _rule(draft, at, name, item)
        if rule is not None and rule.name in {other.name for other in rules}:
            draft.refuse(at, f"a second rule {rule.name}", "a new name", "Give it a name: of its own")
        elif rule is not None:
            rules.append(rule)
    return tuple(rules)


def _rule(draft: Draft, place: Place, named: object, item: object) -> RunRule | None:
    found = [kind for kind in KINDS if isinstance(item, dict) and kind in item]
    if not isinstance(item, dict) or len(found) != 1:
        unknown = sorted(str(key) for key in item) if isinstance(item, dict) else []
        got = f"a rule with {', '.join(found or unknown)}" if found or unknown else draft.show(place, item)
        draft.refuse(place, got, f"one of {', '.join(KINDS)}")
        return None
    before = len(draft.problems)
    kind = found[0]
    known = (kind, "on_fail", *(() if named is not None else ("name",)))
    for key in sorted(item.keys() - set(known), key=str):
        draft.refuse_unknown((*place, key), known)
    on_fail = item.get("on_fail", "error")
    if on_fail not in ON_FAIL:
        draft.refuse((*place, "on_fail"), draft.show((*place, "on_fail"), on_fail), f"one of {', '.join(ON_FAIL)}")
    values = _DEMANDS[kind](draft, (*place, kind), item[kind])
    name = named if named is not None else item.get("name", _default_name(kind, values))
    if not isinstance(name, str) or not re.fullmatch(_NAME, name):
        at = place if named is not None else (*place, "name")
        draft.refuse(at, draft.show(at, name), "a name of 1 to 63 of letters, digits, _ . -", "Give a name:")
    if len(draft.problems) > before:
        return None
    return RunRule(name=str(name), kind=kind, on_fail=cast("RunOnFail", on_fail), at=draft.where(place), **values)


def _default_name(kind: str, values: Mapping[str, Any]) -> str:
    words = [kind, *values.get("columns", ())] if values.get("columns") else [kind, values.get("aggregate", "")]
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", "_".join(filter(None, words))).strip("_")[:63]


def _unique(draft: Draft, place: Place, value: object) -> dict[str, Any]:
    return {"columns": read_names(draft, place, value)}


def _references(draft: Draft, place: Place, value: object) -> dict[str, Any]:
    expected = "a mapping with column, table and, where the names differ, to"
    if not isinstance(value, dict):
        draft.refuse(place, draft.show(place, value), expected)
        return {}
    known = ("column", "columns", "table", "to")
    for key in sorted(value.keys() - set(known), key=str):
        draft.refuse_unknown((*place, key), known)
    given = [name for name in ("column", "columns") if name in value]
    if len(given) != 1:
        draft.refuse(place, "both column and columns" if given else "no column", expected)
        return {}
    columns = read_names(draft, (*place, given[0]), value[given[0]])
    table = value.get("table")
    if not isinstance(table, str) or not table.strip():
        draft.refuse((*place, "table"), draft.show((*place, "table"), table), "a table such as public.customers")
    others = read_names(draft, (*place, "to"), value["to"]) if "to" in value else ()
    if others and columns and len(others) != len(columns):
        draft.refuse((*place, "to"), f"{len(others)} columns", f"{len(columns)}, as many as in {given[0]}")
    return {"columns": columns, "table": str(table), "others": others}


def _row_count(draft: Draft, place: Place, value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        draft.refuse(place, draft.show(place, value), "a mapping with min, max or both")
        return {}
    for key in sorted(value.keys() - {"min", "max"}, key=str):
        draft.refuse_unknown((*place, key), ("min", "max"))
    for key in ("min", "max"):
        number = value.get(key)
        if number is not None and (
            not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= _LARGEST
        ):
            draft.refuse((*place, key), draft.show((*place, key), number), "a whole number from 0")
            return {}
    least, most = value.get("min"), value.get("max")
    if least is not None and most is not None and least > most:
        draft.refuse((*place, "max"), f"{most}, less than min", f"at least {least}")
    return {"least": least, "most": most}


def _equals_source(draft: Draft, place: Place, value: object) -> dict[str, Any]:
    if not isinstance(value, str) or not value.strip():
        draft.refuse(place, draft.show(place, value), "an aggregate such as sum(amount)")
        return {}
    return {"aggregate": value.strip()}


_DEMANDS: Final = {
    "unique": _unique,
    "references": _references,
    "row_count": _row_count,
    "equals_source": _equals_source,
}
