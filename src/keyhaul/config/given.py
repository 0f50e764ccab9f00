"""A job as it was given, as the text of a job file: what a run keeps of it, and how it is read again.

File, variables and flags are one there. A variable's name stands for its value (``${NAME}``), and the addresses are
left out: whoever reads it again says them. A secret that was written out is hidden, and the text is of no use then.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from keyhaul.config.draft import Draft, Place, WrittenNumber, spell
from keyhaul.config.yamlfile import read_text
from keyhaul.redaction import HIDDEN, hide

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from keyhaul.config.steps import Rule, Step

_ADDRESSES: Final = frozenset(
    {("source", "uri"), ("source", "path"), ("target", "uri"), ("home",), ("work_dir",), ("ledger_schema",)}
)
_INSTEAD: Final = {"set": "transform", "where": "transform", "rule": "rules", "check": "rules"}
"""What a flag that may be given several times takes the place of."""


def write_given(draft: Draft, steps: Sequence[Step], rules: Sequence[Rule]) -> str:
    """Return the job of a draft, as a job file has it.

    Args:
        draft: the file's values with variables and flags laid over them, before defaults are filled in.
        steps: those of flags, which come after the file's.
        rules: those of flags.
    """
    data = dict(draft.data)
    more = [{"set": dict(step.set)} if step.kind == "set" else {"where": step.where} for step in steps]
    if more:
        data["transform"] = [*(data.get("transform") or []), *more]
    if rules:
        named = {rule.name: rule.check if rule.check is not None else list(rule.columns) for rule in rules}
        data["rules"] = {**(data.get("rules") or {}), **named}
    return "".join(f"{line}\n" for line in _block(data, (), draft, ""))


def read_given(text: str, environ: Mapping[str, str], flags: Mapping[str, object]) -> Draft:
    """Return what `write_given` has written; steps and rules of flags take the place of those there.

    Raises:
        ConfigError: it is no job file.
    """
    draft = read_text(text, "the job in the ledger", environ)
    for name in _INSTEAD.keys() & flags.keys():
        draft.forget((_INSTEAD[name],))
    return draft


def hidden_in(text: str) -> list[str]:
    """Return the places of such a text where a secret is hidden, as people write them."""
    return [spell(place) for place, value in _leaves(read_text(text, "", {}).data, ()) if HIDDEN in value]


def _leaves(value: object, place: Place) -> Iterator[tuple[Place, str]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        yield from _leaves(one, (*place, name))
    if isinstance(value, str):
        yield place, value


def _block(value: dict[str, Any] | list[Any] | tuple[Any, ...], place: Place, draft: Draft, pad: str) -> Iterator[str]:
    """Yield the lines of a mapping or a list."""
    for name, one in value.items() if isinstance(value, dict) else enumerate(value):
        at = (*place, name)
        if at in _ADDRESSES or (one is None and not place):
            continue
        head = f"{pad}{json.dumps(name)}:" if isinstance(value, dict) else f"{pad}-"
        if isinstance(one, dict | list | tuple):
            inner = list(_block(one, at, draft, f"{pad}  "))
            empty = "{}" if isinstance(one, dict) else "[]"
            yield from [head, *inner] if inner else [f"{head} {empty}"]
        else:
            yield f"{head} {_scalar(one, at, draft)}"


def _scalar(value: object, place: Place, draft: Draft) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, WrittenNumber):
        return value.text
    if isinstance(value, int | float):
        return str(value)
    raw, plain = draft.written.get(place, (str(value).replace("${", "$${"), False))
    shown = hide(raw)
    return raw if plain and shown == raw and raw.isprintable() else json.dumps(shown)
