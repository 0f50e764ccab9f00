"""A job in the making: plain values, where each one stands, and every mistake found so far."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from keyhaul.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

Place = tuple[str | int, ...]
"""The way to a value, for example ``("transform", 1, "set")``."""

_SHOWN_CHARACTERS = 60
_SHOWN_PROBLEMS = 50
"""Lines of one message; more mistakes than that have one cause, and each costs time to word."""
_SUGGESTIONS = 20
"""Unknown keys that are compared with the known ones: each costs 0.3 ms."""


class WrittenNumber(float):
    """A decimal number of a file, with the digits as they are written: ``1.10`` is also a text, and not ``1.1``."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Self:
        """Read a number."""
        number = super().__new__(cls, text)
        number.text = text
        return number


@dataclass(slots=True, kw_only=True)
class Draft:
    """Values as a file, variables and flags give them; filled in that order, a later one wins.

    Attributes:
        file: the job file as the user named it; empty when there is none.
        data: nested dicts and lists of plain values.
        lines: place → line of the file.
        overrides: place → the flag or variable that the value is from.
        secret: places whose text came from the environment; messages do not show it.
        problems: place → the line that tells the user; the first one of a place stays.
        written: place → a text of the file before its variables were put in, and whether it stood without quotes.
        suggested: how many unknown keys were compared with the known ones.
    """

    file: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[Place, int] = field(default_factory=dict)
    overrides: dict[Place, str] = field(default_factory=dict)
    secret: set[Place] = field(default_factory=set)
    problems: dict[Place, str] = field(default_factory=dict)
    written: dict[Place, tuple[str, bool]] = field(default_factory=dict)
    suggested: int = 0

    def override(self, place: Place, value: object, origin: str) -> None:
        """Put `value` at `place`; whatever stood there before, right or wrong, is forgotten."""
        self.forget(place)
        parent = self.data
        for name in place[:-1]:
            if not isinstance(parent.get(str(name)), dict):
                parent[str(name)] = {}
            parent = parent[str(name)]
        parent[str(place[-1])] = value
        self.overrides[place] = origin

    def forget(self, place: Place) -> None:
        """Remove the value at `place` and its problems."""
        parent: Any = self.data
        for name in place[:-1]:
            parent = parent.get(name) if isinstance(parent, dict) else None
        if isinstance(parent, dict):
            parent.pop(place[-1], None)
        self.problems = {at: text for at, text in self.problems.items() if at[: len(place)] != place}
        self.written = {at: text for at, text in self.written.items() if at[: len(place)] != place}
        self.secret = {at for at in self.secret if at[: len(place)] != place}
        self.overrides.pop(place, None)

    def get(self, place: Place) -> object:
        """Return the value at `place`, or None."""
        value: Any = self.data
        for name in place:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def where(self, place: Place) -> str:
        """Return the flag, variable or ``FILE line N`` of the value at `place`, or of what holds it."""
        for length in range(len(place), -1, -1):
            if place[:length] in self.overrides:
                return self.overrides[place[:length]]
            if place[:length] in self.lines:
                return f"{self.file} line {self.lines[place[:length]]}"
        return self.file

    def heading(self, place: Place) -> str:
        """Return how a message about `place` begins: ``FILE line N: key``, or the flag or variable alone."""
        where = self.where(place)
        key = spell(place)
        if any(place[:length] in self.overrides for length in range(len(place) + 1)) or not key:
            return where
        return f"{where}: {key}" if where else key

    def refuse(self, place: Place, got: str, expected: str, hint: str = "") -> None:
        """Note a mistake; a second one at the same place, or under one that is wrong already, is left out."""
        if any(place[:length] in self.problems for length in range(1, len(place) + 1)):
            return
        self.problems[place] = f"{self.heading(place)}: got {got}, expected {expected}" + (f". {hint}" if hint else "")

    def refuse_unknown(self, place: Place, known: Iterable[str]) -> None:
        """Note an unknown key with the nearest known one, or all of them."""
        if len(self.problems) >= _SHOWN_PROBLEMS:
            self.refuse(place, "an unknown key", "a known one")
            return
        names = sorted(known)
        self.suggested += 1
        near = difflib.get_close_matches(str(place[-1]), names, 1) if self.suggested <= _SUGGESTIONS else []
        self.refuse(place, "an unknown key", near[0] if near else f"one of {', '.join(names)}")

    def show(self, place: Place, value: object) -> str:
        """Return `value` for a message: short, and hidden when it may hold a secret."""
        if any(place[:length] in self.secret for length in range(len(place) + 1)):
            return "a value from the environment"
        return shown(value)

    def raise_if_wrong(self) -> None:
        """Raise one error with all mistakes, one a line; of very many the first, and how many more there are.

        Raises:
            ConfigError: there is a mistake.
        """
        if not self.problems:
            return
        lines = list(self.problems.values())
        if len(lines) > _SHOWN_PROBLEMS:
            more = len(lines) - _SHOWN_PROBLEMS
            heading = f"{self.file}: " if self.file else ""
            lines[_SHOWN_PROBLEMS:] = [f"{heading}got {more} more mistakes, expected none. Correct the first ones"]
        raise ConfigError("\n".join(lines))


def shown(value: object) -> str:
    """Return a short text for a value in a message; a URI is never shown, it may hold a password."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str) and "://" in value:
        return "a URI"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def spell(place: Place) -> str:
    """Return a place as people write it: ``transform[1].set.speed``; a name that looks like a URI is not shown."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{'…' if '://' in part else part}" for part in place)
    return "".join(parts).lstrip(".")
