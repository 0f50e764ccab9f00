"""What must not be told: the secrets that this process has met, taken out of any text that leaves it.

A secret is the password of a connection string, PGPASSWORD, or a variable whose name says so (PASSWORD, TOKEN, …).
`hide` is the net behind the messages, which are written without secrets in the first place: it catches what a driver,
a person's own Python step or a mistyped command puts into them.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from typing import TYPE_CHECKING, Any, Final, TextIO, cast
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HIDDEN: Final = "***"

MAX_SECRETS: Final = 64
"""How many are remembered; the oldest are forgotten in a process that reads more connection strings than that."""

_LONG, _SHORT, _VARIED = 12, 6, 4
_IN_A_URI = re.compile(r"(?<=://)([^\s/?@'\"<>]*?):(?!(?:\*\*\*|…)@)([^\s'\"<>]*)@")
_IN_A_QUERY = re.compile(r"(?i)(?<=[?&]password=)[^&\s'\"<>]+")
_IN_CONNINFO = re.compile(
    r"(?i)\b((?:pg)?(?:password|passwd|pwd)\s?=\s?)(?:'(?:[^'\\]|\\.|'')+'|(?=[^\s'\"]*\w)[^\s'\"&;,)]+)"
)
_TELLING = re.compile(r"(?i)pass|pwd|(?:^|_)pw(?:_|$)|secret|token|api_?key|access_?key|private_?key|credential|salt")


class _Known:
    """The secrets of this process, and the pattern that finds them in each form."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forms: dict[tuple[str, str], tuple[str, ...]] = {}
        self.pattern: re.Pattern[str] | None = None

    def add(self, secret: str, user: str) -> None:
        with self._lock:
            if (user, secret) in self._forms:
                return
            self._forms[user, secret] = tuple(forms(secret, user))
            while len(self._forms) > MAX_SECRETS:
                self._forms.pop(next(iter(self._forms)))
            self.pattern = re.compile("|".join(sorted({f for fs in self._forms.values() for f in fs}, key=_by_length)))


_known = _Known()


def _by_length(pattern: str) -> tuple[int, str]:
    return -len(pattern), pattern


def remember(secret: str, user: str = "") -> None:
    """Take `secret` out of every text that `hide` is given from now on, if it can be told from other text.

    One that could be an ordinary word or number (``postgres``, ``20131``) is not: a message with all such words
    blotted out is of no use, and the blots give the word away. It is hidden where a password stands, as any other is.

    Args:
        secret: as it is, not encoded.
        user: whose password it is, for the form ``user:password`` in base64.
    """
    if _stands_out(secret):
        _known.add(secret, user)


def _stands_out(secret: str) -> bool:
    kinds = {("letter" if c.isalpha() else "digit" if c.isdigit() else "other") for c in secret}
    varied = len(set(secret)) >= _VARIED
    return varied and (len(secret) >= _LONG or (len(secret) >= _SHORT and len(kinds) > 1))


def remember_words(words: Sequence[str]) -> None:
    """Remember the passwords of what looks like a URI among the words of a command, well-formed or not."""
    for word in words:
        _, separator, rest = word.partition("://")
        login, at, _ = rest.rpartition("@")
        user, colon, password = login.partition(":")
        if separator and at and colon:
            remember(password, unquote(user))
            remember(unquote(password), unquote(user))
        for found in _IN_A_QUERY.findall(word):
            remember(unquote(found))


def remember_variables(environ: Mapping[str, str]) -> None:
    """Remember what an environment holds: values of variables whose names tell a secret, and passwords in URIs."""
    for name, value in environ.items():
        if _TELLING.search(name) and "://" not in value and "/" not in value[:1]:
            remember(value)
    remember_words([value for value in environ.values() if "://" in value])


def hide(text: str) -> str:
    """Return `text` with each remembered secret, and whatever stands where a URI has its password, as ``***``.

    Finds a secret raw, percent-encoded, escaped as Python, JSON or SQL would, and in base64.
    """
    if _known.pattern is not None:
        text = _known.pattern.sub(HIDDEN, text)
    if "://" in text:
        text = _IN_A_URI.sub(rf"\1:{HIDDEN}@", text)
        text = _IN_A_QUERY.sub(HIDDEN, text)
    if "=" in text:
        text = _IN_CONNINFO.sub(rf"\1{HIDDEN}", text)
    return text


def hide_all(value: Any) -> Any:  # noqa: ANN401 - JSON of any shape
    """Return JSON-ready data with every text in it hidden; keys of mappings stay."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, dict):
        return {name: hide_all(item) for name, item in value.items()}
    return [hide_all(item) for item in value] if isinstance(value, list | tuple) else value


class Hiding:
    """A text stream that hides secrets in what is written to it; everything else is the stream's own.

    It is for pieces that hold a secret whole: a line, a table, a traceback's paragraph.
    """

    def __init__(self, stream: TextIO) -> None:
        """Take the stream to write to."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` without secrets; returns its length, as it was given."""
        self._stream.write(hide(text))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a stream has
        """Return the stream's own."""
        return getattr(self._stream, name)


def hiding(stream: TextIO) -> TextIO:
    """Return a `Hiding` stream as what it stands for."""
    return cast("TextIO", Hiding(stream))


def forms(secret: str, user: str = "") -> Iterator[str]:
    """Yield regular expressions for the ways in which a secret is written."""
    yield "".join(_character(character) for character in secret)
    for whole in (secret, f"{user}:{secret}"):
        data = whole.encode()
        for encoded in (base64.b64encode(data), base64.urlsafe_b64encode(data)):
            yield re.escape(encoded.decode().rstrip("=")) + "={0,2}"


def _character(character: str) -> str:
    escaped = "".join(f"%{byte:02X}" for byte in character.encode())
    written = {character, repr(character)[1:-1], json.dumps(character)[1:-1]}
    written.add(character.encode("unicode_escape").decode())
    if character in "'\"":
        written |= {character * 2, "\\" + character}
    if character == " ":
        written.add("+")
    longest_first = sorted(written, key=len, reverse=True)
    return f"(?:(?i:{escaped})|{'|'.join(re.escape(form) for form in longest_first)})"
