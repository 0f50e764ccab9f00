"""The difference of two identities: what makes a job, or a source, the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what changed between two identities, one line each: ``chunk: 50000 → 20000``."""
    before, after = dict(_leaves(old, "")), dict(_leaves(new, ""))
    names = [*before, *(name for name in after if name not in before)]
    return [
        f"{name}: {before.get(name, 'nothing')} → {after.get(name, 'nothing')}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _leaves(value: object, name: str) -> Iterator[tuple[str, str]]:
    nested = isinstance(value, list) and any(isinstance(item, dict) for item in value)
    if isinstance(value, dict) and value:
        for key in sorted(value):
            yield from _leaves(value[key], f"{name}.{key}" if name else key)
    elif isinstance(value, list) and nested:
        for number, item in enumerate(value):
            yield from _leaves(item, f"{name}[{number}]")
    elif value not in (None, {}, []):
        yield name, json.dumps(value, ensure_ascii=False)
