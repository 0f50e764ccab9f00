"""What the five letters of a target's error mean for a chunk: whose fault it is, and whether another try can help.

docs/guarantees.md has this list; a test keeps the two equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

Whose = Literal["again", "row", "perhaps", "server", "statement"]

DOES: Final[dict[Whose, str]] = {
    "again": "the chunk is tried again, `retries` times, after a look in the ledger; then the same command does",
    "row": "the guilty records are isolated and quarantined, the others load",
    "perhaps": "as a row's; when all records of a chunk fail with it, it fails, and no try helps before that is mended",
    "server": "the chunk fails and is open: the same command loads it when the server has room or is well again",
    "statement": "it fails, and no try helps before that is mended; inside a function it may be a row's",
}
"""What is done, by whose the error is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """Some SQLSTATEs that mean the same.

    Attributes:
        states: whole ones, or classes of two letters; a whole one counts before its class.
        what: in a few words.
    """

    states: tuple[str, ...]
    whose: Whose
    what: str


MEANINGS: Final = (
    Meaning(states=("08",), whose="again", what="the connection is lost"),
    Meaning(states=("57P01", "57P02", "57P03"), whose="again", what="the server shuts down, crashed or starts"),
    Meaning(states=("25P03", "25P04", "57P05"), whose="again", what="the server ended a session that was idle or slow"),
    Meaning(states=("40",), whose="again", what="serialisation, deadlock"),
    Meaning(states=("53300",), whose="again", what="too many connections"),
    Meaning(states=("55P03",), whose="again", what="a lock was not to be had in time"),
    Meaning(states=("25006",), whose="again", what="the server is read-only (a failover)"),
    Meaning(states=("22",), whose="row", what="a value: out of range, no equivalent in the encoding, invalid text"),
    Meaning(states=("23", "40002"), whose="row", what="a constraint"),
    Meaning(states=("44",), whose="row", what="a view's check option"),
    Meaning(states=("54",), whose="row", what="a limit: an index row too long, a stack too deep"),
    Meaning(states=("P0",), whose="row", what="raised in PL/pgSQL"),
    Meaning(states=("42501",), whose="perhaps", what="a right that is missing, of ours or of a function"),
    Meaning(states=("09", "20", "21", "27", "2F", "38", "39"), whose="perhaps", what="a trigger or function"),
    Meaning(states=("0A", "55"), whose="perhaps", what="not supported, or an object in another state"),
    Meaning(states=("HV",), whose="perhaps", what="a foreign table"),
    Meaning(states=("XX000",), whose="perhaps", what="an error without a name, as extensions raise for a value"),
    Meaning(states=("53", "58", "F0", "XX"), whose="server", what="disk, memory, files, corruption"),
    Meaning(states=("57",), whose="server", what="cancelled: by `statement_timeout_seconds` or by a person"),
    Meaning(states=("42",), whose="statement", what="a table, column or function that is gone or of another kind"),
    Meaning(states=("0B", "24", "25", "26", "2B", "2D", "34", "3B"), whose="statement", what="the transaction's state"),
    Meaning(states=("28", "3D", "3F"), whose="statement", what="the login, database or schema"),
)
"""Every class that PostgreSQL itself has for what a load can meet; any other is a trigger's own, and so a row's."""

OF_ITS_OWN: Final = "any other class"


def whose(state: str) -> Whose:
    """Return whose error a SQLSTATE tells; one that PostgreSQL does not know was raised for a row by a trigger."""
    for length in (5, 2):
        for meaning in MEANINGS:
            if state[:length] in meaning.states:
                return meaning.whose
    return "row"


def not_of_rows() -> Iterator[str]:
    """Yield the states and classes that end the search for guilty records, as patterns of LIKE."""
    for meaning in MEANINGS:
        if meaning.whose in {"again", "server"}:
            yield from (f"{state}%" for state in meaning.states)


def table() -> str:
    """Return the list as a Markdown table."""
    head = "| SQLSTATE | what | what keyhaul does |\n|---|---|---|\n"
    lines = [f"| {', '.join(one.states)} | {one.what} | {DOES[one.whose]} |\n" for one in MEANINGS]
    return head + "".join(lines) + f"| {OF_ITS_OWN} | a trigger's own | {DOES['row']} |\n"
