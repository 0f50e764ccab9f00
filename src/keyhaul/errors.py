"""What can go wrong, as one tree under `EtlError`.

Every message has the form ``<verb> <object>: <got>, expected <x>. <what to do>``. No message
holds a password or a row's value. The driver's own error is attached with ``raise … from``.
"""

from __future__ import annotations

import re
from typing import Final

DIVISION_BY_ZERO: Final = "division by zero"
NUMERIC_OVERFLOW: Final = "value overflows numeric format"
FIELD_OVERFLOW: Final = "numeric field overflow"
INTEGER_RANGE: Final = "integer out of range"
FLOAT_RANGE: Final = "double precision out of range"
REFUSALS: Final = (DIVISION_BY_ZERO, NUMERIC_OVERFLOW, FIELD_OVERFLOW, INTEGER_RANGE, FLOAT_RANGE)
"""What an expression of ours may refuse a value with, in PostgreSQL's words."""
"""What the message of such an error contains, whoever raises it."""

HOPELESS: Final = "No further try helps before that is mended"
"""What the message of an error ends with that the same command would meet again."""


class EtlError(Exception):
    """The root of every error that keyhaul raises on purpose; its text is for a person."""


class ConfigError(EtlError):
    """The command, job file, environment or database does not fit; nothing was moved."""


class ConnectError(ConfigError):
    """A database cannot be reached or refuses the login."""


class RefusedError(ConfigError):
    """The job is understood and must not run as it stands (a column, a mode, a lock)."""


class ChunkError(EtlError):
    """One chunk could not be moved; the others are not concerned."""


class RejectedError(ChunkError):
    """The target does not take a row: a constraint, an overflow, a trigger's exception.

    Attributes:
        sqlstate: the server's five letters.
        constraint, column: named by the server, or empty.
    """

    def __init__(self, message: str, *, sqlstate: str = "", constraint: str = "", column: str = "") -> None:
        """Keep what the server said beside its message."""
        super().__init__(message)
        self.sqlstate = sqlstate
        self.constraint = constraint
        self.column = column


class TransientError(ChunkError):
    """A lost connection, a deadlock, a restarting server: worth another try, after a look in the ledger."""


class CancelledError(ChunkError):
    """A chunk, or what comes after the last one, was given up because the run was told to stop at once."""


class StaleChunkError(ChunkError):
    """Of a merged chunk somebody else has loaded a part: what is left of it can be moved; nothing was."""


class StopRunError(EtlError):
    """The run must stop now (a rule with ``on_fail: stop``, a lost snapshot); it can be resumed."""


_ABOUT_A_VALUE = re.compile(r"invalid input|out of range|malformed|invalid byte|invalid value|too long")


def without_values(text: str) -> str:
    """Return a server's primary message without the row value that it quotes; names of columns stay."""
    return re.sub(r'".*"', '"…"', text) if _ABOUT_A_VALUE.search(text) else text


_NUMBERS = re.compile(r"(?<=value )-?\d\S*|(\()-?\d\S*+( [-+*/%] \S+(?=\)))?")


def first_line(error: BaseException) -> str:
    """Return what a driver's error says, in one line: of a server's its primary message, without DETAIL and CONTEXT.

    A connection's error has no such message, nor have other drivers' errors: the first line of their text.
    """
    primary = getattr(getattr(error, "diag", None), "message_primary", None)
    return str(primary or error).strip().split("\n", 1)[0]


def safe_message(error: BaseException) -> str:
    """Return the first line of a driver's message without the row values that it may quote."""
    line = first_line(error)
    lowered = line.lower()
    for refusal in REFUSALS:
        if refusal in lowered:
            return refusal
    if "from `i128` to `i64` failed" in line:
        return "bigint out of range"
    # In time proportional to the length: no bracket before the last closing one is without its own, and a number
    # after a parenthesis is taken to its end also where no operation follows.
    lists, closing, rest = line.rpartition("]")
    line = re.sub(r"\[[^\]]*\]", "[…]", lists + closing) + rest
    line = _NUMBERS.sub(lambda found: "…" if found[1] is None else "(…" if found[2] else found[0], line)
    return re.sub(r"(\"[^\"]*\"|'[^']*'(?= to value|: ))", "…", line)[:300]
