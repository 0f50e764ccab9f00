"""The steps and rules of a job, and how they are read from a job file's values and from flags.

Nothing is compiled here. Each one keeps where it stands (``at``), so that whoever compiles it can say
so; that takes no part in equality.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from keyhaul.config.draft import shown
from keyhaul.config.entries import ONE_OR_MORE, PAIRS, TEXT, read_names, read_pairs
from keyhaul.config.lookupstep import LOOKUP_SCHEMA, Lookup, lookup_identity, read_lookup

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from keyhaul.config.draft import Draft, Place

OnFail = Literal["quarantine", "warn", "stop"]
ON_FAIL: tuple[OnFail, ...] = ("quarantine", "warn", "stop")
StepKind = Literal["set", "where", "rename", "drop", "lookup", "python"]
STEP_KINDS: tuple[StepKind, ...] = ("set", "where", "rename", "drop", "lookup", "python")
RULE_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}"
PYTHON_FUNCTION = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"

# The JSON schemas of the file's form, for editors.
STEP_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "set": {**PAIRS, "description": "Columns to compute: column to Polars SQL expression."},
        "where": {**TEXT, "description": "Rows to keep: a Polars SQL condition."},
        "rename": {**PAIRS, "description": "Columns to rename: old to new."},
        "drop": {**ONE_OR_MORE, "description": "Columns to leave out."},
        "lookup": LOOKUP_SCHEMA,
        "python": {
            "type": "string",
            "pattern": f"^{PYTHON_FUNCTION}$",
            "description": "LazyFrame to LazyFrame.",
        },
    },
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
}
_ON_FAIL_SCHEMA = {"enum": list(ON_FAIL), "default": "quarantine"}


def _rule_schema(demand: str, short: Mapping[str, Any]) -> dict[str, Any]:
    properties = {demand: short, "on_fail": _ON_FAIL_SCHEMA}
    long = {"type": "object", "properties": properties, "required": [demand], "additionalProperties": False}
    return {"anyOf": [short, long]}


RULES_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"not_null": _rule_schema("columns", ONE_OR_MORE)},
    "patternProperties": {f"^(?!not_null$){RULE_NAME}$": _rule_schema("check", TEXT)},
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the transform; only the field that its `kind` names is filled.

    Attributes:
        set: column → Polars SQL expression; each expression sees the columns as they were before the step.
        where: a Polars SQL condition; rows for which it is not true count as filtered.
        rename: old → new column name.
        drop: columns to leave out.
        lookup: columns to take from a table, query or file by key.
        python: ``module:function``, from LazyFrame to LazyFrame; it runs only with permission.
        at: where the step stands, ``FILE line N`` or the flag.
        places: column of `set` or `rename` → where that entry stands.
    """

    kind: StepKind
    set: Mapping[str, str] = field(default_factory=dict, hash=False)
    where: str = ""
    rename: Mapping[str, str] = field(default_factory=dict, hash=False)
    drop: tuple[str, ...] = ()
    lookup: Lookup | None = None
    python: str = ""
    at: str = field(default="", compare=False)
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule of the stage; exactly one of `check` and `columns` is given.

    Attributes:
        check: a DuckDB SQL condition; NULL passes, as in a CHECK constraint.
        columns: columns that must not be NULL (the rule ``not_null``).
        on_fail: what becomes of a record that fails.
        at: where the rule stands, ``FILE line N`` or the flag.
    """

    name: str
    check: str | None = None
    columns: tuple[str, ...] = ()
    on_fail: OnFail = "quarantine"
    at: str = field(default="", compare=False)


def read_steps(draft: Draft) -> tuple[Step, ...]:
    """Return the steps under ``transform``, in order; mistakes are noted in the draft."""
    value = draft.data.get("transform")
    if value is None:
        return ()
    if not isinstance(value, list):
        draft.refuse(("transform",), draft.show(("transform",), value), "a list of steps", "Begin each with `- `")
        return ()
    steps = [_step(draft, ("transform", number), item) for number, item in enumerate(value)]
    return tuple(step for step in steps if step is not None)


def read_rules(draft: Draft) -> tuple[Rule, ...]:
    """Return the rules under ``rules``, in order; mistakes are noted in the draft."""
    value = draft.data.get("rules")
    if value is None:
        return ()
    if not isinstance(value, dict):
        got = draft.show(("rules",), value)
        draft.refuse(("rules",), got, "a mapping from rule name to condition", 'Write `name: "condition"`')
        return ()
    rules = [_rule(draft, ("rules", name), name, item) for name, item in value.items()]
    return tuple(rule for rule in rules if rule is not None)


def split_names(text: str) -> tuple[str, ...] | None:
    """Split ``a,b`` at commas; a name in double quotes may hold one. None when a name is empty."""
    try:
        rows = list(csv.reader([text], skipinitialspace=True, strict=True))
    except csv.Error:
        return None
    names = tuple(name.strip() for name in rows[0]) if rows else ()
    return names if names and all(names) else None


def steps_from_flags(draft: Draft, sets: Sequence[str], wheres: Sequence[str]) -> tuple[Step, ...]:
    """Return one step for each ``--set 'col = expr'``, then one for each ``--where EXPR``."""
    steps: list[Step] = []
    for number, text in enumerate(sets):
        flag, place = f"--set {shown(text)}", ("--set", number)
        column, separator, expression = text.partition("=")
        column = column.strip().removeprefix('"').removesuffix('"')
        # In `a >= 1` and `a == 1` the sign is part of a comparison: no column was named.
        wrong = (
            not separator or not expression.strip() or expression.startswith("=") or re.search(r"[<>!()'\"]", column)
        )
        if wrong or not column:
            draft.overrides[place] = flag
            draft.refuse(place, "no assignment", "'column = expression'")
            continue
        steps.append(Step(kind="set", set={column: expression.strip()}, at=flag, places={column: flag}))
    for number, text in enumerate(wheres):
        flag, place = f"--where {shown(text)}", ("--where", number)
        if text.strip():
            steps.append(Step(kind="where", where=text.strip(), at=flag))
        else:
            draft.overrides[place] = flag
            draft.refuse(place, "nothing", "a condition such as 'year = 2013'")
    return tuple(steps)


def rules_from_flags(draft: Draft, texts: Sequence[str], taken: Sequence[Rule], option: str) -> tuple[Rule, ...]:
    """Return one rule for each ``--rule 'name: EXPR'``; ``'not_null: a, b'`` is the rule of that name.

    `option` is what the flag is called: ``--rule``, or ``--check`` of `etl replay`.
    """
    rules: list[Rule] = []
    for number, text in enumerate(texts):
        flag, place = f"{option} {shown(text)}", (option, number)
        draft.overrides[place] = flag
        name, _, check = (part.strip() for part in text.partition(":"))
        columns = split_names(check) if name == "not_null" else ()
        if not re.fullmatch(RULE_NAME, name) or not check or check.startswith(":") or columns is None:
            draft.refuse(place, "no rule", "'name: condition' or 'not_null: column, column'")
        elif name in {rule.name for rule in [*taken, *rules]}:
            draft.refuse(place, f"a second rule {name}", "a new name", "Choose another name")
        else:
            rules.append(Rule(name=name, check=None if columns else check, columns=columns, at=flag))
    return tuple(rules)


def step_identity(step: Step) -> dict[str, Any]:
    """Return a step as the job file has it, JSON-ready, without where it stands."""
    match step.kind:
        case "set":
            return {"set": dict(step.set)}
        case "where":
            return {"where": step.where}
        case "rename":
            return {"rename": dict(step.rename)}
        case "drop":
            return {"drop": list(step.drop)}
        case "lookup":
            return {"lookup": lookup_identity(step.lookup)} if step.lookup else {}
        case "python":
            return {"python": step.python}


def rule_identity(rule: Rule) -> dict[str, Any]:
    """Return what a rule demands, JSON-ready, without its name and where it stands."""
    demand = {"check": rule.check} if rule.check is not None else {"columns": list(rule.columns)}
    return {**demand, "on_fail": rule.on_fail}


def _step(draft: Draft, place: Place, item: object) -> Step | None:
    if not isinstance(item, dict) or len(item) != 1:
        got = f"a step of {len(item)} keys" if isinstance(item, dict) else draft.show(place, item)
        draft.refuse(place, got, f"one of {', '.join(STEP_KINDS)}", "Give each step its own `- `")
        return None
    ((kind, value),) = item.items()
    readers: Mapping[str, Callable[[Draft, Place, Any], Step | None]] = {
        "set": _set,
        "where": _where,
        "rename": _rename,
        "drop": _drop,
        "lookup": _lookup,
        "python": _python,
    }
    if kind not in readers:
        draft.refuse_unknown((*place, kind), STEP_KINDS)
        return None
    return readers[kind](draft, (*place, kind), value)


def _places(draft: Draft, place: Place, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    return {name: draft.where((*place, name)) for name, _ in pairs}


def _set(draft: Draft, place: Place, value: object) -> Step | None:
    pairs = read_pairs(draft, place, value, 'column: "expression"')
    if pairs is None:
        return None
    return Step(kind="set", set=dict(pairs), at=draft.where(place), places=_places(draft, place, pairs))


def _where(draft: Draft, place: Place, value: object) -> Step | None:
    if not isinstance(value, str) or not value.strip():
        draft.refuse(place, draft.show(place, value), 'a condition such as "year = 2013"')
        return None
    return Step(kind="where", where=value, at=draft.where(place))


def _rename(draft: Draft, place: Place, value: object) -> Step | None:
    pairs = read_pairs(draft, place, value, "old: new")
    if pairs is None:
        return None
    new = [name for _, name in pairs]
    if len(set(new)) < len(new):
        draft.refuse(place, "one new name for two columns", "different names")
        return None
    return Step(kind="rename", rename=dict(pairs), at=draft.where(place), places=_places(draft, place, pairs))


def _drop(draft: Draft, place: Place, value: object) -> Step | None:
    columns = read_names(draft, place, value)
    return Step(kind="drop", drop=columns, at=draft.where(place)) if columns else None


def _lookup(draft: Draft, place: Place, value: object) -> Step | None:
    lookup = read_lookup(draft, place, value)
    return Step(kind="lookup", lookup=lookup, at=lookup.at) if lookup else None


def _python(draft: Draft, place: Place, value: object) -> Step | None:
    if not isinstance(value, str) or not re.fullmatch(PYTHON_FUNCTION, value):
        draft.refuse(place, draft.show(place, value), '"module:function"')
        return None
    return Step(kind="python", python=value, at=draft.where(place))


def _rule(draft: Draft, place: Place, name: str, value: object) -> Rule | None:
    special = name == "not_null"
    demand = "columns" if special else "check"
    body = value if isinstance(value, dict) else {demand: value}
    at = (*place, demand) if isinstance(value, dict) else place
    before = len(draft.problems)
    if not re.fullmatch(RULE_NAME, name):
        draft.refuse(place, f"rule name {shown(name)}", "1 to 63 of letters, digits, _ . -")
    for key in sorted(body.keys() - {demand, "on_fail"}):
        draft.refuse_unknown((*place, key), (demand, "on_fail"))
    on_fail = body.get("on_fail", "quarantine")
    if on_fail not in ON_FAIL:
        at_fail = (*place, "on_fail")
        draft.refuse(at_fail, draft.show(at_fail, on_fail), f"one of {', '.join(ON_FAIL)}")
    columns: tuple[str, ...] = ()
    check = body.get(demand)
    if special:
        columns = read_names(draft, at, check)
    elif not isinstance(check, str) or not check.strip():
        draft.refuse(at, draft.show(at, check), 'a condition such as "distance > 0"')
    if len(draft.problems) > before:
        return None
    text, fail = (None if special else str(check)), cast("OnFail", on_fail)
    return Rule(name=name, check=text, columns=columns, on_fail=fail, at=draft.where(place))
