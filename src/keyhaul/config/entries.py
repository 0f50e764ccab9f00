"""Names and pairs as a job file gives them: what the steps and the rules read, with each mistake in the draft."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyhaul.config.draft import Draft, Place

# The JSON schemas of the file's form, for editors.
TEXT: Mapping[str, Any] = {"type": "string", "minLength": 1}
NAME_LIST: Mapping[str, Any] = {"type": "array", "items": TEXT, "minItems": 1, "uniqueItems": True}
ONE_OR_MORE: Mapping[str, Any] = {"anyOf": [TEXT, NAME_LIST]}
PAIRS: Mapping[str, Any] = {"type": "object", "additionalProperties": TEXT, "minProperties": 1}


def read_names(draft: Draft, place: Place, value: object) -> tuple[str, ...]:
    """Return one name or a list of different ones as a tuple; empty after a mistake, which is noted."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        draft.refuse(
            place, "an empty list" if value == [] else draft.show(place, value), "a column or a list of columns"
        )
        return ()
    if len(set(names)) < len(names):
        draft.refuse(place, "a column twice", "each column once")
        return ()
    return tuple(names)


def read_pairs(draft: Draft, place: Place, value: object, expected: str) -> list[tuple[str, str]] | None:
    """Return a mapping's items when all are text that is not empty; None after a mistake, which is noted."""
    if not isinstance(value, dict) or not value:
        draft.refuse(place, "an empty mapping" if value == {} else draft.show(place, value), expected)
        return None
    before = len(draft.problems)
    for name, text in value.items():
        if not isinstance(text, str) or not text.strip() or not name:
            draft.refuse((*place, name), draft.show((*place, name), text), expected, "Put it into quotes")
    return list(value.items()) if len(draft.problems) == before else None
