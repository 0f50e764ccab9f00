"""Conditions that PostgreSQL decides faster than a regular expression, and that are true for exactly the same texts.

The server builds a regular expression's automaton anew for every text, a state at a time: ``^order [0-9a-f]{32}`` took
5.3 µs of CPU a row, a LIKE 0.15 µs (5 million texts of 38 characters, PostgreSQL 18). So what LIKE can say, it says;
and where LIKE fixes the places of all characters, repeats that are counted become ``*``, which is one state.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal

from keyhaul.quoting import quote_text

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_TIMES: Final = 255
"""The greatest number in braces that PostgreSQL takes."""
LONGEST: Final = 1_000
"""Characters of a LIKE pattern; beyond, the regular expression is left alone."""
WORTH_COUNTING: Final = 4
"""Counted characters of classes from which on a pattern is taken apart; with fewer, it has too few states to gain."""

_MEMBER: Final = r"[a-z]-[a-z]|[A-Z]-[A-Z]|[0-9]-[0-9]|[A-Za-z0-9 _.,:;/@#%&+=!*$()?|<>'\"~`{}]"
_CLASS: Final = rf"\[\^?-?(?:{_MEMBER})+-?\]"
_PIECE: Final = re.compile(
    rf"(?:(?P<any>\.)|(?P<class>\\[dwsDWS]|{_CLASS})|\\(?P<escaped>[!-/:-@\[-`{{-~])|(?P<plain>[^\\^$.|?*+()\[\]{{}}]))"
    r"(?:(?P<sign>[*+?])|\{(?P<low>[0-9]{1,3})(?P<comma>,(?P<high>[0-9]{1,3})?)?\})?",
    re.DOTALL,
)
_RANGE: Final = re.compile(r"([A-Za-z0-9])-([A-Za-z0-9])")
_SIGNS: Final = {"": (1, 1), "*": (0, None), "+": (1, None), "?": (0, 1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One character of a pattern and how often it may stand there.

    Attributes:
        kind: a character itself, any character, or one of a class.
        text: the character, or the class as it is written.
        low, high: how often, both included; None is without end.
    """

    kind: Literal["text", "any", "class"]
    text: str
    low: int
    high: int | None

    def has(self, character: str) -> bool:
        """Return whether a class has a character; of a named class and one beyond ASCII, whether it may."""
        if self.text.startswith("\\"):
            return not character.isascii() or bool(re.match(self.text, character, re.ASCII))
        inside = self.text[1:-1].removeprefix("^")
        ranges = _RANGE.findall(inside)
        listed = character in _RANGE.sub("", inside) or any(first <= character <= last for first, last in ranges)
        return listed != self.text.startswith("[^")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A regular expression without alternatives and groups.

    Attributes:
        begins, ends: whether it holds at the beginning and at the end of the text, or anywhere.
    """

    pieces: tuple[Piece, ...]
    begins: bool
    ends: bool


def read(pattern: str) -> Pattern | None:
    """Return a PostgreSQL regular expression (ARE) in pieces, or None when it is more than pieces in a row."""
    begins = pattern.startswith("^")
    # `\$` is a character; an even number of backslashes before a `$` stand for themselves.
    ends = bool(re.search(r"(?<!\\)(?:\\\\)*\$\Z", pattern))
    rest = pattern[begins : len(pattern) - ends]
    pieces: list[Piece] = []
    while rest:
        found = _PIECE.match(rest)
        piece = _piece(found) if found else None
        if found is None or piece is None:
            return None
        pieces.append(piece)
        rest = rest[found.end() :]
    return Pattern(pieces=tuple(pieces), begins=begins, ends=ends)


def _piece(found: re.Match[str]) -> Piece | None:
    low, high = _SIGNS[found["sign"] or ""]
    if found["low"] is not None:
        low = int(found["low"])
        high = low if found["comma"] is None else int(found["high"]) if found["high"] else None
    if max(low, high or 0) > MOST_TIMES or (high is not None and high < low):
        return None  # the server says what is wrong
    if found["class"]:
        wrong = any(first > last for first, last in _RANGE.findall(found["class"]))
        return None if wrong else Piece(kind="class", text=found["class"], low=low, high=high)
    text = found["escaped"] or found["plain"] or ""
    return Piece(kind="any" if found["any"] else "text", text=text, low=low, high=high)


def unmatched(column: str, pattern: str) -> str:
    """Return the condition that is true for a text in which `pattern` is nowhere, and NULL for NULL.

    Args:
        column: SQL of type text or varchar, whose collation regular expressions work with.
        pattern: of PostgreSQL (ARE).
    """
    like = as_like(pattern)
    if like is not None:
        return f"{by_bytes(column)} not like {quote_text(like)}"
    found = read(pattern)
    counted = found and _counted(column, found)
    return f"not ({counted or f'{column} ~ {quote_text(pattern)}'})"


def as_like(pattern: str) -> str | None:
    """Return a LIKE pattern that holds for the same texts as a regular expression, or None."""
    found = read(pattern)
    return None if found is None else _like(found)


def by_bytes(column: str) -> str:
    """Return a text under a collation that compares bytes, and that LIKE takes whatever the column's is."""
    return f'{column}::text collate "C"'


def _like(pattern: Pattern) -> str | None:
    """Return a LIKE pattern for the same texts, or None."""
    parts = []
    for piece in pattern.pieces:
        once = re.sub(r"([\\%_])", r"\\\1", piece.text) if piece.kind == "text" else "_"
        endless = piece.kind == "any" and piece.high is None
        if piece.kind == "class" or not (endless or piece.low == piece.high):
            return None
        parts.append(once * piece.low + "%" * endless)
    whole = "%" * (not pattern.begins) + "".join(parts) + "%" * (not pattern.ends)
    return whole if len(whole) <= LONGEST else None


def _counted(column: str, pattern: Pattern) -> str | None:
    r"""Return a condition for the same texts in which no repeat is counted, or None where nothing is gained.

    LIKE fixes the length and where the characters stand that are written out. What stands before the first class and
    after the last is at a known distance from an end of the text, so that with one class nothing is left to decide.
    With several, the characters between them must be in no class: then the expression can only find them where LIKE
    has found as many. One class alone may vary in length, within limits.
    """
    pieces = _joined(pattern)
    classes = [place for place, piece in enumerate(pieces) if piece.kind == "class"]
    varying = [place for place in classes if pieces[place].low != pieces[place].high]
    if (
        not pattern.begins
        or not classes
        or any(piece.kind == "any" or (piece.kind == "text" and piece.low != piece.high) for piece in pieces)
        or sum(pieces[place].low for place in classes) < WORTH_COUNTING
        or (varying and (len(classes) > 1 or not pattern.ends))
        or not _told_apart(pieces, classes)
    ):
        return None
    fixed = tuple(replace(piece, kind="any", high=None if place in varying else piece.low) if piece.kind == "class"
                  else piece for place, piece in enumerate(pieces))  # fmt: skip
    like = _like(replace(pattern, pieces=fixed))
    if like is None:
        return None
    known = sum(piece.low for piece in pieces[: classes[0]])
    length = sum(piece.low for piece in pieces[classes[0] :])
    text = f"substr({column}, {known + 1}" + ("" if pattern.ends else f", {length}") + ")"
    text = column if pattern.ends and not known else text
    starred = "".join(f"{p.text}*" if p.kind == "class" else re.escape(p.text) * p.low for p in pieces[classes[0] :])
    parts = [f"{by_bytes(column)} like {quote_text(like)}", f"{text} ~ {quote_text(f'^{starred}$')}"]
    if varying and pieces[varying[0]].high is not None:
        most = sum(piece.high or 0 for piece in pieces)
        parts.insert(1, f"(octet_length({column}) <= {most} or length({column}) <= {most})")
    return " and ".join(parts)


def _joined(pattern: Pattern) -> list[Piece]:
    """Return the pieces, neighbours of one class as one piece; without the end, a last class has its least length."""
    pieces: list[Piece] = []
    for piece in pattern.pieces:
        if piece.high == 0:
            continue  # it stands nowhere, and keeps nothing apart
        before = pieces[-1] if pieces else None
        if before and piece.kind == before.kind == "class" and piece.text == before.text:
            high = None if piece.high is None or before.high is None else piece.high + before.high
            pieces[-1] = replace(before, low=before.low + piece.low, high=high)
        else:
            pieces.append(piece)
    if pieces and pieces[-1].kind == "class" and not pattern.ends:
        pieces[-1] = replace(pieces[-1], high=pieces[-1].low)
    return pieces


def _told_apart(pieces: Sequence[Piece], classes: Sequence[int]) -> bool:
    between = [piece for piece in pieces[classes[0] : classes[-1] + 1] if piece.kind == "text"]
    neighbours = any(after - before == 1 for before, after in pairwise(classes))
    return not neighbours and not any(pieces[place].has(piece.text) for place in classes for piece in between)
